"""Members of the simulated cluster: the real parts, put together by `metastore/member/assembly.py` as those of a
node are, on simulated disk, network and time; and the cluster that holds them.

A member's clock runs at its own rate. A killed member loses everything but its disk. A paused one (SIGSTOP) does
nothing, while its disk goes on and messages queue up; it finds out about the time only when it goes on.
"""

from __future__ import annotations

import itertools
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from metastore import errors
from metastore._core.codec import PayloadCodec
from metastore._core.driver_budgets import Budgets
from metastore._core.engine import Engine, MemoryEngine
from metastore._core.entry import decode_entries
from metastore._core.lessor import Lessor
from metastore._core.raft_types import ConfState, Message, MsgApp, RaftConfig
from metastore._core.raft_wire import WITHDRAWN
from metastore._core.watch import WatchHub
from metastore._core.watch_index import Sink
from metastore.codecs import load_all
from metastore.member import assembly
from metastore.member.assembly import Kinds, Loaded, Replica
from metastore.peers.acquaintances import Acquaintances
from metastore.replica.driver import Driver
from metastore.replica.lease_rounds import LeaseRounds
from metastore.replica.peer_link import PeerLink
from metastore.replica.roster import Identity, RosterState
from metastore.replica.roster import Member as Record
from metastore.replica.sweep import Sweep
from metastore.snapshots import startup
from metastore.snapshots.catalogue import Catalogue
from metastore.snapshots.files import Info, SnapshotStore
from metastore.storage import guarded
from metastore.storage.readahead import ReadAhead
from metastore.storage.reading import Reading
from metastore.storage.wal import Lag, Wal

from . import wire
from .applying import SimApplier, SimRaw
from .checker import Checker, Platter, Violation
from .clock import Clock, Timer
from .disk import Disk, SimWal, Speed, open_wal
from .engines import BusyEngine, FiledEngine, FlakyEngine
from .greetings import KINDS as GREETINGS
from .greetings import Greeted, Link, SimPeering
from .mirror import Mirror
from .model import Call, Pair
from .network import Network, Weather, message_sum
from .snapshots import AmpleMemory, SimSnapshots, SimStore
from .sums import SimCheck
from .watchers import Audience, SimHub, SimSink, Spectator

EPOCH = 1_700_000_000.0  # what the calendar says when a simulation begins
MAX_QUEUE = 4000  # messages that wait for a paused member
MAX_DECODED = 1 << 24
AT_ONCE = 1 << 30  # units: no simulated work takes so many
CLUSTER = 77
MSG_APP = int(MsgApp)


@dataclass
class Settings:
    """Of the members. Times in seconds, sizes in bytes, ticks as the Raft core counts them."""

    members: int = 3
    tick: float = 0.1
    election_ticks: int = 10
    pre_vote: bool = True
    check_quorum: bool = True
    lease_reads: bool = False
    drift: float = 0.05
    max_size_per_msg: int = 1 << 20
    max_inflight: int = 256
    max_tail_bytes: int = 1 << 20
    max_committed: int = 1 << 20
    read_ahead: int = 1 << 20
    batch_count: int = 100
    batch_delay: float = 0.01
    batching: bool = True
    group_commit: bool = True
    max_group: int = 1 << 16
    segment_size: int = 16384
    rewrite: int = 1 << 20
    compression: int = 0
    request_timeout: float = 1.5
    max_waiting: int = 1000
    turn: float = 0.0002
    planted: int = 0
    driver: type[Driver] = Driver
    applier: type[SimApplier] = SimApplier
    widen: float = 0.0
    snapshots: int = 0
    lag: Lag | None = None
    real_lag: Lag | None = None  # what the disks keep to, where that is not what they should
    doubts: bool = True
    rot: float = 0.0
    taker: type[SimSnapshots] = SimSnapshots
    pieces: int = 0  # entries and reads are done in pieces of up to so many units; 0: at once
    max_txn_walk: int = 10**6
    flaky: float = 0.0  # the chance that a call of the engine fails
    guard: Callable[[Engine, str], Engine] = guarded
    busy: float = 0.0  # the chance that the engine begins to refuse writes, at each of them
    filed: float = 0.0  # the share of members whose engine has files of its own
    flushed: float = 0.02  # of their writes are followed by a flush nobody asked for, as a full write buffer is
    reader: type[ReadAhead] = ReadAhead
    greetings: bool = False  # whether members greet each other, and hear nobody else
    begin_wait: float = 3.0
    peering: type[SimPeering] = SimPeering
    acquaintances: type[Acquaintances[Link]] = Acquaintances
    speed: Callable[[Speed], None] = field(default=lambda _speed: None)
    watchers: int = 0  # clients with a stream of watchers
    hub_stalls: float = 0.0  # the chance that a hub does nothing for a while, at each turn
    hub: Callable[..., SimHub] = SimHub
    sink: Callable[[Spectator], Sink] = SimSink
    tenants: int = 0  # clients with leases
    lessor: Callable[..., Lessor] = lambda leases: Lessor(leases, 1.0)
    leases: type[LeaseRounds] = LeaseRounds
    compare: float = 0.0  # seconds between two comparisons of the members' data; 0: none
    check: Callable[[Any], SimCheck] = SimCheck
    sweep_waits: bool = True  # until watchers have been sent what it removes


class MemberWal(SimWal):
    """The log of a member; shows the checker what goes in and what is durable."""

    member: Member

    def append(self, number: int, images: Any, hard_state: Any, must_sync: bool = True) -> None:
        """As the real one."""
        self.member.cluster.checker.appended(self.member, number, images, hard_state)
        super().append(number, images, hard_state, must_sync)

    def save_snapshot_position(self, index: int, term: int, conf_state: bytes) -> None:
        """As the real one. Where the whole log goes, a synced file has taken its place."""
        dropped = index > self.last_index() or self.term(index) != term
        super().save_snapshot_position(index, term, conf_state)
        if dropped and hasattr(self, "member"):
            self.member.platter.replaced(index)

    def settle(self) -> int:
        """As the real one."""
        before, durable = self.groups, super().settle()
        if self.groups != before:
            platter = self.member.platter
            platter.done(durable)
            if not self._unsynced:
                platter.synced()
        return durable


class Member(Greeted):
    """One member, alive or not. What outlives a crash: `disk`."""

    def __init__(self, cluster: Cluster, ident: int, identity: Identity) -> None:
        self.cluster = cluster
        self.id = ident
        self.fresh = identity
        self.clock = cluster.clock
        self.disk = Disk()
        self.speed = Speed()
        cluster.settings.speed(self.speed)
        self.platter = Platter()
        self.alive = False
        self.paused = False
        self.life = 0
        self.applying = False
        self.at_work = False  # it does something of its own: it is not looked at by the checker
        self.stood_still = -1.0  # when it was paused last, or went on
        self.rate = 1.0
        self._base = (0.0, 0.0)
        self.held: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self.reports: list[str] = []
        self.doubt = 0  # what storage/unsynced.py keeps in mind
        self.unsynced_gone = False
        self.installs: set[str] = set()
        self.rotten: set[str] = set()
        self.filed = cluster.settings.filed > 0 and self.clock.random.random() < cluster.settings.filed
        self.files: MemoryEngine | None = None
        self.at_half: Callable[[], object] | None = None  # called when its files have a part of an entry
        self.in_pieces = False
        self.at_change: Callable[[], object] | None = None  # called when the membership has changed
        Greeted.__init__(self)

    # ---- time

    def set_rate(self, rate: float) -> None:
        """Let this member's clock run faster (more than 1) or slower from now on."""
        self._base = (self.clock.now, self.now())
        self.rate = rate

    def now(self) -> float:
        """What this member's clock says."""
        at, shown = self._base
        return shown + (self.clock.now - at) * self.rate

    def later(self, delay: float, call: Callable[..., None], *args: Any) -> Timer:
        """Call in `delay` seconds of this member's clock, if it still lives the same life."""
        return self.clock.after(delay / self.rate, self._enter, self.life, call, args)

    def _enter(self, life: int, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        """Something happens to this member: now, or when it is no longer paused."""
        if life != self.life or not self.alive:
            return
        if self.paused:
            if len(self.held) < MAX_QUEUE:
                self.held.append((call, args))
            return
        self._do(call, args)

    def _do(self, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        audience = self.cluster.audience
        if self.in_pieces or self.cluster.settings.pieces:
            self._cut()
        if audience is not None:
            audience.before_turn(self)
        self.at_work = True
        try:
            call(*args)
        except errors.DiskFailed:
            self.driver.abandon()
            self.unsynced_gone = True
            self.crash(False)
            if self.cluster.settings.flaky:
                self.clock.after(1.0, self._restart)
            return
        except Violation:
            raise
        except errors.MetaStoreError as error:
            raise Violation(f"member {self.id} fails: {type(error).__name__}: {error}") from error
        finally:
            self.at_work = False
        if self.alive:
            self.cluster.checker.observe(self)
            if audience is not None and call is self._turned:
                audience.after_turn(self)
            if call is self._turned:
                self.cluster.checker.tells(self)
                self.cluster.checker.hears(self)
            if not self.turn_due and call is not self._turned:
                self.turn_due = True
                self.later(self.cluster.settings.turn * self.clock.random.random(), self._turned)

    def _cut(self) -> None:
        """Where the next pieces end."""
        chance, most = self.clock.random, self.cluster.settings.pieces
        self.in_pieces = most > 0
        if not most:
            self.budgets.apply = self.budgets.serve = AT_ONCE
            return
        pace = 12 if self.filed else 1
        self.budgets.apply = pace * chance.randint(1, most)
        self.budgets.serve = pace * chance.randint(1, most)
        self.applier.spill_at = chance.randint(1, 8)

    # ---- life and death

    def start(self) -> None:
        """Start the process: recover the log, then serve. Raises DamagedData, which is a Violation here."""
        settings, chance = self.cluster.settings, self.clock.random
        if self.ended is not None:
            return
        self.life += 1
        self.alive, self.paused = True, False
        self.held.clear()
        self.turn_due = False
        self.goes_on = False  # the last turn has left something, so the next one follows it
        self._turned = self._turn  # one object, to know it by
        self.confs: list[ConfState] = []
        self.commit = self.applied = self.seen_state = self.seen_term = 0
        self._base = (self.clock.now, self.now())
        self.next_turn: float | None = None
        self.budgets = Budgets()
        life = self.life
        try:
            wal = open_wal(
                self.clock,
                self.disk,
                self.speed,
                lambda: self.clock.after(0, self._enter, life, self._on_disk, ()),
                segment_size=settings.segment_size,
                rewrite=settings.rewrite,
                group_commit=settings.group_commit,
                max_group=settings.max_group,
                metadata=self.fresh.encode(),
                made=MemberWal,
                lag=settings.real_lag or settings.lag,
            )
            self._open(wal)
        except errors.MetaStoreError as error:
            raise Violation(f"member {self.id} cannot start: {type(error).__name__}: {error}") from error
        self.clock.note(b"start %d %d" % (self.id, wal.last_index()))
        if self.roster.conf_state.voters == (self.id,):
            self._do(self.driver.campaign, ())
        self.later(settings.tick * chance.random(), self._tick)
        self._do(lambda: None, ())

    def _open(self, wal: SimWal) -> None:
        settings = self.cluster.settings
        assert isinstance(wal, MemberWal)
        self.wal = wal
        wal.member = self
        wal.thread.in_silence = lambda: self.cluster.checker.in_silence(self)
        self.reports += wal.report
        if settings.lag is not None and settings.doubts and self.unsynced_gone:
            self.doubt = max(self.doubt, wal.hard_state.term)
        self.unsynced_gone = False
        self.identity = Identity.decode(wal.metadata)
        self.engine = self._engine()
        self.snapshot_store = SimStore(self)
        if settings.rot and self.clock.random.random() < settings.rot:
            self.snapshot_store.rot()
        begun = self._begin()
        state = wal._state
        terms = [state.term(index) for index in range(state.first_index, state.last_index + 1)]
        self.platter.reset(state.first_index - 1, terms, (state.hard_term, state.hard_vote))
        self.applied = self.engine.applied()[0]
        self.replica = replica = Replica(
            self.identity,
            wal,
            self.engine,
            PeerLink(self),
            settings=self._replica_settings(),
            codec=self.cluster.make_codec(),
            read=self._read,
            snapshots=lambda driver: settings.taker(self, driver, Catalogue(begun)),
            wall=EPOCH + self.clock.now,
            chance=self.clock.random.getrandbits,
            doubt=self.doubt,
            members_changed=self._members_changed,
            roster_mended=self._roster_mended,
            kinds=Kinds(
                self._applier, self._raw, settings.driver, settings.reader, self._hub, settings.lessor, settings.leases
            ),
            budgets=self.budgets,
        )
        self.store, self.applier, self.proposer, self.kv = replica.store, replica.applier, replica.proposer, replica.kv
        self.roster, self.raw, self.driver = replica.roster, replica.raw, replica.driver
        self.membership, self.snapshots = replica.membership, replica.snapshots
        self.check = settings.check(self) if settings.compare else None
        self.sweep = Sweep(self.driver, self._sweep_later, lambda: False, 5, self._held)
        self.mirror = Mirror(self.store)
        self.commit = self.raw.commit
        if settings.greetings:
            self.greet()
        if self.applied:
            self.cluster.checker.state_is(self, self.applied, self.store.revision)
            self.cluster.checker.digest(self, self.applied)
            self.cluster.checker.is_at(self, self.applied)

    def _engine(self) -> Engine:
        if not self.cluster.settings.flaky:
            return self._steady_engine()
        return self.cluster.settings.guard(FlakyEngine(self, self._steady_engine()), "flaky")

    def _steady_engine(self) -> Engine:
        if self.filed:
            return FiledEngine(self, self.files)
        if not self.cluster.settings.busy:
            return MemoryEngine()
        busy = BusyEngine()
        busy.member = self
        return busy

    def _applier(self, *parts: Any) -> SimApplier:
        made = self.cluster.settings.applier(*parts)
        made.member = self
        return made

    def _raw(self, config: RaftConfig, storage: Any) -> SimRaw:
        made = SimRaw(config, storage)
        made.confs, made.member = self.confs, self
        self.confs.append(storage.initial_state()[1])
        return made

    def _hub(self, *parts: Any, **options: Any) -> WatchHub:
        audience = self.cluster.audience
        return WatchHub(*parts, **options) if audience is None else audience.hub(*parts, **options)

    def _held(self) -> bool:
        return self.replica.watches.holds_history and self.cluster.settings.sweep_waits

    def _begin(self) -> Info | None:
        """What a start begins with. A file that was received and not installed before the crash counts as installed."""
        before, store = self.wal.snapshot_index, cast("SnapshotStore", self.snapshot_store)
        begun = startup.begin(store, self.engine, self.wal, CLUSTER, AmpleMemory())
        if begun is not None and before != self.wal.snapshot_index:
            self.installs.add(begun.header.name())
        return begun

    def _replica_settings(self) -> assembly.Settings:
        settings = self.cluster.settings
        lease = {}
        if settings.lease_reads:
            ticks = (settings.election_ticks - 1) * settings.tick
            lease = {"read_only_option": "lease", "lease_seconds": ticks / (1 + 3 * settings.drift)}
        return assembly.Settings(
            batch_max_size=settings.batch_count,
            batch_max_bytes=1 << 20,
            batch_max_time=settings.batch_delay,
            batching=settings.batching,
            max_inflight_requests=max(settings.batch_count, settings.max_waiting),
            max_inflight_bytes=1 << 22,
            max_request_bytes=1 << 16,
            max_txn_ops=128,
            max_txn_walk=settings.max_txn_walk,
            request_timeout=settings.request_timeout,
            election_timeout=settings.election_ticks * settings.tick,
            read_ahead_cache=settings.read_ahead,
            max_watches_per_stream=1000,
            max_watches_per_node=10_000,
            max_reply_bytes=1 << 28,
            progress_notify_interval=0.5,
            raft={
                "election_ticks": settings.election_ticks,
                "heartbeat_ticks": 1,
                "max_size_per_msg": settings.max_size_per_msg,
                "max_inflight": settings.max_inflight,
                "max_tail_bytes": settings.max_tail_bytes,
                "max_committed_size_per_ready": settings.max_committed,
                "pre_vote": settings.pre_vote,
                "check_quorum": settings.check_quorum,
                "planted": settings.planted,
                **lease,
            },
        )

    def _restart(self) -> None:
        """Whoever looks after the process starts it again."""
        if not self.alive:
            self.start()

    def crash(self, power: bool) -> None:
        """The process ends at once; with `power`, so does the machine."""
        if not self.alive:
            return
        self.alive = False
        self.wal.crash()
        if self.greeter is not None and not power:
            self.greeter.close()
        if power and self.cluster.may_cut_power():
            self.disk.power_cut(self.clock.random)
            self.unsynced_gone = True
        self.clock.note(b"crash %d %d" % (self.id, power))

    def crash_in(self, phase: str, power: bool, then: Callable[[Member], None]) -> None:
        """Crash while the next group is written ("write"), synced ("sync"), or before that is reported ("after")."""
        life = self.life

        def crash() -> None:
            if self.life == life and self.alive:
                self.crash(power)
                then(self)

        self.wal.thread.crash_in = (phase, crash)

    def pause(self) -> None:
        """SIGSTOP."""
        self.paused = True
        self.stood_still = self.clock.now

    def resume(self) -> None:
        """SIGCONT."""
        if not self.alive or not self.paused:
            return
        self.paused = False
        self.stood_still = self.clock.now
        held, self.held = self.held, deque()
        for call, args in held:
            self._enter(self.life, call, args)

    def act(self, call: Callable[..., None], *args: Any) -> None:
        """Have this member do something now."""
        self._enter(self.life, call, args)

    # ---- what the loop does

    def _on_disk(self) -> None:
        self.driver.on_disk(self.now())

    def _read(self, reading: Reading, done: Loaded) -> None:
        """The thread that reads the log takes its time."""
        self.clock.after(self.clock.random.random() * self.speed.read, self._read_now, self.life, reading, done)

    def _read_now(self, life: int, reading: Reading, done: Loaded) -> None:
        outcome: bytes | Exception
        try:
            outcome = reading.read()
        except errors.MetaStoreError as error:
            outcome = error
        delay = self.clock.random.random() * self.speed.read
        self.clock.after(delay, self._enter, life, done, (reading, outcome))

    def _tick(self) -> None:
        self.later(self.cluster.settings.tick, self._tick)
        self.driver.tick(self.now())
        self.replica.watches.tick(self.now())
        if self.greeter is not None:
            self.greeter.peering.tick(self.now())
        if self.check is not None:
            self.check.tick(self.now())
        if self.doubt and self.replica.certain(self.doubt):
            self.doubt = 0

    def _turn(self) -> None:
        """The end of a turn of the loop, as in `RunningMember`."""
        self.turn_due = False
        now, first = self.now(), self.kv.next_id
        self.replica.turn(now)
        self._admitted(first)
        own = self.roster.members.get(self.id)
        if not self.membership.settled and own is not None:
            self.membership.publish(f"n{self.id}", (f"http://n{self.id}:1",), now)
        due = self.replica.next_turn(now)
        self.goes_on = due is not None and due <= now
        self._turn_at(due, now)
        self.sweep.turn()

    def _turn_at(self, due: float | None, now: float) -> None:
        """Have a turn come at `due`, if none comes before."""
        if due is None or (self.next_turn is not None and self.next_turn <= due):
            return
        if due <= now and self.cluster.settings.pieces:
            # What is done in pieces takes a while, so that much can happen meanwhile.
            due = now + (0.02 if self.driver.backlog else 0.002) * self.clock.random.random()
        elif due <= now and self.cluster.audience is not None:
            due = now + self.cluster.audience.due_later()
        self.next_turn = due
        self.later(max(0.0, due - now), self._turn_comes)

    def _turn_comes(self) -> None:
        """The turn that follows is the one that was due."""
        self.next_turn = None

    def _sweep_later(self, delay: float, call: Callable[[], None]) -> None:
        self.later(max(delay, 0.001), call)

    def installed(self, index: int) -> None:
        """The state is that of a snapshot now."""
        self.applied = index
        self.mirror = Mirror(self.store)
        if self.cluster.audience is not None:
            self.cluster.audience.installed(self)
        self.cluster.checker.state_is(self, index, self.store.revision)
        self.cluster.checker.digest(self, index)

    def _members_changed(self) -> None:
        if self.greeter is not None:
            self.greeter.peering.update()
        self.cluster.roster_changed(self)

    def _roster_mended(self, before: RosterState, told: RosterState) -> None:
        self.cluster.checker.mended(self, before, told)

    # ---- clients

    def from_client(self, call: Callable[..., None], what: Call) -> None:
        """A client's call arrives, if anybody is there."""
        self.clock.after(self.clock.random.random() * 0.001, self._enter, self.life, call, (self, what))

    def serve(self, call: Call, waiter: Any) -> None:
        """Hand a call to the KV service."""
        checker = self.cluster.checker
        checker.begin(call)
        ident = self.kv.next_id
        self.kv.call(call.method, call.body, waiter, self.now())
        if self.kv.next_id != ident:
            call.ident = ident
            checker.admitted(call)

    def _admitted(self, first: int) -> None:
        """Calls that waited for a later turn have request ids from `first` on."""
        for ident in range(first, self.kv.next_id):
            call = self.kv.waiters[ident].call
            call.ident = ident
            self.cluster.checker.admitted(call)

    def everything(self) -> tuple[int, list[Pair]]:
        """(revision, all keys) of this member's applied state."""
        return wire.parse_range(self.store.range_reply(wire.EVERYTHING, 0))

    # ---- peers: this is the driver's transport

    def send(self, messages: list[Message]) -> None:
        """Raft messages of a Ready."""
        cluster = self.cluster
        cluster.checker.sending(self, messages)
        for message in messages:
            if message.snapshot is not None:
                self.snapshots.send(message)
                continue
            if cluster.settings.widen and message.type == MSG_APP:
                message = self._widen(message)
            parts = message.encode_parts()
            if not self.post(message.to, "raft", b"".join(parts), message_sum(parts)):
                self.clock.after(0, self._enter, self.life, self.unreachable, (message.to,))

    def _widen(self, message: Message) -> Message:
        """Begin an append earlier than the leader thinks needed: as legal as the original (nextIndex is a guess)."""
        chance, first = self.clock.random, self.wal.first_index()
        if message.index < first or chance.random() >= self.cluster.settings.widen:
            return message
        low = max(first, message.index - chance.randrange(4))
        try:
            more = Wal.images(self.wal, low, message.index + 1, 1 << 20)
        except errors.MetaStoreError:
            return message  # not on its disk yet
        entries = decode_entries(more)
        if entries[-1].index != message.index or entries[-1].term != message.log_term:
            return message
        return Message(
            type=MSG_APP,
            to=message.to,
            from_=message.from_,
            term=message.term,
            index=low - 1,
            log_term=self.raw.term_of(low - 1) or 0,
            commit=message.commit,
            images=more + bytes(message.images),
        )

    def forward(self, to: int, batch: bytes) -> bool:
        """Operations for the leader. A connection that is known to be down takes nothing."""
        network = self.cluster.network
        if (self.id, to) in network.cut and self.clock.random.random() < 0.5:
            return False
        if self.greeter is not None and not self.greeter.number(to):
            return False
        self.post(to, "forward", batch, zlib.crc32(batch))
        return True

    def refuse(self, to: int, code: int, ids: list[int]) -> None:
        """Operations that were surely not logged."""
        self.cluster.checker.refuse(ids)
        self.post(to, "refuse", (code, list(ids)), code)

    def withdraw(self, to: int, ids: list[int]) -> None:
        """Operations that nobody waits for; whether they are logged all the same depends on who is first."""
        self.post(to, "refuse", (WITHDRAWN, list(ids)), WITHDRAWN)

    def lease(self, to: int, asks: bool, data: bytes) -> bool:
        """A question about leases, or an answer."""
        if self.greeter is not None and not self.greeter.number(to):
            return False
        return self.post(to, "asks" if asks else "tells", data, zlib.crc32(data))

    def receive(self, sender: int, kind: str, data: Any) -> None:
        """Something arrives."""
        number = 0
        if kind in GREETINGS:
            self.greeted(sender, kind, data)
            return
        if self.cluster.settings.greetings and kind != "snapped":
            number, data = data
        if not self.alive:
            if number:
                self.refuses(sender, number)
            return
        call, args = {
            "raft": (self._message, (data,)), "snap": (self._snap, (sender, data)),
            "snapped": (self._snapped, (sender, data)), "forward": (self._forwarded, (sender, data)),
            "refuse": (self._refused, (sender, data)), "asks": (self._asked, (sender, data)),
            "tells": (self._told, (data,)), "news": (self._news, (sender, data)),
        }[kind]  # fmt: skip
        if number:
            call, args = self.hears, (sender, number, call, args)
        self._enter(self.life, call, args)

    def _message(self, data: bytes) -> None:
        message = Message.decode(data)
        if self.greeter is None:
            self.driver.receive(message)
        else:
            self.greeter.peering.on_message(message)

    def _refused(self, sender: int, told: tuple[int, list[int]]) -> None:
        self.driver.receive_refusal(sender, *told)

    def _asked(self, sender: int, data: bytes) -> None:
        self.replica.leases.receive_question(sender, data, self.now())

    def _told(self, data: bytes) -> None:
        self.replica.leases.receive_answer(data)

    def _news(self, sender: int, told: tuple[int, bytes]) -> None:
        if self.check is not None:
            self.check.on_news(sender, *told)

    def _snap(self, sender: int, parts: Any) -> None:
        self.snapshots.incoming(sender, *parts)

    def _snapped(self, sender: int, parts: Any) -> None:
        self.snapshots.answered(sender, *parts)

    def _forwarded(self, sender: int, batch: bytes) -> None:
        self.driver.receive_forward(sender, batch, self.now())


class Cluster:
    """All members there ever were, the network between them, and who watches."""

    def __init__(self, clock: Clock, settings: Settings, weather: Weather) -> None:
        self.clock = clock
        self.settings = settings
        self.codecs = load_all()
        self.checker = Checker(self.make_codec())
        self.network = Network(clock, weather, self._deliver)
        self.checker.lagging = settings.lag is not None
        self.audience: Audience | None = None
        self.last_answer = self.last_cut = 0.0
        self.digest_at = 0
        self.initial = tuple(self.record(ident) for ident in range(1, settings.members + 1))
        self.members: dict[int, Member] = {}
        self.ids = itertools.count(settings.members + 1)
        self.numbers = itertools.count(1)  # of streams
        for record in self.initial:
            self.members[record.id] = Member(self, record.id, self._identity(record.id, ()))

    def may_cut_power(self) -> bool:
        """With disks that lag, two power cuts in a row may take what a quorum has acknowledged: there, the second one
        must come when the first one's neighbours have surely synced."""
        lag, now = self.settings.lag, self.clock.now
        if lag is not None:
            if self.last_cut and now < self.last_cut + 1.5 + lag.interval:
                return False
            self.last_cut = now
        return True

    def record(self, ident: int, learner: bool = False) -> Record:
        """A member's record."""
        return Record(ident, "", (f"http://n{ident}:2",), (), learner)

    def _identity(self, ident: int, contacts: tuple[Record, ...]) -> Identity:
        return Identity(CLUSTER, ident, f"incarnation {ident}", self.initial, contacts)

    def join(self, ident: int) -> Member:
        """A member that was added gets its machine."""
        contacts = self.initial
        if self.settings.greetings:
            # What it is told by whom it asks: a member that knows of it already.
            rosters = [tuple(member.roster.members.values()) for member in self.started() if member.alive]
            told = [roster for roster in rosters if any(record.id == ident for record in roster)]
            contacts = self.clock.random.choice(told) if told else contacts
        member = Member(self, ident, self._identity(ident, contacts))
        self.members[ident] = member
        return member

    def make_codec(self) -> PayloadCodec:
        """The payload codec; everybody reads everything."""
        compression = self.settings.compression
        codec = self.codecs[compression - 1] if compression else None
        return PayloadCodec(codec, 64, MAX_DECODED, decoders=self.codecs)

    def at(self, place: str) -> Member | None:
        """Whose place that is, whether it listens there or is down."""
        return next((member for member in self.members.values() if member.place == place), None)

    def new_place(self, member: Member) -> str:
        """A place where nobody has ever listened."""
        return f"n{member.id}:{next(self.numbers) + 2}"

    def serving(self) -> list[int]:
        """Ids of the members that a client may call."""
        return [ident for ident, member in self.members.items() if member.alive]

    def started(self) -> list[Member]:
        """All members that have ever run."""
        return [member for member in self.members.values() if member.life]

    def leader(self) -> Member | None:
        """The member that leads the newest term."""
        leaders = [member for member in self.members.values() if member.alive and member.raw.is_leader]
        return max(leaders, key=lambda member: member.raw.term, default=None)

    def roster_changed(self, member: Member) -> None:
        """A member has applied a change of the membership."""

    def accused(self, leader: Member, accused: int) -> None:
        """A leader finds that the data of a member is not that of the others. Raises Violation."""
        raise Violation(f"member {leader.id} finds the data of member {accused} corrupt")

    def _deliver(self, to: int, sender: int, kind: str, data: Any) -> None:
        member = self.members.get(to)
        if member is not None:
            member.receive(sender, kind, data)
