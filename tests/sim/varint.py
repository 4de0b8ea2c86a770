"""The numbers of protobuf, written by hand: independent of the decoders that are tested."""

from __future__ import annotations


def varint(number: int) -> bytes:
    """Seven bits a byte, lowest first, the high bit on all but the last."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """(number, where it ends) of what begins at `at`."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
