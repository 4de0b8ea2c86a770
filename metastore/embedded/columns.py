"""Many keys and values in two buffers, for `put_many`."""

from __future__ import annotations

from collections.abc import Iterator

from .._core.kv_columns import Column


class Columns:
    """Keys and values in two arrays, for `put_many`, which then makes no object for any of them.

    Each of the two is an array of byte strings of one width, or a buffer with the offsets of its strings:

    * NumPy's `S16` and the like. As in NumPy, zero bytes at the end are padding and belong to no string.
    * NumPy's `V16` and the like, or two dimensions of single bytes (`uint8`): every byte counts.
    * bytes, or any buffer, with `key_offsets` or `value_offsets`: whole numbers of 32 or 64 bits, one more than
      there are strings, as Arrow has them. A string is what lies between two of them.

    The arrays must not be changed before `put_many` has returned. Raises TypeError for other forms, and ValueError
    where there are not as many keys as values. Offsets that lie elsewhere are found when the pair is taken.
    """

    __slots__ = ("keys", "values")

    def __init__(
        self, keys: object, values: object, *, key_offsets: object | None = None, value_offsets: object | None = None
    ) -> None:
        self.keys = Column(keys, key_offsets, "keys")
        self.values = Column(values, value_offsets, "values")
        if len(self.keys) != len(self.values):
            raise ValueError(f"there are {len(self.keys)} keys and {len(self.values)} values")

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        for place in range(len(self)):
            yield self.keys[place], self.values[place]
