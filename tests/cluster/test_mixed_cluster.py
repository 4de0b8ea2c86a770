"""Members on different engines in one cluster, under load, killed, and behind the log; and more data than an engine's
cache holds."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from support import messages as m
from support.client import Client
from support.cluster import EAGER, Cluster, Member, cut_behind, installed
from support.load import History, Load
from support.newcomers import ROCKSDB, newcomer_of_a_leader_on_rocksdb
from support.processes import Server, dies_at

pytestmark = pytest.mark.node_only

MakeCluster = Callable[..., Cluster]
# The settings that each of three members has of its own: engines, and codecs for what it writes.
KINDS = [
    {"maintenance.snapshot_compression_codec": '"zstd"'},
    {"maintenance.enable_snapshot_compression": "false"},
    {**ROCKSDB, "maintenance.snapshot_compression_codec": '"snappy"'},
]


def mixed(cluster_of: MakeCluster, **settings: str) -> Cluster:
    """Return a started cluster with two members in memory and one on RocksDB."""
    cluster = cluster_of(3, settings={**EAGER, **settings})
    for member, own in zip(cluster.members, KINDS, strict=True):
        member.settings.update(own)
    return cluster.start()


def overwrite(member: Member, count: int) -> None:
    """Put one key after the other, an entry each."""
    with member.client() as client:
        for number in range(count):
            client.put(b"key/%03d" % (number % 150), b"value %d " % number * 30)


def test_mixed_engines_under_load_and_kills(cluster_of: MakeCluster) -> None:
    """Each member is killed. On each engine one that was left behind is brought up by a snapshot, and each engine
    leads."""
    cluster = mixed(cluster_of)
    memory, other, rocks = cluster.members
    history = History()
    cluster.lead(memory)
    for victim in (rocks, other):
        with memory.client() as client:
            load = Load(client, history, expect_end=False).start()
            load.wait_acks(50)
            cut_behind(memory, victim, lambda: overwrite(memory, 100))
            load.wait_acks(150)
            load.stop()
        victim.start()
        cluster.same_history()
        assert len(installed(victim)) == 1, victim.running().log
    cluster.lead(rocks)
    with rocks.client() as client:
        load = Load(client, history).start()
        load.wait_acks(200)
        client.compact(client.revision() - 50)
        load.wait_acks(300)
        rocks.kill()
        load.join()
    rocks.start()
    for member in cluster.members:
        with member.client() as client:
            history.check(client)
    cluster.same_history()


@pytest.mark.parametrize("point", ["snapshot.restore@4", "snapshot.seal", "snapshot.adopt"])
def test_rocksdb_killed_while_it_installs(point: str, cluster_of: MakeCluster) -> None:
    """The kill comes while the state beside the old one is written, when it is complete, and when it is about to take
    its place."""
    cluster = mixed(cluster_of)
    leader, _, rocks = cluster.members
    cluster.lead(leader)
    overwrite(leader, 60)
    cut_behind(leader, rocks, lambda: overwrite(leader, 100))
    dies_at(rocks, point)
    rocks.start()
    cluster.same_history()
    overwrite(rocks, 30)
    rocks.kill()
    rocks.start()
    cluster.same_history()


SMALL = {
    "storage.engine": '"rocksdb"',
    "storage.rocksdb.cache_size": '"1MiB"',
    "storage.rocksdb.write_buffer_size": '"512KiB"',
    "storage.rocksdb.max_write_buffers": "2",
    "storage.rocksdb.recent_keys_size": '"0B"',
    "raft.max_tail_bytes": '"256KiB"',
    "maintenance.snapshot_count": "50",
    "maintenance.snapshot_min_size": '"1MiB"',
    "wal.segment_size": '"1MiB"',
}


def value_of(number: int) -> bytes:
    return random.Random(number).randbytes(4000)


def put_many(client: Client, first: int, last: int) -> None:
    """Put some at a time, so our own memory stays small too."""
    for start in range(first, last, 200):
        numbers = range(start, min(start + 200, last))
        puts = [client.future(m.PutRequest(key=b"k%06d" % n, value=value_of(n)), 60) for n in numbers]
        for put in puts:
            put.result()


def test_more_data_than_the_cache_holds(fresh: Callable[..., Server]) -> None:
    """The data is ten times the cache and buffers. All of it is served, also after a kill, in little memory."""
    count = 9000
    node = fresh(settings=SMALL).start()
    chance = random.Random(1)

    def check(client: Client) -> None:
        assert client.range(b"k", b"l", count_only=True).count == count
        for number in chance.sample(range(count), 300):
            assert client.get(b"k%06d" % number) == value_of(number)

    with node.client(timeout=60) as client:
        put_many(client, 0, 500)
        before = node.running().rss()
        put_many(client, 500, count)
        check(client)
        for number in range(0, 500, 2):
            client.delete(b"k%06d" % number)
            client.put(b"k%06d" % number, value_of(number))
        revision = client.revision()
        hashed = client.hash_kv(revision).hash
        grown = node.running().rss() - before
    assert grown < count * 4000 / 2, f"{grown >> 20} MiB more for {count * 4000 >> 20} MiB of data"
    node.kill()
    node.start()
    with node.client(timeout=60) as client:
        check(client)
        assert client.hash_kv(revision).hash == hashed


def test_a_newcomer_gets_the_snapshot_of_a_leader_on_rocksdb(cluster_of: MakeCluster) -> None:
    newcomer_of_a_leader_on_rocksdb("memory", cluster_of)
