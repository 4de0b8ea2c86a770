"""A cluster that is restarted member by member: nobody who writes through it sees an error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.cluster import Cluster
from support.rolling import Writers, restart_all

pytestmark = pytest.mark.node_only


def test_writers_through_all_members_see_no_error_in_a_rolling_restart(cluster_of: Callable[..., Cluster]) -> None:
    # A stop may take its time on a machine that is shared; how long it takes is not what this is about.
    cluster = cluster_of(settings={"limits.drain_timeout": '"5s"'}).start()
    with Writers(cluster) as writers:
        for leader_last in (True, False):
            restart_all(cluster, writers, leader_last=leader_last)
    outcome = writers.outcome
    assert not outcome.errors, outcome.errors
    print(f"longest gap {outcome.longest:.2f} s in {outcome.acked} puts")  # bench/rolling.py measures it
    cluster.same_history()
