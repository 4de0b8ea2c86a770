"""The KV service between the protocol and the log: admission, request ids, reads. Times are seconds, sizes bytes,
costs units of work.pxd."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from metastore._core.batch import BatchProposer
from metastore._core.mvcc import Store
from metastore._core.mvcc_stream import RangeStream
from metastore._core.waiter import Waiter
from metastore._core.work_queue import WorkQueue
from metastore.errors import MetaStoreError

METHODS: dict[str, int]
SERVE_BUDGET: int  # units (_core/work) that requests may cost in one turn
LATE_UNITS: int  # and those of earlier turns

Read = tuple[Waiter, int, bytes, float]  # waiter, method number, encoded request, when it came (seconds)

def fail_each(waiters: list[Waiter], error: Callable[[], MetaStoreError]) -> int: ...

class Quota(Protocol):
    """What the server asks about the room for the state."""

    def room(self) -> int: ...  # bytes that puts may still take
    def check_delete(self, kind: int, body: bytes) -> None: ...  # raises the error that refuses the deletion
    def exceeded(self) -> object: ...  # called when a put finds no room; returns the error that the put gets
    def hold(self, waiter: Waiter, error: MetaStoreError) -> bool: ...  # whether it answers the waiter itself, later

class KVServer:
    """Admits KV calls."""

    room: int  # bytes that may still be admitted before `quota` is asked again
    barred: int  # kinds of the alarms for which this member, when it leads, refuses; bits
    short: bool  # memory is short: writes that take more of it are refused
    careful: bool  # memory does not suffice to delete everything at once
    quota: Quota | None
    max_logged_key: int  # bytes of a key that is logged, what all members take; 0: no limit
    cluster_level: int  # operation level of all members: nothing above it is admitted
    pressed: Callable[[], bool] | None  # whether somebody waits for the next turn: pieces are small then
    holding: bool  # this member takes part in nothing yet: serializable reads wait as well
    def __init__(
        self, store: Store, proposer: BatchProposer, waiters: dict[int, Waiter], first_id: int, limits: Any
    ) -> None: ...
    @property
    def store(self) -> Store: ...
    @property
    def proposer(self) -> BatchProposer: ...
    @property
    def waiters(self) -> dict[int, Waiter]: ...  # by request id, in the order of admission
    @property
    def reads(self) -> list[Read]: ...  # for the next ReadIndex round
    @property
    def reads_waiting(self) -> int: ...  # linearizable reads that are not answered yet
    @property
    def deferred(self) -> dict[Any, list[tuple[Waiter, int, bytes]]]: ...  # by session
    @property
    def queue(self) -> WorkQueue: ...
    @property
    def streams(self) -> dict[Any, RangeStream]: ...  # those that have still chunks to send, by request
    @property
    def resumed(self) -> bool: ...  # a stream that waited for its client can go on
    @property
    def next_id(self) -> int: ...
    @property
    def writer(self) -> int: ...  # a number for the connection that wrote last; not 0
    @property
    def max_request_bytes(self) -> int: ...
    @property
    def max_txn_ops(self) -> int: ...
    @property
    def max_txn_walk(self) -> int: ...  # keys
    @property
    def max_reads(self) -> int: ...
    @property
    def walking(self) -> int: ...  # keys that the writing transactions under way look at
    @property
    def calls(self) -> list[int]: ...  # calls by method, refused ones too
    @property
    def refused(self) -> int: ...  # calls that an ApiError refused
    @property
    def over_quota(self) -> int: ...  # puts refused for lack of room or for the alarm
    @property
    def over_memory(self) -> int: ...  # writes refused because memory was short
    @property
    def late(self) -> int: ...  # requests that wait for later turns
    @property
    def closed_to_writes(self) -> MetaStoreError | None: ...  # the error that writes get now
    @property
    def sweep_pending(self) -> bool: ...
    @property
    def call_counts(self) -> dict[str, int]: ...  # by method name, since the start
    def handle(self, requests: Iterable[Any], now: float) -> list[Any]: ...  # returns the requests that are no KV calls
    def call(self, method: str, body: bytes, waiter: Waiter, now: float) -> None: ...  # `method`: a name in METHODS
    def propose(self, kind: int, body: bytes, waiter: Waiter, now: float) -> int:
        """Admit an operation of leases (kind: op.pyi, body: leases.pyi). `waiter` gets the encoded response. Return the
        request id, or 0 if the operation was refused; `waiter` then has the error. Raises FormatError."""

    def count_some(self, body: bytes, most: int) -> int: ...  # keys of a RangeRequest; `most` + 1: too many to count
    def check_forwarded(self, kind: int, body: bytes) -> None: ...  # raises Corrupt, NoSpace, TooManyRequests
    def confirm(self, waiter: Waiter) -> None: ...  # completes it with b"" when reads are linearizable
    def expect(self, waiter: Waiter) -> int: ...  # returns the request id of an operation that is not a KV call
    def take_reads(self) -> list[Read]: ...  # each goes to `serve_reads` or `fail_reads`
    def serve_reads(self, reads: list[Read]) -> None: ...  # when their index is applied
    def fail_reads(self, reads: list[Read], error: Callable[[], MetaStoreError]) -> None: ...
    def serve_deferred(self) -> None: ...  # once a turn
    def holds_history(self, now: float) -> bool: ...  # whether the sweep must wait for streams
    def serve_late(
        self, budget: int = ..., late: int = ...
    ) -> bool: ...  # at the end of every turn; whether there is more to do
    def unanswered(self) -> list[Waiter]: ...  # for another thread, while the member's own one stands still
    def abandon_late(self, error: Callable[[], MetaStoreError]) -> None: ...
    def expire(self, now: float, patience: float) -> None: ...  # fails what waited so long without being begun
    def overdue(self, before: float) -> list[int]: ...  # ids of unanswered writes that came before, and waited first
    def swept(self) -> None: ...  # answers the physical compactions if nothing is left to sweep
    def refuse(self, error: MetaStoreError | None) -> None: ...  # every call gets `error` from now on
    def limit_log(self, room: int | None, left: int | None, refusal: type[MetaStoreError] = ...) -> None:
        """Bound what operations may add to the log: puts `room` bytes, all together `left` bytes (None: no limit). An
        operation that finds too little room gets an error of the class `refusal`."""
