"""Ordered map bytes -> bytes: a copy-on-write B+tree in C memory."""

from collections.abc import Iterator
from typing import overload

class OrderedMap:
    """Ordered map in memcmp order. Keys and values have up to 2^32 - 2 bytes. A view is read-only; writing to it
    raises TypeError. One thread at a time uses a map. An overlay marks pending deletions, whose value is shown as
    None. A map that weighs knows how many keys of clients are alive between two of its own keys."""

    def __init__(self, weighs: bool = False) -> None: ...
    @property
    def weighs(self) -> bool: ...
    @property
    def count(self) -> int: ...  # keys
    @property
    def nbytes(self) -> int: ...  # bytes of keys and values
    @property
    def taken(self) -> int: ...  # bytes of memory that it would give back if nothing else shared its records
    def __len__(self) -> int: ...
    def __contains__(self, key: bytes) -> bool: ...
    @overload
    def get(self, key: bytes) -> bytes | None: ...
    @overload
    def get(self, key: bytes, default: bytes) -> bytes: ...
    def set(self, key: bytes, value: bytes) -> None: ...  # raises MemoryError, TypeError (view)
    def set_deleted(self, key: bytes) -> None: ...  # marks a pending deletion; raises as `set`
    def delete(self, key: bytes) -> bool: ...  # whether the key was there; raises as `set`
    def alive(self, start: bytes = b"", end: bytes | None = None) -> int: ...  # 0 in a map that does not weigh
    def seek_ge(self, key: bytes) -> tuple[bytes, bytes | None] | None: ...  # first pair not below `key`
    def seek_le(self, key: bytes) -> tuple[bytes, bytes | None] | None: ...  # last pair not above `key`
    def scan(
        self, start: bytes = b"", end: bytes | None = None, reverse: bool = False, limit: int = 0
    ) -> list[tuple[bytes, bytes | None]]:
        """Return the pairs with start <= key < end (None: to the last), at most `limit` pairs (0: all)."""

    def items(
        self, start: bytes = b"", end: bytes | None = None, chunk: int = 256
    ) -> Iterator[tuple[bytes, bytes | None]]:
        """Iterate in order over the contents at the time of the call, `chunk` pairs at a time."""

    def clear(self) -> None: ...
    def view(self) -> OrderedMap: ...  # read-only, with the present contents; O(1)

def reclaim(budget: int = 4096) -> bool: ...  # free about `budget` dropped records; True while some are left
