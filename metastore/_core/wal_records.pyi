"""The write-ahead log as bytes; layout: FORMATS.md, WAL. All sizes and offsets are bytes."""

from collections.abc import Callable
from typing import Any, Final

from typing_extensions import Buffer

MAX_SEGMENT: Final[int]
HEADER_SIZE: Final[int]
RECORD_TYPES: Final[dict[int, str]]

def make_generation(number: int, nonce: int) -> int: ...
def encode_header(generation: int, size: int) -> bytes: ...
def check_header(buf: Buffer, generation: int) -> str | None: ...  # what is wrong; None: nothing
def records(buf: Buffer, generation: int) -> list[tuple[int, str, int, int, int]]:
    """(offset, type name, group, synced, size of the record)."""

class LogState:
    """The state that a log describes."""

    @property
    def first(self) -> int: ...  # index of the first entry held
    @property
    def base_term(self) -> int: ...  # term of the entry before `first`
    @property
    def missing(self) -> int: ...  # highest index that a missing segment must have held; 0: none is missing
    @property
    def snapshot_index(self) -> int: ...
    @property
    def snapshot_term(self) -> int: ...
    @property
    def metadata(self) -> bytes: ...
    @property
    def conf_state(self) -> bytes: ...
    hard_term: int
    hard_vote: int
    hard_commit: int
    def __init__(self, metadata: bytes = b"") -> None: ...
    @property
    def first_index(self) -> int: ...
    @property
    def last_index(self) -> int: ...  # the snapshot's if there is no entry
    def term(self, index: int) -> int: ...  # raises IndexError
    def where(self, index: int) -> tuple[int, int, int]:
        """(segment number, offset of the record, size of the image). Raises IndexError."""
    def compact(self, index: int, term: int, conf_state: bytes) -> None: ...
    def has_conf_change(self, lo: int, hi: int) -> bool: ...  # entries lo to hi - 1

class Group:
    """Bytes that one write puts at `offset` of a segment and one sync makes durable."""

    @property
    def generation(self) -> int: ...  # of the segment
    @property
    def offset(self) -> int: ...
    @property
    def group(self) -> int: ...  # number of the group in the log
    @property
    def before(self) -> int: ...  # highest append before the first one in it that must be synced
    @property
    def number(self) -> int: ...  # highest append that is durable with it; 0: none ends in it
    @property
    def must_sync(self) -> bool: ...
    @property
    def content(self) -> bool: ...  # a caller waits for something in it
    @property
    def firm(self) -> bool: ...  # must be synced before it is reported, even by a lagging log
    @property
    def nbytes(self) -> int: ...  # bytes to write
    @property
    def end(self) -> int: ...  # offset behind the last byte
    def tobytes(self) -> bytes: ...

class Writer:
    """Turns appends into groups. plan(need) returns (generation, capacity) of the next segment."""

    @property
    def state(self) -> LogState: ...
    @property
    def generation(self) -> int: ...
    @property
    def capacity(self) -> int: ...  # of the segment
    @property
    def position(self) -> int: ...  # offset of the next record
    @property
    def group(self) -> int: ...  # number of the newest group
    @property
    def number(self) -> int: ...  # highest append so far
    @property
    def pending_bytes(self) -> int: ...  # bytes in groups that were not taken
    def shrink(self, capacity: int) -> None: ...
    @property
    def pending_sync(self) -> int: ...  # groups that wait and must be synced
    @property
    def group_commit(self) -> bool: ...
    def __init__(
        self,
        state: LogState,
        plan: Callable[[int], tuple[int, int]],
        *,
        group_commit: bool = True,
        max_group: int = ...,
    ) -> None: ...
    def append(
        self, number: int, images: Buffer | None, hard_state: Any, must_sync: bool = True, firm: bool = False
    ) -> None: ...
    def snapshot_position(self, number: int, index: int, term: int, conf_state: bytes) -> None: ...
    def synced(self, generation: int, group: int, end: int) -> None: ...
    def mark(self) -> None: ...
    def take(self) -> Group | None: ...  # None: nothing waits that must be synced
    def peek(self) -> Group | None: ...
    def recycle(self, group: Group) -> None: ...
    def next_before(self) -> int: ...  # highest append that depends on no waiting sync
