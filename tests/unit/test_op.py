"""The operation's header: round trips, byte layout, and refused bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastore._core.op import COMPACT, DELETE_RANGE, PUT, TXN, decode_op, encode_op
from metastore.errors import FormatError

U64 = st.integers(0, 2**64 - 1)


def test_plain_layout() -> None:
    assert encode_op(TXN, 0x0102030405060708, b"body") == bytes([1, 3, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]) + b"body"


def test_full_layout() -> None:
    op = encode_op(PUT, 5, b"body", user=b"root", auth_rev=6, lease_id=7, wall_ms=8)
    assert op == struct.pack("<BBBBQ4sQQQ", 1, 1, 7, 4, 5, b"root", 6, 7, 8) + b"body"


@given(
    st.sampled_from([PUT, DELETE_RANGE, TXN, COMPACT]),
    U64,
    st.binary(max_size=60),
    st.one_of(st.just((b"", 0)), st.tuples(st.binary(min_size=1, max_size=255), U64)),
    st.none() | U64,
    st.none() | U64,
)
def test_round_trip(
    kind: int, request_id: int, request: bytes, who: tuple[bytes, int], lease: int | None, wall: int | None
) -> None:
    encoded = encode_op(kind, request_id, request, user=who[0], auth_rev=who[1], lease_id=lease, wall_ms=wall)
    op = decode_op(memoryview(encoded))
    assert (op.kind, op.request_id, op.request) == (kind, request_id, request)
    assert ((op.user, op.auth_rev), op.lease_id, op.wall_ms) == (who, lease, wall)


def test_every_cut_inside_the_header_is_refused() -> None:
    full = encode_op(PUT, 5, b"", user=b"root", auth_rev=6, lease_id=7, wall_ms=8)
    for size in range(len(full)):
        with pytest.raises(FormatError, match="cut short"):
            decode_op(full[:size])
    assert decode_op(full).request == b""


@pytest.mark.parametrize(
    ("at", "value", "text"),
    [
        (0, 0, "unknown version"),
        (0, 2, "unknown version"),
        (1, 0, "unknown kind"),
        (1, 100, "unknown kind"),
        (1, 255, "unknown kind"),
        (2, 8, "unknown flags"),
        (2, 128, "unknown flags"),
        (2, 1, "unknown flags"),  # a user is announced, but has no bytes
        (3, 1, "unknown flags"),  # the length of a user that is not announced
    ],
)
def test_what_this_version_does_not_know_is_refused(at: int, value: int, text: str) -> None:
    op = bytearray(encode_op(PUT, 1, bytes(64)))
    op[at] = value
    with pytest.raises(FormatError, match=text):
        decode_op(op)


def test_a_user_length_beside_other_flags_is_refused() -> None:
    op = bytearray(encode_op(PUT, 1, bytes(64), lease_id=3))
    op[3] = 1
    with pytest.raises(FormatError, match="unknown flags"):
        decode_op(op)


def test_encoder_refuses_what_it_could_not_read() -> None:
    for kind in (0, 100, 255):
        with pytest.raises(ValueError, match="unknown kind"):
            encode_op(kind, 1, b"")
    with pytest.raises(ValueError, match="at most 255"):
        encode_op(PUT, 1, b"", user=b"u" * 256)
    with pytest.raises(ValueError, match="without a user"):
        encode_op(PUT, 1, b"", auth_rev=1)
    with pytest.raises(OverflowError):
        encode_op(PUT, 1, b"", lease_id=-1)
    with pytest.raises(OverflowError):
        encode_op(PUT, 2**64, b"")


def test_an_operation_shows_itself() -> None:
    text = repr(decode_op(encode_op(PUT, 9, b"b", user=b"u", auth_rev=2, lease_id=3)))
    assert text == "Operation(kind=1, request_id=9, user=b'u', auth_rev=2, lease_id=3, wall_ms=None, request=b'b')"
