"""Snapshot files. Layout and rules: FORMATS.md, "Snapshot file"; chunks: `_core/snap_chunk.pyx`, records:
`_core/snap_records.pyx`.

Files are written and read chunk by chunk: memory is a few chunks, whatever the size. Nothing here is bound to a thread,
but a `PayloadCodec` is, so each writer or reader makes one of its own.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .._core.codec import PayloadCodec
from .._core.snap_chunk import HEADER as CHUNK_HEADER
from .._core.snap_chunk import MAX_CHUNK, ChunkJoiner, check_chunk, image_size, make_chunk
from .._core.snap_records import RecordReader, count_records, restore
from ..codecs import Zstd
from ..codecs import for_snapshots as codec_for_snapshots
from ..codecs import load_all as load_all_codecs
from ..errors import DamagedData, FormatError, NoSpace
from ..failpoints import Failpoints
from ..storage.segments import sync_folder
from .format import PREFIX_SIZE, TRAILER_SIZE, Header, Trailer, header_size, parse_name

if TYPE_CHECKING:
    from .._core.engine import Engine
    from ..ports import Codec
    from ..settings import MaintenanceTable, Options

# Bytes between two syncs while writing. The log's own syncs wait for each of these.
_SYNC_EVERY = 256 << 10
_MIN_COMPRESSED = 64  # bytes; shorter chunks stay raw
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Cancelled(Exception):
    """The writer or reader was asked to stop."""


@dataclass(frozen=True, slots=True)
class Info:
    """A complete snapshot file that verified: header, trailer, path."""

    header: Header
    trailer: Trailer
    path: Path


def _read(fd: int, n: int, offset: int, what: str) -> bytes:
    data = os.pread(fd, n, offset)
    if len(data) != n:
        raise FormatError(f"snapshot: {what} cut short")
    return data


def read_header(fd: int) -> tuple[Header, int]:
    """(header, its bytes) of an open file. Raises FormatError, OSError."""
    size = header_size(_read(fd, PREFIX_SIZE, 0, "header"))
    return Header.decode(_read(fd, size, 0, "header")), size


def read_image(fd: int, offset: int, max_chunk: int) -> bytes:
    """The image of the chunk at `offset`, not checked yet. Raises FormatError if it is cut or impossible, OSError."""
    size = image_size(_read(fd, CHUNK_HEADER, offset, "chunk"), max_chunk)
    return _read(fd, size, offset, "chunk")


def _none() -> None:
    """The default for the function that is called between two chunks: it does nothing."""


def read_pieces(
    fd: int, codec: PayloadCodec, between: Callable[[], None] = _none, seen: Callable[[bytes], object] = len
) -> Generator[bytes, None, Trailer]:
    """Yields the stream of an open file, chunk by chunk, and returns its trailer.

    Everything is checked except the records and what follows the trailer. `seen` gets the file's own bytes, each part
    after it was checked. Raises FormatError, OSError.
    """
    header, at = read_header(fd)
    seen(_read(fd, at, 0, "header"))
    # No chunk may decompress to more than the chunk size, whatever size it claims.
    joiner = ChunkJoiner(header.stream, header.chunk_size, codec.limited(header.chunk_size))
    while not joiner.finished:
        between()
        image = read_image(fd, at, header.chunk_size)
        piece = joiner.feed(image)
        at += len(image)
        seen(image)
        yield piece
        # Release this piece before the next one is made.
        piece = image = b""
    data = _read(fd, TRAILER_SIZE, at, "trailer")
    trailer = Trailer.decode(data)
    totals = (header.stream, joiner.expected, joiner.offset, at + TRAILER_SIZE)
    if (trailer.stream, trailer.chunks, trailer.nbytes, trailer.size) != totals:
        raise FormatError("snapshot: its trailer does not fit it")
    seen(data)
    return trailer


class Records(Protocol):
    """A snapshot is written from an object with these methods, such as `snapfile.Walker`."""

    @property
    def records(self) -> int:
        """How many records have been begun."""

    @property
    def done(self) -> bool:
        """Whether the stream has ended."""

    def take(self, limit: int) -> bytes:
        """Returns the next bytes of the stream."""


class SnapshotStore:
    """The snapshot files of one data directory.

    path: the folder, which is created if it does not exist. chunk_size: the bytes of a chunk before compression.
    make_codec: makes a PayloadCodec for one writer or reader. retention: how many complete files are kept, at least
    two.
    """

    #: Chunks that the codec failed to compress; they are stored as they are.
    codec_failures = 0

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        chunk_size: int,
        make_codec: Callable[[], PayloadCodec],
        retention: int = 3,
        failpoints: Failpoints | None = None,
        log: Any = None,
    ) -> None:
        self.path = Path(path)
        self.chunk_size = min(chunk_size, MAX_CHUNK)
        self.make_codec = make_codec
        self.retention = max(2, retention)
        self.failpoints = failpoints or Failpoints()
        self.log = log or logging.getLogger("metastore.snapshot")
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        sync_folder(self.path.parent)
        for stray in self.path.glob("*.tmp"):
            stray.unlink()

    def names(self) -> list[Path]:
        """The complete files, newest first. Their contents have not been checked."""
        files = [(parse_name(path.name), path) for path in self.path.iterdir()]
        return [path for key, path in sorted(((key, path) for key, path in files if key), reverse=True)]

    # ---- writing

    def save(self, header: Header, walker: Records, between: Callable[[], None] = _none) -> Info:
        """Writes the walker's records as a snapshot, syncs it, names it and verifies it. The caller can rely on the
        result.

        header: this method fills in its chunk size and codec name. `between` is called before every chunk; an exception
        from it ends the attempt. Raises DamagedData if the file does not read back, NoSpace, OSError; then no file is
        left behind.
        """
        codec = self.make_codec()
        header = Header(
            header.index, header.term, header.conf_state, header.revision, header.stream, header.cluster_id,
            self.chunk_size, codec.codec.name if codec.codec is not None else "",
        )  # fmt: skip
        temporary = self.path / header.name("tmp")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            try:
                self._write(fd, header, walker, codec, between)
                self.codec_failures += codec.failures
                self.failpoints.hit("snapshot.sync")
                os.fsync(fd)
            finally:
                os.close(fd)
            return self.publish(temporary, header, between)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise NoSpace() from error
            raise
        finally:
            temporary.unlink(missing_ok=True)

    def _write(
        self, fd: int, header: Header, walker: Records, codec: PayloadCodec, between: Callable[[], None]
    ) -> None:
        data = header.encode()
        size = self.append(fd, data, 0)
        chunks = nbytes = 0
        last = False
        while not last:
            between()
            self.failpoints.hit("snapshot.write")
            piece = walker.take(self.chunk_size)
            last = walker.done
            image = make_chunk(header.stream, chunks, nbytes, piece, last, codec)
            size = self.append(fd, image, size)
            chunks += 1
            nbytes += len(piece)
            # Release these objects: otherwise they would still take memory while the next piece is made.
            piece = image = b""
        trailer = Trailer(header.stream, chunks, nbytes, walker.records, size + TRAILER_SIZE)
        self.append(fd, trailer.encode(), size)

    def append(self, fd: int, data: bytes, offset: int) -> int:
        """Writes all of `data` at `offset` and syncs up to the last multiple of _SYNC_EVERY. Returns the offset behind
        `data`.

        Raises OSError.
        """
        view = memoryview(data)
        while view:
            done = os.pwrite(fd, view[: _SYNC_EVERY - offset % _SYNC_EVERY], offset)
            view, offset = view[done:], offset + done
            if not offset % _SYNC_EVERY:
                os.fdatasync(fd)
        return offset

    def publish(self, temporary: Path, header: Header, between: Callable[[], None] = _none) -> Info:
        """Gives a synced file its name, durably, and reads it back from the disk.

        Raises OSError, and DamagedData (the file is then removed, and never counted as a snapshot).
        """
        final = self.path / header.name()
        self.failpoints.hit("snapshot.rename")
        os.rename(temporary, final)
        sync_folder(self.path)
        try:
            self.failpoints.hit("snapshot.verify")
            return self.verify(final, between)
        except (FormatError, OSError) as error:
            final.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise
            raise DamagedData(f"{final}: did not read back: {error.text}") from error

    # ---- reading

    def pieces(
        self, path: Path, between: Callable[[], None] = _none, done: Callable[[Info], object] = lambda _info: None
    ) -> Iterator[bytes]:
        """Yields the stream of a file, chunk by chunk. Everything is checked except the order and number of the
        records.

        `done` gets header and trailer at the end. Raises FormatError, OSError.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            header, _ = read_header(fd)
            if parse_name(path.name) not in (None, (header.index, header.term, header.stream)):
                raise FormatError("snapshot: its name belongs to another one")
            trailer = yield from read_pieces(fd, self.make_codec(), between)
            if os.fstat(fd).st_size != trailer.size:
                raise FormatError("snapshot: bytes after the trailer")
            done(Info(header, trailer, path))
        finally:
            os.close(fd)

    def verify(self, path: Path, between: Callable[[], None] = _none) -> Info:
        """Read a whole file from the disk and check all there is. Raises FormatError, OSError."""
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                # The bytes just written are still in the page cache, but the check is about the bytes on the disk.
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
        ends: list[Info] = []
        records = count_records(RecordReader(self.pieces(path, between, ends.append)))
        return _counted(ends, records)

    def restore(self, path: Path, engine: Engine, between: Callable[[], None] = _none, pause: Any = None) -> Info:
        """Replaces the engine's contents by a file's. An engine that follows its contract takes over all records or
        none.

        Raises FormatError for a damaged file, OSError.
        """

        def each_chunk() -> None:
            between()
            self.failpoints.hit("snapshot.restore")

        ends: list[Info] = []
        reader = RecordReader(_checked(self.pieces(path, each_chunk, ends.append), ends, lambda: reader.records))
        restore(engine, reader, pause)
        info = ends[0]
        if engine.applied() != (info.header.index, info.header.term):
            raise FormatError("snapshot: its records are not those of its log position")
        return info

    # ---- receiving

    def receive(self, head: bytes, between: Callable[[], None] = _none) -> Part | Info:
        """Begins, or continues, to receive the file with this header. Returns an Info if the file is already complete.

        Parts of other files are removed. Raises FormatError, OSError.
        """
        header = Header.decode(head)
        final, path = self.path / header.name(), self.path / header.name("part")
        if final.exists():
            try:
                return self.verify(final, between)
            except FormatError as error:
                self.log.error("snapshot %s is damaged and is received again: %s", final, error)
                final.unlink()
        for other in self.parts():
            if other != path:
                other.unlink(missing_ok=True)
        return Part(self, header, path)

    def parts(self) -> list[Path]:
        """The files that were received in part."""
        return [path for path in self.path.iterdir() if parse_name(path.name, "part")]

    # ---- keeping

    def prune(self, keep: Iterable[Path] = ()) -> None:
        """Remove all complete files but the newest `retention` and those in `keep`."""
        needed = set(keep)
        for path in self.names()[self.retention :]:
            if path not in needed:
                self.failpoints.hit("snapshot.prune")
                path.unlink(missing_ok=True)


def open_store(
    table: MaintenanceTable, path: Path, failpoints: Failpoints, readable: Callable[[Codec], bool],
    codec_tables: Mapping[str, Options],
) -> SnapshotStore:  # fmt: skip
    """Open the snapshot files in the folder `path` as a configuration asks for them. `readable` tells, in any thread,
    whether all members can read what a codec compressed; if not, zstd is used. `codec_tables` has the options of
    codecs. Raises ConfigError."""

    def make_codec() -> PayloadCodec:
        codec = codec_for_snapshots(table, codec_tables)
        if codec is not None and not readable(codec):
            codec = Zstd()
        return PayloadCodec(codec, _MIN_COMPRESSED, MAX_CHUNK, decoders=load_all_codecs(codec_tables))

    make_codec()  # a codec that cannot be loaded must fail now
    return SnapshotStore(
        path,
        chunk_size=table.snapshot_chunk_size,
        make_codec=make_codec,
        retention=table.snapshot_retention,
        failpoints=failpoints,
    )


def _counted(ends: list[Info], records: int) -> Info:
    if ends[0].trailer.records != records:
        raise FormatError("snapshot: its trailer does not fit it")
    return ends[0]


def _checked(pieces: Iterator[bytes], ends: list[Info], records: Callable[[], int]) -> Iterator[bytes]:
    """Yields `pieces`, and checks the number of records at the end, so the engine sees an error before it
    takes over the data.
    """
    yield from pieces
    _counted(ends, records())


class Part:
    """A snapshot that is being received: a prefix of the sender's file, which grows chunk by chunk.

    `chunks` is the number of chunks received so far. `SnapshotStore.receive` makes the object.
    """

    def __init__(self, store: SnapshotStore, header: Header, path: Path) -> None:
        self.store = store
        self.header = header
        self.path = path
        self.chunks = 0
        self._offset = 0  # offset in the stream
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._resume()
        except BaseException:
            os.close(self._fd)
            raise

    def _resume(self) -> None:
        """Continues after the last complete chunk and cuts off the bytes behind it."""
        head = self.header.encode()
        self._end = len(head)
        if os.pread(self._fd, len(head), 0) != head:
            os.ftruncate(self._fd, 0)
            self.store.append(self._fd, head, 0)
            return
        with contextlib.suppress(FormatError):
            while self._take(read_image(self._fd, self._end, self.header.chunk_size)):
                pass
        os.ftruncate(self._fd, self._end)

    def _take(self, image: bytes) -> bool:
        """Counts an image if it is the next one. Raises FormatError if it is damaged."""
        chunk = check_chunk(image, self.header.chunk_size)
        if (chunk.stream, chunk.number, chunk.offset) != (self.header.stream, self.chunks, self._offset):
            return False
        self.chunks += 1
        self._offset += chunk.size
        self._end += len(image)
        return True

    def add(self, image: bytes) -> bool:
        """Write a chunk if it is the next one. Raises FormatError if it is damaged (nothing has changed), and
        OSError."""
        self.store.failpoints.hit("snapshot.receive")
        at = self._end
        if not self._take(image):
            return False
        self.store.append(self._fd, image, at)
        return True

    def finish(self, trailer: bytes, between: Callable[[], None] = _none) -> Info:
        """Complete the file: sync, name, read back. Raises DamagedData (the file is gone then), OSError."""
        self.store.append(self._fd, trailer, self._end)
        os.fsync(self._fd)
        self.close()
        return self.store.publish(self.path, self.header, between)

    def close(self) -> None:
        """Closes the file, which stays on disk."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Source:
    """A complete file that is being sent. It is read by chunk number, and each chunk is checked before it is sent."""

    def __init__(self, info: Info) -> None:
        self.info = info
        self._fd = os.open(info.path, os.O_RDONLY | os.O_CLOEXEC)
        self._number = 0
        self._start = self._at = len(info.header.encode())

    def chunk(self, number: int) -> bytes:
        """The image of a chunk. Raises FormatError if it is damaged or not there, OSError."""
        size = self.info.header.chunk_size
        if number < self._number:
            self._number, self._at = 0, self._start
        while self._number < number:
            self._at += image_size(_read(self._fd, CHUNK_HEADER, self._at, "chunk"), size)
            self._number += 1
        image = read_image(self._fd, self._at, size)
        stream = check_chunk(image, size)
        if (stream.stream, stream.number) != (self.info.header.stream, number):
            raise FormatError(f"snapshot: chunk {number} is not where it should be")
        self._at += len(image)
        self._number += 1
        return image

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)
