"""The Protocols between the parts: what each side of a seam may rely on, and what it owes.

Static types only: nothing here is imported by the hot paths, and an object fits a Protocol by having its methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .errors import MetaStoreError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from metastore._core.entry import HardState
    from metastore._core.raft_types import ConfState, Message, Snapshot

#: The version of the contract between this program and its plug-ins, which is `plugin.pyi`.
CONTRACT = 1

#: Called once with how something ended: None, or the error.
Done = Callable[[MetaStoreError | None], object]


class Points(Protocol):
    """Failpoints (`failpoints.Failpoints`). On a hot path `active` is asked first, because a call costs more."""

    active: bool

    def hit(self, name: str) -> None: ...


class NoPoints:
    """None of them is on."""

    active = False

    def hit(self, name: str) -> None:
        """Passes the point."""


NO_POINTS = NoPoints()


class Caller(Protocol):
    """The call of a client on whose behalf an operation is handed in (`_core.h2_request.Request`).

    `ident` becomes the operation's request id. `answered` is whether the call is over, because its time has ended.
    """

    ident: int

    @property
    def answered(self) -> bool: ...


@runtime_checkable
class Codec(Protocol):
    """A compression codec; plug-ins are found in the entry-point group `metastore.codecs`. Their contract: plugin.pyi.

    `name` is what the configuration says. `flag` is the byte before each payload (FORMATS.md, "Flag byte"): 1 for the
    built-in ones, 16 to 255 for a plug-in, chosen once and for all, since it stands in every log and snapshot. One
    thread uses an object at a time.
    """

    name: str
    flag: int

    def compress(self, data: bytes) -> bytes:
        """The compressed form; may be longer than the data, in which case it is not used."""
        ...

    def decompress(self, data: bytes, max_size: int) -> bytes:
        """What compress() was given.

        Must raise metastore.errors.FormatError for damaged bytes, and for content of more than max_size bytes
        **before** it takes much more memory than that, whatever the bytes claim.
        """
        ...


class LogStore(Protocol):
    """Where the Raft core reads what it no longer holds in memory. The driver writes; the core only reads.

    Indexes are those of entries, [low, high) half open. All but `images` and `snapshot` answer at once, from memory.
    `images` and `term` raise LogCompacted below first_index() and LogUnavailable above last_index(); these and the
    other errors are in metastore._core.raft_types.
    """

    def initial_state(self) -> tuple[HardState | None, ConfState]:
        """The hard state last persisted, and the membership as of the snapshot or the start of the log."""
        ...

    def images(self, low: int, high: int, max_size: int) -> Buffer:
        """Entry images, one behind the other: at least one from `low` on, then as many as fit in max_size bytes, none
        at or after `high`. Raises NotYetLoaded where that would have to wait for a disk: the core pauses that peer, or
        the applying, until it is told by `entries_loaded()`."""
        ...

    def has_conf_change(self, low: int, high: int) -> bool:
        """Whether one of the entries changes the membership."""
        ...

    def term(self, index: int) -> int:
        """The term of an entry; also answers for first_index() - 1, the position of the snapshot."""
        ...

    def first_index(self) -> int:
        """The first entry that is there; last_index() + 1 if none is."""
        ...

    def last_index(self) -> int:
        """The last entry that is there; first_index() - 1 if none is."""
        ...

    def snapshot(self) -> Snapshot | None:
        """The newest snapshot's description for a peer that is behind first_index(); None, or SnapshotNotReady, if
        there is none now."""
        ...


class DriverLog(Protocol):
    """Where the driver writes. Appends are numbered by the Readies that they come from; what is durable is told by the
    number of the last one that is."""

    #: The highest commit index that `save_commit` has made durable, or that was found at the start.
    durable_commit: int

    @property
    def idle(self) -> bool:
        """Whether nothing is being written, so that what is submitted now is written at once."""
        ...

    def append(self, number: int, images: Buffer | None, hard_state: HardState | None, must_sync: bool = True) -> None:
        """Put what Ready `number` holds behind everything before it, in the group that gathers."""
        ...

    def save_snapshot_position(self, index: int, term: int, conf_state: bytes) -> None:
        """Let the log begin behind a snapshot that a leader sent."""
        ...

    def save_commit(self, hard_state: HardState) -> None:
        """Have the commit index of `hard_state`, the newest one, made durable with the group that gathers."""
        ...

    def submit(self, writer: int = 0) -> bool:
        """Have the group that has gathered written, if nothing is. `writer` is not 0 if the caller has nothing else to
        do, so the log may wait for it in this thread; it is the same number for the same client. Whether the log did,
        and `settle` has news."""
        ...

    def poll(self, start: bool = True) -> int:
        """The number of the last append that is durable; `start`: begin with the next group. Raises DiskFailed."""
        ...

    def settle(self) -> int:
        """Like `poll`, after a `submit` that said so."""
        ...

    def has_ended(self) -> bool:
        """Whether a group has ended that neither `poll` nor `settle` has taken in."""
        ...

    def listen(self, wanted: bool) -> bool:
        """Whether the end of the group that is being written is to bring an `on_disk`; the log may want it all the
        same. True if it is, and the group has ended already, perhaps without one."""
        ...

    def mark(self) -> bool:
        """Say in the log that all of it is durable, since nothing more comes for the moment; whether it could."""
        ...


class Transport(Protocol):
    """What carries a driver's messages to the peers. Nothing in it blocks; what it cannot take is lost and reported."""

    def send(self, messages: list[Message]) -> None:
        """Raft messages of one Ready, in ascending order of the peer's id."""

    def forward(self, to: int, frame: bytes) -> bool:
        """Framed operations for the leader; false if they were surely not sent."""

    def refuse(self, to: int, code: int, ids: list[int]) -> object:
        """Operations forwarded by `to` that were surely not logged; `code` is a place in `raft_wire.REFUSALS`."""

    def withdraw(self, to: int, ids: list[int]) -> object:
        """Operations that were forwarded to `to` and that it must not log any more; behind what `forward` sent."""

    def lease(self, to: int, asks: bool, data: bytes) -> bool:
        """A question about leases (`asks`) or an answer to one; false if it was surely not sent."""
