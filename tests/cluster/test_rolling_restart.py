"""A cluster is restarted member by member, and no client that writes through it sees an error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.cluster import Cluster
from support.rolling import Writers, restart_all

pytestmark = pytest.mark.node_only


def test_writers_through_all_members_see_no_error_in_a_rolling_restart(cluster_of: Callable[..., Cluster]) -> None:
    # A stop may take long on a shared machine; this test is not about that time.
    cluster = cluster_of(settings={"limits.drain_timeout": '"5s"'}).start()
    with Writers(cluster) as writers:
        for leader_last in (True, False):
            restart_all(cluster, writers, leader_last=leader_last)
    outcome = writers.outcome
    assert not outcome.errors, outcome.errors
    print(f"longest gap {outcome.longest:.2f} s in {outcome.acked} puts")  # bench/rolling.py measures it
    cluster.same_history()
