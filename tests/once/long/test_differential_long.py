"""The same random calls to a real etcd and to a node, for hours."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from support.episodes import run_episode
from support.processes import Server

LONG_CALLS = 600
LONG_EPISODES = 10_000
Make = Callable[..., Server]


def test_random_calls_for_hours(fresh: Make, fresh_etcd: Make) -> None:
    base = secrets.randbits(32)
    print(f"seeds {base} and on")
    for number in range(LONG_EPISODES):
        run_episode(base + number, LONG_CALLS, fresh, fresh_etcd, restart=number % 10 == 0)
