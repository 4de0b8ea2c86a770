"""The log's folder: segment files, and the thread that prepares the next one before it is needed.

Segments are written with zeros before use. Measured on ext4 (virtual disk, two cores), one pwrite and fdatasync,
median of 200 to 500:

    bytes     appended   fallocate   zero-filled
    400       180-197    135-149     131-142 us
    16 KiB    231-240    217-220     151 us
    256 KiB   412-428    366-372     238-250 us

64 MiB of zeros take 40-45 ms there, so a new log begins with a small segment instead, and large ones are made in the
background: first their space is reserved (`fallocate`, a millisecond, after which ENOSPC cannot come any more), then
zeros are written for as long as nobody waits for the segment. A recycled file needs neither.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .._core.wal_records import encode_header, make_generation
from ..errors import DamagedData, DataDirInUse, DiskFailed, OutOfResources
from ..failpoints import Failpoints
from ..threads import begin
from .locks import lock, unlock

FIRST_SIZE = 4 << 20
# The background thread writes zeros in small slices, syncs each slice, and pauses between them (seconds), because the
# log's own syncs wait for these writes. Measured under full load with 20 batches of 15 kB in flight: 87-108 MB/s this
# way, 45-75 with 8 MiB between two syncs, 47-57 without any zeros.
_SLICE = 256 << 10
_PAUSE = 0.002
_BLOCK = 4096  # the unit that a medium can or cannot deliver
# The first errors mean that the disk, or this user's share of it, is used up. The second mean a lack of descriptors.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
NO_FILES = (errno.EMFILE, errno.ENFILE)
#: The log does not use these bytes of a disk for clients' writes (on a small disk: a sixteenth). They are kept for
#: snapshots, and for a segment that the log cannot do without.
SPARE = 16 << 20
#: A segment that is made in advance may take at most one part in SHARE of the disk's free bytes. The storage engine and
#: the snapshots need free bytes too, and the log does not give reserved bytes back when they grow.
SHARE = 4
#: Seconds for which the next one in this process waits for a log whose threads still write what it was closed with.
PATIENCE = 10.0
_NAME = re.compile(r"([0-9a-f]{16})\.(wal|tmp|old)")
_ZEROS = bytes(_SLICE)
# The logs that were closed while their threads still wrote: (device, inode) of the folder, and who waits for them.
_ending: dict[tuple[int, int], threading.Thread] = {}


def sync_folder(path: Path) -> None:
    """Makes the names in the folder durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Like pwrite, but writes all bytes. Raises OSError."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def view(path: Path) -> Any:
    """The bytes of a file, mapped into memory. They stay valid as long as an object refers to them.

    The whole file is read once before it is mapped (64 MiB: 10 ms). If the medium cannot deliver a block, `pread` only
    fails, but a mapped access would end the process. Raises DamagedData with the offset of such a block, and OSError.
    """
    with path.open("rb") as file:
        fd, size = file.fileno(), os.fstat(file.fileno()).st_size
        for offset in range(0, size, _SLICE):
            _probe(path, fd, offset, min(_SLICE, size - offset))
        return mmap.mmap(fd, 0, access=mmap.ACCESS_READ) if size else b""


def _probe(path: Path, fd: int, offset: int, length: int) -> None:
    try:
        os.pread(fd, length, offset)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        if length > _BLOCK:
            for block in range(offset, offset + length, _BLOCK):
                _probe(path, fd, block, _BLOCK)
        raise DamagedData(f"{path}: the medium does not give the bytes at offset {offset}: {error.strerror}") from error


class Segment:
    """An open segment file. `size` is the number of bytes that are reserved for it on disk."""

    def __init__(self, path: Path, generation: int, fd: int, size: int) -> None:
        self.path = path
        self.generation = generation
        self.fd = fd
        self.size = size

    @property
    def number(self) -> int:
        """The position of this segment in the log, counted from 1."""
        return self.generation >> 32

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            unlock(self.fd)
            os.close(self.fd)
            self.fd = -1


class Folder:
    """The names and files of one log. `keep_old` is the number of released files that are kept for recycling."""

    def __init__(self, path: Path, segment_size: int, failpoints: Failpoints, keep_old: int = 2) -> None:
        self.path = path
        self.segment_size = segment_size
        self.failpoints = failpoints
        self.keep_old = keep_old
        self._old: list[Path] = []
        self._lock = threading.Lock()
        self._fd = -1
        #: Bytes free on the disk and bytes that it has, at the last `measure`.
        self.free = self.total = 0
        #: The bytes of the disk that segments made in advance leave free. `measure` and `expect` keep it.
        self.spare = 0
        self._others = 0

    def hold(self) -> None:
        """Keeps other processes out until `release`. Raises DataDirInUse, OSError.

        The folder is locked, and so is each segment that is open for writing, because several names may lead to the
        folder.
        """
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        ending = _ending.get(self._place())
        if ending is not None:
            ending.join(PATIENCE)
        if not lock(self._fd):
            raise DataDirInUse(f"{self.path}: another process writes this log")
        self.measure()
        for path in self.listing()["wal"].values():
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if not lock(fd):
                    raise DataDirInUse(f"{path}: another process writes this segment of the log")
                unlock(fd)  # a fork of this process may have a copy of `fd`
            finally:
                os.close(fd)

    def _place(self) -> tuple[int, int]:
        here = os.fstat(self._fd)
        return here.st_dev, here.st_ino

    def release_after(self, threads: Sequence[threading.Thread], release: Callable[[], object]) -> None:
        """Calls `release` when these threads, which write, have ended: at once, or later in a thread of its own. Nobody
        waits for that but the next one in this process who wants the log."""
        if not any(thread.is_alive() for thread in threads):
            release()
            return
        place = self._place()

        def wait() -> None:
            for thread in threads:
                thread.join()
            release()
            _ending.pop(place, None)

        with contextlib.suppress(OutOfResources):  # then the files end with the process
            _ending[place] = begin("wal-close", wait)

    def release(self) -> None:
        """Lets other processes in again."""
        if self._fd >= 0:
            unlock(self._fd)
            os.close(self._fd)
            self._fd = -1

    def descriptors(self) -> list[int]:
        """The one that holds the lock of the folder, if it is held."""
        return [self._fd] if self._fd >= 0 else []

    def measure(self) -> None:
        """Checks how much room there is on the disk. Raises OSError."""
        disk = os.fstatvfs(self._fd)
        self.free, self.total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        self._reckon()

    def expect(self, others: int) -> None:
        """Others on the disk will need so many bytes, as far as is known."""
        self._others = others
        self._reckon()

    def _reckon(self) -> None:
        # `measure` runs in another thread than `expect`. Whoever comes last has seen both numbers.
        self.spare = min(SPARE, self.total // 16) + min(self._others, self.total // 4)

    def check_place(self) -> None:
        """Raises DiskFailed if the folder's name leads to another folder by now, or to none.

        The next start would not find a file that is made there, or the file would become part of another log.
        """
        here = os.fstat(self._fd)
        try:
            there = os.stat(self.path)
        except OSError as error:
            raise DiskFailed(f"{self.path}: the folder of the log was moved or removed: {error.strerror}") from error
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            raise DiskFailed(f"{self.path}: another folder was put in the place of the log's")

    def file(self, generation: int, suffix: str = "wal") -> Path:
        """The path of a segment."""
        return self.path / f"{generation:016x}.{suffix}"

    def listing(self) -> dict[str, dict[int, Path]]:
        """The files of the log by suffix (wal, tmp, old) and generation. Other files are ignored."""
        files: dict[str, dict[int, Path]] = {"wal": {}, "tmp": {}, "old": {}}
        for path in self.path.iterdir():
            match = _NAME.fullmatch(path.name)
            if match:
                files[match[2]][int(match[1], 16)] = path
        return files

    def new_generation(self, number: int) -> int:
        """Returns a new generation number for segment `number`."""
        return int(make_generation(number, int.from_bytes(os.urandom(4), "little")))

    def publish(self, temporary: Path, fd: int, generation: int) -> Path:
        """Sync a finished file and give it its name, durably. Raises OSError."""
        os.fsync(fd)
        self.failpoints.hit("wal.segment")
        lock(fd)  # nobody else knows it yet
        final = self.file(generation)
        os.rename(temporary, final)
        sync_folder(self.path)
        return final

    def make(
        self, generation: int, size: int, hurry: Callable[[], bool], least: int | None = None, spare: int = 0
    ) -> Segment:
        """Prepares a segment: reserves space, writes zeros until `hurry` says that a group waits, writes the header,
        syncs, and gives the file its name.

        The segment has `size` bytes. With `least` it may be smaller: it takes at most a part (SHARE) of the free bytes
        beyond `spare`, but not fewer than `least` bytes. A released file is used if there is one. Raises OSError
        (ENOSPC among others), and DiskFailed if the folder is no longer in its place; then no file is left behind.
        """
        self.check_place()
        temporary = self.file(generation, "tmp")
        fd = self._recycled(temporary, size)
        recycled = fd >= 0
        if not recycled:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            self.failpoints.hit("wal.segment")
            size = self.set_aside(fd, size, size if least is None else least, spare, SHARE)
            if not recycled:
                fill_slowly(fd, size, hurry)
            size = max(size, os.fstat(fd).st_size)
            write_all(fd, encode_header(generation, size), 0)
            path = self.publish(temporary, fd, generation)
        except BaseException:
            os.close(fd)
            temporary.unlink(missing_ok=True)
            raise
        return Segment(path, generation, fd, size)

    def set_aside(self, fd: int, size: int, least: int, spare: int = 0, share: int = 1) -> int:
        """Reserves `size` bytes for a file, or as many as there are beyond `spare`, but at least `least`. Returns the
        number.

        If it reserves more than `least`, it takes at most one part in `share` of these bytes. Raises OSError; for a
        full disk its text says how many bytes were needed and how many are free.
        """
        before = os.fstat(fd)
        has = before.st_blocks * 512
        while True:
            self.measure()
            if (size - has) * (share if size > least else 1) + spare <= self.free:
                try:
                    reserve(fd, size)
                    return size
                except OSError as error:
                    if error.errno not in NO_ROOM:
                        raise
                    os.ftruncate(fd, before.st_size)  # release the bytes that the attempt took
            if size <= least:
                need = f"{least + spare - has} bytes are needed on the disk, {self.free} are free"
                raise OSError(errno.ENOSPC, need, str(self.path))
            size = max(least, size // 2 // _BLOCK * _BLOCK)

    def _recycled(self, temporary: Path, size: int) -> int:
        with self._lock:
            if not self._old or size > self.segment_size:
                return -1
            old = self._old.pop()
        os.rename(old, temporary)
        # Without this sync the old name could come back after a power cut, with the new bytes under it.
        sync_folder(self.path)
        return os.open(temporary, os.O_RDWR | os.O_CLOEXEC)

    def adopt(self, paths: Iterable[Path]) -> None:
        """At open: keeps released files of the usual size for recycling and removes the others."""
        for path in paths:
            if self._keeps(path):
                self._old.append(path)
            else:
                path.unlink()

    def _keeps(self, path: Path) -> bool:
        """Whether a released file is worth keeping. On a small disk, others need its room more."""
        useful = len(self._old) < self.keep_old and path.stat().st_size == self.segment_size
        return useful and self.free > 4 * self.segment_size

    def retire(self, path: Path) -> None:
        """Takes a segment out of the log. Its file is kept for recycling if it has the usual size, or else removed."""
        old = path.with_suffix(".old")
        with self._lock:
            if self._keeps(path):
                os.rename(path, old)
                self._old.append(old)
                return
        path.unlink()


def reserve(fd: int, size: int) -> None:
    """Lets the file system set `size` bytes aside. Raises OSError, ENOSPC among others."""
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        # The file system lacks this call. Writing zeros does the same, only slower.
        fill(fd, size)


def fill(fd: int, size: int) -> None:
    """Write zeros from the start of the file up to `size`."""
    for offset in range(0, size, _SLICE):
        write_all(fd, _ZEROS[: min(_SLICE, size - offset)], offset)


def fill_slowly(fd: int, size: int, hurry: Callable[[], bool]) -> None:
    """Like `fill`, but without disturbing other writers, until `hurry()` returns true."""
    for offset in range(0, size, _SLICE):
        if hurry():
            return
        write_all(fd, _ZEROS[: min(_SLICE, size - offset)], offset)
        os.fdatasync(fd)
        time.sleep(_PAUSE)


class Preparer:
    """The thread that makes segments. The owner collects results with `take`; the thread calls `notify` when there is
    one.

    The owner asks for at most one segment at a time. When `urgent` is set, the log will need the segment soon, and the
    thread writes no more zeros.
    """

    def __init__(self, folder: Folder, notify: Callable[[], None]) -> None:
        self.folder = folder
        self.urgent = False
        self._notify = notify
        self._jobs: queue.SimpleQueue[Callable[[], Segment | None] | None] = queue.SimpleQueue()
        #: What has been made, or the errors that prevented it. The thread adds to it.
        self.results: deque[Segment | Exception] = deque()
        self.thread = begin("wal-segments", self._run)

    def ask(self, generation: int, size: int, least: int, spare: int) -> None:
        """Begin to make a segment, see `Folder.make`."""
        self._jobs.put(lambda: self.folder.make(generation, size, lambda: self.urgent, least, spare))

    def grow(self, segment: Segment, size: int) -> None:
        """Begin to reserve more space for a segment that is too small for what must go into it."""

        def job() -> Segment:
            self.folder.failpoints.hit("wal.segment")
            self.folder.set_aside(segment.fd, size, size)
            os.fsync(segment.fd)
            segment.size = size
            return segment

        self._jobs.put(job)

    def discard(self, path: Path) -> None:
        """Begin to take a segment out of the log, see `Folder.retire`."""

        def job() -> None:
            try:
                self.folder.failpoints.hit("wal.release")
                self.folder.retire(path)
            except OSError as error:
                # The file stays behind and takes space until the next open removes it.
                logging.getLogger("metastore.wal").warning("segment %s could not be released: %s", path, error)

        self._jobs.put(job)

    def look(self) -> None:
        """Begins to check how much room there is on the disk."""
        self._jobs.put(lambda: None)

    def take(self) -> Segment | Exception | None:
        """Returns what has been made since the last call, or the error that prevented it, or None."""
        return self.results.popleft() if self.results else None

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            try:
                result: Segment | Exception | None = job()
                self.folder.measure()
            except Exception as error:  # noqa: BLE001 whatever it is, the log's owner must hear of it
                result = error
            if result is not None:
                self.results.append(result)
                self._notify()

    def stop(self, timeout: float) -> None:
        """Finishes the job under way and ends the thread. Waits for that, but not longer than `timeout` seconds."""
        self.urgent = True
        self._jobs.put(None)
        self.thread.join(timeout)
