"""The engine contract on the memory engine, and on an engine in plain Python, which uses the base class's defaults.

tests/once/test_engine_contract.py has the engines with files.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import pytest

from metastore import errors, storage
from metastore._core.engine import APPLIED_KEY, Engine
from metastore._core.ordered_map import OrderedMap
from metastore.config import Config
from metastore.storage.engines.memory import MemoryEngine
from metastore.testing.engine_contract import EngineContract


class DictEngine(Engine):
    """A sorted dict: the smallest engine there can be."""

    CONTRACT = 1
    persistent = False

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
        fresh = dict(stream)
        if APPLIED_KEY not in fresh:
            raise errors.FormatError("restore: the stream has no log position")
        self.data = fresh


class TestMemoryEngine(EngineContract):
    def open_engine(self, folder: str) -> Engine:
        return MemoryEngine(folder)


class TestPythonEngine(EngineContract):
    def open_engine(self, folder: str) -> Engine:
        return DictEngine()


# ---- engines that declare nothing, or something wrong


class Undeclared(DictEngine):
    """This is what the documents asked for before there was `persistent`."""

    persistent = None  # type: ignore[assignment]


class Silent(DictEngine):
    """Declares that it is persistent, but has no durable_applied."""

    persistent = True


@pytest.mark.parametrize(("kind", "why"), [
    (Undeclared, "does not declare `persistent`"), (Silent, "has no durable_applied"),
])  # fmt: skip
def test_an_engine_that_does_not_say_what_lasts_is_refused_by_name(
    kind: type[Engine], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "load", lambda name: lambda path: kind())
    with pytest.raises(errors.ConfigError, match=f"storage.engine: 'mine' .*{why}"):
        storage.open_engine(Config(storage={"engine": "mine"}), tmp_path / "engine")


def test_restore_without_a_log_position_changes_nothing() -> None:
    engine = MemoryEngine()
    batch = OrderedMap()
    batch.set(b"a", b"1")
    engine.write(batch, 3, 1)
    with pytest.raises(errors.FormatError):
        engine.restore([(b"b", b"2")])
    assert engine.get(b"a") == b"1" and engine.get(b"b") is None and engine.applied() == (3, 1)
