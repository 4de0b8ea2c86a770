from collections.abc import Callable

from metastore._core.mvcc import Store

def sliced_reply(store: Store, body: bytes, budget: int, between: Callable[[], object] = ...) -> bytes:
    """For tests: answer a RangeRequest in pieces of `budget` units; `between` is called between two. Raises
    ApiError."""

def known_count(store: Store, body: bytes) -> int | None:
    """How many keys a RangeRequest has, or None if the store would have to walk over them. Raises ApiError."""

def range_cost(store: Store, body: bytes, budget: int) -> tuple[int, bytes]:
    """For tests: what a range over many keys costs in units, and its reply."""
