"""One replica, put together: store, applier, proposer, Raft core and driver around one log. Pure.

The node and the simulator both make their replicas here, the node with a disk, a network and a clock, the simulator
with simulated ones. What the simulator proves is therefore what ships. The owner of a `Replica` feeds it with time
(`driver.tick`), messages (`driver.receive`) and the news of its disk (`driver.on_disk`, `loaded`). It calls `turn` when
it has handled everything that came in, and `next_turn` says when the next turn must come by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from .._core.batch import BatchProposer
from .._core.driver_budgets import Budgets
from .._core.kv_server import KVServer
from .._core.lessor import Lessor
from .._core.mvcc import Store
from .._core.mvcc_apply import Applier
from .._core.raft import RawNode
from .._core.raft_types import ConfState, RaftConfig
from .._core.replica_turn import ReplicaTurn
from .._core.watch import WatchHub
from ..ports import NO_POINTS, Points, Transport
from ..replica.driver import Driver
from ..replica.lease_rounds import LeaseRounds
from ..replica.roster import Roster
from ..storage.readahead import ReadAhead
from .membership_client import MembershipClient, Peers
from .waiters import outcome

if TYPE_CHECKING:
    from .._core.codec import PayloadCodec
    from .._core.engine import Engine
    from .._core.entry import HardState
    from .._core.raft_types import Snapshot
    from ..config import Config
    from ..replica.peer_link import PeerLink
    from ..replica.roster import Identity, RosterState
    from ..storage.reading import Reading
    from ..storage.wal import Wal


WATCH_PART = 64  # this part of max_reply_bytes is what a feed of watchers may hold for several groups


def first_id(member_id: int, wall: float) -> int:
    """The first request id of one run of a member, unique over members and restarts. `wall` is in seconds since 1970.

    It has 16 bits of the member's id, then milliseconds since 1970 (40 bits, 34 years), and 8 bits to count in. A run
    would have to admit 256,000 requests a second from its first millisecond on to reach the ids of a later run.
    """
    return ((member_id & 0xFFFF) << 48) | ((int(wall * 1000) & 0xFFFFFFFFFF) << 8)


class RaftStorage:
    """The log with the interface that the Raft core needs (ports.LogStore).

    Entries come from the read-ahead cache. The membership comes from the state, because the log does not decode it.
    """

    def __init__(self, log: Wal, cache: ReadAhead, conf_state: ConfState, snapshot: Callable[[], Snapshot]) -> None:
        self._conf_state = conf_state
        self._log = log
        self.images = cache.images
        self.has_conf_change = log.has_conf_change
        self.term = log.term
        self.first_index = log.first_index
        self.last_index = log.last_index
        self.snapshot = snapshot

    def initial_state(self) -> tuple[HardState, ConfState]:
        """The recovered hard state and membership."""
        return self._log.initial_state()[0], self._conf_state


@dataclass(frozen=True, slots=True)
class Settings:
    """The part of a configuration that a replica needs. Sizes are in bytes, times in seconds.

    `raft` has keywords of `RaftConfig`, but not those that belong to one start (id, applied, seed, doubt).
    """

    batch_max_size: int
    batch_max_bytes: int
    batch_max_time: float
    batching: bool
    max_inflight_requests: int
    max_inflight_bytes: int
    max_request_bytes: int
    max_txn_ops: int
    max_txn_walk: int
    request_timeout: float
    election_timeout: float
    read_ahead_cache: int
    max_watches_per_stream: int
    max_watches_per_node: int
    max_reply_bytes: int
    progress_notify_interval: float
    raft: Mapping[str, Any]
    max_key_bytes: int = 0


def settings_of(config: Config) -> Settings:
    """The settings that follow from the configuration of a node."""
    raft, limits = config.raft, config.limits
    return Settings(
        batch_max_size=raft.batch_max_size,
        batch_max_bytes=raft.batch_max_bytes,
        batch_max_time=raft.batch_max_time,
        batching=raft.enable_batch_proposal,
        max_inflight_requests=limits.max_inflight_requests,
        max_inflight_bytes=limits.max_inflight_bytes,
        max_request_bytes=limits.max_request_bytes,
        max_txn_ops=limits.max_txn_ops,
        max_key_bytes=limits.max_key_bytes,
        max_txn_walk=limits.max_txn_walk,
        request_timeout=limits.request_timeout,
        election_timeout=raft.election_ticks * raft.tick_interval,
        read_ahead_cache=config.wal.read_ahead_cache,
        max_watches_per_stream=limits.max_watches_per_stream,
        max_watches_per_node=limits.max_watches_per_node,
        max_reply_bytes=limits.max_reply_bytes,
        progress_notify_interval=config.watch.progress_notify_interval,
        raft={
            "election_ticks": raft.election_ticks,
            "heartbeat_ticks": raft.heartbeat_ticks,
            "max_tail_bytes": raft.max_tail_bytes,
            "max_uncommitted_bytes": 2 * limits.max_inflight_bytes,
            "read_only_option": raft.read_only,
            "lease_seconds": raft.lease_seconds,
            "accept_loss": config.wal.accept_loss,
        },
    )


@dataclass(frozen=True, slots=True)
class Kinds:
    """The classes of the parts. The simulator uses classes that it watches, or that have a planted bug."""

    applier: Callable[..., Applier] = Applier
    raw: Callable[..., RawNode] = RawNode
    driver: Callable[..., Driver] = Driver
    cache: Callable[..., ReadAhead] = ReadAhead
    watches: Callable[..., WatchHub] = WatchHub
    lessor: Callable[..., Lessor] = Lessor
    leases: Callable[..., LeaseRounds] = LeaseRounds


class Keeper(Protocol):
    """Keeps the snapshots of a replica. It inherits `KeeperFields`, which say in which turns `turn` is called."""

    def idle(self, now: float, pressed: bool, applied: int) -> bool:
        """Whether `turn` would have nothing to do; `applied` is the last applied entry."""

    def turn(self, now: float, pressed: bool = False) -> None:
        """Begins a snapshot if one is due at `now` (seconds). `pressed`: the log has no room left on the disk."""

    def newest(self) -> Snapshot:
        """The newest snapshot from which a follower can go on. Raises SnapshotNotReady."""

    def install(self, snapshot: Snapshot, done: Callable[[], None]) -> None:
        """Fills the engine from a snapshot that arrived, then calls `done` in this thread."""


class PeerPort(Transport, Peers, Protocol):
    """The open port to the other members: it carries messages to them, and follows the roster."""


AnyKeeper = TypeVar("AnyKeeper", bound=Keeper)
Loaded = Callable[["Reading", "bytes | Exception"], None]


def _ignore(*_news: object) -> None:
    """Does nothing with the news."""


class Replica(ReplicaTurn, Generic[AnyKeeper]):
    """The parts of one member that decide. The constructor makes all of them, and none is replaced later.

    log: the log, which is recovered.
    engine: the storage engine, with a state from which the log goes on.
    link: leads to the other members.
    read: reads a `Reading` in another thread, then calls back in this thread with the `Reading` and the outcome.
    snapshots: makes the keeper of the snapshots for a driver.
    wall: the time in seconds since 1970.
    chance: `chance(n)` gives n random bits.
    doubt: the term up to which entries may be missing (`storage/unsynced.py`).
    points: the failpoints that applying passes.
    members_changed: called when the roster has changed.
    roster_mended: called with this member's roster and the different one of the leader that replaced it.
    budgets: what one turn may cost.
    """

    def __init__(
        self, identity: Identity, log: Wal, engine: Engine, link: PeerLink, *, settings: Settings,
        codec: PayloadCodec, read: Callable[[Reading, Loaded], object], snapshots: Callable[[Driver], AnyKeeper],
        wall: float, chance: Callable[[int], int], doubt: int = 0, points: Points = NO_POINTS,
        members_changed: Callable[[], object] = _ignore,
        roster_mended: Callable[[RosterState, RosterState], object] = _ignore, kinds: Kinds = Kinds(),
        budgets: Budgets | None = None,
    ) -> None:  # fmt: skip
        self.identity = identity
        self.log = log
        self.engine = engine
        self.codec = codec
        self._on_change = members_changed
        self._on_mended = roster_mended
        self._link = link
        self._budgets = budgets = budgets if budgets is not None else Budgets()
        self.send = _ignore
        self.store = Store(engine, identity.cluster_id, identity.member_id)
        waiters: dict[int, Any] = {}
        self.applier = kinds.applier(self.store, codec, waiters, self._change_roster)
        self.proposer = BatchProposer(
            settings.batch_max_size, settings.batch_max_bytes, settings.batch_max_time,
            settings.max_inflight_requests, settings.max_inflight_bytes, settings.batching,
        )  # fmt: skip
        self.kv = KVServer(self.store, self.proposer, waiters, first_id(identity.member_id, wall), settings)
        self.watches = kinds.watches(
            self.store, max_per_stream=settings.max_watches_per_stream, max_per_node=settings.max_watches_per_node,
            fragment_size=settings.max_request_bytes, max_response=settings.max_reply_bytes // 2,
            max_held=settings.max_reply_bytes // WATCH_PART,
            interval=settings.progress_notify_interval,
            jitter=lambda: chance(16) / 65536,
        )  # fmt: skip
        self.roster = Roster(self.store, identity.members)
        self.cache = kinds.cache(log, settings.read_ahead_cache, lambda reading: read(reading, self.loaded))
        self.raw = kinds.raw(
            RaftConfig(
                id=identity.member_id, applied=engine.applied()[0], seed=chance(63), doubt=doubt, **settings.raft
            ),
            RaftStorage(log, self.cache, self.roster.conf_state, self._newest),
        )
        self.driver = kinds.driver(
            self.raw, log, self.applier, self.proposer, codec, self.kv, self.roster, link,
            request_timeout=settings.request_timeout, points=points, install=self._install,
            members_changed=self._members_changed, roster_mended=self._roster_mended, budgets=budgets,
        )  # fmt: skip
        lessor = self._lessor = kinds.lessor(self.store.leases)
        self.store.leases.listener = lessor
        self.leases = kinds.leases(
            self.driver, lessor, lambda done: self.kv.confirm(outcome(done)), extend=settings.election_timeout,
            request_timeout=settings.request_timeout,
        )  # fmt: skip
        self.membership = MembershipClient(self.driver, self.kv, self.roster, identity, chance)
        self.snapshots = snapshots(self.driver)

    def loaded(self, reading: Reading, outcome: bytes | Exception) -> None:
        """A read of the log has ended. Raises DiskFailed, DamagedData."""
        self.cache.loaded(reading, outcome)
        self.raw.entries_loaded()

    def connect(self, port: PeerPort) -> None:
        """The port to the other members is open: messages go by way of `port` from now on, and it follows the roster.

        No port is there at construction, because a member that is alone opens none, and others may join it at any time.
        """
        self._link.connect(port)
        self.membership.tell(port)

    def certain(self, doubt: int) -> bool:
        """Whether the log on disk lacks nothing any more, after entries of term `doubt` or before may have been lost.

        An entry of a later term comes from a leader that the other members elected, so it has everything before it.
        """
        return (self.raw.term_of(self.raw.persisted) or 0) > doubt

    # ---- what the core and the driver ask for

    def _change_roster(self, request: bytes) -> bytes:
        return self.driver.committed.apply_operation(request)

    def _newest(self) -> Snapshot:
        return self.snapshots.newest()

    def _install(self, snapshot: Snapshot, done: Callable[[], None]) -> None:
        self.snapshots.install(snapshot, done)

    def _members_changed(self) -> None:
        self.membership.refresh()
        self._on_change()

    def _roster_mended(self, before: RosterState, after: RosterState) -> None:
        self.membership.mended(before, after)
        self._on_mended(before, after)
