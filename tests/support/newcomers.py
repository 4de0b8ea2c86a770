"""A newcomer that gets the snapshot of a leader on RocksDB."""

from __future__ import annotations

from collections.abc import Callable

from . import messages as m
from .cluster import EAGER, Cluster, Member, installed
from .processes import wait_until

MakeCluster = Callable[..., Cluster]

ROCKSDB = {"storage.engine": '"rocksdb"', "storage.rocksdb.write_buffer_size": '"64KiB"'}


def newcomer_of_a_leader_on_rocksdb(engine: str, cluster_of: MakeCluster) -> None:
    """Check that the snapshot is written for the newcomer, because an engine with files keeps none for itself."""
    cluster = cluster_of(1, settings={**EAGER, **ROCKSDB, "raft.batch_max_size": "1"})
    (leader,) = cluster.start().members
    tail = 5000  # entries that stay in the log for slow followers (metastore/snapshots/coordinator.py, CATCH_UP)
    with leader.client(timeout=60) as client:
        puts = [client.future(m.PutRequest(key=b"k%05d" % n, value=b"%d" % n * 20), 60) for n in range(tail + 1500)]
        for put in puts:
            put.result()
        wait_until(lambda: first_segment(leader) > 1, 20, "a log that begins later")
    newcomer = cluster.new_member()
    newcomer.existing = True
    newcomer.initial = {member.name: member.advertised for member in cluster.members}
    newcomer.settings = {**EAGER, **(ROCKSDB if engine == "rocksdb" else {})}
    with leader.client() as client:
        client.call(m.MemberAddRequest(peerURLs=[f"http://{newcomer.advertised}"]))
    newcomer.start()
    wait_until(lambda: len(installed(newcomer)), 20, "a snapshot that is installed")
    cluster.same_everywhere(30)
    newcomer.kill()
    newcomer.start()
    cluster.same_everywhere(30)
    with leader.client() as one, newcomer.client() as two:
        assert two.range(b"k", b"l", count_only=True, serializable=True).count == tail + 1500
        revision = one.revision()
        assert one.hash_kv(revision).hash == two.hash_kv(revision).hash


def first_segment(member: Member) -> int:
    """Return the number of the oldest segment of the log."""
    return min((int(path.name[:8], 16) for path in member.data_dir.glob("wal/*.wal")), default=0)
