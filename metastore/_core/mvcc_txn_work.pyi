"""Running transactions. Budgets are units of work.pxd."""

from collections.abc import Callable

from metastore._core.mvcc import Store

def execute(store: Store, kind: int, body: bytes, want: bool = True) -> bytes | None:
    """For tests: apply one operation that changes keys (kinds: op.pyi). Return the encoded reply, or None unless
    `want`. Raises ApiError, FormatError."""

def execute_txn(store: Store, body: bytes, want: bool = True, budget: int = ...) -> bytes | None:
    """Run a TxnRequest in steps of `budget` units. Return the encoded TxnResponse, or None unless `want`. Raises
    ApiError."""

def walked_in_pieces(store: Store, body: bytes, most: int, budget: int) -> int:
    """For tests: count the keys that a TxnRequest may look at, up to a few more than `most`. Raises
    MalformedRequest."""

def read_in_pieces(store: Store, body: bytes, budget: int, between: Callable[[], object] = ...) -> bytes:
    """For tests: answer a read-only TxnRequest in pieces; `between` is called between two. Raises ApiError."""
