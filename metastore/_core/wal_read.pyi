from typing_extensions import Buffer

from metastore._core.wal_records import LogState

class Stretch:
    """Places of the entries first to end - 1. The constructor raises IndexError if the log lacks them."""

    @property
    def first(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def term(self) -> int: ...  # of the last entry
    @property
    def nbytes(self) -> int: ...  # bytes of the concatenated images
    @property
    def table_bytes(self) -> int: ...  # memory of this object
    def __init__(self, state: LogState, lo: int, hi: int, max_size: int) -> None: ...
    def runs(self) -> list[tuple[int, int, int, int, int]]: ...  # (segment number, offset, length, first, end)
    def pick(self, buf: Buffer, offset: int, lo: int, hi: int) -> bytes: ...  # raises FormatError
    def span(self, lo: int, hi: int, max_size: int) -> tuple[int, int]:
        """(begin, end) in the concatenated images. Raises IndexError."""
