"""Reading from RocksDB: the views of the engine "rocksdb", scans, and what rocksdict's exceptions mean."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ..._core.engine import Engine
from ..._core.file_reads import Finder, ItemsWalk, SharedWalk, WalkedEngine
from ..._core.gaps import Gaps, GapWalk
from ..._core.work import Detours
from ...errors import DamagedData, DataDirInUse, DiskFailed, EngineBusy, EngineFull, MetaStoreError

__all__ = ["View", "bounds", "failure_of", "scan"]

CACHED = 8 << 20  # bytes of values that the look-ups of one view may put into the cache


def failure_of(path: Path, error: Exception) -> MetaStoreError:
    """Returns our error for an exception from rocksdict, whose exceptions are all of one class."""
    text = str(error)
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return EngineFull(f"{path}: {text}")
    if text.startswith("Result incomplete"):
        return EngineBusy(f"{path}: {text}")
    if "lock" in text.lower() and "LOCK" in text:
        return DataDirInUse(f"{path}: {text}")
    if text.startswith(("Corruption", "Invalid argument")) or "No such file" in text:
        return DamagedData(f"{path}: {text}")
    return DiskFailed(f"{path}: {text}")


def scan(walk: Any, path: Path, start: bytes, end: bytes | None, reverse: bool, limit: int) -> list[Any]:
    """See Engine.scan; `walk` is an iterator of rocksdict."""
    pairs: list[Any] = []
    try:
        if not reverse:
            walk.seek(start)
            while walk.valid() and (end is None or walk.key() < end) and (not limit or len(pairs) < limit):
                pairs.append((walk.key(), walk.value()))
                walk.next()
        else:
            if end is None:
                walk.seek_to_last()
            else:
                walk.seek_for_prev(end)
                if walk.valid() and walk.key() == end:
                    walk.prev()
            while walk.valid() and walk.key() >= start and (not limit or len(pairs) < limit):
                pairs.append((walk.key(), walk.value()))
                walk.prev()
        walk.status()
    except Exception as error:
        raise failure_of(path, error) from error
    return pairs


def bounds(gaps: Gaps, start: bytes, walker: Callable[[], GapWalk]) -> tuple[bytes, bytes | None]:
    """Where an iterator of `items` from `start` on begins, and the last record that it is to give (None: of all; b"":
    none).

    Such an iterator stands on the next record already. Behind the first gap it would walk over all that was removed
    there, and no limit counts what was removed as a range.
    """
    start, left, _ = gaps.ahead(start)
    if left is None:
        return start, None
    walk = walker()
    walk.seek_for_prev(left)
    walk.prev()
    last = walk.key()
    return start, last if last is not None and last >= start else b""


class Source(Protocol):
    """What a view needs of its engine."""

    path: Path
    gaps: Gaps
    detours: Detours
    read_options: tuple[Any, Any]  # by whether what is read goes into the cache
    views: weakref.WeakSet[View]

    def size(self) -> int: ...
    def items_of(self, writes: int, options: Any, start: bytes) -> Any: ...


class View(WalkedEngine):
    """A read-only engine over three iterators of one state. As long as it lives, it sees the state at its creation. One
    iterator walks, and `look` looks up, so a look-up does not make the walk begin again. Where many values were looked
    up, `past` goes on: they all would take the room of the cache (123 MiB), and only lists that come again gain by it.
    As long as nothing is written, quicker iterators of the engine show this state, too.

    It does not use rocksdict's own snapshots, because their iterators see later writes (tried with 0.3.29).
    """

    def __init__(self, engine: Source, writes: int, walks: list[GapWalk], index: int, term: int) -> None:
        self._engine: Source | None = engine
        self._writes = writes
        self._path = engine.path
        self._fault = partial(failure_of, engine.path)
        self._look: Any
        walk, self._look, past = walks
        self._walk: Any = SharedWalk(walk, self._fault)
        read_once, read = engine.read_options
        self._finder: Any = Finder(self._look, partial(engine.items_of, writes, read), None, engine.detours)
        items = partial(engine.items_of, writes, read_once)
        self._past: Any = (past, Finder(past, items, None, engine.detours, self._look))
        self._fills = True
        self._applied = (index, term)
        self._size, self.detours = engine.size(), engine.detours
        engine.views.add(self)

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        pairs = self.scan(key, key + b"\0", False, 1)
        return pairs[0][1] if pairs else None

    def finder(self) -> Finder:
        """See WalkedEngine.finder."""
        if self._fills and self._finder.nbytes > CACHED:
            self.read_once(True)
        finder: Finder = self._finder
        return finder

    def fault(self, error: Exception) -> Exception:
        """See WalkedEngine.fault."""
        return self._fault(error)

    def read_once(self, once: bool) -> None:
        """See Engine.read_once. A view that has begun to read so does not end it."""
        if once:
            self._fills = False
            self._look, self._finder = self._past

    def scan(self, start: bytes, end: bytes | None, reverse: bool, limit: int) -> list[tuple[bytes, bytes]]:
        """See Engine.scan."""
        return scan(self._look, self._path, start, end, reverse, limit)

    def iterate(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See Engine.iterate."""
        assert self._engine is not None, "it is not closed"
        others = self._walk.pairs
        try:
            begin, last = bounds(self._engine.gaps, start, lambda: self._look)
            items = None
            if last != b"":
                items = self._engine.items_of(self._writes, self._engine.read_options[0], begin)
        except Exception as error:
            raise self._fault(error) from error
        pairs: Iterator[tuple[bytes, bytes]]
        pairs = others(start) if items is None else ItemsWalk(items, begin, last, others, self._fault)
        return pairs

    def walks(self) -> Any:
        """See WalkedEngine.walks."""
        return self._walk

    def applied(self) -> tuple[int, int]:
        """(index, term) of the last write it sees."""
        return self._applied

    def size(self) -> int:
        """Bytes of the whole engine when the view was taken."""
        return self._size

    def view(self) -> Engine:
        """Returns this view itself, because its contents never change."""
        raise NotImplementedError("a view of a view")

    def close(self) -> None:
        """Releases the view. Idempotent."""
        self._walk = self._look = self._finder = self._past = None
        if self._engine is not None:
            self._engine.views.discard(self)
            self._engine = None
