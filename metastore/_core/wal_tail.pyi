"""The end of a write-ahead log, where it grows: the part of `storage.wal.Wal` that each group passes."""

from collections.abc import Sized
from typing import Any, Final

from typing_extensions import Buffer

from .entry import HardState
from .wal_records import Group, Writer

QUICK_SYNC: Final[float]  # seconds
SLOW_GROUPS: Final[int]

class LogDisk:
    """Writes and syncs one group at a time."""

    busy: bool  # a group was handed over that `finished` has not returned
    def start(self, group: Group, fd: Any, patience: float, client: int) -> int: ...
    def finished(self) -> Group | None: ...  # None: no group has ended since the last call
    def has_failed(self) -> bool: ...
    def has_ended(self) -> bool: ...
    def listen(self, wanted: bool) -> bool: ...

class LogTail:
    """Subclasses have methods for what is rare; see wal_tail.pyx."""

    durable: int  # highest append number known to be on disk; with a lag: that may be acknowledged
    durable_commit: int  # highest commit index known to be synced
    groups: int  # how many have ended
    quick_sync: float  # seconds for which a caller that is alone waits for the disk
    edge_triggered: bool  # the owner is told of each write to the eventfd
    tells_all: bool  # the end of each group is reported, whoever waits for it
    _writer: Writer
    _disk: Any
    _folder: Any
    _preparer: Any
    _failure: Any
    _results: Sized
    _snapshots: list[tuple[int, int]]
    _commits: list[tuple[int, int]]
    _lagging: bool
    _stalled: bool
    _full: bool
    _proven: bool
    _quick: bool
    _written_segment: int
    _written_end: int
    def __init__(self, folder: Any, writer: Writer, disk: LogDisk, preparer: Any, lagging: bool) -> None: ...
    @property
    def idle(self) -> bool: ...
    def append(
        self, number: int, images: Buffer | None, hard_state: HardState | None, must_sync: bool = True
    ) -> None: ...
    def submit(self, writer: int = 0) -> bool: ...
    def poll(self, start: bool = True) -> int: ...
    def settle(self) -> int: ...
    def has_ended(self) -> bool: ...
    def listen(self, wanted: bool) -> bool: ...
    def room(self, enough: int) -> int | None: ...
