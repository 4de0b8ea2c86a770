from collections.abc import Callable

from metastore._core.mvcc import Store

def sliced_reply(store: Store, body: bytes, budget: int, between: Callable[[], object] = ...) -> bytes:
    """For tests: answer a RangeRequest in pieces of `budget` units; `between` is called between two. Raises
    ApiError."""
