"""Members on the same engine as their leader; test_mixed_cluster.py has those on another one."""

from __future__ import annotations

import pytest
from support.newcomers import MakeCluster, newcomer_of_a_leader_on_rocksdb

pytestmark = pytest.mark.node_only


def test_a_newcomer_gets_the_snapshot_of_a_leader_on_rocksdb(cluster_of: MakeCluster) -> None:
    newcomer_of_a_leader_on_rocksdb("rocksdb", cluster_of)
