"""Nodes that are killed under load."""

from __future__ import annotations

import random

from .load import History, Load
from .processes import Server

SMALL_SEGMENTS = {"wal.segment_size": '"64KiB"'}


def kill_in_a_loop(server: Server, rounds: int, rng: random.Random) -> History:
    """Load, kill, start and check a node, `rounds` times on one data directory."""
    history = History()
    for _ in range(rounds):
        server.start()
        with server.client() as client:
            history.check(client)
            load = Load(client, history).start()
            load.wait_acks(rng.choice([0, 1, 5, 50, rng.randint(0, 600)]))
            server.kill()
            load.join()
    server.start()
    with server.client() as client:
        history.check(client)
    return history
