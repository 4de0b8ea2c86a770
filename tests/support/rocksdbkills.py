"""Nodes on RocksDB that are killed at a failpoint."""

from __future__ import annotations

import signal
from collections.abc import Callable

import grpc

from . import messages as m
from .load import History, goes_on, write_until_end
from .processes import Server, StartError, metric, wait_until

Make = Callable[..., Server]
SMALL = {
    "storage.engine": '"rocksdb"',
    "storage.rocksdb.write_buffer_size": '"64KiB"',
    "maintenance.snapshot_count": "50",
    "maintenance.snapshot_min_size": '"1KiB"',
    "wal.segment_size": '"64KiB"',
    "raft.max_tail_bytes": '"64KiB"',
}


def segments(node: Server) -> list[int]:
    return sorted(int(path.name[:8], 16) for path in node.data_dir.glob("wal/*.wal"))


def killed_at(point: str, fresh: Make) -> None:
    """A node under load dies at a failpoint, and goes on from there twice."""
    node, history = fresh(settings=SMALL), History()
    node.env = {"METASTORE_FAILPOINTS": point.replace("@", "=panic@")}
    try:
        node.start()
    except StartError as died:
        assert died.returncode == -signal.SIGKILL, died
    else:
        write_until_end(node, history, writers=30)
    node.kill()
    node.env = {}
    for _ in range(2):
        node.start()
        with node.client() as client:
            goes_on(client, history)
        counts_hold(node)
        node.kill()


def counts_hold(node: Server) -> None:
    """Once the engine has counted its keys, what it tells of a range is what a walk over its pairs finds."""
    wait_until(lambda: metric(node, "metastore_engine_counted") == 1)
    with node.client() as client:
        found = sorted(pair.key for pair in client.range(b"\0", b"\0", keys_only=True).kvs)
        for at in range(0, len(found), max(1, len(found) // 5)):
            for end in (b"\0", found[-1]):
                reply = client.range(found[at], end, count_only=True)
                assert reply.count == len(found) - at - (end != b"\0"), (found[at], end)
    assert metric(node, "metastore_engine_count_faults_total") == 0


def put_many(node: Server, first: int, last: int) -> int:
    """Put many keys at once, an entry each. Return how many were acknowledged; all of these come before the others."""
    with node.client(timeout=60) as client:
        puts = [client.future(m.PutRequest(key=b"k%06d" % n, value=b"%d" % n * 20), 60) for n in range(first, last)]
        for done, put in enumerate(puts):
            try:
                put.result()
            except grpc.RpcError:
                return first + done
    return last


def killed_behind_a_flush(point: str, fresh: Make) -> None:
    """A node dies when it has cut its log behind a flush: at `point`, or by a kill if `point` is empty."""
    node = fresh(settings={**SMALL, "raft.batch_max_size": "1"})
    if point:
        node.env = {"METASTORE_FAILPOINTS": point.replace("@", "=panic@")}
    node.start()
    acked = 0
    while acked < 20_000:
        reached = put_many(node, acked, acked + 1000)
        if reached < acked + 1000:
            acked = reached
            break
        acked = reached
        if not point and segments(node)[0] > 2:
            break
    assert 0 < acked < 20_000
    if point:
        assert node.running().wait(30) == -signal.SIGKILL
    node.kill()
    node.env = {}
    for _ in range(2):
        node.start()
        with node.client() as client:
            assert client.range(b"k", b"k%06d" % acked, count_only=True).count == acked
            assert client.get(b"k%06d" % (acked - 1)) == b"%d" % (acked - 1) * 20
        counts_hold(node)
        assert put_many(node, acked, acked + 100) == acked + 100
        acked += 100
        node.kill()
    if not point:
        assert segments(node)[0] > 2
