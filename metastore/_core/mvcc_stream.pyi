"""RangeStream: a range that is sent in chunks. Sizes are in bytes, times in seconds, costs in units of work.pxd."""

from collections.abc import Callable

from metastore._core.mvcc import Store

FIRST: int  # bytes of the first chunk

class RangeStream:
    """One stream; see the .pyx."""

    @property
    def rev(self) -> int: ...  # the revision that all chunks are read at
    @property
    def target(self) -> int: ...  # bytes that the next chunk is to have

def chunks(
    store: Store, body: bytes, most: int, budget: int, between: Callable[[], object] = ..., seconds: float = ...
) -> list[bytes]:
    """For tests: the encoded RangeStreamResponses to a RangeRequest, which are made in pieces of `budget` units and
    have `most` bytes at most. `between` is called between two pieces, and the client takes `seconds` for each. Raises
    ApiError."""
