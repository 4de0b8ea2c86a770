"""CRC-32: every implementation against zlib, at all lengths near the seams, chunkings and alignments."""

from __future__ import annotations

import random
import re
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metastore._core.crc import checksum, checksum_by, implementations

# 3 pages and some bytes: the folding takes 64 bytes a turn, then 16, the table 8, then single ones.
DATA = random.Random(7).randbytes(13_000)
STARTS = (0, 1, 0xFFFFFFFF, 0x80000000, 0xDEADBEEF)


def flags() -> set[str]:
    """Return the flags that the kernel reports for the processor."""
    match = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return set(match[1].split()) if match else set()


def test_the_fastest_way_that_the_processor_has_is_chosen() -> None:
    expected = ("pclmul", "table") if "pclmulqdq" in flags() else ("table",)
    assert implementations() == expected


def test_known_values() -> None:
    # The check value of CRC-32/ISO-HDLC in the catalogue of parametrised CRC algorithms. Zeros keep a zero register.
    for name in implementations():
        assert checksum_by(name, b"123456789") == 0xCBF43926
        assert checksum_by(name, bytes(200), 0xFFFFFFFF) == 0xFFFFFFFF


@pytest.mark.parametrize("name", implementations())
def test_all_lengths(name: str) -> None:
    for size in [*range(301), 1023, 1024, 1025, 4096, 12_999]:
        for start in STARTS:
            assert checksum_by(name, DATA[:size], start) == zlib.crc32(DATA[:size], start), (size, start)


@pytest.mark.parametrize("name", implementations())
def test_all_alignments(name: str) -> None:
    view = memoryview(DATA)
    for offset in range(65):
        for size in (16, 63, 64, 65, 79, 80, 127, 128, 129, 200, 1000):
            part = view[offset : offset + size]
            assert checksum_by(name, part) == checksum(part) == zlib.crc32(part), (offset, size)


@pytest.mark.parametrize("name", implementations())
def test_every_bit_counts(name: str) -> None:
    whole = checksum_by(name, DATA[:307])
    for bit in range(307 * 8):
        wrong = bytearray(DATA[:307])
        wrong[bit // 8] ^= 1 << bit % 8
        assert whole != checksum_by(name, wrong) == zlib.crc32(wrong)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 400), max_size=12), st.integers(0, 0xFFFFFFFF), st.randoms(use_true_random=False))
def test_chunks_make_the_whole(sizes: list[int], start: int, chance: random.Random) -> None:
    data = chance.randbytes(sum(sizes))
    values = dict.fromkeys([*implementations(), "any", "mixed"], start)
    at = 0
    for size in sizes:
        chunk = memoryview(data)[at : at + size]
        at += size
        for name in implementations():
            values[name] = checksum_by(name, chunk, values[name])
        values["mixed"] = checksum_by(chance.choice(implementations()), chunk, values["mixed"])
        values["any"] = checksum(chunk, values["any"])
    assert set(values.values()) == {zlib.crc32(data, start)}


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="no CRC-32 by 'magic'"):
        checksum_by("magic", b"x")
