"""Rounds of faults in a cluster with clients, whose histories are then checked."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

from .client import Failure
from .cluster import Cluster, clients_of, time_to_write
from .faults import Clients, Faults
from .linear import FAILED, OK, UNKNOWN, check_all
from .processes import wait_until
from .proxy import Network

SETTINGS = {
    "raft.tick_interval": '"50ms"',
    "limits.request_timeout": '"700ms"',
    "wal.segment_size": '"1MiB"',
    "maintenance.snapshot_count": "500",
    "maintenance.snapshot_min_size": '"0B"',
}


def read_everywhere(cluster: Cluster, prefix: bytes) -> None:
    """Check that every member serves, and that all hold the same keys and the same history of these keys."""
    with clients_of(cluster.members) as clients:
        for number, client in enumerate(clients):
            time_to_write(client, b"after/" + prefix + b"%d" % number)
        cluster.same_everywhere()
        revision = clients[0].revision()
        hashes = [(one.hash, one.compact_revision) for one in (client.hash_kv(revision) for client in clients)]
    assert len(set(hashes)) == 1, hashes


def made_of(folder: Path, own: Sequence[Mapping[str, str]], settings: dict[str, str], network: Network) -> Cluster:
    """Return a cluster whose members have settings of their own. It is not started."""
    cluster = Cluster(folder, len(own), settings=settings, via=network.via)
    for member, more in zip(cluster.members, own, strict=True):
        member.settings.update(more)
    return cluster


def run_rounds(
    folder: Path, rounds: int, seed: int, own: Sequence[Mapping[str, str]] = ({}, {}, {}), **settings: str
) -> None:
    """Cause one fault a round, with clients before, during and after it; then check every history. `own` has settings
    of each of the three members, which go before those of all members."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    kinds: list[int] = []
    with Network() as network, made_of(folder, own, {**SETTINGS, **settings}, network) as cluster:
        faults = Faults(cluster, network, rng)
        if "maintenance.snapshot_chunk_size" in settings:
            faults.kinds += [faults.leave_behind] * 3
        for number in range(rounds):
            if not kinds:
                kinds = rng.sample(range(len(faults.kinds)), len(faults.kinds))
            kind = cast("Callable[[], AbstractContextManager[None]]", faults.kinds[kinds.pop()])
            prefix = b"round-%d/" % number
            clients = Clients(cluster.members, prefix, rng.getrandbits(32)).start()
            try:
                faults.wait(0.2, 0.5)
                with kind():
                    faults.wait(0.3, 2.5)
                faults.wait(0.2, 0.8)
                wait_until(lambda clients=clients: clients.done > 20, 60, "clients that get somewhere")
            finally:
                history = clients.stop()
            undecided = check_all(history)
            counts = {status: sum(one.status == status for one in history) for status in (OK, FAILED, UNKNOWN)}
            print(f"round {number}: {kind.__name__}, {counts}, undecided: {undecided}")
            for member in cluster.members:
                member.await_ready()
            read_everywhere(cluster, prefix)
            cluster.check_logs()
            if rng.random() < 0.3:
                # Revisions before the last compaction are gone.
                with cluster.leader().client() as client, contextlib.suppress(Failure):
                    client.compact(client.revision() - rng.randint(0, 100))
        installed = sum(member.logs.count("installed snapshot index=") for member in cluster.members)
        print(f"{installed} snapshots installed")
