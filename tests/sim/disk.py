"""Disks of the simulation: files that tear, and the real write-ahead log over them.

Fault model. A file has what the page cache shows and what is on the platter; a sync makes them equal. A killed process
loses nothing of the page cache, but a write it was in may be there in part. A power cut keeps, for every block of 512
or 4096 bytes written since the last sync, either the old or the new bytes, each block by itself. Names (making,
renaming, removing files) reach the platter in order: after a power cut a prefix of what was done since the last sync of
the folder is there. A sync that fails may have written anything, and the page cache looks clean after it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

from metastore._core.wal_records import Group, Writer, encode_header, make_generation
from metastore._core.wal_scan import Recovered, create, recover, reopen
from metastore._core.wal_tail import LogDisk, LogTail
from metastore.errors import DamagedData
from metastore.storage.wal import Lag, Wal

from .clock import Clock, Timer

SECTOR = 512
ENDS_MEANWHILE = 0.1  # the share of the groups under way that end in the moment in which the owner begins to wait


class File:
    """Bytes in the page cache, bytes on the platter."""

    __slots__ = ("data", "dirty", "synced")

    def __init__(self) -> None:
        self.data = bytearray()
        self.synced = bytearray()
        self.dirty: set[int] = set()

    def write(self, offset: int, data: bytes) -> None:
        """Into the page cache."""
        end = offset + len(data)
        if end > len(self.data):
            self.data.extend(bytes(end - len(self.data)))
        self.data[offset:end] = data
        self.dirty.update(range(offset // SECTOR, (end + SECTOR - 1) // SECTOR))

    def cut(self, size: int) -> None:
        """Make the file shorter. Either length may be there after a power cut."""
        del self.data[size:]
        self.dirty.add(size // SECTOR)

    def sync(self) -> None:
        """Page cache to platter."""
        if len(self.synced) != len(self.data):
            size = len(self.data)
            del self.synced[size:]
            self.synced.extend(bytes(size - len(self.synced)))
        for block in self.dirty:
            low = block * SECTOR
            self.synced[low : low + SECTOR] = self.data[low : low + SECTOR]
        self.dirty.clear()

    def fail_sync(self, chance: random.Random) -> None:
        """Some blocks get through; the rest counts as clean from now on (Linux after a failed fsync)."""
        for block in sorted(self.dirty):
            if chance.random() < 0.5:
                low = block * SECTOR
                self.synced[low : low + SECTOR] = self.data[low : low + SECTOR]
        self.dirty.clear()

    def power_cut(self, chance: random.Random) -> None:
        """Whatever is unsynced gets through or not, block by block."""
        if self.dirty or len(self.data) != len(self.synced):
            size = chance.choice((SECTOR, 8 * SECTOR))
            keep = chance.choice((0.0, 0.5, 1.0, chance.random()))
            if len(self.synced) < len(self.data):
                self.synced.extend(bytes(len(self.data) - len(self.synced)))
            elif len(self.data) < len(self.synced) and chance.random() < keep:
                del self.synced[len(self.data) :]
            for unit in sorted({block * SECTOR // size for block in self.dirty}):
                if chance.random() < keep:
                    low = unit * size
                    high = min(low + size, len(self.data))
                    if low < high:
                        self.synced[low:high] = self.data[low:high]
        self.data = bytearray(self.synced)
        self.dirty.clear()


class Disk:
    """Files of one member by name. Survives its member's crashes."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self._durable: dict[str, File] = {}
        self._renames: list[tuple[str, str | None, File | None]] = []

    def make(self, name: str) -> File:
        """A new empty file."""
        file = self.files[name] = File()
        self._renames.append((name, None, file))
        return file

    def rename(self, old: str, new: str) -> None:
        """Replaces what is there."""
        self.files[new] = self.files.pop(old)
        self._renames.append((old, new, None))

    def remove(self, name: str) -> None:
        """The file is gone when the folder is synced."""
        del self.files[name]
        self._renames.append((name, None, None))

    def sync_names(self) -> None:
        """Sync of the folder."""
        self._durable = dict(self.files)
        self._renames.clear()

    def durable_commit(self) -> int:
        """The commit index that a start would find in the log if the power went now and took all that it can."""
        names = [name for name in self._durable if name.endswith(".wal")]
        found = recover([(name, int(name[:16], 16), bytes(self._durable[name].synced)) for name in names], rewrite=0)
        if found is None:
            return 0
        _, writer = reopen(found, make_generation(found.max_number + 1, 0), 1 << 24, lambda need: (0, need))
        return int(writer.state.hard_commit)

    def power_cut(self, chance: random.Random) -> None:
        """Keep a prefix of what was done to names, and of each file what got through."""
        names = self._durable
        for name, new, file in self._renames[: chance.randint(0, len(self._renames))]:
            if file is not None:
                names[name] = file
            elif new is None:
                names.pop(name, None)
            elif name in names:
                names[new] = names.pop(name)
        self.files = names
        self.sync_names()
        for name in sorted(self.files):
            self.files[name].power_cut(chance)


class Segment:
    """What `Wal` keeps of a segment that is open for writing; `fd` is the file itself."""

    def __init__(self, path: str, generation: int, fd: File, size: int) -> None:
        self.path = path
        self.generation = generation
        self.fd = fd
        self.size = size

    @property
    def number(self) -> int:
        """Its place in the order of segments."""
        return self.generation >> 32

    def close(self) -> None:
        """Nothing to close."""


class Speed:
    """How long a disk takes: seconds for a write and a sync, and until the loop hears of it; `stall` is the chance of
    a sync that takes up to `stall_time`, `fail` that of one that fails; `read` is the most that a read takes on its
    way there, and on its way back."""

    def __init__(self) -> None:
        self.write = 0.0002
        self.sync = 0.001
        self.report = 0.0001
        self.stall = 0.002
        self.stall_time = 1.0
        self.fail = 0.0
        self.read = 0.0


class DiskThread(LogDisk):
    """Stands in for `_core.wal_thread.DiskThread`: one group at a time, on virtual time."""

    def __init__(self, clock: Clock, speed: Speed, woken: Callable[[], None]) -> None:
        self.synced_group = 0
        self.clock = clock
        self.speed = speed
        self.woken = woken
        self.failed: tuple[int, bool] | None = None
        self.crash_in: tuple[str, Callable[[], None]] | None = None
        self.syncs = self.bytes = self.syncs_begun = 0
        self.write_seconds = self.sync_seconds = 0.0
        self._group: Group | None = None
        self._data = b""
        self._done: Group | None = None
        self._file: File | None = None
        self._times = (0.0, 0.0)
        self._timer: Timer | None = None
        self._unheard = False
        self._told = True
        #: Called when a group has ended and its owner is not told.
        self.in_silence: Callable[[], object] = lambda: None

    def start(self, group: Group, file: File, patience: float, _client: int) -> int:
        """Write the group, then sync."""
        if self.busy or patience:
            raise RuntimeError("a group is in flight" if self.busy else "only who is alone waits for the disk")
        speed, chance, now = self.speed, self.clock.random, self.clock.now
        self.busy = True
        self.syncs_begun += 1
        self._group, self._file, self._data = group, file, group.tobytes()
        written = now + speed.write * (0.5 + chance.random())
        synced = written + speed.sync * (0.5 + chance.random())
        if speed.stall and chance.random() < speed.stall:
            synced += chance.random() * speed.stall_time
        self._times = (now, written)
        self._timer = self.clock.at(synced, self._synced)
        if self.crash_in is not None:
            phase, crash = self.crash_in
            begin, end = {"write": (now, written), "sync": (written, synced), "after": (synced, synced + speed.report)}[
                phase
            ]
            self.crash_in = None
            self.clock.at(begin + (end - begin) * chance.random(), crash)
        return 0  # NOT_WAITED

    def _synced(self) -> None:
        assert self._file is not None and self._group is not None
        self._timer = None
        self._file.write(self._group.offset, self._data)
        if self.speed.fail and self.clock.random.random() < self.speed.fail:
            self._file.fail_sync(self.clock.random)
            self.failed = (5, True)
        else:
            self._file.sync()
            self.syncs += 1
            self.bytes += len(self._data)
            self._done = self._group
        self._group = None
        self._tell()

    def _tell(self) -> None:
        """A group has ended."""
        self._told = self.failed is not None or not self._unheard
        if not self._told:
            self.in_silence()
        else:
            self.clock.after(self.speed.report * (0.5 + self.clock.random.random()), self.woken)

    def has_ended(self) -> bool:
        """Whether a group is on the platter that `finished` has not returned."""
        return self._done is not None

    def listen(self, wanted: bool) -> bool:
        """Whether the end of a group is to be reported. While the owner makes up its mind, the group may end."""
        if wanted and not self._unheard:
            return False
        if wanted and self._timer is not None and self.clock.random.random() < ENDS_MEANWHILE:
            self._timer.cancel()
            self._end_now()
        self._unheard = not wanted
        return wanted and self._done is not None

    def _end_now(self) -> None:
        self._synced()

    @property
    def untold(self) -> bool:
        """Whether a group has ended that its owner knows nothing of."""
        return self._done is not None and not self._told

    def sync_now(self) -> None:
        """Nothing is written that is not synced."""

    def finished(self) -> Group | None:
        """The group that is on the platter since the last call."""
        group, self._done = self._done, None
        if group is not None:
            self.busy = False
        return group

    def has_failed(self) -> bool:
        """Whether a sync failed."""
        return self.failed is not None

    def stop(self) -> None:
        """The process is gone: the write in flight gets as far as it got."""
        if self._timer is None or self._file is None or self._group is None:
            return
        self._timer.cancel()
        chance = self.clock.random
        begin, written = self._times
        if self.clock.now >= written:
            part = len(self._data)
        else:
            part = int(len(self._data) * (self.clock.now - begin) / (written - begin) * chance.random() * 2)
        if part:
            self._file.write(self._group.offset, self._data[:part])
        self._timer = None


class LaggingThread(DiskThread):
    """The same with a lag: a group that is not firm is finished when it is written, within the bounds."""

    def __init__(self, clock: Clock, speed: Speed, woken: Callable[[], None], lag: Lag) -> None:
        super().__init__(clock, speed, woken)
        self.lag = lag
        self.alive = True
        self._queued = self._syncing = self._asked = False
        self._dirty_file: File | None = None
        self._dirty_bytes = self._dirty_group = 0
        self._dirty_since = 0.0

    def at_risk(self) -> tuple[float, int]:
        """(seconds, bytes) that were reported and not synced, where nothing is under way to mend it."""
        if not self.alive or self._group is not None or self._syncing or self.failed or not self._dirty_bytes:
            return 0.0, 0
        return self.clock.now - self._dirty_since, self._dirty_bytes

    def start(self, group: Group, file: File, patience: float, _client: int) -> int:
        """Write the group when the sync under way is over."""
        if self.busy or patience:
            raise RuntimeError("a group is in flight" if self.busy else "only who is alone waits for the disk")
        self.busy = True
        self._group, self._file, self._data = group, file, group.tobytes()
        if self._syncing:
            self._queued = True
        else:
            self._carry()
        return 0  # NOT_WAITED

    def _carry(self) -> None:
        self._queued = False
        if self._dirty_bytes and self._dirty_file is not self._file:
            self._sync(self._carry)
            return
        speed, chance, now = self.speed, self.clock.random, self.clock.now
        written = now + speed.write * (0.5 + chance.random())
        self._times = (now, written)
        self._timer = self.clock.at(written, self._wrote)
        if self.crash_in is not None:
            phase, crash = self.crash_in
            self.crash_in = None
            begin = now if phase == "write" else written
            length = {"write": written - now, "sync": speed.sync, "after": speed.report + self.lag.interval}[phase]
            self.clock.at(begin + length * chance.random(), crash)

    def _wrote(self) -> None:
        assert self._file is not None and self._group is not None
        self._timer = None
        self._file.write(self._group.offset, self._data)
        if not self._dirty_bytes:
            self._dirty_since = self._times[0]
            self.clock.at(self._dirty_since + self.lag.interval, self._due)
        self._dirty_file = self._file
        self._dirty_bytes += len(self._data)
        self._dirty_group = self._group.group
        late = self.clock.now - self._dirty_since >= self.lag.interval
        if self._group.firm or late or self._dirty_bytes > self.lag.max_bytes:
            self._sync(self._report)
        else:
            self._report()

    def _report(self) -> None:
        self._done, self._group = self._group, None
        self._tell()

    def _end_now(self) -> None:
        self._wrote()

    def _due(self) -> None:
        """The time of the first byte that is not synced has come; a write that is under way sees to it itself."""
        if self.clock.now >= self._dirty_since + self.lag.interval:
            self._sync_soon()

    def sync_now(self) -> None:
        """Sync and report that."""
        self._asked = True
        if self._dirty_bytes:
            self._sync_soon()
        elif self.alive:
            self._answer()

    def _answer(self) -> None:
        if self._asked:
            self._asked = False
            self.clock.after(self.speed.report, self.woken)

    def _sync_soon(self) -> None:
        """Sync, unless that is under way or a write is."""
        if self.alive and self._dirty_bytes and not self._syncing and self._timer is None and self.failed is None:
            self._sync(self._idle)

    def _idle(self) -> None:
        self._answer()
        if self._queued:
            self._carry()

    def _sync(self, then: Callable[[], None]) -> None:
        speed, chance = self.speed, self.clock.random
        self._syncing = True
        self.syncs_begun += 1
        length = speed.sync * (0.5 + chance.random())
        if speed.stall and chance.random() < speed.stall:
            length += chance.random() * speed.stall_time
        self.clock.after(length, self._sync_done, then)

    def _sync_done(self, then: Callable[[], None]) -> None:
        if not self.alive:
            return
        self._syncing = False
        assert self._dirty_file is not None
        if self.speed.fail and self.clock.random.random() < self.speed.fail:
            self._dirty_file.fail_sync(self.clock.random)
            self.failed = (5, True)
            self.clock.after(self.speed.report, self.woken)
            return
        self._dirty_file.sync()
        self.syncs += 1
        self._dirty_bytes = 0
        self.synced_group = self._dirty_group
        then()

    def stop(self) -> None:
        """The process is gone."""
        self.alive = False
        super().stop()


class Preparer:
    """Stands in for the thread that makes segments: they come a little later."""

    def __init__(self, clock: Clock, disk: Disk, notify: Callable[[], None]) -> None:
        self.clock = clock
        self.disk = disk
        self.notify = notify
        self.urgent = False
        self.results: deque[Segment] = deque()
        self._alive = True

    def ask(self, generation: int, size: int, _least: int, _spare: int) -> None:
        """Begin to make a segment."""
        self.clock.after(self.clock.random.random() * 0.02, self._make, generation, size)

    def _make(self, generation: int, size: int) -> None:
        if not self._alive:
            return
        name = f"{generation:016x}.wal"
        old = [name for name in self.disk.files if name.endswith(".old")]
        if old and self.clock.random.random() < 0.7:
            file = self.disk.files[old[0]]
            self.disk.rename(old[0], f"{generation:016x}.tmp")
            self.disk.sync_names()
        else:
            file = self.disk.make(f"{generation:016x}.tmp")
        size = max(size, len(file.data))
        file.write(len(file.data), bytes(size - len(file.data)))
        file.write(0, encode_header(generation, size))
        file.sync()
        self.disk.rename(f"{generation:016x}.tmp", name)
        self.disk.sync_names()
        self.results.append(Segment(name, generation, file, size))
        self.notify()

    def grow(self, segment: Segment, size: int) -> None:
        """Begin to make a segment longer."""
        self.clock.after(self.clock.random.random() * 0.01, self._grow, segment, size)

    def _grow(self, segment: Segment, size: int) -> None:
        if self._alive:
            segment.fd.write(len(segment.fd.data), bytes(max(0, size - len(segment.fd.data))))
            segment.fd.sync()
            segment.size = max(size, segment.size)
            self.results.append(segment)
            self.notify()

    def discard(self, path: str) -> None:
        """A segment that is not needed any more: keep one to be used again."""
        if any(name.endswith(".old") for name in self.disk.files):
            self.disk.remove(path)
        else:
            self.disk.rename(path, path[:16] + ".old")

    def take(self) -> Segment | None:
        """What was made since."""
        return self.results.popleft() if self.results else None

    def stop(self) -> None:
        """The process is gone."""
        self._alive = False


class Folder:
    """The part of storage.segments.Folder that `Wal` itself uses."""

    path = "simulated disk"

    def __init__(self, chance: random.Random, segment_size: int) -> None:
        self.chance = chance
        self.segment_size = segment_size
        self.path = "a simulated disk"
        self.spare = 0  # it is never full

    def new_generation(self, number: int) -> int:
        """A generation of segment `number`."""
        return make_generation(number, self.chance.getrandbits(32))


class SimWal(Wal):
    """The real log with the disk replaced: appending, grouping, numbering, releasing and reading are `Wal`'s own."""

    def __init__(
        self,
        clock: Clock,
        disk: Disk,
        speed: Speed,
        folder: Folder,
        writer: Writer,
        segment: Segment,
        older: dict[int, str],
        woken: Callable[[], None],
        lag: Lag | None = None,
    ) -> None:
        # Everything Wal.__init__ sets but its threads and files.
        thread = LaggingThread(clock, speed, woken, lag) if lag else DiskThread(clock, speed, woken)
        LogTail.__init__(self, folder, writer, thread, Preparer(clock, disk, woken), lag is not None)
        self.edge_triggered = True  # there is no eventfd
        self.quick_sync = 0.0
        self.report: list[str] = []
        self.disk_files = disk
        self.speed = speed
        self.chance = clock.random
        self._state = writer.state
        self._log = Quiet()
        self._made: Any = {segment.generation: segment}
        self._paths: Any = {**older, segment.number: segment.path}
        self.lack = ""
        self._stalled_at = 0.0
        self._under_way = False
        self._closed = False
        self._durable_snapshot = self._state.snapshot_index
        self._lag = lag
        self._unsynced = deque()
        self._mark_wanted = False
        self._last_number = segment.number
        self._wanted = deque()
        self._want(segment.size)

    @property
    def thread(self) -> DiskThread:
        """The disk's side."""
        thread: DiskThread = self._disk
        return thread

    def _pread(self, path: Any, length: int, offset: int) -> bytes:
        file = self.disk_files.files.get(path)
        if file is None:
            raise FileNotFoundError(path)
        return bytes(file.data[offset : offset + length])

    def crash(self) -> None:
        """The process is gone."""
        self._disk.stop()
        self._preparer.stop()


class Quiet:
    """A logger that is silent."""

    def warning(self, *_: object) -> None:
        """Nothing."""


def open_wal(
    clock: Clock,
    disk: Disk,
    speed: Speed,
    woken: Callable[[], None],
    *,
    segment_size: int,
    rewrite: int,
    group_commit: bool,
    max_group: int,
    metadata: bytes,
    made: type[SimWal] = SimWal,
    lag: Lag | None = None,
) -> SimWal:
    """What `Wal.open` does, over simulated files. Raises DamagedData."""
    folder = Folder(clock.random, segment_size)
    files = {int(name[:16], 16): name for name in disk.files if name.endswith(".wal")}
    found = recover([(name, number, bytes(disk.files[name].data)) for number, name in files.items()], rewrite=rewrite)
    if found is None and any(name.endswith(".old") for name in disk.files):
        raise DamagedData("the write-ahead log has no segments")
    for name in sorted(disk.files):
        if name.endswith(".tmp"):
            disk.remove(name)
    spare = found.spare[0] if found and found.spare else 0
    generation = spare or folder.new_generation(found.max_number + 1 if found else 1)
    temporary, final = f"{generation:016x}.tmp", f"{generation:016x}.wal"
    if spare:
        disk.rename(files[spare], temporary)
        disk.sync_names()
        file = disk.files[temporary]
    else:
        file = disk.make(temporary)
        file.write(0, bytes(segment_size))
    holder: list[SimWal] = []
    options = {"group_commit": group_commit, "max_group": max_group, "lagging": lag is not None}
    size = len(file.data)

    def plan(need: int) -> tuple[int, int]:
        return holder[0]._plan(need)

    if found is None:
        data, writer = create(generation, size, metadata, plan, **options)
    else:
        data, writer = reopen(found, generation, size, plan, **options)
    file.write(0, data)
    file.sync()
    disk.rename(temporary, final)
    disk.sync_names()
    older = _tidy(disk, found, files, generation) if found is not None else {}
    segment = Segment(final, generation, file, max(size, len(data)))
    wal = made(clock, disk, speed, folder, writer, segment, older, woken, lag)
    holder.append(wal)
    wal.report = [*found.report, *(cut.reason for cut in found.cuts)] if found else []
    return wal


def _tidy(disk: Disk, found: Recovered, files: dict[int, str], fresh: int) -> dict[int, str]:
    for generation in [*found.stale, *found.spare]:
        if generation != fresh:
            disk.remove(files[generation])
    older = {generation >> 32: files[generation] for generation in found.used}
    last = found.last_generation
    if found.superseded:
        disk.remove(older.pop(last >> 32))
    else:
        disk.files[files[last]].cut(found.cut_at)
    return older
