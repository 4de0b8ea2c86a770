"""Clusters of different engines: snapshots from one to the other, and stalls; more in test_mixed_cluster.py."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import messages as m
from support.cluster import EAGER, Cluster, fill, installed, left_behind
from support.load import History, Load
from support.processes import wait_until

pytestmark = pytest.mark.node_only

ROCKS = {"storage.engine": '"rocksdb"'}
NARROW = {
    "storage.rocksdb.write_buffer_size": '"64KiB"',
    "storage.rocksdb.max_write_buffers": "2",
    "storage.rocksdb.level0_files": "1",
    "storage.rocksdb.level0_stop": "2",
}
Make = Callable[..., Cluster]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make clusters of members with these engines' settings. They are killed at the end of the test."""
    clusters: list[Cluster] = []

    def make(*engines: dict[str, str], **settings: str) -> Cluster:
        cluster = Cluster(tmp_path / f"cluster-{len(clusters)}", len(engines), settings={**EAGER, **settings})
        clusters.append(cluster)
        for member, engine in zip(cluster.members, engines, strict=True):
            member.settings = {**member.settings, **engine}
        return cluster.start()

    yield make
    for cluster in clusters:
        cluster.discard()


@pytest.mark.parametrize("sender", ["memory", "rocksdb"])
def test_snapshots_between_different_engines(sender: str, make: Make) -> None:
    one, two = ({}, ROCKS) if sender == "memory" else (ROCKS, {})
    cluster = make(one, one, two)
    follower = cluster.members[2]
    cluster.lead(cluster.members[0])
    left_behind(cluster, follower, 300)
    follower.start()
    wait_until(lambda: len(installed(follower)) >= 1, timeout=30, what="an installed snapshot")
    fill(follower, 300, 320)
    cluster.same_history()
    follower.kill()
    follower.start()
    cluster.same_history()
    with follower.client() as client:
        assert len(client.prefix(b"k")) == 320


def test_engines_that_stall_under_load_depose_nobody(make: Make) -> None:
    """The RocksDB of these members refuses all the time, also the leader's. There is no election, and nothing is
    lost."""
    narrow = {**ROCKS, **NARROW}
    cluster = make(narrow, {}, narrow, **{"maintenance.snapshot_count": "1000"})
    cluster.lead(cluster.members[0])
    history = History()
    rng = random.Random(1)
    values = [rng.randbytes(30_000) for _ in range(20)]
    with cluster.leader().client(timeout=60) as client:
        term = client.status().raftTerm
        load = Load(client, history, expect_end=False).start()
        calls = [client.future(m.PutRequest(key=b"big%03d" % n, value=values[n % 20]), timeout=60) for n in range(200)]
        for call in calls:
            call.result()
        load.wait_acks(50)
        load.stop()
        history.check(client)
        assert client.status().raftTerm == term, "a stall cost the leader its office"
    assert not load.failures
    cluster.same_history()
