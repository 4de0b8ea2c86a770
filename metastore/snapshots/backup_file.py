"""Reads backup files, and single snapshot files, for the command-line tools. Format: FORMATS.md, "Backup".

A file is read chunk by chunk, so the reader needs the memory of one chunk, whatever the size of the file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .._core.codec import PayloadCodec
from .._core.snap_chunk import MAX_CHUNK
from .._core.snap_records import RecordReader, count_records
from ..codecs import load_all
from ..errors import ConfigError, DamagedData, FormatError
from .files import read_header, read_pieces
from .format import DIGEST_SIZE, TRAILER_SIZE, Header, Trailer, backup_padding


@dataclass(frozen=True, slots=True)
class BackupSummary:
    """What a backup file says about itself.

    `digest` is the SHA-256 at the end of the file, or None for a file from snap/, which has none. `size` is the size of
    the whole file in bytes.
    """

    path: Path
    header: Header
    trailer: Trailer
    size: int
    digest: bytes | None


def reading_codec() -> PayloadCodec:
    """Return a codec that reads chunks of every installed codec. Raises ConfigError."""
    return PayloadCodec(None, 0, MAX_CHUNK, decoders=load_all())


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _digest(fd: int, path: Path, start: int, size: int) -> bytes | None:
    """Return the SHA-256 behind a trailer that ends at `start`, or None. Raises DamagedData."""
    padding = backup_padding(start)
    if size == start:
        return None
    tail = os.pread(fd, padding + DIGEST_SIZE + 1, start)
    if len(tail) < padding + DIGEST_SIZE:
        raise DamagedData(f"{path}: offset {start + len(tail)}: the SHA-256 of the backup is cut short")
    if len(tail) > padding + DIGEST_SIZE:
        raise DamagedData(f"{path}: offset {start + padding + DIGEST_SIZE}: bytes after the end of the backup")
    if any(tail[:padding]):
        raise DamagedData(f"{path}: offset {start}: the bytes before the SHA-256 are not zero")
    return tail[padding:]


def summarize(path: Path) -> BackupSummary:
    """Return what header and trailer say, without a look at the chunks. Raises DamagedData, and ConfigError if the file
    cannot be read."""
    fd = _open(path)
    try:
        size = os.fstat(fd).st_size
        try:
            header, first = read_header(fd)
        except FormatError as error:
            raise DamagedData(f"{path}: offset 0: {error.text}") from error
        for end in (size, *range(size - DIGEST_SIZE, max(first, size - DIGEST_SIZE - 512), -1)):
            data = os.pread(fd, TRAILER_SIZE, end - TRAILER_SIZE) if end >= first + TRAILER_SIZE else b""
            try:
                trailer = Trailer.decode(data)
            except FormatError:
                continue
            if (trailer.size, trailer.stream) == (end, header.stream):
                return BackupSummary(path, header, trailer, size, _digest(fd, path, end, size))
        raise DamagedData(f"{path}: offset {size}: the end is missing or damaged: no trailer where it should be")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)


class BackupReader:
    """One pass over a file. `records()` yields its (key, value) pairs and checks everything on the way.

    The end of the file and the SHA-256 are checked after the last pair. Raises DamagedData with file and offset, and
    ConfigError if the file cannot be read.
    """

    def __init__(
        self, path: Path, check_digest: bool = True, between: Callable[[int, int], object] = lambda _at, _size: None
    ) -> None:
        """`between` is called with (bytes read, size) before every chunk."""
        self.path = path
        self.check_digest = check_digest
        self.digest: bytes | None = None
        self._between = between
        self._at = 0
        self._sum = hashlib.sha256()

    def _seen(self, data: bytes) -> None:
        self._at += len(data)
        if self.check_digest:
            self._sum.update(data)

    def pieces(self) -> Iterator[bytes]:
        """The stream, chunk by chunk; the records' order and number are not checked."""
        fd = _open(self.path)
        try:
            size = os.fstat(fd).st_size

            def between() -> None:
                self._between(self._at, size)

            self.trailer = yield from read_pieces(fd, reading_codec(), between, self._seen)
            if self.check_digest:
                self._check_end(fd, size)
        except FormatError as error:
            raise DamagedData(f"{self.path}: offset {self._at}: {error.text}") from error
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be read: {error.strerror}") from error
        finally:
            os.close(fd)

    def _check_end(self, fd: int, size: int) -> None:
        end = self.trailer.size
        self.digest = _digest(fd, self.path, end, size)
        self._sum.update(bytes(backup_padding(end)))
        if self.digest not in (None, self._sum.digest()):
            raise DamagedData(f"{self.path}: offset {size - DIGEST_SIZE}: the SHA-256 is not that of the backup")

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """The records, in order."""
        reader = RecordReader(self.pieces())
        try:
            yield from reader
        except FormatError as error:
            raise DamagedData(f"{self.path}: before offset {self._at}: {error.text}") from error
        self._counted(reader.records)

    def verify(self) -> None:
        """Read and check everything."""
        reader = RecordReader(self.pieces())
        try:
            self._counted(count_records(reader))
        except FormatError as error:
            raise DamagedData(f"{self.path}: before offset {self._at}: {error.text}") from error

    def _counted(self, records: int) -> None:
        if records != self.trailer.records:
            raise DamagedData(f"{self.path}: {records} records, its trailer says {self.trailer.records}")


def verify(
    path: Path, check_digest: bool = True, between: Callable[[int, int], object] = lambda _at, _size: None
) -> BackupSummary:
    """Read a whole file and check everything. Without `check_digest`, what follows the snapshot file in it is not
    checked.

    Raises DamagedData with file and offset, and ConfigError if the file cannot be read.
    """
    reader = BackupReader(path, check_digest, between)
    reader.verify()
    fd = _open(path)
    try:
        header, _ = read_header(fd)
        return BackupSummary(path, header, reader.trailer, os.fstat(fd).st_size, reader.digest)
    finally:
        os.close(fd)
