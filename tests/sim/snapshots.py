"""Snapshots of the simulated members: the real decisions (`metastore/snapshots/coordinator.py`) and the real bytes, on
simulated disk and time. What a thread does there happens here a little later, step by step, and a crash may come in
between."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from metastore._core.engine import Engine, MemoryEngine
from metastore._core.raft_types import ConfState, Message, Snapshot
from metastore._core.snap_chunk import ChunkJoiner, image_size, make_chunk
from metastore._core.snap_records import RecordReader, Walker, restore
from metastore.errors import DamagedData, FormatError
from metastore.failpoints import Failpoints
from metastore.snapshots.coordinator import Snapshots
from metastore.snapshots.files import Info
from metastore.snapshots.format import TRAILER_SIZE, Header, Trailer, header_size, parse_name
from metastore.snapshots.policy import Policy

from .disk import Disk, File
from .transfers import BEGIN, SimIncoming, SimOutgoing, SimPart

if TYPE_CHECKING:
    from metastore._core.codec import PayloadCodec
    from metastore.replica.driver import Driver
    from metastore.snapshots.catalogue import Catalogue

    from .node import Member

RETENTION = 2


class Path:
    """A name on a simulated disk."""

    def __init__(self, disk: Disk, name: str) -> None:
        self.disk = disk
        self.name = name

    def exists(self) -> bool:
        """Whether there is such a file."""
        return self.name in self.disk.files

    def data(self) -> bytes:
        """What is in it."""
        return bytes(self.disk.files[self.name].data)


class Often(Policy):
    """Counts entries and nothing else."""

    def due(self, index: int, counted: int, engine_size: int) -> bool:
        """As the real one, without sizes."""
        return index - self.index >= self.count


def decode(data: bytes, engine: Engine, codec: PayloadCodec, path: Any) -> Info:
    """Fill an engine from a whole file. Raises FormatError."""
    size = header_size(data[:16])
    header, at = Header.decode(data[:size]), size
    joiner, pieces = ChunkJoiner(header.stream, header.chunk_size, codec), []
    while not joiner.finished:
        size = image_size(data[at : at + 40], header.chunk_size)
        pieces.append(joiner.feed(data[at : at + size]))
        at += size
    trailer = Trailer.decode(data[at:])
    reader = RecordReader(pieces)
    restore(engine, reader)
    if trailer != Trailer(header.stream, joiner.expected, joiner.offset, reader.records, len(data)):
        raise FormatError("snapshot: its trailer does not fit it")
    return Info(header, trailer, path)


class SimStore:
    """Stands in for SnapshotStore where `Snapshots` reads."""

    chunk_size = 256
    path = pathlib.Path("simulated disk", "snap")

    def __init__(self, member: Member) -> None:
        self.member = member
        self.disk = member.disk
        self.codec = member.cluster.make_codec()

    def names(self) -> list[Path]:
        """Complete files, the newest first."""
        return [Path(self.disk, name) for name in sorted(self.disk.files, reverse=True) if parse_name(name)]

    def restore(self, path: Path, engine: Engine, pause: Callable[[], None] = lambda: None) -> Info:
        """As the real one. Members have all the memory that they want."""
        pause()
        return decode(path.data(), engine, self.codec, path)

    def prune(self, keep: set[str]) -> None:
        """Remove what is too old."""
        for path in self.names()[RETENTION:]:
            if path.name not in keep:
                self.disk.remove(path.name)

    def rot(self) -> None:
        """A bit of the newest file has changed. A node can stand that where it took that file itself: the log then
        goes back to the one before it."""
        names, chance = self.names(), self.member.clock.random
        if len(names) < 2 or names[0].name in self.member.installs:
            return
        data = self.disk.files[names[0].name].data
        if data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            self.member.rotten.add(names[0].name)
            self.member.cluster.checker.counts["rotten"] += 1


class AmpleMemory:
    """Simulated members have all the memory that they want."""

    def check(self) -> None:
        """There is enough."""

    def fits(self, nbytes: int, records: int) -> bool:
        """There is enough."""
        return True


class SimLoop:
    """The loop as `Snapshots` sees it."""

    def __init__(self, member: Member) -> None:
        self.now = member.now
        self.call_later = member.later

    def call_soon_threadsafe(self, call: Callable[[], object]) -> None:
        """There are no threads here."""
        self.call_later(0.0, call)


class SimSnapshots(Snapshots):
    """One member's snapshots, in one of its lives."""

    part_type = SimPart

    def __init__(self, member: Member, driver: Driver, catalogue: Catalogue) -> None:
        self.member = member
        self.chance = member.clock.random
        store: Any = member.snapshot_store
        loop: Any = SimLoop(member)
        count, cluster_id = member.cluster.settings.snapshots or 1 << 60, member.identity.cluster_id
        super().__init__(
            store, catalogue, member.engine, member.wal, driver, loop, Often(count, 0), cluster_id=cluster_id,
            failpoints=Failpoints(), memory=AmpleMemory(),
        )  # fmt: skip
        self.outgoing: dict[int, SimOutgoing] = {}
        self.coming: SimIncoming | None = None
        self.attempts = 0
        self.history: object = None  # of the state that the snapshot under way is of

    def _steps(self, *steps: Callable[[], object]) -> None:
        """One after the other, each a little later."""
        if steps:

            def step() -> None:
                steps[0]()
                self._steps(*steps[1:])

            self.member.later(self.chance.choice((0.0005, 0.003, 0.03)) * self.chance.random(), step)

    def _publish(self, temporary: str, name: str, then: Callable[[], object]) -> None:
        """A file that is written is synced, named, the name synced."""
        disk = self.member.disk
        self._steps(disk.files[temporary].sync, lambda: disk.rename(temporary, name), disk.sync_names, then)

    # ---- taking

    def begin(self) -> bool:
        """As the real one; the view is walked a few chunks at a time, while the node goes on."""
        moment = self._moment(self.chance.getrandbits(64))
        if moment is None:
            return False
        busy: Any = self
        self._thread = busy
        header, view = moment
        self.history = self.member.cluster.checker.history(self.engine)
        file = self.member.disk.make(header.name("tmp"))
        file.write(0, header.encode())
        self._write(header, Walker(view), file, 0, self._counted(), int(self.engine.data_size()))
        return True

    def _write(self, header: Header, walker: Walker, file: File, chunks: int, *sizes: int) -> None:
        store: Any = self.store
        for _ in range(self.chance.choice((1, 3, 10))):
            before = walker.nbytes
            piece = walker.take(header.chunk_size)
            image = make_chunk(header.stream, chunks, before, piece, walker.done, store.codec)
            file.write(len(file.data), image)
            chunks += 1
            if walker.done:
                size = len(file.data) + TRAILER_SIZE
                trailer = Trailer(header.stream, chunks, walker.nbytes, walker.records, size)
                file.write(len(file.data), trailer.encode())
                walker.close()
                self._publish(header.name("tmp"), header.name(), lambda: self._written(header, *sizes))
                return
        self._steps(lambda: self._write(header, walker, file, chunks, *sizes))

    def _written(self, header: Header, counted: int, size: int) -> None:
        """The file has its name: it is read back, and looked at by the checker, too."""
        store: Any = self.store
        path = Path(self.member.disk, header.name())
        fresh = MemoryEngine()
        info = store.restore(path, fresh)
        self.member.cluster.checker.snapshot(self.member, header, fresh, self.history)
        known = self.catalogue
        store.prune({path.name} | {kept.path.name for kept in (*known.good[-1:], *known.needed)})
        self._taken(info, counted, size, 0.0)

    def _move(self, index: int, term: int, conf_state: ConfState) -> None:
        """As the real one. Whoever gets a snapshot goes on from there in the log."""
        checker = self.member.cluster.checker
        needed = [info.header.index for info in self.catalogue.sending.values()]
        if checker.inside and needed and min(needed) < index:
            checker.fail(
                f"member {self.member.id} cuts its log at {index} while a snapshot at {min(needed)} is being sent"
            )
        super()._move(index, term, conf_state)

    # ---- sending

    def send(self, message: Message) -> None:
        """A peer needs a snapshot."""
        peer, wanted = message.to, message.snapshot
        assert wanted is not None
        if peer in self.outgoing:
            return
        info = self.catalogue.find(wanted.index, wanted.term)
        if info is None:
            self.member.later(0.0, self.member.raw.report_snapshot, peer, False)
            return
        self.attempts += 1
        # No two attempts of a member have one number, whichever life they are of.
        number = (self.member.life << 20) + self.attempts
        self.catalogue.sending[peer] = info
        self.outgoing[peer] = SimOutgoing(self, number, info, message)
        self.outgoing[peer].begin()

    def answered(self, peer: int, number: int, kind: str, chunk: int, again: bool) -> None:
        """A receiver says something."""
        one = self.outgoing.get(peer)
        if one is not None and one.number == number:
            one.answer(kind, chunk, again)

    def incoming(self, sender: int, number: int, kind: str, data: bytes) -> None:
        """A part of a file comes in. An attempt that begins takes the place of another; not while a file is synced."""
        if kind == BEGIN:
            if self.coming is None or not self.coming.finishing:
                self.coming = SimIncoming(self, sender, number, data)
        elif self.coming is not None and (self.coming.sender, self.coming.number) == (sender, number):
            self.coming.take(kind, data)

    def verified(self, name: str) -> Info | None:
        """A complete file, or None if it does not read back (it is removed then), or is gone: too old to be kept."""
        path: Any = Path(self.member.disk, name)
        if not path.exists():
            return None
        try:
            return self.store.restore(path, MemoryEngine())
        except FormatError as error:
            checker = self.member.cluster.checker
            if checker.inside and name not in self.member.rotten:
                checker.fail(f"member {self.member.id}: {name} was received and does not read back: {error}")
            self.member.disk.remove(name)
            return None

    # ---- installing

    def install(self, snapshot: Snapshot, done: Callable[[], None]) -> None:
        """As the real one."""
        if self._install is not None:
            self._install_next = (snapshot, done)
            return
        info = self.catalogue.find(snapshot.index, snapshot.term)
        if info is None:
            raise DamagedData(f"snapshot {snapshot.index} is gone")
        busy: Any = self
        self._install = busy
        self.member.cluster.checker.counts["installed"] += 1
        self.member.installs.add(info.header.name())

        fresh = self.engine.stage()
        store: Any = self.store
        # A crash may come between any two of these.
        self._steps(lambda: store.restore(info.path, fresh), fresh.seal, lambda: self._installed(info, fresh, done))

    def _installed(self, info: Info, fresh: Engine | None, done: Callable[[], None]) -> None:
        """As the real one; the checker looks at what is there then."""

        def told() -> None:
            done()
            self.member.cluster.checker.is_at(self.member, self.member.applier.applied_index)

        super()._installed(info, fresh, told)
