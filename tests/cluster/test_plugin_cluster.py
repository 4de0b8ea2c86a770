"""A cluster whose members are on different engines, two of which are plug-ins from examples/."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support import messages as m
from support.cluster import EAGER, Cluster, Member, cut_behind, error_of, installed
from support.examples import EXAMPLES, install_examples
from support.processes import wait_until

pytestmark = pytest.mark.node_only

MakeCluster = Callable[..., Cluster]
KEYS = {"limits.max_key_bytes": '"496B"'}  # the same on all members


def overwrite(member: Member, count: int) -> None:
    """Put some keys, an entry each, and delete one. The bytes cannot be compressed, so a leader soon has no old entries
    in memory any more."""
    with member.client() as client:
        puts = [
            client.future(m.PutRequest(key=b"key/%03d" % (number % 150), value=random.randbytes(1200)), 30)
            for number in range(count)
        ]
        for put in puts:
            put.result()
        client.delete(b"key/%03d" % (count // 2))


def test_plug_ins_in_one_cluster_with_our_engines(cluster_of: MakeCluster, tmp_path: Path) -> None:
    """Snapshots go from memory to LMDB, from LMDB to SQLite and from SQLite to memory, for members that were killed.
    All hashes are equal. Then each member changes its engine."""
    cluster = cluster_of(3, settings={**EAGER, **KEYS, "raft.batch_max_size": "1"})
    for member, own in zip(cluster.members, ({}, EXAMPLES["lmdb"], EXAMPLES["sqlite"]), strict=True):
        member.settings.update(own)
        member.env.update(install_examples(tmp_path / member.name))
    memory, lmdb, sqlite = cluster.start().members
    for leader, behind in ((memory, lmdb), (lmdb, sqlite), (sqlite, memory)):
        cluster.lead(leader)
        overwrite(leader, 40)
        cut_behind(leader, behind, lambda leader=leader: overwrite(leader, 80))  # type: ignore[misc]
        behind.start()
        cluster.same_history()
        wait_until(lambda behind=behind: len(installed(behind)) == 1, what="a snapshot that is installed")
        with leader.client() as client:
            client.compact(client.revision() - 20)
    check_long_keys(cluster)
    change_engines(cluster)


def check_long_keys(cluster: Cluster) -> None:
    """LMDB's limit is one of admission, so no member stops at a key that is too long for it."""
    with cluster.members[0].client() as client:
        client.put(b"k" * 496, b"fits")
        assert error_of(client, m.PutRequest(key=b"k" * 497, value=b"x")) is not None
        client.delete(b"k" * 496)
    cluster.same_history()


def change_engines(cluster: Cluster) -> None:
    """Start each member on another engine than before, one after the other."""
    memory, lmdb, sqlite = cluster.members
    for member, own in (
        (memory, EXAMPLES["lmdb"]),
        (lmdb, EXAMPLES["sqlite"]),
        (sqlite, {"storage.engine": '"memory"'}),
    ):
        assert member.stop() == 0
        member.settings.update(own)
        member.start()
        cluster.same_history()
        overwrite(member, 30)
    cluster.same_history()
    assert not any(re.search("Traceback", member.logs) for member in cluster.members)


def test_members_with_different_limits_of_keys(cluster_of: MakeCluster, tmp_path: Path) -> None:
    """What the greeting says binds all members. A key that got into the log before stops the member that cannot hold
    it, with a sentence, and the data of the others is not touched."""
    cluster = cluster_of(3)
    first, second, lmdb = cluster.members
    lmdb.settings.update(EXAMPLES["lmdb"])
    lmdb.env.update(install_examples(tmp_path / "lmdb"))
    cluster.start()
    for member in cluster.members:
        with member.client() as client:
            wait_until(
                lambda client=client: error_of(client, m.PutRequest(key=b"k" * 497, value=b"x")) is not None,  # type: ignore[misc]
                what="a limit that all members know",
            )
            client.put(b"k" * 496, b"fits")
    # Members that have never heard of the limit: both begin again, without the one that has it.
    for member in cluster.members:
        member.kill()
    first.launch()
    second.launch()
    for member in (first, second):
        member.await_ready()
    with first.client() as client:
        client.put(b"k" * 600, b"too long for one member")
    lmdb.launch()
    code, text = lmdb.wait()
    assert code == 13 and re.search(r"storage engine 'lmdb': write\(\) failed: .*MDB_BAD_VALSIZE", text), text
    with first.client() as one, second.client() as other:
        assert one.get(b"k" * 600) == other.get(b"k" * 600) == b"too long for one member"
