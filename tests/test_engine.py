"""The engine contract on the memory engine, and on an engine in plain Python, which uses the base class's defaults."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import pytest

from metastore import errors
from metastore._core.engine import APPLIED_KEY, Engine
from metastore._core.omap import OrderedMap
from metastore.storage.contract import EngineContract
from metastore.storage.memory import MemoryEngine
from metastore.storage.rocksdb import RocksEngine


class DictEngine(Engine):
    """A sorted dict: the smallest engine there can be."""

    def __init__(self, data: dict[bytes, bytes] | None = None) -> None:
        self.data = dict(data or {})

    def get(self, key: bytes) -> bytes | None:
        return self.data.get(key)

    def scan(self, start: bytes, end: bytes | None, reverse: bool, limit: int) -> list[tuple[bytes, bytes]]:
        keys = sorted((k for k in self.data if k >= start and (end is None or k < end)), reverse=reverse)
        return [(key, self.data[key]) for key in keys[: limit or None]]

    def write(self, batch: OrderedMap, index: int, term: int) -> None:
        for key, value in batch.items():
            if value is None:
                self.data.pop(key, None)
            else:
                self.data[key] = value
        self.data[APPLIED_KEY] = struct.pack("<QQ", index, term)

    def applied(self) -> tuple[int, int]:
        index, term = struct.unpack("<QQ", self.data.get(APPLIED_KEY, bytes(16)))
        return (index, term)

    def view(self) -> Engine:
        return DictEngine(self.data)

    def size(self) -> int:
        return sum(len(key) + len(value) for key, value in self.data.items())

    def restore(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
        self.data = dict(stream)


class TestMemoryEngine(EngineContract):
    def make_engine(self) -> Engine:
        return MemoryEngine()


class TestPythonEngine(EngineContract):
    def make_engine(self) -> Engine:
        return DictEngine()

    def reopen(self, engine: Engine) -> Engine | None:
        assert isinstance(engine, DictEngine)
        return DictEngine(engine.data)


class TestRocksEngine(EngineContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.made = 0

    def make_engine(self) -> Engine:
        self.made += 1
        return RocksEngine(str(self.folder / f"engine-{self.made}"))

    def reopen(self, engine: Engine) -> Engine | None:
        assert isinstance(engine, RocksEngine)
        engine.flush()
        engine.close()
        return RocksEngine(str(engine.path))


def test_memory_engine_is_durable_only_up_to_its_snapshot() -> None:
    engine = MemoryEngine()
    engine.write(OrderedMap(), 9, 1)
    assert engine.durable_applied() == 0
    engine.set_durable(7)
    engine.set_durable(3)
    assert engine.durable_applied() == 7


def test_restore_without_a_log_position_changes_nothing() -> None:
    engine = MemoryEngine()
    batch = OrderedMap()
    batch.set(b"a", b"1")
    engine.write(batch, 3, 1)
    with pytest.raises(errors.FormatError):
        engine.restore([(b"b", b"2")])
    assert engine.get(b"a") == b"1" and engine.get(b"b") is None and engine.applied() == (3, 1)
