"""Engines of the simulated members: one that refuses writes at times, and one with files of its own.

`FiledEngine` is what RocksDB is to a node: its files outlive a crash, and what was written since the last flush that
completed does not, whoever is killed. A state that was received takes the place of the old one when it is sealed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from metastore import errors
from metastore._core import mvcc
from metastore._core.engine import Engine, MemoryEngine
from metastore._core.engine_guard import GuardedEngine

if TYPE_CHECKING:
    from .node import Member


def contents(engine: Engine) -> MemoryEngine:
    """What holds the records of a member's engine, whatever stands around it; looking at it fails never."""
    while not isinstance(engine, MemoryEngine):
        if isinstance(engine, FiledEngine):
            return engine.memory
        assert isinstance(engine, FlakyEngine | GuardedEngine)
        engine = engine.inner
    return engine


def refuse_at_times(member: Member, until: float) -> float:
    """Raise EngineBusy for up to a second, now and then; until when that goes on."""
    clock, chance = member.clock, member.clock.random
    if until <= clock.now and chance.random() < member.cluster.settings.busy:
        until = clock.now + chance.choice((0.001, 0.02, 1.0))
    return until


def refuse(member: Member) -> None:
    """Raise EngineBusy."""
    counts = member.cluster.checker.counts
    counts["busy"] = counts.get("busy", 0) + 1
    raise errors.EngineBusy("simulated")


class FlakyEngine(Engine):
    """Any engine, whose calls fail now and then while its member does something, by an exception that looks like an
    error of a request: nobody may take it for one."""

    def __init__(self, member: Member, inner: Engine) -> None:
        self.member = member
        self.inner = inner
        self.persistent = inner.persistent
        self.only_applying = False  # fails in nothing else

    def _perhaps(self) -> None:
        at_work = self.member.applying if self.only_applying else self.member.at_work
        if at_work and self.member.clock.random.random() < self.member.cluster.settings.flaky:
            counts = self.member.cluster.checker.counts
            counts["engine failed"] = counts.get("engine failed", 0) + 1
            raise errors.KeyNotFound()

    def get(self, key: bytes) -> bytes | None:
        """As any engine."""
        self._perhaps()
        return self.inner.get(key)

    def scan(self, start: bytes, end: bytes | None, reverse: bool, limit: int) -> list[tuple[bytes, bytes]]:
        """As any engine."""
        self._perhaps()
        return self.inner.scan(start, end, reverse, limit)

    def iterate(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """As any engine."""
        self._perhaps()
        return self.inner.iterate(start)

    def seek_le(self, key: bytes) -> tuple[bytes, bytes] | None:
        """As any engine."""
        self._perhaps()
        return self.inner.seek_le(key)

    def count(self, start: bytes, end: bytes | None) -> int | None:
        """As any engine."""
        self._perhaps()
        return self.inner.count(start, end)

    def write(self, batch: Any, index: int, term: int) -> None:
        """As any engine."""
        self._perhaps()
        self.inner.write(batch, index, term)

    def applied(self) -> tuple[int, int]:
        """As any engine."""
        return self.inner.applied()

    def view(self) -> Engine:
        """As any engine."""
        return self.inner.view()

    def size(self) -> int:
        """As any engine."""
        return self.inner.size()

    def reclaim(self) -> bool:
        """As any engine."""
        return self.inner.reclaim()

    def durable_applied(self) -> int:
        """As any engine."""
        return self.inner.durable_applied()

    def begin_flush(self) -> None:
        """As any engine."""
        self.inner.begin_flush()

    def restore(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
        """As any engine."""
        self.inner.restore(stream)

    def stage(self) -> Engine | None:
        """As any engine."""
        return self.inner.stage()

    def adopt(self, staged: Engine) -> None:
        """As any engine."""
        self.inner.adopt(staged)


class BusyEngine(MemoryEngine):
    """An engine that refuses writes at times, for up to a second."""

    member: Member
    until = 0.0

    def write(self, batch: Any, index: int, term: int) -> None:
        """As the real one, or EngineBusy."""
        self.until = refuse_at_times(self.member, self.until)
        if self.until > self.member.clock.now:
            refuse(self.member)
        MemoryEngine.write(self, batch, index, term)


class FiledEngine(Engine):
    """See above. `member.files` is what a start finds: a view of the engine at its last flush, or None."""

    persistent = True

    def __init__(self, member: Member, found: MemoryEngine | None = None) -> None:
        self.member = member
        self.memory = MemoryEngine()
        self.until = 0.0
        if found is not None:
            self.memory.restore(found.scan(b"", None, False, 0))

    def get(self, key: bytes) -> bytes | None:
        """As any engine."""
        return self.memory.get(key)

    def scan(self, start: bytes, end: bytes | None, reverse: bool, limit: int) -> list[tuple[bytes, bytes]]:
        """As any engine."""
        return self.memory.scan(start, end, reverse, limit)

    def iterate(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """As any engine."""
        return self.memory.iterate(start)

    def seek_le(self, key: bytes) -> tuple[bytes, bytes] | None:
        """As any engine."""
        return self.memory.seek_le(key)

    def count(self, start: bytes, end: bytes | None) -> int | None:
        """As any engine."""
        return self.memory.count(start, end)

    def write(self, batch: Any, index: int, term: int) -> None:
        """As any engine, or EngineBusy."""
        self.until = refuse_at_times(self.member, self.until)
        if self.until > self.member.clock.now:
            refuse(self.member)
        self.memory.write(batch, index, term)
        if self.member.clock.random.random() < self.member.cluster.settings.flushed:
            self.begin_flush()

    def applied(self) -> tuple[int, int]:
        """As any engine."""
        return self.memory.applied()

    def view(self) -> Engine:
        """As any engine."""
        return self.memory.view()

    def size(self) -> int:
        """As any engine."""
        return int(self.memory.size_in_use())

    def data_size(self) -> int:
        """As any engine."""
        return int(self.memory.data_size())

    def durable_applied(self) -> int:
        """Up to where the files go."""
        files = self.member.files
        return files.applied()[0] if files is not None else 0

    def begin_flush(self) -> None:
        """It takes a while."""
        chance, memory = self.member.clock.random, self.memory
        self.member.later(chance.choice((0.001, 0.3, 3.0)) * chance.random(), self._flushed, memory, memory.view())

    def _flushed(self, memory: MemoryEngine, view: MemoryEngine) -> None:
        if memory is self.memory and view.applied()[0] >= self.durable_applied():
            self.member.files = view
            store = mvcc.Store(view)
            if store.stale and self.member.at_half is not None:
                self.member.at_half()
                self.member.at_half = None

    def restore(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
        """All or nothing."""
        fresh = self.stage()
        fresh.restore(stream)
        fresh.seal()
        self.adopt(fresh)

    def stage(self) -> StagedEngine:
        """A state beside this one."""
        return StagedEngine(self.member)

    def adopt(self, staged: Engine) -> None:
        """Go on with it."""
        assert isinstance(staged, StagedEngine)
        self.memory = staged.memory


class StagedEngine(FiledEngine):
    """A state that is being received."""

    def restore(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
        """Fill it."""
        self.memory.restore(stream)

    def seal(self) -> None:
        """From here on it is what a start finds."""
        self.member.files = self.memory.view()  # type: ignore[assignment]
