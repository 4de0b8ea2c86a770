"""Header, trailer and name of a snapshot file. Layout: FORMATS.md, "Snapshot file"."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

from .._core.crc import checksum
from .._core.raft_types import ConfState
from .._core.snap_chunk import MAX_CHUNK
from ..errors import FormatError

MAGIC = b"MSSNAP\r\n"
END_MAGIC = b"MSSEND\r\n"
#: The first bytes of etcd's snapshots, which are bbolt files: page 0, of the kind "meta" (4).
BOLT = bytes(8) + b"\x04" + bytes(7)
VERSION = 1
MAX_HEADER = 64 * 1024

_FIXED = struct.Struct("<8sIIQQqQQIIII")
_SUM = struct.Struct("<I")
_TRAILER = struct.Struct("<8sQQQQQ12xI")
TRAILER_SIZE = _TRAILER.size
#: A backup is a snapshot file, zero bytes up to a multiple of ALIGNMENT, and DIGEST_SIZE bytes of SHA-256 of all that.
#: etcdctl keeps a file only if its size shows that a SHA-256 is at the end: 32 bytes over a multiple of 512.
ALIGNMENT = 512
DIGEST_SIZE = 32
#: The first bytes of a file, which give the length of its header.
PREFIX_SIZE = 16
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{16})\.(snap|part)")


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a snapshot: its position in the log, the membership at this position, and its division
    into chunks.
    """

    index: int
    term: int
    conf_state: ConfState = field(compare=False)
    revision: int
    stream: int
    cluster_id: int
    chunk_size: int
    codec: str = ""

    def encode(self) -> bytes:
        """The bytes at the start of the file. Raises FormatError if they are more than MAX_HEADER."""
        conf, codec = self.conf_state.encode(), self.codec.encode()
        size = _FIXED.size + len(conf) + len(codec) + _SUM.size
        if size > MAX_HEADER:
            raise FormatError(f"snapshot: a header of {size} bytes, at most {MAX_HEADER} are allowed")
        data = _FIXED.pack(
            MAGIC, VERSION, size, self.index, self.term, self.revision, self.stream, self.cluster_id, self.chunk_size,
            len(conf), len(codec), 0,
        ) + conf + codec  # fmt: skip
        return data + _SUM.pack(checksum(data))

    @classmethod
    def decode(cls, data: bytes) -> Header:
        """Inverse of `encode`. Raises FormatError."""
        if header_size(data) != len(data):
            raise FormatError("snapshot: header cut short")
        if checksum(data[: -_SUM.size]) != _SUM.unpack(data[-_SUM.size :])[0]:
            raise FormatError("snapshot: wrong checksum of the header")
        _, _, _, index, term, revision, stream, cluster, chunk_size, conf, codec, zero = _FIXED.unpack_from(data)
        names = _FIXED.size + conf
        if zero or names + codec + _SUM.size != len(data) or not index or not 1 <= chunk_size <= MAX_CHUNK:
            raise FormatError("snapshot: impossible header")
        try:
            name = data[names : names + codec].decode()
        except UnicodeDecodeError as error:
            raise FormatError("snapshot: impossible header") from error
        return cls(
            index, term, ConfState.decode(data[_FIXED.size : names]), revision, stream, cluster, chunk_size, name
        )

    def name(self, suffix: str = "snap") -> str:
        """The file name. Names in descending order are snapshots from the newest to the oldest."""
        return f"{self.index:016x}-{self.term:016x}-{self.stream:016x}.{suffix}"


def backup_padding(size: int) -> int:
    """Zero bytes in a backup after a snapshot file of `size` bytes."""
    return -size % ALIGNMENT


def header_size(data: bytes) -> int:
    """Bytes of the header that begins with `data` (PREFIX_SIZE bytes or more). Raises FormatError."""
    if data.startswith(BOLT):
        raise FormatError("snapshot: is a database of etcd's own, which only etcd's tools can restore")
    if len(data) < PREFIX_SIZE or data[:8] != MAGIC:
        raise FormatError("snapshot: is no snapshot file")
    version, size = struct.unpack_from("<II", data, 8)
    if version != VERSION:
        raise FormatError(f"snapshot: has version {version}, this program reads {VERSION}")
    if not _FIXED.size + _SUM.size <= size <= MAX_HEADER:
        raise FormatError("snapshot: impossible header")
    return int(size)


def parse_name(name: str, suffix: str = "snap") -> tuple[int, int, int] | None:
    """Return (index, term, stream id) of a file name, or None if it is not one of ours."""
    match = _NAME.fullmatch(name)
    if match is None or match[4] != suffix:
        return None
    return int(match[1], 16), int(match[2], 16), int(match[3], 16)


@dataclass(frozen=True, slots=True)
class Trailer:
    """The counts that are known at the end. `size` is the size of the whole file in bytes."""

    stream: int
    chunks: int
    nbytes: int
    records: int
    size: int

    def encode(self) -> bytes:
        """TRAILER_SIZE bytes."""
        data = _TRAILER.pack(END_MAGIC, self.stream, self.chunks, self.nbytes, self.records, self.size, 0)
        return data[: -_SUM.size] + _SUM.pack(checksum(data[: -_SUM.size]))

    @classmethod
    def decode(cls, data: bytes) -> Trailer:
        """Inverse of `encode`. Raises FormatError."""
        if len(data) != TRAILER_SIZE:
            raise FormatError("snapshot: trailer cut short")
        magic, stream, chunks, nbytes, records, size, total = _TRAILER.unpack(data)
        if magic != END_MAGIC or total != checksum(data[: -_SUM.size]) or any(data[48:60]):
            raise FormatError("snapshot: damaged trailer")
        return cls(stream, chunks, nbytes, records, size)
