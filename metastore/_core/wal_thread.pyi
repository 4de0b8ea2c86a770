import builtins
from typing import Final

from .idle_poll import IdlePollers
from .wal_tail import LogDisk

POINT_NAMES: Final[tuple[str, ...]]

class DiskThread(LogDisk):
    """Writes and syncs groups in a thread of its own. event: the eventfd that reports the end of a group.
    sync_interval: seconds; 0: sync with every group. max_unsynced: bytes."""

    @property
    def syncs(self) -> int: ...  # syncs so far
    @property
    def bytes(self) -> int: ...  # written so far
    @property
    def sync_seconds(self) -> float: ...  # time spent in syncs
    @property
    def write_seconds(self) -> float: ...  # time spent in writes
    def __init__(
        self, event: int, sync_interval: float = 0.0, max_unsynced: int = 0, pollers: IdlePollers | None = None
    ) -> None: ...
    def run(self) -> None: ...  # main function of the thread
    def sync_now(self) -> None: ...
    @property
    def synced_group(self) -> int: ...  # last group that is synced with all before it
    @property
    def unsynced(self) -> tuple[int, float]: ...  # (bytes, seconds since the first was written)
    @property
    def pending_since(self) -> float | None: ...  # seconds, CLOCK_MONOTONIC; None: nothing is under way
    def take_longest(self) -> float: ...  # seconds of the longest write or sync since the last call
    @property
    def failed(self) -> tuple[int, bool] | None: ...  # (errno, whether the sync failed)
    def stop(self) -> None: ...
    def point(self, which: int, action: int, argument: int, skip: int, path: builtins.bytes) -> None: ...
