"""Nodes with little memory are filled, and have to become writable again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import grpc
import pytest

from . import messages as m
from .client import Client, Failure, op
from .memlimits import MIB, LimitedNode
from .processes import metric, wait_until

NO_SPACE = (8, "etcdserver: mvcc: database space exceeded")
BUSY = (8, "etcdserver: too many requests")


def fill(client: Client, size: int, first: int = 0, most: int = 200_000) -> int:
    """Put new keys, many at a time, until one is refused. Return how many were acknowledged, at least. Small values
    come ten in a transaction, which costs this process a fifth."""
    value = bytes(range(256)) * (size // 256 + 1)
    number, each = first, 10 if size <= 10_000 else 1
    while number < first + most:
        numbers = range(number, number + 100)
        puts = [op(m.PutRequest(key=b"fill/%09d" % n, value=value[n % 256 :][:size])) for n in numbers]
        calls = [client.future(m.TxnRequest(success=puts[at : at + each]), 60) for at in range(0, 100, each)]
        for call in calls:
            try:
                call.result()
            except grpc.RpcError as error:
                outcome = (error.code().value[0], error.details())
                assert outcome in (NO_SPACE, BUSY), outcome
                if outcome == NO_SPACE:
                    for other in calls:
                        other.exception()
                    return number
        number += 100
    pytest.fail("nothing was refused")


def deleted(client: Client, first: int, count: int) -> bool:
    """Delete keys. Return whether that was not refused."""
    try:
        client.delete(b"fill/%09d" % first, b"fill/%09d" % (first + count))
    except Failure:
        return False
    return True


def written_again(client: Client) -> bool:
    """Disarm and write. A member that has not freed its memory yet may raise its alarm once more."""
    for member, kind in client.alarm():
        client.alarm(2, member, kind)
    try:
        client.put(b"after", b"x" * 1000)
    except Failure as failure:
        assert failure.code == 8, failure
        return False
    return True


def way_out(client: Client, count: int) -> None:
    """Delete, compact, disarm, and write again."""
    for first in range(0, count, 500):
        try:
            client.delete(b"fill/%09d" % first, b"fill/%09d" % (first + 500))
        except Failure as failure:
            assert failure.code == 8 and "compact" in failure.text
            client.compact(client.revision(), physical=True)
            wait_until(lambda first=first: deleted(client, first, 500), what="room for a deletion")
    client.compact(client.revision(), physical=True)
    wait_until(lambda: written_again(client), what="a write after the way out")
    assert client.alarm() == []
    assert client.prefix(b"fill/") == {} and client.get(b"after") == b"x" * 1000


@contextlib.contextmanager
def backups(address: str) -> Iterator[list[int]]:
    """Take one backup after the other in a thread. The list has the length of each."""
    stop, times = threading.Event(), []

    def go() -> None:
        with Client(address, timeout=60) as client:
            while not stop.is_set():
                with contextlib.suppress(grpc.RpcError, Failure):
                    times.append(len(client.backup()))

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    yield times
    stop.set()
    thread.join(60)


def full_and_the_way_out(node: LimitedNode, size: int) -> None:
    """Fill the node while snapshots run all the time; it refuses, is killed, started, emptied, written again, and
    filled once more."""
    node.start()
    with node.client(60) as client, backups(node.address) as times:
        count = fill(client, size)
        wait_until(lambda: times, what="a backup")
        assert (metric(node, "metastore_alarms_nospace"), client.alarm()[0][1]) == (1, 1)
        status, quota = client.status(), metric(node, "metastore_quota_bytes")
        assert 0.9 * quota < status.dbSizeInUse <= status.dbSize < 1.4 * quota
        assert metric(node, "metastore_memory_used_bytes") < metric(node, "metastore_memory_limit_bytes")
    peak = node.running().peak_rss()
    node.kill()
    node.start()
    assert node.running().peak_rss() < peak + 16 * MIB, "a start takes more than the run before it"
    with node.client(60) as client, backups(node.address):
        assert client.alarm()[0][1] == 1
        way_out(client, count + 100)
        fill(client, size, first=count + 100)
        way_out(client, 2 * count + 5000)
    assert node.stop() == 0


def written(client: Client) -> bool:
    """Whether there is room when the alarms are off."""
    for member, kind in client.alarm():
        client.alarm(2, member, kind)
    try:
        client.put(b"000", b"x" * 2000)
    except Failure:
        return False
    return True


def overwritten_for_ever(node: LimitedNode, puts: int) -> None:
    """Overwrite a thousand keys with automatic compaction and backups; the node is never killed. If writing outruns
    compaction on a slow machine, it is full for a moment, and goes on when nobody does anything but disarm."""
    node.settings |= {
        "maintenance.auto_compaction_mode": '"revision"',
        "maintenance.auto_compaction_revisions": "1000",
        "maintenance.snapshot_count": "500",
    }
    node.start()
    with node.client(60) as client, backups(node.address):
        for first in range(0, puts, 100):
            calls = [
                client.future(m.PutRequest(key=b"%03d" % (n % 1000), value=b"%d" % n * 400), 60)
                for n in range(first, first + 100)
            ]
            for call in calls:
                try:
                    call.result()
                except grpc.RpcError as error:
                    assert (error.code().value[0], error.details()) in (NO_SPACE, BUSY)
            for member, kind in client.alarm():
                client.alarm(2, member, kind)
        wait_until(lambda: written(client), what="room again")
        assert metric(node, "metastore_engine_in_use_bytes") < metric(node, "metastore_quota_bytes")
    assert node.stop() == 0
