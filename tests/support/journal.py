"""A storage engine for tests: small, quick, and persistent. The broken engines of tests/once/test_engine_contract.py
are made of it."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Iterable
from pathlib import Path

from metastore._core.engine import APPLIED_KEY, Engine
from metastore._core.ordered_map import OrderedMap
from metastore.errors import DamagedData, FormatError

POSITION = struct.Struct("<QQ")
Pairs = list[tuple[bytes, bytes | None]]


class JournalEngine(Engine):
    """All data is in memory. `flush` appends what was written since the last one to a file, and a start reads that file
    again. `current` names the file that counts; `stage` makes another one."""

    CONTRACT = 1
    persistent = True

    def __init__(self, folder: str, name: str | None = None) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        current = self.folder / "current"
        self.name = name or (current.read_text() if current.exists() else "journal-0")
        self.data = OrderedMap()
        self.unwritten: list[Pairs] = []
        self.open_views = 0
        path = self.folder / self.name
        if name is None and path.exists():
            self.read(path)
        self.durable = self.applied()[0]

    def read(self, path: Path) -> None:
        """Take over what a file holds, up to a record that was cut short."""
        data, at = path.read_bytes(), 0
        while at + 4 <= len(data):
            (size,) = struct.unpack_from("<I", data, at)
            if len(data) < at + 4 + size:
                break
            try:
                for pairs in pickle.loads(data[at + 4 : at + 4 + size]):
                    self.take(pairs)
            except Exception as error:
                raise DamagedData(f"{path}: {error}") from error
            at += 4 + size

    def take(self, pairs: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Change the contents in memory."""
        for key, value in pairs:
            if value is None:
                self.data.delete(key)
            else:
                self.data.set(key, value)

    def append(self, path: Path, batches: list[Pairs]) -> None:
        """Make these batches last."""
        record = pickle.dumps(batches)
        with open(path, "ab") as file:
            file.write(struct.pack("<I", len(record)) + record)

    # ---- the contract

    def get(self, key: bytes) -> bytes | None:
        return self.data.get(key)

    def scan(self, start: bytes, end: bytes | None, reverse: bool, limit: int) -> list[tuple[bytes, bytes]]:
        return self.data.scan(start, end, reverse, limit)  # type: ignore[return-value]

    def write(self, batch: OrderedMap, index: int, term: int) -> None:
        pairs = [*batch.items(), (APPLIED_KEY, POSITION.pack(index, term))]
        self.take(pairs)
        self.unwritten.append(pairs)

    def applied(self) -> tuple[int, int]:
        index, term = POSITION.unpack(self.data.get(APPLIED_KEY) or bytes(16))
        return index, term

    def view(self) -> Engine:
        return JournalView(self)

    def size(self) -> int:
        return self.data.nbytes + 1000

    def size_in_use(self) -> int:
        return self.data.nbytes

    def durable_applied(self) -> int:
        return self.durable

    def flush(self) -> None:
        self.append(self.folder / self.name, self.unwritten)
        self.unwritten = []
        self.durable = self.applied()[0]

    def restore(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
        self.fill(stream)
        self.name = f"{self.name}x"
        (self.folder / self.name).unlink(missing_ok=True)
        self.seal()

    def fill(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
        """Take over the pairs of a stream, in memory."""
        fresh = OrderedMap()
        for key, value in stream:
            fresh.set(key, value)
        if fresh.get(APPLIED_KEY) is None:
            raise FormatError("restore: the stream has no log position")
        self.data = fresh
        self.unwritten = [list(fresh.items())]
        self.durable = 0

    def stage(self) -> Engine | None:
        taken = len(list(self.folder.glob("journal-*")))
        return StagedJournal(str(self.folder), f"journal-{taken}s")

    def seal(self) -> None:
        self.flush()
        (self.folder / "next").write_text(self.name)
        os.replace(self.folder / "next", self.folder / "current")

    def adopt(self, staged: Engine) -> None:
        assert isinstance(staged, JournalEngine)
        self.data, self.name, self.durable = staged.data, staged.name, staged.durable
        self.unwritten = []


class StagedJournal(JournalEngine):
    """An engine beside another one, until it is sealed."""

    def __init__(self, folder: str, name: str) -> None:
        (Path(folder) / name).unlink(missing_ok=True)
        super().__init__(folder, name)

    def restore(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
        self.fill(stream)


class JournalView(Engine):
    """What an engine held when the view was made."""

    persistent = False

    def __init__(self, engine: JournalEngine) -> None:
        self.engine = engine
        self.data = engine.data.view()

    get = JournalEngine.get
    scan = JournalEngine.scan
    applied = JournalEngine.applied
    size = JournalEngine.size
