"""Reading the write-ahead log back. All offsets are bytes in a segment."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from typing_extensions import Buffer

from .wal_records import LogState, Writer

DEFAULT_REWRITE: Final[int]

class Cut:
    """Bytes [offset, end) of a segment that a repair copies aside."""

    @property
    def generation(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def name(self) -> str: ...  # of the segment, for people
    @property
    def reason(self) -> str: ...

class Recovered:
    """Result of `recover`. Nothing on disk was changed."""

    @property
    def state(self) -> LogState: ...  # the log without its tail
    @property
    def report(self) -> list[str]: ...  # sentences for the operator
    @property
    def cuts(self) -> list[Cut]: ...
    @property
    def used(self) -> list[int]: ...  # generations that make up the log, oldest first
    @property
    def spare(self) -> list[int]: ...  # prepared generations that are not used yet
    @property
    def stale(self) -> list[int]: ...  # generations to remove
    @property
    def superseded(self) -> bool: ...  # the fresh segment replaces the last one
    @property
    def last_end(self) -> int: ...  # end of the records in the last segment
    @property
    def proven(self) -> int: ...  # end of what is proven synced there
    @property
    def max_number(self) -> int: ...  # highest number of any segment
    @property
    def last_generation(self) -> int: ...
    @property
    def cut_at(self) -> int: ...  # end of the last segment for its successor

def recover(segments: Iterable[tuple[str, int, Buffer]], *, rewrite: int = ...) -> Recovered | None:
    """Read a log from (name for people, generation, buffer) in any order. None: there is no segment. A last segment
    with fewer than `rewrite` bytes is rewritten as a whole. Raises DamagedData if proven bytes are wrong."""

def walk(
    buf: Buffer, generation: int, pos: int = ..., end: int = ...
) -> Iterator[tuple[int, int, int, int, int, bytes]]:
    """Yield the valid records up to `end` or to the first bad one: (offset, type, group, synced, proven, payload)."""

def create(
    generation: int, capacity: int, metadata: Buffer, plan: Callable[[int], tuple[int, int]], **options: Any
) -> tuple[bytes, Writer]:
    """Create a log. Return the bytes of its first segment and the Writer behind them. `options` are those of Writer."""

def reopen(
    found: Recovered, generation: int, capacity: int, plan: Callable[[int], tuple[int, int]], **options: Any
) -> tuple[bytes, Writer]:
    """Encode the fresh segment after `found`. Return its bytes and the Writer behind them, which takes over the
    state."""
