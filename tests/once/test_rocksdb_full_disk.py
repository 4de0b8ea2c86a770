"""The RocksDB engine on a full disk."""

from __future__ import annotations

import contextlib
import random
import subprocess
from functools import partial
from pathlib import Path

import pytest
from support.processes import wait_until
from support.runs import cannot_mount

from metastore.errors import EngineBusy, EngineFull
from metastore.settings import RocksdbTable
from metastore.storage.engines.rocksdb import RocksEngine
from metastore.testing.engine_contract import batch_of

pytestmark = pytest.mark.node_only


def take(engine: RocksEngine, index: int) -> bool:
    """Whether the engine takes ten records of batch `index`."""
    with contextlib.suppress(EngineBusy):
        engine.write(
            batch_of({b"r%06d/%d" % (index, n): random.Random(index * 10 + n).randbytes(1000) for n in range(10)}),
            index,
            1,
        )
        return True
    return False


def take_or_full(engine: RocksEngine, index: int) -> bool:
    """Whether the engine takes the batch. False means that it has no room for it."""
    return take(engine, index) or engine.full


def fill_up(engine: RocksEngine) -> tuple[int, int]:
    """Write until the engine is full. Return the first batch that it did not take, and the last one known to be
    durable."""
    index = durable = 0
    while not engine.full:
        index += 1
        wait_until(partial(take_or_full, engine, index), 20, "written, or full")
        assert index < 2000
        if index % 50 == 0:
            engine.begin_flush()
        durable = engine.durable_applied()
    engine.begin_flush()
    index = engine.applied()[0] + 1
    assert not take(engine, index) and engine.get(b"r000001/0") == random.Random(10).randbytes(1000)
    return index, durable


TINY = RocksdbTable(write_buffer_size=256 << 10, compression="none")


def flushed(engine: RocksEngine) -> bool:
    """Flush; whether there was room. A compaction under way holds its old and its new files for a moment."""
    try:
        engine.flush()
    except EngineFull:
        return False
    return True


@pytest.mark.skipif(cannot_mount(), reason="mounts a small file system")
@pytest.mark.parametrize("end", ["goes on", "is opened anew"])
def test_an_engine_on_a_full_disk(end: str, tmp_path: Path) -> None:
    """The engine reports that it is full, takes nothing and can be read. When there is room again it goes on by itself
    and has lost nothing, views included. An engine that is opened again goes on from its files."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    subprocess.run(mount, check=True)
    try:
        (disk / "ballast").write_bytes(bytes(2 << 20))
        engine = RocksEngine(str(disk / "engine"), TINY)
        index, durable = fill_up(engine)
        view = engine.view()
        (disk / "ballast").unlink()
        if end == "goes on":
            wait_until(lambda: take(engine, index), 60, "taken again")
            assert not engine.full and engine.applied() == (index, 1)
            wait_until(lambda: engine.durable_applied() >= index - 1, 60, "the flush that was waiting")
            assert len(view.scan(b"r", b"s", False, 0)) == 10 * view.applied()[0]
            wait_until(lambda: flushed(engine), 60, "a flush")
            durable = index
        view.close()
        engine.close()
        engine = RocksEngine(str(disk / "engine"), TINY)
        assert durable <= engine.applied()[0] <= index
        assert len(engine.scan(b"r", b"s", False, 0)) == 10 * engine.applied()[0]
        index = engine.applied()[0] + 1
        assert take(engine, index) and not engine.full
        wait_until(lambda: flushed(engine), 60, "a flush after the start")
        assert engine.durable_applied() == index
        engine.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
