"""Keys or values in one buffer."""

class Column:
    """Byte strings of one width: a one-dimensional buffer of format "16s" or "16x", as of NumPy's S16 and V16, or a
    two-dimensional one of single bytes. With `offsets` (32 or 64 bits each, one more than there are strings): the bytes
    between two of them. Raises TypeError and ValueError; `name` says in them what it is.
    """

    def __init__(self, data: object, offsets: object | None, name: str) -> None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, place: int) -> bytes: ...
