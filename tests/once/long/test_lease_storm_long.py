"""100,000 leases end within a second, with each engine, on one member and on three."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import leasestorm
from support.cluster import Cluster
from support.processes import Server

pytestmark = pytest.mark.node_only


def check(storm: leasestorm.Storm) -> None:
    print(storm.summary)
    assert storm.slow_turns == 0 and storm.terms == 0, storm.summary
    assert storm.told < 5, storm.summary
    assert storm.meanwhile <= 2 * storm.before, storm.summary


@pytest.mark.parametrize("engine", ["memory", "rocksdb"])
def test_100000_leases_end_at_once(fresh: Callable[..., Server], engine: str) -> None:
    server = fresh(settings={"storage.engine": f'"{engine}"'}).start()
    check(leasestorm.run([server], 100_000, 60, rate=2000))


@pytest.mark.parametrize("engine", ["memory", "rocksdb"])
def test_100000_leases_end_at_once_on_three(cluster_of: Callable[..., Cluster], engine: str) -> None:
    cluster = cluster_of(settings={"storage.engine": f'"{engine}"'}).start()
    check(leasestorm.run([cluster.leader(), *cluster.followers()], 100_000, 90, rate=2000))
