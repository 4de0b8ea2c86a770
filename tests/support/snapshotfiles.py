"""Snapshot files that tests write: their states, codecs, and images made by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import zstandard

from metastore import codecs
from metastore._core.codec import PayloadCodec
from metastore._core.crc import checksum
from metastore._core.engine import Engine, MemoryEngine
from metastore._core.ordered_map import OrderedMap
from metastore._core.raft_types import ConfState
from metastore._core.snap_records import Walker
from metastore.snapshots.files import Info, SnapshotStore
from metastore.snapshots.format import TRAILER_SIZE, Header, header_size

CONF = ConfState((1, 2, 3), (4,), (1, 2), (), True)


def make_codec() -> PayloadCodec:
    return PayloadCodec(codecs.load("zstd"), 64, 64 << 20, decoders=codecs.load_all())


def make_raw() -> PayloadCodec:
    return PayloadCodec(None, 64, 64 << 20, decoders=codecs.load_all())


def engine_of(records: dict[bytes, bytes], index: int = 1000, term: int = 7) -> MemoryEngine:
    engine = MemoryEngine()
    batch = OrderedMap()
    for key, value in records.items():
        batch.set(key, value)
    engine.write(batch, index, term)
    return engine


def records(count: int = 500, size: int = 40) -> dict[bytes, bytes]:
    return {b"k%06d" % n: (b"%d " % n) * (size // 4) for n in range(count)}


def save(store: SnapshotStore, engine: Engine | None = None, stream: int = 1) -> Info:
    engine = engine if engine is not None else engine_of(records())
    index, term = engine.applied()
    return store.save(Header(index, term, CONF, 55, stream, 99, 4096), Walker(engine.view()))


def images(path: Path) -> tuple[bytes, list[bytes], bytes]:
    """Return header, chunk images and trailer of a file."""
    data = path.read_bytes()
    at = header_size(data[:16])
    head, chunks = data[:at], []
    while at < len(data) - TRAILER_SIZE:
        size = 40 + struct.unpack_from("<I", data, at + 4)[0]
        chunks.append(data[at : at + size])
        at += size
    return head, chunks, data[at:]


def bomb(path: Path, inside: int) -> bytes:
    """Rewrite the first chunk of a file, small as before, with contents that unpack to `inside` bytes. Its sum is
    right, and it claims the size of the honest chunk."""
    image = images(path)[1][0]
    packed = b"\1" + zstandard.ZstdCompressor().compress(bytes(inside))
    head = struct.pack("<I", len(packed)) + image[8:40]
    return struct.pack("<I", checksum(head + packed)) + head + packed
