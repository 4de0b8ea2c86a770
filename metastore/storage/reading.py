"""A description of entries in the write-ahead log that any thread may read at any later time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import DamagedData, DiskFailed, FormatError

if TYPE_CHECKING:
    from pathlib import Path

    from .._core.wal_read import Stretch


class Reading:
    """Entries first to end-1 of the log; any thread may read them at any later time.

    Only the log's owner knows whether the entries are still in the log. If a segment was released meanwhile, `read` may
    fail.

    term: the term of the last entry. nbytes: the size of the images in bytes. cost: the bytes of memory that they take.
    """

    def __init__(self, stretch: Stretch, paths: dict[int, Path], source: Callable[[Path, int, int], bytes]) -> None:
        self.first: int = stretch.first
        self.end: int = stretch.end
        self.term: int = stretch.term
        self.nbytes: int = stretch.nbytes
        self.cost: int = stretch.nbytes + stretch.table_bytes
        self.span = stretch.span
        #: Whether a caller waits for these entries. If so, this is no read ahead.
        self.wanted = False
        self._stretch = stretch
        self._runs = [(paths[number], offset, length, lo, hi) for number, offset, length, lo, hi in stretch.runs()]
        self._source = source

    def read(self) -> bytes:
        """The images, joined, their sums checked. Raises DiskFailed, DamagedData."""
        return b"".join([self._run(*run) for run in self._runs])

    def _run(self, path: Path, offset: int, length: int, first: int, end: int) -> bytes:
        try:
            return self._stretch.pick(self._source(path, length, offset), offset, first, end)
        except OSError as error:
            raise DiskFailed(f"write-ahead log: reading {path} failed: {error.strerror or error}") from error
        except FormatError as error:
            raise DamagedData(f"{path}: {error.text}") from error
