"""A node on RocksDB: stalls, damage, and a change of the engine."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from support import messages as m
from support.client import Client
from support.processes import Node, Server, StartError, metric, wait_until

from metastore._core import build_info

Make = Callable[..., Server]
ROCKS = {"storage.engine": '"rocksdb"'}

pytestmark = pytest.mark.node_only


# It flushes all the time, so kills come between flushes and the log is cut behind them.
EAGER = {
    **ROCKS,
    "maintenance.snapshot_count": "20",
    "maintenance.snapshot_min_size": '"1KiB"',
    "wal.segment_size": '"64KiB"',
    "raft.max_tail_bytes": '"64KiB"',
}
# RocksDB has hardly any room before it refuses.
NARROW = {
    "storage.rocksdb.write_buffer_size": '"64KiB"',
    "storage.rocksdb.max_write_buffers": "2",
    "storage.rocksdb.level0_files": "1",
    "storage.rocksdb.level0_stop": "2",
}


@pytest.mark.skipif(build_info()["flavour"] != "release", reason="too slow to write more than RocksDB takes")
def test_stalls_of_rocksdb_itself(fresh: Make) -> None:
    """With hardly any buffers RocksDB refuses all the time. Still, everything is acknowledged and read back."""
    node = fresh(settings={**ROCKS, **NARROW}).start()
    values: dict[bytes, bytes] = {}

    def stalled() -> bool:
        first = len(values)
        more = {b"k%04d" % n: random.Random(n).randbytes(16_000) for n in range(first, first + 400)}
        calls = [client.future(m.PutRequest(key=key, value=value), timeout=60) for key, value in more.items()]
        for call in calls:
            call.result()
        values.update(more)
        return metric(node, "metastore_engine_busy_total") > 0

    with node.client(timeout=60) as client:
        wait_until(stalled, what="a stall")
        assert all(client.get(key) == value for key, value in list(values.items())[::17])
        revision = client.revision()
    node.kill()
    node.start()
    with node.client(timeout=60) as client:
        assert client.revision() == revision == len(values) + 1
        assert all(client.get(key) == value for key, value in list(values.items())[::7])


def filled(fresh: Make, settings: dict[str, str], count: int = 300) -> Server:
    node = fresh(settings={**EAGER, **settings}).start()
    with node.client() as client:
        put_some(client, 0, count)
    wait_until(lambda: int(min(node.data_dir.glob("wal/*.wal")).name[:8], 16) > 1, what="a cut log")
    if settings.get("storage.engine", ROCKS["storage.engine"]) == ROCKS["storage.engine"]:
        assert not list(node.data_dir.glob("snap/*.snap")), "an engine with files needs no snapshots"
    assert node.stop() == 0
    return node


def put_some(client: Client, first: int, last: int) -> None:
    for n in range(first, last):
        client.put(b"k%05d" % n, b"value of %d " % n * 20)


def test_the_engine_is_changed_where_the_log_and_a_snapshot_suffice(fresh: Make) -> None:
    node = filled(fresh, {"storage.engine": '"memory"'})
    assert isinstance(node, Node)
    node.settings = {**node.settings, **ROCKS}
    node.start()
    with node.client() as client:
        assert len(client.prefix(b"k")) == 300 and client.revision() == 301
        put_some(client, 300, 400)
    node.kill()
    node.start()
    with node.client() as client:
        assert len(client.prefix(b"k")) == 400


def test_the_engine_is_changed_where_they_do_not(fresh: Make) -> None:
    """The new engine is filled from the old one's data, again at each start until it has a snapshot of its own."""
    node = filled(fresh, {})
    assert isinstance(node, Node)
    node.settings = {**node.settings, "storage.engine": '"memory"', "maintenance.snapshot_count": "100000"}
    for number in range(2):
        node.start()
        with node.client() as client:
            assert len(client.prefix(b"k")) == 300 + number
            put_some(client, 300 + number, 301 + number)
        node.kill()
    node.settings = {**node.settings, **ROCKS}
    node.start()
    with node.client() as client:
        assert len(client.prefix(b"k")) == 302


def test_a_damaged_database_refuses_the_start(fresh: Make) -> None:
    node = filled(fresh, {})
    manifest = next(node.data_dir.glob("engine/rocksdb/db-*/MANIFEST-*"))
    data = bytearray(manifest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    manifest.write_bytes(data)
    with pytest.raises(StartError) as failure:
        node.start()
    assert failure.value.returncode == 4 and str(node.data_dir / "engine") in str(failure.value)
