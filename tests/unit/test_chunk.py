"""Chunks: splitting and joining, resuming, and every kind of damage, each recognised as such."""

from __future__ import annotations

import random
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastore._core.codec import PayloadCodec
from metastore._core.snap_chunk import HEADER, MAX_CHUNK, ChunkJoiner, ChunkSplitter, check_chunk, image_size
from metastore.codecs import Snappy, Zstd
from metastore.errors import FormatError

RAW = PayloadCodec(None, 0, 1 << 22)
CODECS = [RAW, PayloadCodec(Snappy(), 16, 1 << 22), PayloadCodec(Zstd(), 16, 1 << 22)]
STREAM = 0xABCDEF


def drop(image: bytes) -> None:
    """A sink for images that the test does not need."""


def split(data: bytes, size: int, codec: PayloadCodec = RAW, stream: int = STREAM) -> list[bytes]:
    images: list[bytes] = []
    splitter = ChunkSplitter(images.append, stream, size, codec)
    splitter.write(data)
    splitter.finish()
    return images


def join(images: list[bytes], size: int = 100, codec: PayloadCodec = RAW) -> bytes:
    joiner = ChunkJoiner(STREAM, size, codec)
    data = b"".join(map(joiner.feed, images))
    assert joiner.finish() == len(data)
    return data


def resealed(image: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(image[4:])) + image[4:]


def test_layout_is_the_documented_one() -> None:
    first, last = split(b"abcde", 3)
    body = struct.pack("<IBBHIQQQ", 4, 1, 0, 0, 3, STREAM, 0, 0) + b"\0abc"
    assert first == struct.pack("<I", zlib.crc32(body)) + body
    body = struct.pack("<IBBHIQQQ", 3, 1, 1, 0, 2, STREAM, 1, 3) + b"\0de"
    assert last == struct.pack("<I", zlib.crc32(body)) + body


@pytest.mark.parametrize("codec", CODECS, ids=["raw", "snappy", "zstd"])
@given(
    pieces=st.lists(st.binary(max_size=40) | st.builds(bytes, st.integers(0, 300)), max_size=6), size=st.integers(1, 99)
)
def test_round_trip_however_the_stream_is_fed(codec: PayloadCodec, pieces: list[bytes], size: int) -> None:
    images: list[bytes] = []
    splitter = ChunkSplitter(images.append, STREAM, size, codec)
    for piece in pieces:
        splitter.write(memoryview(bytearray(piece)))
    splitter.finish()
    data = b"".join(pieces)
    assert images == split(data, size, codec)
    assert join(images, size, codec) == data
    assert len(images) == max(1, -(-len(data) // size)) == splitter.chunks
    assert (splitter.bytes_in, splitter.bytes_out) == (len(data), sum(map(len, images)))
    for number, image in enumerate(images):
        chunk = check_chunk(image, size)
        assert (chunk.stream, chunk.number, chunk.offset) == (STREAM, number, number * size)
        assert (chunk.size, chunk.last) == (len(data[number * size :][:size]), number == len(images) - 1)
        assert image_size(image[:HEADER], size) == len(image)


def test_every_flipped_byte_and_every_cut_is_detected() -> None:
    for codec in CODECS:
        (image,) = split(b"some bytes " * 9, 100, codec)
        for at in range(len(image)):
            for mask in (1, 16, 128, 255):
                damaged = bytearray(image)
                damaged[at] ^= mask
                with pytest.raises(FormatError):
                    check_chunk(damaged, 100)
        for wrong, text in (
            (image[:-1], "cut short"),
            (image[:39], "cut short"),
            (b"", "cut"),
            (image + b"x", "after it"),
        ):
            with pytest.raises(FormatError, match=text):
                check_chunk(wrong, 100)


def test_missing_swapped_doubled_and_foreign_chunks() -> None:
    images = split(bytes(range(250)), 100)
    assert join(images) == bytes(range(250))
    zero, one, two = images
    for wrong, text in (
        ([zero, two], "chunk 2: expected was chunk 1"),
        ([one, zero, two], "chunk 1: expected was chunk 0"),
        ([zero, zero, one, two], "chunk 0: expected was chunk 1"),
        ([zero, one, two, two], "chunk 2: after the last one"),
        ([zero, one], "chunk 2: missing"),
        ([], "chunk 0: missing"),
        ([zero, split(bytes(250), 100, stream=7)[1], two], "chunk 1: of stream 7, not abcdef"),
        ([zero, split(bytes(250), 90)[1], two], "chunk 1: at byte 90, not 100"),
    ):
        with pytest.raises(FormatError, match=text):
            join(wrong)


def test_a_bad_chunk_is_asked_for_again() -> None:
    images = split(bytes(range(250)), 100)
    joiner = ChunkJoiner(STREAM, 100, RAW)
    data = joiner.feed(images[0])
    for wrong in (images[1][:-1], bytes(len(images[1])), images[2], images[0]):
        with pytest.raises(FormatError):
            joiner.feed(wrong)
        assert (joiner.expected, joiner.offset, joiner.finished) == (1, 100, False)
    data += joiner.feed(images[1]) + joiner.feed(images[2])
    assert data == bytes(range(250)) and joiner.finish() == 250


def test_a_stream_goes_on_where_it_stopped() -> None:
    images = split(bytes(range(250)), 100)
    joiner = ChunkJoiner(STREAM, 100, RAW, expected=1, offset=100)
    assert b"".join(map(joiner.feed, images[1:])) == bytes(range(100, 250))
    assert joiner.finish() == 250


@pytest.mark.parametrize(
    ("at", "value", "text"),
    [
        (8, 2, "unknown version"),
        (8, 0, "unknown version"),
        (9, 2, "impossible"),
        (10, 1, "impossible"),
        (11, 1, "impossible"),
    ],
)
def test_sealed_but_impossible_headers(at: int, value: int, text: str) -> None:
    image = bytearray(split(b"abc", 100)[0])
    image[at] = value
    with pytest.raises(FormatError, match=text):
        check_chunk(resealed(bytes(image)), 100)


def test_sizes_are_bounded_before_anything_is_read_or_unpacked() -> None:
    image = split(bytes(100), 100, CODECS[2])[0]
    with pytest.raises(FormatError, match="impossible header"):
        check_chunk(image, 99)
    for stored in (0, 102, 2**32 - 1):
        header = bytearray(image[:HEADER])
        struct.pack_into("<I", header, 4, stored)
        with pytest.raises(FormatError, match="impossible header"):
            image_size(header, 100)
    with pytest.raises(FormatError, match="impossible header"):
        image_size(image[:39], 100)
    # The chunk holds more than its header says. This is found although the sum is right.
    more = bytearray(image)
    struct.pack_into("<I", more, 12, 99)
    with pytest.raises(FormatError, match="100 bytes instead of 99"):
        ChunkJoiner(STREAM, 100, RAW).feed(resealed(bytes(more)))
    # This payload unpacks to more than the joiner's codec allows.
    bomb = split(bytes(1 << 22), 1 << 22, CODECS[2])[0]
    sealed = bytearray(bomb)
    struct.pack_into("<I", sealed, 12, 4096)
    with pytest.raises(FormatError, match="at most 4096"):
        ChunkJoiner(STREAM, 4096, PayloadCodec(None, 0, 4096)).feed(resealed(bytes(sealed)))


def test_memory_is_bounded_by_chunks_not_by_the_stream() -> None:
    """16 MiB go through both ends in chunks of 256 KiB."""
    rng = random.Random(1)
    piece = rng.randbytes(1 << 20)
    joiner = ChunkJoiner(STREAM, 1 << 18, RAW)
    total = 0

    def sink(image: bytes) -> None:
        nonlocal total
        total += len(joiner.feed(image))

    splitter = ChunkSplitter(sink, STREAM, 1 << 18, RAW)
    tracemalloc.start()
    try:
        for _ in range(16):
            splitter.write(piece)
        splitter.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert joiner.finish() == total == 16 << 20
    assert peak < 4 << 18


def test_wrong_use() -> None:
    splitter = ChunkSplitter(drop, STREAM, 10, RAW)
    splitter.finish()
    with pytest.raises(ValueError, match="finished"):
        splitter.write(b"x")
    with pytest.raises(ValueError, match="finished"):
        splitter.finish()
    for size in (0, MAX_CHUNK + 1):
        with pytest.raises(ValueError, match="are allowed"):
            ChunkSplitter(drop, STREAM, size, RAW)
        with pytest.raises(ValueError, match="are allowed"):
            ChunkJoiner(STREAM, size, RAW)
    small = PayloadCodec(None, 0, 10)
    with pytest.raises(ValueError, match="limited to 10 bytes"):
        ChunkSplitter(drop, STREAM, 11, small)
    with pytest.raises(ValueError, match="limited to 10 bytes"):
        ChunkJoiner(STREAM, 11, small)
    assert repr(check_chunk(split(b"abc", 5)[0], 5)) == "Chunk(stream=11259375, number=0, offset=0, size=3, last=True)"
