"""Puts of this process that are handed over together, and what becomes of each. Sizes are bytes."""

from collections.abc import Callable, Iterator

from metastore._core.kv_columns import Column
from metastore._core.waiter import Waiter
from metastore.errors import MetaStoreError

PUTS: int
NBYTES: int
WRITTEN: int  # surely done
NOT_WRITTEN: int  # surely not done, and never will be
OPEN: int  # nobody knows

class Piece:
    """At most PUTS puts with NBYTES of keys and values. The caller fills it, sets `news`, and hands it over."""

    news: Callable[[], object]  # called when a put fails, and when all have an outcome; in whichever thread
    def __init__(self, begin: int) -> None: ...
    def __len__(self) -> int: ...
    @property
    def begin(self) -> int: ...  # the position of the first put
    @property
    def size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def next(self) -> int: ...  # the put that the member gets next; `size`: none
    @property
    def failed(self) -> bool: ...  # one of the puts has an error
    @property
    def done(self) -> bool: ...  # all of them have an outcome
    @property
    def error(self) -> MetaStoreError | None: ...  # of the first one that failed, in their order
    @property
    def first_revision(self) -> int: ...  # of the first one that is written; 0: none is
    @property
    def last_revision(self) -> int: ...
    @property
    def full(self) -> bool: ...
    def fill(
        self, pairs: Iterator[object], check: Callable[[object, int], tuple[bytes, bytes]]
    ) -> bool: ...  # whether it is full; `check` gets the position, and raises
    def fill_columns(self, keys: Column, values: Column) -> bool: ...  # from the position on; whether it is full
    def withdraw(self) -> None: ...  # what the member has not got yet is surely not done
    def refuse(self, error: MetaStoreError) -> None: ...  # the same, and it gets the error
    def spans(self) -> list[tuple[int, int, int]]: ...  # (outcome, first position, position behind the last)

class PiecePut(Waiter):
    """Waits for one put of a piece."""
