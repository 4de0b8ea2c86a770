"""What runs in the loop thread: the parts of one member, wired and driven by sockets, timers and the disk."""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from .. import errors, storage
from .._core.codec import PayloadCodec
from .._core.entry import MAX_PAYLOAD
from .._core.grpc import Limits
from .._core.waiter import Waiter
from ..api import pb
from ..api.answers import Answer, Later
from ..api.common import header
from ..api.ports import Ports
from ..api.services import make_pages, make_services
from ..codecs import for_proposals as codec_for_proposals
from ..codecs import load_all as load_all_codecs
from ..config import Config
from ..failpoints import Failpoints
from ..net.accept import real_address
from ..net.client_conn import ConnLimits, Listener
from ..net.descriptors import for_clients, raise_limit, reserved
from ..net.loop import READ, Loop
from ..net.resolver import Resolver
from ..peers.join import join_unless
from ..replica.driver import Driver
from ..replica.peer_link import PeerLink
from ..replica.roster import Identity
from ..snapshots import startup
from ..snapshots.backup_stream import Backups
from ..snapshots.catalogue import Catalogue
from ..snapshots.coordinator import Snapshots
from ..snapshots.files import open_store
from ..snapshots.policy import policy_of
from ..snapshots.transfer import Transfers
from ..storage.datadir import DataDir
from ..storage.read_thread import ReadThread
from ..storage.starts import next_start
from ..storage.unsynced import Unsynced
from ..storage.wal import Lag, Wal
from . import memory_guard, metrics
from .abilities import Abilities, CommonCodecs
from .assembly import Replica, settings_of
from .drain import Drain
from .leadership import Leadership
from .maintenance import Maintenance, fresh_snapshot
from .membership import Membership
from .peering import Peering
from .reads import MemberReads
from .space import Space
from .status import MemberServing, MemberStatus
from .upkeep import Upkeep

log = logging.getLogger("metastore.node")

BATCH_RETRY = 0.01  # seconds until a batch is offered again that neither the core nor the leader's connection took
STUCK = 0.5  # seconds of a write or sync after which a stop takes the disk for one that stands still
CLOSE_TIMEOUT = 10.0  # seconds that the log of a node that stops by itself has for its last group
DISK_PATIENCE = 2  # election timeouts for which a leader waits for its disk before it hands over
# What an entry may hold when decoded. A constant: it must not be lower on one member than on another, nor than it was
# when an old entry was written.
MAX_DECODED = MAX_PAYLOAD
REQUIRE_LEADER = (b"hasleader", b"true")
STATUS, RANGE = b"/etcdserverpb.Maintenance/Status", b"/etcdserverpb.KV/Range"
SNAPSHOT = b"/etcdserverpb.Maintenance/Snapshot"
GRPC_OVERHEAD = 512 * 1024  # what a gRPC message may be longer than the largest request, as in etcd


class Server:
    """One member's parts. `run` opens, serves and closes them; all but `stop_soon` and `call_soon_threadsafe` belong
    to the thread that runs it. `on_ready` is called there when the node serves."""

    def __init__(self, config: Config, failpoints: Failpoints, on_ready: Callable[[], None]) -> None:
        self.memory = memory_guard.find(config)
        self.config = config = self.memory.config
        check_supported(config)
        self.failpoints = failpoints
        self.on_ready = on_ready
        self.started_at = time.monotonic()
        self.ready = False
        self.drain: Drain | None = None
        self.stop_asked = math.inf  # when somebody asked for the stop first (time.monotonic())
        self.closing = contextlib.ExitStack()
        self.closing_now = ("", 0.0)  # what is being closed, if it may wait for the disk, and since when
        self.loop = Loop()
        if config.raft.read_only == "lease":
            # A lease must not outlast a suspended machine: this clock goes on meanwhile, time.monotonic does not.
            self.loop.now = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
        self.closing.callback(self.loop.close)
        self.resolver = Resolver(self.loop)
        self.closing.callback(self.resolver.close)
        self.peer_link = PeerLink()
        self.batch_timer: Any = None
        self.retry_timer: Any = None
        self.again_posted = False
        self.told_leader = 0
        self.common_codecs = CommonCodecs()
        self.left: errors.MetaStoreError | None = None
        self.stopping = threading.Event()  # somebody asked for it, perhaps before the loop runs

    # ---- opening

    def run(self) -> None:
        """Open everything, serve until stopped, close everything. Raises MetaStoreError; Stopped when it was to stop
        before everything was open."""
        with self.closing:
            self.descriptors = raise_limit()
            for step in (self._open_disk, self._open_state, self._open_sockets):
                if self.stopping.is_set():
                    raise errors.Stopped()
                step()
            if self.roster.conf_state.voters == (self.identity.member_id,):
                self.driver.campaign()
            self.loop.on_turn = self._turn
            try:
                self.loop.run()
            except OSError as error:
                # Sockets deal with theirs; what gets here is the engine's or the log's.
                raise errors.DiskFailed(f"the disk failed: {errors.reason(error)}") from error
            except MemoryError as error:
                raise self.memory.exhausted(not self.ready) from error
            finally:
                self.driver.abandon()
                self.kv.abandon_late(errors.Stopped())
                self.listener.flush_dirty()
            if self.left is not None:
                raise self.left

    def disk_waits(self) -> str:
        """What waits for a disk that stands still, empty if nothing does. Any thread may ask."""
        if time.monotonic() - self.stop_asked >= CLOSE_TIMEOUT:
            return f"closing has taken {CLOSE_TIMEOUT:.0f} s"
        what, since = self.closing_now
        if what and time.monotonic() - since >= STUCK:
            return f"closing {what} has taken {time.monotonic() - since:.1f} s"
        wal: Wal | None = getattr(self, "wal", None)
        took = wal.sync_pending_seconds if wal is not None else 0.0
        return f"a sync of the log has been under way for {took:.1f} s" if took >= STUCK else ""

    def _at_end(self, what: str, close: Callable[[], object]) -> None:
        """Have `close` called at the end. What it does is lost without harm where a stop gives up on it: the log has
        everything, and what is left of files is removed by the next start."""

        def closing() -> None:
            self.closing_now = (what, time.monotonic())
            try:
                close()
            finally:
                self.closing_now = ("", 0.0)

        self.closing.callback(closing)

    def _close_wal(self) -> None:
        """Clean end of the log; after a failed disk there is nothing left to be said to it."""
        left = CLOSE_TIMEOUT if self.drain is None else self.drain.stop_by - self.loop.now()
        with contextlib.suppress(errors.DiskFailed):
            self.wal.close(max(0.1, left))
        if self.wal.sync_pending_since is not None:
            return  # what is written next would wait for that disk, too
        with contextlib.suppress(OSError):
            self.unsynced.closed(synced=not self.wal.unsynced[0])

    def _open_disk(self) -> None:
        config = self.config
        self.data_dir = DataDir(config.node.data_dir)
        self.closing.callback(self.data_dir.close)
        fresh = None
        if not any(self.data_dir.wal.glob("*.wal")):
            self.data_dir.check_new()
            fresh = self._new_identity().encode()
        self.unsynced = Unsynced(self.data_dir.path / "unsynced")
        self.wal = Wal.open(
            self.data_dir.wal,
            segment_size=config.wal.segment_size,
            group_commit=config.wal.group_commit,
            metadata=fresh,
            failpoints=self.failpoints,
            lag=self._lag(),
            busy_poll=config.performance.busy_poll,
        )
        self.closing.callback(self._close_wal)
        try:
            self.identity = Identity.decode(self.wal.metadata)
        except errors.FormatError as error:
            raise errors.DamagedData(f"{self.data_dir.wal}: {error.text}") from error
        try:
            self.identity.check(config.node.name, config.cluster.token)
        except errors.ConfigError as error:
            raise errors.ConfigError(f"{self.data_dir.path}: {error.text}") from error
        if fresh is None and self.identity.differs(dict(config.cluster.initial)):
            log.info("cluster.initial is not that of %s, whose log says who the members are", self.data_dir.path)
        self.start = next_start(self.data_dir.path)
        lagging, term = config.wal.sync == "async", self.wal.hard_state.term
        try:
            self.unsynced.begin(lagging=lagging, term=term)
        except OSError as error:
            raise errors.DiskFailed(errors.reason(error)) from error

    def _lag(self) -> Lag | None:
        """How far syncs may lag behind acknowledgements, if at all."""
        wal = self.config.wal
        if wal.sync != "async":
            return None
        log.warning(
            'wal.sync = "async": writes are acknowledged up to %g ms and %d bytes before they are synced; a power cut '
            "can take that much", wal.sync_interval * 1000, wal.async_max_bytes,
        )  # fmt: skip
        return Lag(wal.sync_interval, wal.async_max_bytes)

    def _new_identity(self) -> Identity:
        """Who a new data directory belongs to: a member that begins the cluster, or one that joins it."""
        config = self.config
        initial = dict(config.cluster.initial)
        own = initial[config.node.name] = real_address(initial[config.node.name])
        incarnation = secrets.token_hex(16)
        if config.cluster.state == "existing":
            others = initial.values()
            return join_unless(self.stopping, others, config.node.name, config.cluster.token, own, incarnation)
        return Identity.create(config.node.name, config.cluster.token, initial, incarnation)

    def _open_state(self) -> None:
        config, identity = self.config, self.identity
        self.engine = storage.open_engine(config.storage, str(self.data_dir.engine))
        self._at_end("the storage engine", self.engine.close)
        peers = len(identity.members) > 1 or bool(identity.contacts)
        self.memory.share_out(peers=peers, contents=not self.engine.persistent)
        store = open_store(
            config.maintenance, self.data_dir.snapshots, self.failpoints, self.common_codecs.readable
        )  # fmt: skip
        catalogue = Catalogue(startup.begin(store, self.engine, self.wal, identity.cluster_id, self.memory))
        codec = PayloadCodec(
            codec_for_proposals(config.performance), config.performance.compression_min_size, MAX_DECODED,
            decoders=load_all_codecs(),
        )  # fmt: skip
        read_thread = ReadThread(self.loop.call_soon_threadsafe)
        self.closing.callback(read_thread.close)

        def snapshots(driver: Driver) -> Snapshots:
            return Snapshots(
                store, catalogue, self.engine, self.wal, driver, self.loop, policy_of(config.maintenance),
                cluster_id=identity.cluster_id, failpoints=self.failpoints, memory=self.memory,
            )  # fmt: skip

        self.replica = replica = Replica(
            identity,
            self.wal,
            self.engine,
            self.peer_link,
            settings=settings_of(config),
            codec=codec,
            read=read_thread.read,
            snapshots=snapshots,
            wall=time.time(),
            chance=secrets.randbits,
            doubt=self.unsynced.doubt,
            passing=self.failpoints.hit,
            members_changed=self._members_changed,
        )
        self.store, self.codec, self.proposer, self.kv = replica.store, codec, replica.proposer, replica.kv
        self.roster, self.raw, self.driver = replica.roster, replica.raw, replica.driver
        self.membership = replica.membership
        self.leadership = Leadership(config.raft, self.driver, self.membership, self.loop)
        self.space = Space(
            config.limits, config.wal.segment_size, self.wal, self.engine, self.data_dir.engine, self.driver, self.loop,
            self.leadership.hand_over,
        )  # fmt: skip
        self.snapshots = replica.snapshots
        self._at_end("the snapshots", self.snapshots.close)
        self.upkeep = Upkeep(
            self.memory, self.engine, self.driver, self.loop, identity.member_id, lambda: self.space.disk_full
        )
        wanted = config.maintenance
        self.transfers = Transfers(
            self.loop, store, catalogue, identity.cluster_id, wanted.snapshot_chunk_timeout,
            report=self.raw.report_snapshot, bad=self.snapshots.bad, rate=wanted.snapshot_send_rate,
        )  # fmt: skip
        self._at_end("the transfers of snapshots", self.transfers.close)
        self.peering = self._peering()
        self._open_calls()

    def _peering(self) -> Peering:
        abilities = Abilities(self.kv, self.codec, self.common_codecs)
        return Peering(
            self.config, self.identity, self.driver, self.membership, abilities, self.loop, self.resolver,
            self.failpoints,
            start=self.start, life=secrets.randbits(64), doubt=self.unsynced.doubt, transfers=self.transfers,
            held=lambda index, term: self.snapshots.catalogue.find(index, term) is not None,
            declines=self.space.declines, end=self.end, stopping=lambda: self.drain is not None,
        )  # fmt: skip

    def _open_calls(self) -> None:
        """What clients may ask of this member besides reading and writing keys."""
        config = self.config
        self.status = MemberStatus(
            config, self.identity, self.engine, self.driver, self.membership, max(0, self.upkeep.quota.nbytes),
            self.peering.connected, self.started_at,
        )  # fmt: skip
        self.changes = Membership(self.membership, self.peering.listen, self.loop.now)
        self.reads = MemberReads(self.kv)
        self.backups = Backups(
            self.loop, fresh=fresh_snapshot(self.reads, self.loop, self.snapshots.fresh), bad=self.snapshots.bad,
            header=lambda: header(self.status), timeout=config.limits.output_timeout,
        )  # fmt: skip
        self.closing.callback(self.backups.stop)

    def _open_sockets(self) -> None:
        limits = self.config.limits
        # Half for those that are whole, half for those on their way; less where there is little memory.
        calls = self.memory.calls()
        calls["max_total_buffered"] = min(2 * limits.max_inflight_bytes, calls.get("max_total_buffered", 1 << 62))
        self.limits = Limits(
            max_message=limits.max_request_bytes + GRPC_OVERHEAD,
            max_header_list=limits.max_header_bytes,
            max_concurrent_streams=limits.max_concurrent_streams,
            max_output=limits.max_output_bytes,
            max_total_output=limits.max_reply_bytes,
            **calls,
            receive_timeout=limits.handshake_timeout,
            # A client may give up all its calls at once.
            reset_burst=limits.max_concurrent_streams,
        )
        allowed = for_clients(self.config, self.descriptors)
        bounds = ConnLimits(
            max_connections=min(limits.max_connections, allowed),
            why_max=f"as many as {self.descriptors} file descriptors allow, see ulimit -n"
            if allowed < limits.max_connections
            else "limits.max_connections",
            max_unsent=limits.max_output_bytes,
            grace=limits.output_timeout,
            handshake=limits.handshake_timeout,
        )
        if allowed < limits.max_connections:
            log.warning(
                "limits.max_connections is %d, but of %d file descriptors (ulimit -n) %d are for the node's own files: "
                "at most %d clients", limits.max_connections, self.descriptors, reserved(self.config), allowed,
            )  # fmt: skip
        self.listener: Listener = Listener(self.loop, self.config.listen.client, self, limits=bounds)
        self.closing.callback(self.listener.close)
        self.metrics = self._metrics()
        ports = self._ports()
        self.services, self.health = make_services(ports)
        self.method_table = self.services.method_table
        self.pages = make_pages(ports, metrics=self.config.metrics.enabled)
        self.closing.callback(self.peering.close)
        self.peering.watch()
        self.loop.add(self.wal.fileno(), READ, self._on_disk, urgent=True)
        self._next_tick = self.loop.now()
        self._tick()

    def _metrics(self) -> metrics.Metrics:
        return metrics.Metrics(
            (
                metrics.of_log(self.wal, self.config.wal),
                metrics.named(self.replica.cache.stats, "read_ahead_"),
                metrics.named(self.snapshots.stats, "snapshot_", "_total"),
                metrics.of_replica(self.driver, self.codec),
                self.upkeep.stats,
                metrics.of_clients(self.loop, self.listener, self.limits),
            )
        )

    def _ports(self) -> Ports:
        """What the services need of this member."""
        return Ports(
            status=self.status,
            serving=MemberServing(lambda: self.ready and self.drain is None, self.driver, self.wal),
            reads=self.reads,
            membership=self.changes,
            leadership=self.leadership,
            alarms=self.upkeep.alarms,
            upkeep=Maintenance(self.driver, self.reads, self.upkeep.sums, self.upkeep.reclaim),
            backups=self.backups,
            numbers=self.metrics,
        )

    def client_urls(self) -> tuple[str, ...]:
        """Where clients should dial this member: no address that only says "everywhere"."""
        told = self.config.advertise.client or self.listener.bound
        return tuple(f"http://{where}" for where in dict.fromkeys(map(real_address, told)))

    def _members_changed(self) -> None:
        self.peering.watch()
        self.peering.update()

    def end(self, why: errors.MetaStoreError) -> None:
        """This process must not go on. One that was removed finishes what it has taken; any other stops at once, before
        it votes or answers anything more."""
        if self.left is None:
            log.warning("stopping: %s", why.text)
            self.left = why
            if isinstance(why, errors.RemovedFromCluster):
                if self.drain is None:
                    self._begin_drain()
                self.kv.refuse(errors.Stopped())  # nothing will be committed here any more
            else:
                self.loop.stop()

    # ---- serving

    def handle(self, requests: list[Any]) -> None:
        """Requests that came in on one connection."""
        if self.membership.learner:
            requests = self._for_learner(requests)
        if not self.driver.leader_id:
            requests = self._without_leader(requests)
        for request in self.kv.handle(requests, self.loop.now()):
            self.services.dispatch(request)

    def _without_leader(self, requests: list[Any]) -> list[Any]:
        """Those that may wait for a leader; a client can demand not to (etcd's clientv3.WithRequireLeader)."""
        hasty = [request for request in requests if REQUIRE_LEADER in request.headers]
        for request in hasty:
            request.fail(errors.NoLeader())
        return [request for request in requests if request not in hasty] if hasty else requests

    def _for_learner(self, requests: list[Any]) -> list[Any]:
        """Those a learner serves, as etcd's do: Status, backups, serializable ranges, health; the others are failed."""
        served = []
        for request in requests:
            allowed = request.path in (STATUS, SNAPSHOT) or not request.path.startswith(b"/etcdserverpb.")
            if request.path == RANGE:
                with contextlib.suppress(errors.MalformedRequest):
                    allowed = pb.parse(pb.RangeRequest, request.body).serializable
            if allowed:
                served.append(request)
            else:
                request.fail(errors.NotSupportedForLearner())
        return served

    def expired(self, requests: list[Any]) -> None:
        """Requests whose client's patience ended."""
        self.kv.forget(requests)

    def call(self, method: str, body: bytes, waiter: Waiter) -> None:
        """One KV call from this process ("Put", "Range", "DeleteRange", "Txn", "Compaction"), which knows of a stop."""
        if self.drain is not None:
            waiter.fail(errors.Stopped())
        else:
            self.kv.call(method, body, waiter, self.loop.now())

    def crowded(self) -> bool:
        """Whether half of what may be in flight is: calls of this process that can wait leave the rest to clients."""
        limits, proposer = self.config.limits, self.proposer
        return (proposer.queued + proposer.inflight) * 2 >= limits.max_inflight_requests or (
            proposer.queued_bytes + proposer.inflight_bytes
        ) * 2 >= limits.max_inflight_bytes

    def http(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer | Later:
        """One HTTP/1.1 request."""
        return self.pages.http(method, path, headers, body)

    def _on_disk(self, _events: int) -> None:
        self.driver.on_disk(self.loop.now())

    def _turn(self) -> None:
        """The end of a turn of the loop: everything that came in goes on, everything answered goes out."""
        if self.left is not None and self.drain is None:
            return  # nothing more goes out: see `end`
        now = self.loop.now()
        self.driver.pump(now)
        self.snapshots.turn(now, self.space.disk_full)
        self.upkeep.turn()
        if not self.ready:
            self.memory.check()
            self._announce(now)
        elif not self.membership.settled:
            self.membership.publish(self.config.node.name, self.client_urls(), now)
        if self.driver.leader_id != self.told_leader:
            self.told_leader = self.driver.leader_id
            leads = "the leader is " if self.told_leader else ""
            log.info("term %d: %s%s", self.driver.term, leads, self.membership.label(self.told_leader))
            self.health.changed()
        if self.kv.serve_late():
            self._again()
        self.listener.flush_dirty()
        if self.backups.turn(now):
            self.listener.flush_dirty()
            self._again()
        if self.peering.transport is not None:
            self.peering.transport.flush()
        if self.kv.deferred:
            self.kv.serve_deferred()
            self.listener.flush_dirty()
        if self.driver.backlog:
            self._again()
        if self.driver.retry_at is not None and self.retry_timer is None:
            self.retry_timer = self.loop.call_at(self.driver.retry_at, self._retry_engine)
        self._balance(now)
        self.upkeep.sweep.turn()
        if self.membership.removed and self.drain is None:
            self.end(errors.RemovedFromCluster("this member was removed from the cluster"))
        if self.drain is not None:
            self.drain.turn(now)

    def _again(self) -> None:
        """Another turn at once, for the driver has more to apply than one turn should take."""
        if not self.again_posted:
            self.again_posted = True
            self.loop.call_later(0, self._clear_again)

    def _retry_engine(self) -> None:
        """The engine was busy: the turn that follows tries it again."""
        self.retry_timer = None

    def _clear_again(self) -> None:
        self.again_posted = False

    def _balance(self, now: float) -> None:
        """The batch's timer, back pressure, space."""
        proposer = self.proposer
        due = proposer.next_deadline()
        if due is not None and self.batch_timer is None:
            # What was due at `now` and is still here waits for a leader: looking again at once would be a busy loop.
            self.batch_timer = self.loop.call_at(due if due > now else now + BATCH_RETRY, self._batch_due)
        held = proposer.queued + proposer.inflight
        held_bytes = proposer.queued_bytes + proposer.inflight_bytes
        limits = self.config.limits
        if held * 4 > limits.max_inflight_requests * 3 or held_bytes * 4 > limits.max_inflight_bytes * 3:
            self.listener.pause_all()
        elif (
            self.listener.paused
            and held * 2 < limits.max_inflight_requests
            and (held_bytes * 2 < limits.max_inflight_bytes)
        ):
            self.listener.resume_all()
        self.space.turn()

    def _watch_disk(self, now: float) -> None:
        """A leader whose disk stands still can apply and answer nothing: let somebody lead whose disk goes on."""
        since, raft = self.wal.sync_pending_since, self.config.raft
        if since is None or now - since <= DISK_PATIENCE * raft.election_ticks * raft.tick_interval:
            return
        if self.driver.is_leader and self.membership.others_go_on():
            self.space.lead_no_more()

    def _batch_due(self) -> None:
        self.batch_timer = None
        self.driver.pump(self.loop.now())

    def _tick(self) -> None:
        now = self.loop.now()
        interval = self.config.raft.tick_interval
        self.driver.tick(now)
        self.upkeep.tick(now)
        self._watch_disk(now)
        self.peering.tick(now)
        self.space.tick(now)
        if self.unsynced.doubt and (self.raw.term_of(self.raw.persisted) or 0) > self.unsynced.doubt:
            self.unsynced.settled()
        # After a stop of the process the missed ticks are not made up for: one is enough to look around.
        self._next_tick = max(self._next_tick + interval, now + interval / 2)
        self.loop.call_at(self._next_tick, self._tick)

    def _announce(self, now: float) -> None:
        """Say that we serve, once a leader is known and the others know who and where we are."""
        behind = self.driver.backlog or self.raw.apply_waiting  # more to apply, here or still on its way from the log
        if not self.driver.leader_id or not self.replica.applier.applied_index or behind:
            return
        self.membership.publish(self.config.node.name, self.client_urls(), now)
        if not self.membership.published:
            return
        self.ready = True
        self.upkeep.serve()
        self.health.changed()
        took = time.monotonic() - self.started_at
        log.info(
            "ready to serve client requests client=%s name=%s member=%016x cluster=%016x revision=%d after=%.3fs",
            ",".join(self.listener.bound),
            self.config.node.name,
            self.identity.member_id,
            self.identity.cluster_id,
            self.store.revision,
            took,
        )
        self.on_ready()

    # ---- stopping

    def stop_soon(self) -> None:
        """Begin to drain, or give up the opening that is under way; thread-safe, idempotent."""
        self.stopping.set()
        self.stop_asked = min(self.stop_asked, time.monotonic())
        with contextlib.suppress(OSError, ValueError):
            self.loop.call_soon_threadsafe(self._begin_drain)

    def call_soon_threadsafe(self, call: Callable[[], object]) -> None:
        """Run `call` in the loop thread."""
        self.loop.call_soon_threadsafe(call)

    def _begin_drain(self) -> None:
        if self.drain is not None:
            return
        self.drain = Drain(
            self.config.limits.drain_timeout, self.loop, self.listener, self.driver,
            ends=(self.health.shutdown, self.backups.stop, self.upkeep.stop),
            hand_over=self.leadership.hand_over, connected=self.peering.connected,
        )  # fmt: skip
        self.drain.begin()


def check_supported(config: Config) -> None:
    """Refuse settings that contradict each other or belong to features this version lacks. Raises ConfigError."""
    raft, limits = config.raft, config.limits
    if limits.max_inflight_requests < raft.batch_max_size:
        raise errors.ConfigError("limits.max_inflight_requests is less than raft.batch_max_size")
    if limits.max_inflight_bytes < raft.batch_max_bytes:
        raise errors.ConfigError("limits.max_inflight_bytes is less than raft.batch_max_bytes")
    # A value made of separators grows by a tenth when it is framed.
    if raft.batch_max_bytes < limits.max_request_bytes * 1.1 + 64:
        raise errors.ConfigError("raft.batch_max_bytes must exceed limits.max_request_bytes by a tenth")
