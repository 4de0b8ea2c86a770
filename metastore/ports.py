"""The Protocols between the parts: what each side of a seam may rely on, and what it owes.

Static types only: nothing here is imported by the hot paths, and an object fits a Protocol by having its methods.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from metastore._core.entry import Entry, HardState


@runtime_checkable
class Codec(Protocol):
    """A compression codec; plug-ins are found in the entry-point group `metastore.codecs`.

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


class Clock(Protocol):
    """Where time comes from. The pure floors never ask it: they are given `now` by those who do."""

    def monotonic(self) -> float:
        """Seconds since any fixed moment; never goes back. For deadlines, leases, elections."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970. Read by the leader only, before an operation is logged; carried in its header."""
        ...


class Engine(Protocol):
    """A storage engine: an ordered bytes -> bytes map; plug-ins are found in the entry-point group `metastore.storage`.

    All replicated state lives in it and changes in the same write: keys, leases, users, members, alarms, the compact
    revision. Keys are ordered as memcmp orders them. One thread calls, except for views, each of which belongs to the
    thread that was given it. In practice an engine subclasses `metastore._core.engine.Engine`.
    """

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or None."""
        ...

    def seek_ge(self, key: bytes) -> tuple[bytes, bytes] | None:
        """The first record at or after a key, or None."""
        ...

    def seek_le(self, key: bytes) -> tuple[bytes, bytes] | None:
        """The last record at or before a key, or None."""
        ...

    def scan(self, start: bytes, end: bytes | None, reverse: bool, limit: int) -> list[tuple[bytes, bytes]]:
        """Records with start <= key < end (None: no end) in order, or in reverse; at most `limit` of them (0: all)."""
        ...

    def write(self, batch: Any, index: int, term: int) -> None:
        """Makes all changes of a batch (value None: delete), and the applied index and term, at once or not at all.

        Visible to every read when it returns; on disk only when durable_applied() says so. Any failure to write is
        fatal and raises metastore.errors.DiskFailed: skipping a batch would part this member from the others.
        """
        ...

    def applied(self) -> tuple[int, int]:
        """Index and term of the last write; (0, 0) for an empty engine. Read from the same state that get() reads."""
        ...

    def durable_applied(self) -> int:
        """The applied index that survives a crash. The Raft log is never compacted beyond it."""
        ...

    def flush(self) -> None:
        """Moves durable_applied() on, as far as the engine can by itself."""
        ...

    def view(self) -> Engine:
        """A consistent read view of this moment, undisturbed by later writes. Cheap; to be closed."""
        ...

    def restore(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
        """Replaces everything by the records of a stream, the applied position among them; all or nothing over a crash.

        Any engine restores from any engine's snapshot.
        """
        ...

    def size(self) -> int:
        """Bytes in use, as the quota counts them."""
        ...

    def reclaim(self) -> bool:
        """Gives memory or disk space back in a slice of at most a millisecond; True while there is more to do."""
        ...

    def close(self) -> None:
        """Gives up everything; the object is not used after."""
        ...


class LogStore(Protocol):
    """Where the Raft core reads what it no longer holds in memory. The driver writes; the core only reads.

    Indexes are those of entries, [low, high) half open. `entries`, `images` and `term` may raise NotYetLoaded if they
    would have to wait for a disk: the core pauses that peer until it is told by `entries_loaded()`. They raise
    LogCompacted below first_index() and LogUnavailable above last_index() (all from metastore._core.raftpb).
    """

    def initial_state(self) -> tuple[HardState, Any]:
        """The hard state last persisted, and the membership (ConfState) as of the snapshot or the start of the log."""
        ...

    def entries(self, low: int, high: int, max_size: int) -> list[Entry]:
        """Entries from `low` on: at least one, then as many as fit in max_size bytes, none at or after `high`."""
        ...

    def images(self, low: int, high: int, max_size: int) -> Buffer:
        """The same as concatenated entry images, so that nothing is encoded a second time."""
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

    def snapshot(self) -> Any:
        """The newest snapshot's description for a peer that is behind first_index(), or None if there is none now."""
        ...


class SnapshotStore(Protocol):
    """Keeps snapshot files. What save() has returned for is on disk, read back, verified, and found by newest()."""

    def save(self, header: Any, records: Iterable[tuple[bytes, bytes]]) -> Any:
        """Writes a snapshot in chunks: temporary file, sync, rename, sync of the directory. DiskFailed, NoSpace."""
        ...

    def newest(self) -> Any | None:
        """The newest snapshot that verifies, or None; a damaged one is reported and skipped, never deleted unseen."""
        ...

    def open(self, header: Any) -> Iterable[tuple[bytes, bytes]]:
        """The records of a snapshot, read and checked chunk by chunk in bounded memory. FormatError on damage."""
        ...

    def prune(self, keep: int) -> None:
        """Deletes all but the newest `keep` snapshots, and what unfinished writes left."""
        ...


class Transport(Protocol):
    """Carries Raft messages to peers. Unreliable by contract: messages may be lost, never altered, never sent twice."""

    def send(self, messages: Sequence[Any]) -> None:
        """Queues messages (in ascending order of the peer's id) and returns at once.

        A message that cannot be queued within the peer's limit is dropped and reported by report_unreachable;
        heartbeats and votes do not wait behind entries or snapshots.
        """
        ...

    def add_peer(self, member_id: int, address: str) -> None:
        """Begins to dial a peer, with back-off, for as long as it is a member."""
        ...

    def remove_peer(self, member_id: int) -> None:
        """Ends the connections to a peer and forgets what was queued for it."""
        ...

    def close(self) -> None:
        """Ends all connections."""
        ...
