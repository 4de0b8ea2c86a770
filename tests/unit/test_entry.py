"""The entry image and the hard state: round trips, byte layout, and every damage detected."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastore._core.entry import (
    CONF_CHANGE,
    CONF_CHANGE_V2,
    MAX_PAYLOAD,
    NORMAL,
    Entry,
    HardState,
    decode_entries,
    decode_entry,
    encode_entry,
)
from metastore.errors import FormatError

U64 = st.integers(0, 2**64 - 1)
ENTRIES = st.builds(Entry, U64, U64, st.sampled_from([NORMAL, CONF_CHANGE, CONF_CHANGE_V2]), st.binary(max_size=200))


def resealed(image: bytes) -> bytes:
    """Return the image with its checksum corrected, to reach the checks behind it."""
    return struct.pack("<I", zlib.crc32(image[4:])) + image[4:]


def test_layout_is_the_documented_one() -> None:
    image = encode_entry(Entry(3, 7, CONF_CHANGE_V2, b"xyz"))
    body = struct.pack("<IQQBB6x", 3, 3, 7, 2, 1) + b"xyz"
    assert image == struct.pack("<I", zlib.crc32(body)) + body


@given(ENTRIES)
def test_round_trip(entry: Entry) -> None:
    image = encode_entry(entry)
    assert len(image) == 32 + len(entry.data)
    assert decode_entry(image) == (entry, len(image))


@given(st.lists(ENTRIES, max_size=6))
def test_concatenated_images(entries: list[Entry]) -> None:
    joined = b"".join(map(encode_entry, entries))
    assert decode_entries(bytearray(joined)) == entries
    pos, copies = 0, []
    while pos < len(joined):
        entry, pos = decode_entry(memoryview(joined), pos)
        copies.append(entry)
    assert copies == entries


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x00" + bytes(40), b"\x01" + bytes(range(256))])
def test_every_flipped_byte_and_bit_is_detected(data: bytes) -> None:
    image = encode_entry(Entry(5, 9, NORMAL, data))
    for at in range(len(image)):
        for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            damaged = bytearray(image)
            damaged[at] ^= mask
            with pytest.raises(FormatError):
                decode_entry(damaged)


def test_every_cut_is_detected() -> None:
    image = encode_entry(Entry(5, 9, NORMAL, b"payload"))
    for size in range(len(image)):
        with pytest.raises(FormatError, match="cut short"):
            decode_entry(image[:size])
        if size:
            with pytest.raises(FormatError, match=r"at byte 39: cut short"):
                decode_entries(image + image[:size])
    with pytest.raises(FormatError, match="cut short"):
        decode_entry(image, len(image))
    with pytest.raises(FormatError, match="cut short"):
        decode_entry(image, len(image) + 1)


def test_swapped_halves_of_two_images_are_detected() -> None:
    one, two = encode_entry(Entry(1, 1, NORMAL, b"aaaa")), encode_entry(Entry(1, 2, NORMAL, b"bbbb"))
    with pytest.raises(FormatError, match="wrong checksum"):
        decode_entry(one[:32] + two[32:])


@pytest.mark.parametrize(
    ("at", "value", "text"),
    [
        (24, 3, "impossible header"),
        (25, 0, "unknown version"),
        (25, 2, "unknown version"),
        (26, 1, "impossible header"),
        (31, 128, "impossible header"),
    ],
)
def test_headers_that_are_sealed_but_impossible(at: int, value: int, text: str) -> None:
    image = bytearray(encode_entry(Entry(1, 1, NORMAL, b"x")))
    image[at] = value
    with pytest.raises(FormatError, match=text):
        decode_entry(resealed(bytes(image)))


def test_length_over_the_limit_is_refused_before_anything_is_read() -> None:
    image = bytearray(encode_entry(Entry(1, 1, NORMAL, b"")))
    struct.pack_into("<I", image, 4, MAX_PAYLOAD + 1)
    with pytest.raises(FormatError, match="impossible header"):
        decode_entry(resealed(bytes(image)))


def test_values_compare_hash_and_show() -> None:
    entry = Entry(term=1, index=2, type=NORMAL, data=b"d")
    assert entry == Entry(1, 2, 0, b"d") and hash(entry) == hash(Entry(1, 2, 0, b"d"))
    assert all(
        entry != other for other in (Entry(2, 2, 0, b"d"), Entry(1, 3, 0, b"d"), Entry(1, 2, 1, b"d"), Entry(1, 2))
    )
    assert entry != (1, 2, 0, b"d")
    assert repr(entry) == "Entry(term=1, index=2, type=0, data=b'd')"
    with pytest.raises(ValueError, match="unknown entry type 3"):
        Entry(1, 1, 3, b"")
    with pytest.raises(OverflowError):
        Entry(-1, 1)
    with pytest.raises(AttributeError):
        entry.term = 4  # type: ignore[misc]


@given(U64, U64, U64)
def test_hard_state_round_trip(term: int, vote: int, commit: int) -> None:
    state = HardState(term, vote, commit)
    image = state.encode()
    assert image[4:] == struct.pack("<B3xQQQ", 1, term, vote, commit)
    assert HardState.decode(memoryview(image)) == state
    assert bool(state) == any((term, vote, commit))


def test_hard_state_damage() -> None:
    image = HardState(1, 2, 3).encode()
    for at in range(len(image)):
        for bit in range(8):
            damaged = bytearray(image)
            damaged[at] ^= 1 << bit
            with pytest.raises(FormatError):
                HardState.decode(damaged)
    for wrong in (b"", image[:-1], image + b"\0"):
        with pytest.raises(FormatError, match="bytes instead of 32"):
            HardState.decode(wrong)
    for at, text in ((4, "unknown version"), (5, "reserved"), (7, "reserved")):
        damaged = bytearray(image)
        damaged[at] ^= 2
        with pytest.raises(FormatError, match=text):
            HardState.decode(resealed(bytes(damaged)))


def test_hard_states_compare() -> None:
    assert HardState(1, 2, 3) == HardState(term=1, vote=2, commit=3)
    assert hash(HardState(1, 2, 3)) == hash(HardState(1, 2, 3))
    assert HardState(1, 2, 3) != HardState(1, 2, 4) and HardState(1, 2, 3) != (1, 2, 3)
    assert repr(HardState(1, 2, 3)) == "HardState(term=1, vote=2, commit=3)"
