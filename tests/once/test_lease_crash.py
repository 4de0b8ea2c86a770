"""A process that is killed in the middle of an entry that grants, uses and revokes leases, on an engine with files."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import kvmessages as pb
from support.applying import entry, put
from support.leases import attached, lease_op, state

from metastore import errors
from metastore._core.codec import PayloadCodec
from metastore._core.engine import Engine
from metastore._core.mvcc import Store
from metastore._core.mvcc_apply import Applier
from metastore._core.op import DELETE_RANGE, PUT, encode_op
from metastore.settings import RocksdbTable
from metastore.storage.engines.memory import MemoryEngine
from metastore.storage.engines.rocksdb import RocksEngine

KEYS = 3000
SMALL = RocksdbTable(cache_size=1 << 20, write_buffer_size=1 << 20, recent_keys_size=64 << 10)


def applier_on(engine: Engine) -> Applier:
    return Applier(Store(engine, 1, 2), PayloadCodec(None, 1 << 20, 1 << 24), {})


def images(applier: Applier) -> list[bytes]:
    """Return two entries. The first gives keys to two leases; the second moves some, and ends both leases."""
    puts = [encode_op(PUT, 0, put(b"k%05d" % n, lease=1 + n % 2)) for n in range(KEYS)]
    moved = [encode_op(PUT, 0, put(b"k%05d" % n, lease=3)) for n in range(0, KEYS, 5)]
    rest = pb.DeleteRangeRequest(key=b"k", range_end=b"k00100").SerializeToString()
    second = [
        lease_op("grant", 3, 60), *moved, lease_op("revoke", 1), lease_op("checkpoint", [(3, 7)]),
        encode_op(DELETE_RANGE, 0, rest), lease_op("revoke", 2, True), lease_op("grant", 1, 5),
    ]  # fmt: skip
    return [
        entry(applier, 1, lease_op("grant", 1, 60), lease_op("grant", 2, 60), *puts),
        entry(applier, 2, *second),
    ]


def write(applier: Applier) -> None:
    """Hand everything over, however long the engine is busy."""
    while True:
        try:
            return applier.relieve() if applier.halted else applier.commit()
        except errors.EngineBusy:
            continue


def die(folder: str, pieces: int) -> None:
    """Apply both entries and end in the middle of the second one, when all files are written."""
    engine = RocksEngine(folder, SMALL)
    applier = applier_on(engine)
    first, second = images(applier)
    applier.apply_images(first)
    write(applier)
    applier.spill_at = 100
    for _ in range(pieces):
        applier.apply_images(second, 0, 6000)
        assert applier.halted, "the pieces are too many"
        write(applier)
    engine.flush()
    signal.raise_signal(signal.SIGKILL)


@pytest.mark.parametrize("pieces", [1, 60])
def test_killed_in_the_middle_of_an_entry(pieces: int, tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    code = f"import test_lease_crash as t; t.die({str(folder)!r}, {pieces})"
    env = {"PYTHONPATH": ":".join((str(Path(__file__).parent), *sys.path))}
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    expected = applier_on(MemoryEngine())
    first, second = images(expected)
    expected.apply_images(first)
    expected.commit()
    before = expected.store.engine.scan(b"", None, False, 0)
    engine = RocksEngine(str(folder), SMALL)
    applier = applier_on(engine)
    assert applier.applied_index == 1 and applier.store.stale
    assert sorted(applier.store.leases.ids()) == [1, 2], "what the entry granted is forgotten"
    while applier.store.stale:
        applier.relieve()
    assert engine.scan(b"", None, False, 0) == before
    for one in (expected, applier):
        one.apply_images(second)
        write(one)
    assert engine.scan(b"", None, False, 0) == expected.store.engine.scan(b"", None, False, 0)
    assert state(applier.store) == state(expected.store)
    assert set(state(applier.store)) == {1, 3} and len(attached(engine.scan(b"", None, False, 0))) == KEYS // 5 - 20
    engine.close()
