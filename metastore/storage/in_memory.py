"""A member without files, for tests: `node.data_dir = ":memory:"`.

Its log lies in files that have no name and no disk (memfd_create), under the same code as any other log. Its state is
that of the memory engine. Nothing is left when the member stops, and nothing survives the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._core.engine import MemoryEngine
from .._core.wal_records import encode_header
from .._core.wal_scan import create
from ..errors import DiskFailed, reason
from ..settings import IN_MEMORY
from .datadir import DataDir
from .segments import FIRST_SIZE, Folder, Segment, write_all
from .unsynced import Unsynced
from .wal import Wal

if TYPE_CHECKING:
    from ..failpoints import Failpoints

#: The log takes this for the free bytes of its disk. Other parts (`member/memory_guard`) bound the memory.
PLENTY = 1 << 50
#: Segments are small here, so memory that the log no longer needs is given back soon.
LARGEST_SEGMENT = 4 << 20


class NoDataDir(DataDir):
    """A member without a data directory has nothing to lock, and nothing was there before."""

    def __init__(self) -> None:
        self.path = Path(IN_MEMORY)
        self._fds: list[int] = []

    def check_new(self) -> None:
        """Do nothing: there are no files."""


class NothingUnsynced(Unsynced):
    """A member without files keeps no note of missing entries, because all of its entries are gone after its end."""

    def __init__(self) -> None:
        self.doubt = 0

    def begin(self, *, lagging: bool, term: int) -> None:
        """Do nothing."""

    def settled(self) -> None:
        """Do nothing."""

    def closed(self, *, synced: bool) -> None:
        """Do nothing."""


class TransientEngine(MemoryEngine):
    """The memory engine of a member without files. It is as durable as the log, so no snapshot is taken of it, and the
    log is cut behind what it holds."""

    persistent = True

    def durable_applied(self) -> int:
        """Return the index of the last applied entry."""
        return self.applied()[0]


class MemoryFolder(Folder):
    """The segments of a log in memory. The path of a segment leads to a second descriptor, which can read the segment
    after the first one is closed."""

    def __init__(self, segment_size: int, failpoints: Failpoints) -> None:
        super().__init__(Path(IN_MEMORY) / "wal", segment_size, failpoints)
        self._reading: set[int] = set()
        self.measure()

    def measure(self) -> None:
        """Do nothing: there is no disk."""
        self.free = self.total = PLENTY

    def check_place(self) -> None:
        """Do nothing: there is no folder."""

    def blank(self, generation: int, size: int) -> Segment:
        """Make a segment of zeros. Raises OSError."""
        fd = os.memfd_create(f"metastore-wal-{generation:016x}", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            reading = os.dup(fd)
        except BaseException:
            os.close(fd)
            raise
        self._reading.add(reading)
        return Segment(Path(f"/proc/self/fd/{reading}"), generation, fd, size)

    def make(
        self, generation: int, size: int, hurry: Callable[[], bool], least: int | None = None, spare: int = 0
    ) -> Segment:
        """See `Folder.make`."""
        self.failpoints.hit("wal.segment")
        segment = self.blank(generation, size)
        write_all(segment.fd, encode_header(generation, size), 0)
        return segment

    def set_aside(self, fd: int, size: int, least: int, spare: int = 0, share: int = 1) -> int:
        """See `Folder.set_aside`."""
        os.ftruncate(fd, size)
        return size

    def retire(self, path: Path) -> None:
        """Give back the memory of a segment."""
        reading = int(path.name)
        with contextlib.suppress(KeyError):
            self._reading.remove(reading)
            os.close(reading)

    def release(self) -> None:
        """Give back all memory."""
        while self._reading:
            os.close(self._reading.pop())

    def descriptors(self) -> list[int]:
        """Return no descriptors, because there are no locks."""
        return []


def open_wal(
    *, segment_size: int, group_commit: bool, metadata: bytes, failpoints: Failpoints, busy_poll: float
) -> Wal:
    """Open a new, empty log in memory. The arguments are those of `Wal.open`. Raises DiskFailed."""
    folder = MemoryFolder(min(segment_size, LARGEST_SEGMENT), failpoints)
    options: dict[str, Any] = {"group_commit": group_commit, "max_group": 16 << 20, "lagging": False}
    holder: list[Wal] = []
    try:
        segment = folder.blank(folder.new_generation(1), min(FIRST_SIZE, folder.segment_size))
        data, writer = create(segment.generation, segment.size, metadata, lambda need: holder[0]._plan(need), **options)
        write_all(segment.fd, data, 0)
        segment.size = max(segment.size, len(data))
        wal = Wal(folder, writer, segment, {}, logging.getLogger("metastore.wal"), None, busy_poll)
    except OSError as error:
        folder.release()
        raise DiskFailed(f"a log in memory: {reason(error)}") from error
    holder.append(wal)
    return wal
