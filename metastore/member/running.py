"""A running member has all its parts, and uses them in each turn of the loop and at each Raft tick."""

from __future__ import annotations

import logging
import secrets
import time
from functools import partial
from typing import TYPE_CHECKING

from .. import errors
from .._core.kv_admit import admit_piece, admit_puts
from .._core.kv_direct import DirectReads
from .._core.member_turn import MemberTurn
from ..api.common import header
from ..api.ports import Ports
from ..net.loop import READ
from ..snapshots.backup_stream import Backups
from . import metrics
from .abilities import Abilities
from .corruption import CorruptionCheck
from .drain import Drain
from .front import Front
from .gathering import Gathering
from .leaderless import Leaderless
from .leadership import Leadership
from .leasing import Leasing
from .locks import Locks
from .maintenance import Maintenance, fresh_snapshot
from .membership import Membership
from .own_calls import OwnCalls
from .peering import Peering
from .reads import MemberReads
from .space import Space
from .state import State
from .status import MemberServing, MemberStatus
from .tasks import Tasks
from .ticks import Rest, Ticks
from .upkeep import Upkeep
from .watching import Watching

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from .._core.kv_pieces import Piece
    from .._core.waiter import Waiter
    from ..config import Config
    from ..failpoints import Failpoints
    from ..net.loop import Loop, Timer
    from ..net.resolver import Resolver
    from ..ports import Done
    from ..threads import Gate
    from .closing import Closing
    from .disk import Disk
    from .memory_guard import Memory

log = logging.getLogger("metastore.node")

ANSWERS = 0.001  # seconds after a heartbeat in which the followers of one network answer
READER_PATIENCE = 1.0  # seconds that an end waits for threads that read in the engine
DISK_PATIENCE = 2  # election timeouts for which a leader waits for its disk before it hands over


def _nothing() -> None:
    """A timer calls this. It only brings about the turn that follows."""


class RunningMember(MemberTurn):
    """The constructor opens the member, and `closing` closes it. All of it belongs to the loop's thread.

    descriptors: the number of file descriptors that this process may have.
    stopping: opened to make the member stop; the next turn begins the stop.
    started_at: the time when the process began (time.monotonic()).
    on_ready: called when the member serves.
    """

    def __init__(
        self, config: Config, disk: Disk, memory: Memory, loop: Loop, resolver: Resolver, failpoints: Failpoints,
        closing: Closing, *, descriptors: int, stopping: Gate, started_at: float,
        on_ready: Callable[[RunningMember], object],
    ) -> None:  # fmt: skip
        self.config = config
        self.loop = loop
        self.disk = disk
        self._memory = memory
        self._stopping = stopping
        self._on_ready = on_ready
        self._started_at = started_at
        self._log_held = disk.wal.last_index()
        self._next_turn: Timer | None = None
        self._calls = 0  # of clients, at the last tick
        self._alone = (disk.identity.member_id,)
        self.state = state = State(config, disk, memory, loop, failpoints, closing, self._members_changed)
        self.replica = replica = state.replica
        self.kv, self.driver, self.membership = replica.kv, replica.driver, replica.membership
        self.snapshots = replica.snapshots
        self.leadership = Leadership(config.raft, self.driver, self.membership, loop)
        self.space = Space(
            config.limits, config.wal.segment_size, disk.wal, state.engine, disk.data_dir.engine, self.driver, loop,
            self.leadership.hand_over,
        )  # fmt: skip
        self.upkeep = Upkeep(
            memory, state.engine, self.driver, loop, disk.identity.member_id, lambda: self.space.disk_full,
            lambda: replica.watches.holds_history or self.kv.holds_history(loop.now()),
        )  # fmt: skip
        self.alarms = self.upkeep.alarms
        self.peering = self._make_peering(resolver, failpoints)
        self.corruption = CorruptionCheck(
            config.maintenance.corruption_check_interval, disk.identity.member_id, self.driver, self.upkeep.sums,
            self.upkeep.alarms, self.peering.others, self.peering.tell, self.membership.label,
        )  # fmt: skip
        self.peering.news = self.corruption.on_news
        self.reads = MemberReads(self.kv)
        self.status = MemberStatus(
            config, disk.identity, state.engine, self.driver, self.membership, max(0, self.upkeep.quota.nbytes),
            self.peering.connected, started_at,
        )  # fmt: skip
        self.backups = Backups(
            loop, fresh=fresh_snapshot(self.reads, loop, self.snapshots.fresh), bad=self.snapshots.bad,
            header=lambda: header(self.status), timeout=config.limits.output_timeout,
        )  # fmt: skip
        closing.callback(self.backups.stop)
        election_timeout = config.raft.election_ticks * config.raft.tick_interval
        self.watching = Watching(replica.watches, self.driver, election_timeout)
        self.leasing = Leasing(
            replica, loop.now, secrets.randbits, election_timeout=election_timeout,
            most=config.limits.max_inflight_requests,
        )  # fmt: skip
        self.tasks = Tasks(replica.watches, loop.now, config.limits.max_lock_calls)
        self.locks = Locks(self.kv, self.leasing, self.tasks, Leaderless(self.driver, election_timeout))
        self.own_calls = OwnCalls(self.leasing, replica.leases, self.locks, self.locks, loop.now)
        if stopping.is_open():
            raise errors.Stopped()
        self.changes = Membership(self.membership, _stay_alone if disk.in_memory else self.peering.listen, loop.now)
        self.front = Front(config, memory, loop, replica, descriptors, closing, self._sources(), self._ports)
        self.kv.pressed = replica.watches.pressed = loop.pressed
        replica.send = self.front.listener.flush_dirty
        self.gathering = Gathering(loop, disk.wal, replica.proposer, self.front.limits, config.gather_time)
        self.ticks = self._make_ticks()
        self.peering.ticks = self.ticks
        closing.callback(self.peering.close)
        self.peering.watch()

    def _make_peering(self, resolver: Resolver, failpoints: Failpoints) -> Peering:
        state, disk, catalogue = self.state, self.disk, self.snapshots.catalogue
        abilities = Abilities(self.kv, self.replica.codec, state.codecs)
        return Peering(
            self.config, disk.identity, self.driver, self.membership, abilities, self.loop, resolver, failpoints,
            connect=self.replica.connect, leases=self.replica.leases,
            start=disk.start, life=secrets.randbits(64), doubt=disk.unsynced.doubt,
            transfers=state.transfers, held=lambda index, term: catalogue.find(index, term) is not None,
            declines=self.space.declines, end=self.end, stopping=lambda: self.drain is not None,
        )  # fmt: skip

    def _make_ticks(self) -> Ticks:
        interval, loop, watches = self.config.raft.tick_interval, self.loop, self.replica.watches
        calls = self._tick, self._look_around, self._may_rest
        return Ticks(interval, loop.now, loop.call_at, *calls, lambda: watches.next_alarm)

    def _sources(self) -> tuple[metrics.Source, ...]:
        """The figures of this member for /metrics."""
        return (
            metrics.of_log(self.disk.wal, self.config.wal),
            metrics.named(self.replica.cache.stats, "read_ahead_"),
            metrics.named(self.snapshots.stats, "snapshot_", "_total"),
            metrics.of_replica(self.driver, self.replica.codec),
            self.peering.stats,
            self.upkeep.stats,
            self.corruption.stats,
            self.watching.stats,
            self.leasing.stats,
            self.locks.stats,
        )

    def _ports(self, numbers: metrics.Metrics) -> Ports:
        """The parts of this member that the services need."""
        return Ports(
            status=self.status,
            serving=MemberServing(self._serves, self.driver, self.disk.wal),
            reads=self.reads,
            membership=self.changes,
            leadership=self.leadership,
            alarms=self.upkeep.alarms,
            upkeep=Maintenance(self.driver, self.reads, self.upkeep.sums, self.upkeep.reclaim),
            backups=self.backups,
            watches=self.watching,
            leases=self.leasing,
            locks=self.locks,
            elections=self.locks,
            numbers=numbers,
        )

    def _serves(self) -> bool:
        return self.ready and self.drain is None and not self.upkeep.busy.trouble

    def _members_changed(self) -> None:
        self.peering.watch()
        self.peering.update()

    # ---- serving

    def read_directly(self, made: type[object]) -> DirectReads:
        """Reads of this process that do not wait for the loop; `made` is the class of their results."""
        self.direct = self.loop.quiet = DirectReads(self.kv, made)
        return self.direct

    def serve(self) -> None:
        """Serves until the member is stopped. Raises the error that ended it."""
        self.disk.wal.edge_triggered = True
        self.loop.add(self.disk.wal.fileno(), READ, self._on_disk, urgent=True, edge=True)
        self.ticks.begin()
        if self.driver.roster.conf_state.voters == (self.disk.identity.member_id,):
            self.driver.campaign()
        failure: BaseException | None = None
        try:
            self.loop.run(self._turn)
        except OSError as error:
            # The errors of sockets are handled where they occur. This one comes from the engine or the log.
            failure = errors.DiskFailed(f"the disk failed: {errors.reason(error)}")
            failure.__cause__ = error
        except MemoryError as error:
            failure = self._memory.exhausted(not self.ready)
            failure.__cause__ = error
        except BaseException as error:  # noqa: BLE001 - raised below, when everybody is answered
            failure = error
        if self.direct is not None:
            self.direct.close()
            _await_readers(self.direct)
        failure = self._answer_all(failure or self.ended_by)
        if failure is not None:
            raise failure

    def _answer_all(self, failure: BaseException | None) -> BaseException | None:
        """Answer whoever still waits, because of `failure`. Gives that, or else what went wrong with the answers: it
        keeps nobody else from his."""
        stopped = errors.caused(errors.Stopped, failure)
        for answer in (
            partial(self.driver.abandon, failure),
            partial(self.leasing.abandon, stopped),
            partial(self.tasks.abandon, stopped),
            partial(self.kv.abandon_late, stopped),
            self.front.listener.flush_dirty,
        ):
            try:
                answer()
            except BaseException as error:
                log.exception("at the end of the member somebody could not be answered")
                failure = failure or error
        return failure

    def call(self, method: str, body: bytes, waiter: Waiter) -> None:
        """One call from this process, which knows of a stop: of KV ("Put", "Range", "DeleteRange", "Txn", "Compaction")
        or one of `own_calls`."""
        if self.drain is not None:
            waiter.fail(errors.Stopped())
        elif self.own_calls.serves(method):
            self.own_calls.call(method, body, waiter)
        else:
            self.kv.call(method, body, waiter, self.loop.now())

    def calls(self, line: deque[tuple[str, bytes, Waiter]], most: int) -> int:
        """As `call` for calls from the left end of a line, some but at most `most`; how many."""
        if self.drain is not None:
            self.call(*line.popleft())
            return 1
        taken, call = admit_puts(self.kv, line, self.loop.now(), most)
        if call is not None:
            self.call(*call)
            taken += 1
        return taken

    def put_piece(self, piece: Piece, most: int) -> int:
        """At most `most` puts of a piece from this process, as long as there is room; how many."""
        if self.drain is not None:
            piece.refuse(errors.Stopped())
            return 0
        return admit_piece(self.kv, piece, self.loop.now(), most)

    def crowded(self) -> bool:
        """Whether calls of this process that can wait should leave what may still be in flight to clients."""
        return self.front.crowded()

    def _publish(self, now: float) -> None:
        self.membership.publish(self.config.node.name, self.front.client_urls(), now)

    def _end_removed(self) -> None:
        self.end(errors.RemovedFromCluster("this member was removed from the cluster"))

    def _may_rest(self) -> Rest:
        """How this member may rest: nobody waits, and its log is marked. Where it is not alone, a leader is known."""
        driver = self.driver
        busy = (
            not self.ready or self.drain is not None or not driver.marked or not driver.quiet or self.kv.late
            or self.space.full or self.disk.unsynced.doubt or not self.membership.settled
        )  # fmt: skip
        if busy or not driver.leader_id:
            return Rest.AWAKE
        if not driver.is_leader:
            return Rest.FOLLOWS if self.config.raft.heartbeat_ticks == 1 else Rest.LEADS
        return Rest.ALONE if driver.link.alone else Rest.LEADS

    def _log_leader(self) -> None:
        leader = self._logged_leader = self.driver.leader_id
        leads = "the leader is " if leader else ""
        log.info("term %d: %s%s", self.driver.term, leads, self.membership.label(leader))
        self.front.health.changed()

    def _turn_at(self, due: float) -> None:
        """Makes sure that a turn of the loop comes at `due` (seconds) at the latest."""
        timer = self._next_turn
        if timer is not None and timer.call is not None and timer.when <= due:
            return
        if timer is not None:
            timer.cancel()
        self._next_turn = self.loop.call_at(due, _nothing)

    def _tick(self, now: float) -> None:
        self.driver.tick(now)
        calls = sum(self.kv.calls)
        if calls == self._calls and self.ticks.rest is Rest.LEADS:
            # The answers of all followers to this heartbeat share a turn. No client has called since the last one.
            self.loop.nap(ANSWERS)
        self._calls = calls

    def _look_around(self, now: float) -> None:
        """Does what is due now and then; `now` in seconds."""
        unsynced = self.disk.unsynced
        self.upkeep.tick(now)
        if self.upkeep.busy.tick(now):
            self.front.health.changed()
        self.watching.tick(now)
        self.leasing.tick(now)
        self.locks.tick(now)
        if self.drain is None:
            self.corruption.tick(now)
        self._watch_disk(now)
        self.peering.tick(now)
        self.space.tick(now)
        if unsynced.doubt and self.replica.certain(unsynced.doubt):
            unsynced.settled()

    def _watch_disk(self, now: float) -> None:
        """Hands leadership over if this leader's disk does not answer, because such a leader can apply nothing."""
        since, raft = self.disk.wal.sync_pending_since, self.config.raft
        if since is None or now - since <= DISK_PATIENCE * raft.election_ticks * raft.tick_interval:
            return
        if self.driver.is_leader and self.membership.others_go_on():
            self.space.lead_no_more()

    def _announce(self, now: float) -> None:
        """Reports that this member serves, once it knows a leader and the others know its name and addresses. Raises
        OutOfMemory while it still reads its log, if that does not fit."""
        self._memory.check()
        driver, identity = self.driver, self.disk.identity
        behind = driver.backlog or driver.raw.apply_waiting  # more to apply, here or still on its way from the log
        if not driver.leader_id or not driver.applier.applied_index or behind:
            return
        if driver.is_leader and driver.raw.status().commit < self._log_held:
            return  # its log holds entries of earlier terms, which are committed with the first one of its own term
        self._publish(now)
        if not self.membership.published:
            return
        self.ready = True
        self.upkeep.serve()
        self.front.health.changed()
        log.info(
            "ready to serve client requests client=%s name=%s member=%016x cluster=%016x revision=%d after=%.3fs",
            ",".join(self.front.listener.bound), self.config.node.name, identity.member_id, identity.cluster_id,
            self.replica.store.revision, time.monotonic() - self._started_at,
        )  # fmt: skip
        self._on_ready(self)

    # ---- stopping

    def end(self, why: errors.MetaStoreError) -> None:
        """This process must end for the reason `why`.

        A member that was removed finishes the calls that it has taken. Any other stops at once, before it votes or
        answers anything more.
        """
        if self.ended_by is None:
            log.warning("stopping: %s", why.text)
            self.ended_by = why
            if isinstance(why, errors.RemovedFromCluster):
                if self.drain is None:
                    self._begin_drain()
                self.kv.refuse(errors.Stopped())  # nothing will be committed here any more
            else:
                self.loop.stop()

    def _begin_drain(self) -> None:
        self.drain = Drain(
            self.config.limits.drain_timeout, self.loop, self.front.listener, self.driver,
            ends=(
                self.front.health.shutdown, self.watching.stop, self.tasks.stop, self.leasing.stop, self.backups.stop,
                self.upkeep.stop,
            ),
            hand_over=self.leadership.hand_over, connected=self.peering.connected,
        )  # fmt: skip
        self.disk.close_by = self.drain.stop_by
        self.drain.begin()


def _await_readers(direct: DirectReads) -> None:
    """Waits until no other thread reads in the engine, whose folder stays locked as long. It takes such a thread some
    microseconds, unless it runs a signal handler that waits for this very end."""
    until = time.monotonic() + READER_PATIENCE
    while direct.inside and time.monotonic() < until:
        time.sleep(0.001)


def _stay_alone(done: Done) -> None:
    """What a member without files does in place of opening its peer port."""
    done(errors.Unimplemented("metastore: a member without files must be alone, for it forgets what it has promised"))
