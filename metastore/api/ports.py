"""The interfaces through which the services use the member: one small Protocol for each subject.

All methods are called in the loop's thread. Ids are unsigned 64-bit numbers, and sizes are in bytes. A `done` callback
is called exactly once, either at once or later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .. import errors
    from .._core.h2_request import Request
    from .._core.waiter import Waiter as Call
    from ..ports import Caller, Done
    from ..replica.alarms import Alarm


class Position(Protocol):
    """The fields of a reply's header."""

    @property
    def cluster_id(self) -> int: ...
    @property
    def member_id(self) -> int: ...
    @property
    def revision(self) -> int: ...
    @property
    def raft_term(self) -> int: ...


class Status(Position, Protocol):
    """The version, Raft state and sizes of this member.

    `leader_id` is 0 when there is no leader, and `quota_bytes` is 0 when there is no quota.
    """

    @property
    def name(self) -> str: ...
    @property
    def is_learner(self) -> bool: ...
    @property
    def raft_index(self) -> int: ...
    @property
    def applied_index(self) -> int: ...
    @property
    def leader_id(self) -> int: ...
    @property
    def db_size(self) -> int: ...
    @property
    def db_size_in_use(self) -> int: ...
    @property
    def quota_bytes(self) -> int: ...

    def about(self) -> Mapping[str, Any]:
        """The facts of /status about the program and the other members: version, engine, uptime_seconds, peers."""


class Serving(Protocol):
    """Whether this member can serve requests."""

    def healthy(self) -> bool:
        """Whether this member can serve: it knows a leader, is not stopping and its state is up to date."""

    def disk_trouble(self) -> str:
        """A text about trouble with the log's disk (a sync has been under way for too long); empty if there is none."""


class Reads(Protocol):
    """Read access to the state."""

    def local_read(self) -> None:
        """Read a key of the state that this member has applied. Raises ApiError."""

    def confirm_read(self, done: Done) -> None:
        """Calls `done` once a read is linearizable (ReadIndex), or with an error if this takes too long."""


class MemberInfo(Protocol):
    """One member as the Cluster service shows it."""

    @property
    def id(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def peer_urls(self) -> Iterable[str]: ...
    @property
    def client_urls(self) -> Iterable[str]: ...
    @property
    def is_learner(self) -> bool: ...


class Membership(Protocol):
    """The members, and changes to them.

    `done` is called when this member has applied the change. Where the time of `caller` ends while the change waits to
    be logged, it is not logged.
    """

    def members(self) -> Iterable[MemberInfo]:
        """The members, in the order of their ids."""

    def add_member(
        self, peer_urls: list[str], learner: bool, done: Callable[[MemberInfo, errors.MetaStoreError | None], object],
        caller: Caller | None = None,
    ) -> None:  # fmt: skip
        """Add a member; `done` gets its record, and the error if it was not added. Raises MemberBadURLs."""

    def remove_member(self, ident: int, done: Done, caller: Caller | None = None) -> None:
        """Remove a member."""

    def update_member(self, ident: int, peer_urls: list[str], done: Done, caller: Caller | None = None) -> None:
        """Change a member's peer URLs. Raises MemberBadURLs."""

    def promote_member(self, ident: int, done: Done, caller: Caller | None = None) -> None:
        """Make a learner a voter."""


class Leadership(Protocol):
    """The current leader."""

    def move_leader(self, ident: int, done: Done) -> None:
        """Hand leadership to the member `ident`; only the leader can. Raises NotLeader, BadLeaderTransferee."""


class Alarms(Protocol):
    """Conditions that a member reports and all members must act on; the numbers are those of `replica.alarms`."""

    def alarms(self) -> Iterable[Alarm]:
        """The raised alarms: those that all members know, and this member's own alarm that its disk has no
        room for the log.
        """

    def change_alarm(
        self, action: int, member: int, alarm: int,
        done: Callable[[list[Alarm], errors.MetaStoreError | None], object], caller: Caller | None = None,
    ) -> None:  # fmt: skip
        """Raise or clear an alarm everywhere; `done` gets the one that is or was raised. Raises InvalidAlarm.

        Where the time of `caller` ends while this waits to be logged, it is not logged.
        """


class HashInfo(Protocol):
    """A hash of the state at a revision."""

    @property
    def hash(self) -> int: ...
    @property
    def revision(self) -> int: ...
    @property
    def current(self) -> int: ...
    @property
    def compact_revision(self) -> int: ...


class Upkeep(Protocol):
    """Maintenance work on this member's own state that clients may request."""

    def defragment(self, done: Done) -> None:
        """Give back the room that is held and not needed. Raises TooManyRequests, Stopped."""

    def hash_kv(
        self,
        revision: int,
        whole: bool,
        gone: Callable[[], bool],
        done: Callable[[HashInfo | None, errors.MetaStoreError | None], object],
    ) -> None:
        """Computes a hash of the state at `revision` (0: now); `whole` includes members and alarms.

        The result is not needed any more once `gone` returns true. Raises TooManyRequests, Stopped.
        """


class Backups(Protocol):
    """Backups, sent as streams."""

    def begin(self, request: Request) -> None:
        """Stream a backup as the answer of `request`. Raises TooManyRequests."""


class Watches(Protocol):
    """Watchers of keys, on streams."""

    def open(self, request: Request) -> None:
        """Serve the watchers of one call until its stream ends. Raises Stopped."""


class Leases(Protocol):
    """Leases. An id of 0 stands for none; TTLs are in seconds. Each method answers its call, now or later."""

    def grant(self, call: Call, ident: int, ttl: int) -> None:
        """Grant a lease. Raises LeaseTTLTooLarge."""

    def revoke(self, call: Call, ident: int) -> None:
        """End a lease and delete its keys."""

    def time_to_live(self, call: Call, ident: int, keys: bool) -> None:
        """Tell what is left of a lease, with its keys if `keys`. Raises TooManyRequests, Stopped."""

    def list_all(self, call: Call) -> None:
        """Tell the ids of all leases in the state of this member."""

    def open(self, request: Request) -> None:
        """Renew leases for one stream until it ends. Raises Stopped."""


class Cancellable(Protocol):
    """A call that may take for ever."""

    def cancel(self, error: errors.MetaStoreError) -> None:
        """Let it end with this error. Idempotent, and without effect when it has ended."""


class Locks(Protocol):
    """Locks by name. The methods answer `call` later, and raise TooManyRequests and Stopped. A lease of 0 stands for
    one that is granted and that nobody renews."""

    def lock(self, call: Call, name: bytes, lease: int) -> Cancellable:
        """Wait for a lock; the reply is an encoded LockResponse."""

    def unlock(self, call: Call, key: bytes) -> Cancellable:
        """Delete a lock's key; the reply is an encoded UnlockResponse."""


class Elections(Protocol):
    """Elections by name, with the same errors and leases as locks. `leader` is a LeaderKey."""

    def campaign(self, call: Call, name: bytes, lease: int, value: bytes) -> Cancellable:
        """Wait to lead; the reply is an encoded CampaignResponse."""

    def proclaim(self, call: Call, leader: Any, value: bytes) -> Cancellable:
        """Change the leader's value; the reply is an encoded ProclaimResponse."""

    def leader(self, call: Call, name: bytes) -> Cancellable:
        """Tell who leads; the reply is an encoded LeaderResponse."""

    def resign(self, call: Call, leader: Any) -> Cancellable:
        """Lead no more; the reply is an encoded ResignResponse."""

    def observe(self, request: Request, name: bytes) -> Cancellable:
        """Send the leaders of an election until that is cancelled."""


class Numbers(Protocol):
    """The metrics of this member."""

    def stats(self) -> Mapping[str, float]:
        """Name -> value for /metrics; values whose names end in `_total` only ever grow."""


@dataclass(frozen=True, slots=True)
class Ports:
    """All ports together. Each service takes only those that it needs; see `services.py`."""

    status: Status
    serving: Serving
    reads: Reads
    membership: Membership
    leadership: Leadership
    alarms: Alarms
    upkeep: Upkeep
    backups: Backups
    watches: Watches
    leases: Leases
    locks: Locks
    elections: Elections
    numbers: Numbers
