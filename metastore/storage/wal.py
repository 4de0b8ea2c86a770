"""The write-ahead log on disk. Bytes and rules: FORMATS.md, "WAL"; encoding: `_core/wal_records.pyx`;
scanning and repair: `_core/wal_scan.pyx`; the way of each group: `_core/wal_tail.pyx`.

One thread owns a `Wal`. It appends records to a group in memory. Whenever the disk thread is idle, the owner hands it
the group that has grown meanwhile, and learns from an eventfd when a group is durable:

    append -> (group grows) -> submit -> pwrite, fdatasync -> eventfd -> poll -> durable number, next group

A third thread prepares the segment after the current one. A group therefore waits for a new file only when the disk
cannot keep up. If the next segment cannot be made, `room` reports this before any further write is accepted.

With a `Lag`, a group counts as durable as soon as it is written, unless it holds more than entries and a commit index;
the disk thread then syncs within the bounds of the lag. Everything else stays the same: groups are written in order, a
new segment begins only when the one before it is synced, and data that no record proves synced is the unproven end.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import time
from collections import deque
from pathlib import Path
from typing import Any, Self

from .._core.entry import Entry, HardState, decode_entries
from .._core.raft_types import LogCompacted, LogUnavailable
from .._core.wal_read import Stretch
from .._core.wal_records import MAX_SEGMENT, Group, Writer
from .._core.wal_scan import Recovered, create, recover, reopen
from .._core.wal_tail import LogTail
from .._core.wal_thread import POINT_NAMES, DiskThread
from ..errors import DamagedData, DiskFailed, MetaStoreError, NoDescriptors, NoSpace, reason
from ..failpoints import Action, Failpoints
from ..threads import begin
from .idle_awake import Awake
from .reading import Reading
from .segments import (
    FIRST_SIZE,
    NO_FILES,
    NO_ROOM,
    Folder,
    Preparer,
    Segment,
    fill,
    sync_folder,
    view,
    write_all,
)  # fmt: skip
from .slow_disk import SlowDisk
from .unsynced import Lag

MIN_SEGMENT = 64 << 10
# Bytes in the last segment that new writes may not use; they are kept for votes, membership and compaction.
RESERVE = 1 << 20
# Bytes that a write takes besides its own bytes: record and entry headers, hard state, framing.
_OVERHEAD = 4096
# A log that is opened on a full disk can work with this many bytes.
_SMALLEST = 64 << 10
_GROWTH = 4  # a segment may be so many times larger than the one before it, up to the configured size
_LEAST = 1 << 20  # the least size of a segment that is made in advance on a nearly full disk


class Wal(LogTail):
    """A log that is open for appending. Create it with `Wal.open`. `LogTail` is the part that each group passes.

    metadata: the bytes that the log was created with. report: what `open` cut off, and where it saved a copy.
    """

    def __init__(
        self, folder: Folder, writer: Writer, segment: Segment, older: dict[int, Path], log: Any,
        lag: Lag | None = None, busy_poll: float = 0.0,
    ) -> None:  # fmt: skip
        self.report: list[str] = []
        self._state = writer.state
        self._log = log
        self._made = {segment.generation: segment}
        self._paths = {**older, segment.number: segment.path}
        #: The reason why no next segment can be made, with the numbers; empty while no reason is known.
        self.lack = ""
        #: The text that clients get about it.
        self.refusal: type[MetaStoreError] = NoSpace
        self._stalled_at = 0.0
        self._under_way = False
        self._closed = False
        self._durable_snapshot = self._state.snapshot_index
        self._lag = lag
        self._unsynced: deque[tuple[int, int, int]] = deque()  # (group, generation, end) of the groups written
        self._mark_wanted = False
        self._last_number = segment.number
        self._wanted: deque[tuple[int, int]] = deque()
        with contextlib.ExitStack() as undo:  # where one of the threads cannot be started
            undo.callback(segment.close)
            self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            undo.callback(os.close, self._event)
            # No caller waits for a log whose syncs lag.
            self._awake = Awake(0.0 if lag else busy_poll)
            undo.callback(self._awake.close)
            disk = DiskThread(
                self._event, lag.interval if lag else 0.0, lag.max_bytes if lag else 0, self._awake.pollers
            )
            self._unbind = [folder.failpoints.bind(name, self._setter(disk, i)) for i, name in enumerate(POINT_NAMES)]
            for unbind in self._unbind:
                undo.callback(unbind)
            self._thread = begin("wal-disk", disk.run)
            undo.callback(self._thread.join)
            undo.callback(disk.stop)
            preparer = Preparer(folder, lambda: os.eventfd_write(self._event, 1))
            undo.callback(preparer.stop, 1.0)
            super().__init__(folder, writer, disk, preparer, lag is not None)
            self._slow = SlowDisk(str(folder.path), lambda: self.sync_pending_since, disk.take_longest, log)
            undo.pop_all()
        self._want(segment.size)

    @staticmethod
    def _setter(disk: DiskThread, which: int) -> Any:
        def set_point(action: Action) -> None:
            argument = action.micros or action.error
            disk.point(which, action.kind, argument, action.skip, os.fsencode(action.path))

        return set_point

    # --- opening -----------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        segment_size: int = 64 << 20,
        group_commit: bool = True,
        metadata: bytes | None = None,
        failpoints: Failpoints | None = None,
        log: Any = None,
        max_group: int = 16 << 20,
        lag: Lag | None = None,
        busy_poll: float = 0.0,
    ) -> Self:
        """Open the log in folder `path`, repairing its unproven tail; with `metadata`, create it if there is none.

        segment_size, max_group: bytes; lag: report entries before they are synced; busy_poll: seconds, see
        `Awake`. Raises DamagedData where proven bytes are wrong or the log is missing, DiskFailed where the disk
        refuses, ValueError for a segment size out of range."""
        if not MIN_SEGMENT <= segment_size <= MAX_SEGMENT or segment_size % 4096:
            raise ValueError(f"segment size {segment_size}: a multiple of 4096 from {MIN_SEGMENT} to {MAX_SEGMENT}")
        folder = Folder(Path(path), segment_size, failpoints or Failpoints())
        log = log or logging.getLogger("metastore.wal")
        options = {"group_commit": group_commit, "max_group": max_group, "lagging": lag is not None}
        try:
            return cls._open(folder, metadata, options, log, lag, busy_poll)
        except OSError as error:
            folder.release()
            raise DiskFailed(f"write-ahead log {path}: {reason(error)}") from error
        except BaseException:
            folder.release()
            raise

    @classmethod
    def _open(
        cls,
        folder: Folder,
        metadata: bytes | None,
        options: dict[str, Any],
        log: Any,
        lag: Lag | None,
        busy_poll: float,
    ) -> Self:
        if not folder.path.exists():
            if metadata is None:
                raise DamagedData(f"{folder.path}: there is no write-ahead log")
            folder.path.mkdir(parents=True, mode=0o700)
        # Sync the name even if the folder exists: the process that made it may have died before it synced the name.
        sync_folder(folder.path.parent)
        folder.hold()
        listing = folder.listing()
        recovered = recover([(str(path), number, view(path)) for number, path in listing["wal"].items()])
        if recovered is None and (metadata is None or listing["old"] or any(folder.path.glob("cut-*.bin"))):
            raise DamagedData(f"{folder.path}: the write-ahead log has no segments")
        # This comes last, because a start that is refused must change nothing.
        for path in listing["tmp"].values():
            path.unlink()
        folder.adopt(listing["old"].values())
        holder: list[Wal] = []
        opening = _Opening(folder, recovered, listing["wal"], metadata)
        segment, writer = opening.run(lambda need: holder[0]._plan(need), options)
        wal = cls(folder, writer, segment, opening.older, log, lag, busy_poll)
        holder.append(wal)
        wal.report = opening.report
        for line in wal.report:
            log.warning("%s", line)
        return wal

    # --- reading (the storage that the Raft core asks) ---------------------------------------------------------

    @property
    def metadata(self) -> bytes:
        """The bytes that the log was created with."""
        return self._state.metadata

    @property
    def hard_state(self) -> HardState:
        """The last hard state appended."""
        return HardState(self._state.hard_term, self._state.hard_vote, self._state.hard_commit)

    @property
    def conf_state(self) -> bytes:
        """The ConfState bytes of the snapshot position; empty before the first."""
        return self._state.conf_state

    @property
    def snapshot_index(self) -> int:
        """The log begins after this index."""
        return self._state.snapshot_index

    @property
    def durable_snapshot(self) -> int:
        """The newest snapshot position that is known to be on disk."""
        return self._durable_snapshot

    @property
    def snapshot_term(self) -> int:
        """The term of the entry at the snapshot position."""
        return self._state.snapshot_term

    def initial_state(self) -> tuple[HardState, bytes]:
        """Hard state and ConfState bytes."""
        return self.hard_state, self.conf_state

    def first_index(self) -> int:
        """Index of the first entry (snapshot position + 1)."""
        return int(self._state.first_index)

    def last_index(self) -> int:
        """Index of the last entry appended, durable or not; first_index - 1 when there is none."""
        return int(self._state.last_index)

    def snapshot(self) -> None:
        """The log holds no snapshots; always None."""

    def term(self, index: int) -> int:
        """Term of an entry or of the snapshot position. Raises LogCompacted below, LogUnavailable behind the end."""
        if index < self._state.snapshot_index:
            raise LogCompacted()
        if index > self._state.last_index:
            raise LogUnavailable()
        return int(self._state.term(index))

    def reading(self, low: int, high: int, max_size: int) -> Reading:
        """Returns a `Reading` of the entries [low, high): at least one, then at most max_size bytes in all.

        Raises LogCompacted, and LogUnavailable (also for entries that were appended but are not durable yet).
        """
        if low <= self._state.snapshot_index:
            raise LogCompacted()
        if low >= high or low > self._state.last_index:
            raise LogUnavailable(f"log entries [{low}, {high}) of ..{self._state.last_index}")
        high = min(high, self._state.last_index + 1)
        while high > low and not self._on_disk(high - 1):
            high -= 1
        if high == low:
            raise LogUnavailable(f"log entry {low} is not durable yet")
        return Reading(Stretch(self._state, low, high, max_size), self._paths, self._pread)

    def images(self, low: int, high: int, max_size: int) -> bytes:
        """Images of [low, high), joined, read in this thread; see `reading`. Raises DiskFailed, DamagedData
        (changed bytes).
        """
        return self.reading(low, high, max_size).read()

    def entries(self, low: int, high: int, max_size: int) -> list[Entry]:
        """Like `images`, decoded."""
        return decode_entries(self.images(low, high, max_size))

    def has_conf_change(self, low: int, high: int) -> bool:
        """Whether one of the entries [low, high) changes the membership. This reads nothing from the disk."""
        return bool(self._state.has_conf_change(low, high))

    def _on_disk(self, index: int) -> bool:
        number, offset, _ = self._state.where(index)
        return bool((number, offset) < (self._written_segment, self._written_end))

    def _pread(self, path: Path, length: int, offset: int) -> bytes:
        """Any thread may call this."""
        self._folder.failpoints.hit("wal.read")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, length, offset)
        finally:
            os.close(fd)

    # --- writing -----------------------------------------------------------------------------------------------

    def save_snapshot_position(self, index: int, term: int, conf_state: bytes) -> None:
        """Let the log begin after (index, term). Entries up to it can be released when this is durable.

        If the log does not hold that entry, all its entries are dropped (a snapshot was installed).
        """
        if self._failure is not None:
            raise self._failure
        self._writer.snapshot_position(self._writer.number, index, term, conf_state)
        self._snapshots.append((self._writer.group, index))

    def save_commit(self, hard_state: Any) -> None:
        """Syncs the commit index of this newest hard state even with a `Lag`; see `durable_commit`. Raises
        DiskFailed.
        """
        if self._failure is not None:
            raise self._failure
        self._writer.append(self._writer.number, None, hard_state, True, True)
        self._commits.append((self._writer.group, hard_state.commit))

    def _segment_of(self, group: Group) -> Segment | None:
        """The segment that a group goes to; None if the group must wait for it."""
        segment = self._made.get(group.generation)
        if segment is not None and segment.size >= group.end:
            return segment
        if not self._stalled:
            self._stalled_at = time.monotonic()
        self._stalled = True
        self._preparer.urgent = True
        if not self._full:
            self._prepare()
        return None

    @property
    def queued_bytes(self) -> int:
        """Bytes appended and not yet handed to the disk thread."""
        return int(self._writer.pending_bytes)

    def fileno(self) -> int:
        """An eventfd, readable when `poll` has something to do."""
        return self._event

    def _read_event(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)

    def _note_synced(self) -> None:
        """Notes how far a lagging log is synced, and makes up for a marker that waited for that."""
        self._forget_synced()
        if self._mark_wanted and not self._unsynced:
            self._mark_wanted = False
            self.mark()

    def _forget_synced(self) -> None:
        synced = self._disk.synced_group
        while self._unsynced and self._unsynced[0][0] <= synced:
            group, generation, end = self._unsynced.popleft()
            self._writer.synced(generation, group, end)

    def _note_end(self, group: Group) -> None:
        """Notes which snapshot positions and commit indexes are durable with this group, and what is to be synced."""
        if self._lag is not None:
            self._unsynced.append((group.group, group.generation, group.end))
        while self._snapshots and self._snapshots[0][0] <= group.group:
            self._durable_snapshot = self._snapshots.pop(0)[1]
        while self._commits and self._commits[0][0] <= group.group:
            self.durable_commit = self._commits.pop(0)[1]

    def _left(self, number: int) -> None:
        """A segment is full; from now on it is only read."""
        for generation, segment in list(self._made.items()):
            if segment.number <= number:
                segment.close()
                del self._made[generation]

    def _fail(self, code: int, in_sync: bool) -> None:
        text = f"write-ahead log {self._folder.path}: {'sync' if in_sync else 'write'} failed: {os.strerror(code)}"
        if in_sync and code not in (*NO_ROOM, errno.EROFS):
            text += "; what the page cache holds can no longer be believed"
        self._failure = DiskFailed(f"{text}; the node must stop")
        raise self._failure

    def mark(self) -> bool:
        """Proves the last group with a marker, if the log is idle and lacks it. Returns whether one was begun."""
        if self._failure is not None:
            raise self._failure
        if not self.idle or self._writer.pending_sync or (self._proven and not self._writer.pending_bytes):
            return False
        self._forget_synced()  # nobody reports a sync that was not requested
        if self._unsynced:
            # A marker proves everything that is synced at the time when it is written.
            self._mark_wanted = True
            self._disk.sync_now()
            return False
        self._writer.mark()
        self.submit()
        return True

    # --- space -------------------------------------------------------------------------------------------------

    def _want(self, before: int) -> None:
        """Plans one more segment behind one of `before` bytes. A log that stays small uses no large files."""
        self._last_number += 1
        size = min(self._folder.segment_size, before * _GROWTH)
        self._wanted.append((self._folder.new_generation(self._last_number), size))
        if not self._full:
            self._prepare()

    def _prepare(self) -> None:
        """Gives the idle preparing thread its next job: to grow the awaited segment, or to make the next one."""
        if self._under_way:
            return
        self._preparer.urgent = False
        group = self._writer.peek()
        segment = self._made.get(group.generation) if group is not None else None
        if group is not None and segment is not None and segment.size < group.end:
            self._preparer.grow(segment, group.end)
        elif self._wanted:
            generation, size = self._wanted[0]
            least, spare = min(size, _LEAST), self._folder.spare
            if group is not None and group.generation == generation:
                # A group waits for this segment: it is only as large as necessary, and may use the disk's last bytes.
                least, spare = max(_SMALLEST, -(-group.end // 4096) * 4096), 0
            self._preparer.ask(generation, max(size, least), least, spare)
        else:
            return
        self._under_way = True

    def _plan(self, need: int) -> tuple[int, int]:
        """The writer moves on to the next segment. Returns this segment, and plans the one after it at once."""
        ahead = {made.generation: made.size for made in self._made.values()} | dict(self._wanted)
        ahead = {generation: ahead[generation] for generation in sorted(ahead) if generation > self._writer.generation}
        generation, size = next(iter(ahead.items()))
        if len(ahead) == 1:
            self._want(size)
        return generation, max(need, size)

    def _collect(self) -> None:
        """Takes the results of the preparing thread."""
        while (segment := self._preparer.take()) is not None:
            self._under_way = False
            if isinstance(segment, Exception):
                self._not_made(segment)
                continue
            self._full, self.lack = False, ""
            if segment.generation not in self._made:
                self._made[segment.generation] = segment
                self._paths[segment.number] = segment.path
                self._wanted.popleft()
            if segment.generation == self._writer.generation and segment.size < self._writer.capacity:
                self._writer.shrink(segment.size)
            self._prepare()

    def _not_made(self, error: Exception) -> None:
        """Notes that no next segment was made. A full disk or a lack of descriptors may pass. Other errors
        raise DiskFailed.
        """
        number = error.errno if isinstance(error, OSError) else 0
        if number not in NO_ROOM + NO_FILES:
            self._failure = error if isinstance(error, DiskFailed) else DiskFailed(
                f"write-ahead log {self._folder.path}: the next segment cannot be made: "
                f"{reason(error)}"
            )  # fmt: skip
            raise self._failure
        assert isinstance(error, OSError)
        lack = self.lack
        self.lack, self.refusal = f"{self._folder.path}: {error.strerror}", NoSpace
        if number in NO_FILES:
            self.lack, self.refusal = f"{error.strerror}: the log's next file cannot be opened", NoDescriptors
        if not self._full or lack != self.lack:
            self._log.warning("no next segment of the write-ahead log: %s", self.lack)
        self._full = True

    @property
    def preparing(self) -> bool:
        """Whether a segment is being made; `poll` takes it in."""
        return self._under_way

    @property
    def path(self) -> Path:
        """The folder of the log."""
        return self._folder.path

    @property
    def free(self) -> int:
        """The bytes that were free on the disk at the last check; see `measure`."""
        return self._folder.free

    @property
    def spare(self) -> int:
        """The bytes of the disk that segments made in advance leave free."""
        return self._folder.spare

    def measure(self, others: int = 0) -> None:
        """Lets a thread check the room on the disk; others on the disk will need so many bytes."""
        self._folder.expect(others)
        self._preparer.look()

    @property
    def reserve(self) -> int:
        """The bytes that `room` keeps back: for deletes and compaction, votes and membership."""
        return min(RESERVE, self._folder.segment_size // 4)

    def _little_room(self, left: int) -> int:
        """What `room` says where only `left` bytes are free on the disk."""
        writer = self._writer
        for generation, segment in self._made.items():
            if generation == writer.generation:
                left += segment.size - min(segment.size, writer.position)
            elif generation > writer.generation:
                left += segment.size
        return left - self.reserve - _OVERHEAD

    def retry_room(self) -> bool:
        """Tries again to make the missing segment; call it now and then. True if the last attempt went
        well. See `fileno`.
        """
        self._collect()
        if self._full and self._failure is None:
            self._prepare()
        return not self._full

    def release(self, index: int) -> int:
        """Drops the segments that no entry after `index` needs; returns how many. Files are recycled or removed in the
        background. `index` is at most the snapshot position; nothing is dropped before that position is durable.
        """
        if index > self._state.snapshot_index:
            raise ValueError(f"release({index}): the snapshot position is {self._state.snapshot_index}")
        if self._durable_snapshot != self._state.snapshot_index:
            return 0
        keep = self._written_segment
        if self._state.last_index > self._state.snapshot_index:
            keep = min(keep, self._state.where(self._state.snapshot_index + 1)[0])
        drop = sorted(number for number in self._paths if number < keep)
        for number in drop:
            self._preparer.discard(self._paths.pop(number))
        return len(drop)

    # --- closing -----------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, float]:
        """Counters since open: syncs, groups, bytes written, seconds in write and in sync, segments held."""
        return {
            "syncs": self._disk.syncs,
            "groups": self.groups,
            "bytes": self._disk.bytes,
            "write_seconds": self._disk.write_seconds,
            "sync_seconds": self._disk.sync_seconds,
            "idle_poll_seconds": self._awake.seconds,
            "segments": len(self._paths),
            "first_index": self.first_index(),
        }

    @property
    def sync_pending_since(self) -> float | None:
        """When the log began to wait for the write or sync that is under way, or for its next segment to be made
        (time.monotonic()); None if it waits for nothing. A disk that stands still shows here, a full one does not. Any
        thread may ask."""
        since: float | None = self._disk.pending_since
        if since is None and self._stalled and self._under_way and not self._full:
            return self._stalled_at
        return since

    @property
    def sync_pending_seconds(self) -> float:
        """How long the log has waited for that, in seconds; 0 if it waits for nothing. Any thread may ask."""
        since = self.sync_pending_since
        return time.monotonic() - since if since is not None else 0.0

    @property
    def unsynced(self) -> tuple[int, float]:
        """What a power cut would lose: (bytes written and not synced, seconds since the first of these bytes was
        written). Without a `Lag` none of these bytes was reported as durable.
        """
        return self._disk.unsynced

    def close(self, timeout: float = 10.0) -> None:
        """Writes what is queued, proves it with a marker, and ends the threads. `timeout` in seconds bounds the
        waiting; data that is not durable by then stays unproven. Raises DiskFailed if the disk fails meanwhile. Always
        closes the log."""
        if self._closed:
            return
        self._closed = True
        self.edge_triggered = False
        deadline = time.monotonic() + timeout
        try:
            if self._failure is None:
                self._drain(deadline)
                if self.mark():
                    self._drain(deadline)
        finally:
            self._shut(deadline)

    def _drain(self, deadline: float) -> None:
        waiter = select.poll()
        waiter.register(self._event, select.POLLIN)
        if self._disk.listen(True):
            self.settle()
        self.submit()
        while self._disk.busy or (self._stalled and not self._full) or self._unsynced:
            if self._unsynced:
                self._disk.sync_now()
            left = deadline - time.monotonic()
            if left <= 0:
                self._log.warning("write-ahead log: closing without waiting any longer for the disk")
                return
            waiter.poll(left * 1000)
            self.poll()

    def descriptors(self) -> list[int]:
        """Those of the segments that are open for writing, and of the folder's lock."""
        return [*(segment.fd for segment in self._made.values()), *self._folder.descriptors()]

    def _shut(self, deadline: float) -> None:
        for unbind in self._unbind:
            unbind()
        self._slow.stop()
        self._disk.stop()
        self._awake.close()
        self._preparer.stop(max(0.0, deadline - time.monotonic()))
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._folder.release_after([self._thread, self._preparer.thread], self._let_go)
        self._failure = self._failure or DiskFailed("write-ahead log: closed")

    def _let_go(self) -> None:
        """Nothing uses the files any more."""
        with contextlib.suppress(DiskFailed):
            self._collect()
        for segment in self._made.values():
            segment.close()
        self._made.clear()
        self._folder.release()
        os.close(self._event)
        self._event = -1


class _Opening:
    """Makes the fresh segment of an opened log, then tidies up. `older`: number -> path of segments that it follows."""

    def __init__(
        self, folder: Folder, recovered: Recovered | None, files: dict[int, Path], metadata: bytes | None
    ) -> None:
        self.folder = folder
        self.found = recovered
        self.files = files
        self.metadata = metadata
        self.report: list[str] = []
        self.older: dict[int, Path] = {}

    def run(self, plan: Any, options: dict[str, Any]) -> tuple[Segment, Writer]:
        """Returns the segment, written, synced and named, and the writer behind its bytes. Raises OSError."""
        self._copy_aside()
        spare = self.found.spare[0] if self.found and self.found.spare else 0
        if spare:
            generation = spare
        else:
            generation = self.folder.new_generation(self.found.max_number + 1 if self.found else 1)
        temporary = self.folder.file(generation, "tmp")
        if spare:
            os.rename(self.files[spare], temporary)
            # A half-written file must never appear under a segment's name.
            sync_folder(self.folder.path)
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not spare:
                self._space(fd)
            size = os.fstat(fd).st_size
            if self.found is None:
                data, writer = create(generation, size, self.metadata or b"", plan, **options)
            else:
                data, writer = reopen(self.found, generation, size, plan, **options)
                self.report.extend(self.found.report)
            write_all(fd, data, 0)
            path = self.folder.publish(temporary, fd, generation)
            self._tidy(generation)
        except BaseException:
            os.close(fd)
            raise
        return Segment(path, generation, fd, max(size, len(data))), writer

    def _space(self, fd: int) -> None:
        size = min(FIRST_SIZE, self.folder.segment_size)
        # A full disk must not keep clients from reading a node's data. A node without data is of no use on a full disk.
        new = self.found is None
        fill(fd, self.folder.set_aside(fd, size, size if new else _SMALLEST, self.folder.spare if new else 0))

    def _copy_aside(self) -> None:
        for cut in self.found.cuts if self.found else []:
            copy = self.folder.path / f"cut-{cut.generation:016x}-{cut.offset}.bin"
            with self.files[cut.generation].open("rb") as source, copy.open("wb") as target:
                source.seek(cut.offset)
                target.write(source.read(cut.end - cut.offset))
                target.flush()
                os.fsync(target.fileno())
            self.report.append(
                f"{cut.name}: cut at offset {cut.offset}: {cut.reason}; {cut.end - cut.offset} bytes copied to {copy}"
            )

    def _tidy(self, fresh: int) -> None:
        """The fresh segment is durable: removes the files that it replaces and cuts the one it follows."""
        if self.found is None:
            return
        for generation in [*self.found.stale, *self.found.spare]:
            if generation != fresh:
                self.folder.retire(self.files[generation])
        for generation in self.found.used:
            self.older[generation >> 32] = self.files[generation]
        last = self.found.last_generation
        if self.found.superseded:
            self.folder.retire(self.older.pop(last >> 32))
        else:
            os.truncate(self.files[last], self.found.cut_at)
