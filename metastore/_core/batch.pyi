"""Batches of operations; layout: FORMATS.md, "Batch"."""

from collections.abc import Iterable
from typing import Any, Final

from typing_extensions import Buffer

from metastore._core.codec import PayloadCodec

SEPARATOR: Final[bytes]
ESCAPE: Final[bytes]
REASONS: Final[tuple[str, ...]]

class FrameReader:
    """Reads the operations of a batch one by one; only compiled code uses it."""

class BatchProposer:
    """Collects operations into batches. Times are monotonic seconds, sizes framed bytes."""

    @property
    def max_count(self) -> int: ...  # operations per batch
    @property
    def max_bytes(self) -> int: ...  # per batch
    @property
    def max_delay(self) -> float: ...  # that an operation waits for others
    @property
    def limit_count(self) -> int: ...  # operations, queued and in flight
    @property
    def limit_bytes(self) -> int: ...  # queued and in flight
    @property
    def enabled(self) -> bool: ...  # False: every operation is a batch of its own
    @property
    def queued(self) -> int: ...  # operations
    @property
    def queued_bytes(self) -> int: ...
    @property
    def inflight(self) -> int: ...  # operations taken and not released
    @property
    def ops_out(self) -> int: ...  # operations that were taken in batches, less those that came back
    @property
    def inflight_bytes(self) -> int: ...
    @property
    def taken_count(self) -> int: ...  # operations of the batch that take() returned last
    @property
    def taken_bytes(self) -> int: ...  # its framed bytes
    def __init__(
        self,
        max_count: int,
        max_bytes: int,
        max_delay: float,
        limit_count: int,
        limit_bytes: int,
        enabled: bool = True,
    ) -> None: ...
    def add(self, op: bytes, now: float) -> None: ...  # raises TooManyRequests, RequestTooLarge
    def take(self, now: float, disk_idle: bool, flush_all: bool, codec: PayloadCodec | None = None) -> bytes | None: ...
    removed: list[
        tuple[int, int]
    ]  # (member, id): operations of other members that take() left out; the owner empties it
    def drop(self, ids: Iterable[int], waiters: dict[int, Any], member: int = 0) -> None: ...
    @property
    def dropped(self) -> int: ...  # ids that drop() keeps
    def untake(self) -> None: ...  # raises ValueError unless directly after take()
    def release(self, count: int, nbytes: int) -> None: ...  # raises ValueError
    def next_deadline(self) -> float | None: ...  # when a batch is due by its delay; None: no batch waits
    def stats(self) -> dict[str, int]: ...

def frame(ops: Iterable[bytes]) -> bytes: ...  # raises FormatError
def unframe(buf: Buffer, limit: int = ...) -> list[bytes]: ...  # raises FormatError
def request_ids(buf: Buffer) -> list[int]: ...  # raises FormatError
