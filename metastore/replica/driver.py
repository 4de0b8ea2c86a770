"""The Ready driver: it persists, sends, applies and replies in the right order.

This module is pure: it has no socket, file, thread or clock. The node drives it with real parts, and the simulator
drives it with simulated ones. An error in this order would acknowledge writes that are not synced, so there is only one
copy of it.

One turn (`pump`) has these steps; see ARCHITECTURE, "The life of a put":

1. Batches that are due become proposals, or, on a follower, go to the leader as raw operations. An idle disk makes
   every batch due, so a lone client never waits for a timer; a busy disk lets the next group gather.
2. The driver takes every Ready of the Raft core. First its entries go to the log, and the disk starts. Then its
   messages are sent; the core has put nothing into them that depends on data which is not durable yet. Then committed
   entries are applied, and the waiting clients get their answers. The disk thus works on the next group while the
   driver applies the finished one.
3. `on_disk` tells the core what is durable. Only then does a sole voter's own vote count, the commit index move, and
   a reply leave.

Entries, membership changes included, are applied strictly in the order of the log, so the effect of an entry never
depends on where a Ready ends. Applying stops before a membership change until the commit index that allows the change
is durable. No crash may take a member back to an older membership than it has worked with.

An engine may be busy (EngineBusy). Then the driver applies nothing further. The store's overlay keeps what is applied,
and reads see it there, until a later attempt to write it succeeds. The log, the messages and the reads go on meanwhile.
The replies for applied entries leave at the next tick: their outcome is certain, because a majority has them in its
log. All other writes wait until their deadline at most, and the bounds on writes in flight push back. Where the engine
has no room (EngineFull) the wait may be long, so reads that would wait for it are refused.

The driver's other jobs have files of their own, which know nothing of the driver: the rounds of reads
(read_rounds.py), changes of the membership (membership_changes.py), and the waiting operations (pending.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import errors
from .._core.batch import frame
from .._core.entry import decode_entry
from .._core.kv_server import SERVE_BUDGET
from .._core.raft_types import ProposalDropped
from .._core.raft_wire import WITHDRAWN
from ..ports import NO_POINTS
from .membership_changes import CommittedChanges, MembershipChanges
from .pending import Pending
from .read_rounds import ReadRounds

if TYPE_CHECKING:
    from .._core.batch import BatchProposer
    from .._core.codec import PayloadCodec
    from .._core.entry import HardState
    from .._core.kv_server import KVServer
    from .._core.mvcc_apply import Applier
    from .._core.raft import RawNode
    from .._core.raft_types import Message, Ready, Snapshot
    from .._core.waiter import Waiter
    from ..ports import DriverLog, Points
    from .peer_link import PeerLink
    from .roster import Roster, RosterState

APPLY_BUDGET = 32768  # units (_core/work) that applying may cost in one turn: 3 ms
WATCH_BUDGET = 2000  # changes that are read for watchers, and responses to them: 2.5 ms
ENOUGH = 0.75  # the share of a turn that must be left for one more budget of applying
LEAST_SHARE = 8  # a turn in which little time is left does this part of its budgets, so that everything goes on
PUMP_READIES = 8  # at most this many Readies with committed entries in one call of pump
BUSY_RETRY = 0.005  # seconds until an engine that was busy is tried again
# Seconds for which a leader holds back a commit index that nobody waits for. It is 10 ms, and the loop's timers may be
# 1 ms late.
TELL_AFTER = 0.009
# MAX_LEAP bounds how far the term of a message may be ahead of ours, and MAX_TERM bounds any term. No cluster holds so
# many elections, and a cluster that took over the last possible term could never hold another election. A member
# without a term may have been away for any length of time, so only MAX_TERM applies to it.
MAX_LEAP = 1 << 32
MAX_TERM = 1 << 62


def whole() -> float:
    """The share of a turn in which time does not count."""
    return 1.0


@dataclass(slots=True)
class Budgets:
    """What one turn may cost, in units (_core/work). Whoever made the object may change it between two turns.

    apply: the entries that are applied from one `pump` to the next. serve: the requests of this turn; those of earlier
    turns may cost a quarter of the default once more. watch: what watchers are sent of new changes, and the same once
    more of history. share: how much is left of the turn, from 1.0 down to 0.0; the parts that come late in a turn that
    was long already do less. again: how many further budgets of applying a turn may spend while most of it is left.
    Where pieces end does not change what they do.
    """

    apply: int = APPLY_BUDGET
    serve: int = SERVE_BUDGET
    watch: int = WATCH_BUDGET
    share: Callable[[], float] = whole
    again: int = 0

    def part(self, budget: int, spent: int = 0) -> int:
        """What is left of a budget, of which this turn has spent some: at least one unit."""
        left = int(budget * self.share())
        least, most = budget // LEAST_SHARE - spent, budget - spent
        left = least if left < least else most if left > most else left
        return left if left > 1 else 1


#: Called with a snapshot from a Ready, and a function to call in the driver's thread when the engine has its contents.
Install = Callable[["Snapshot", Callable[[], None]], None]


def no_snapshots(snapshot: Snapshot, _done: Callable[[], None]) -> None:
    """The `Install` of a member that receives no snapshots."""
    raise errors.DamagedData(f"a snapshot at entry {snapshot.index} was received, and nobody can install it")


class Driver:
    """Passes the Readies of one Raft node to its log, its peers, its state and the waiting clients.

    `log` is the write-ahead log (see storage/wal.py), and `link` leads to the other members. `request_timeout` and
    `idle_mark_after` are in seconds. `install` begins to install a received snapshot. Of `points` it passes the
    failpoints "apply.before", "apply.after" and, behind a membership change, "apply.member". `members_changed` is
    called after a change of the roster was applied. `roster_mended` is called with the roster that this member had and
    the one that it took over from the leader. `budgets` bounds what one turn costs. This class is not thread-safe: one
    thread calls all methods.
    """

    #: The class of the reads. The simulator plants bugs in it.
    reads_type: type[ReadRounds] = ReadRounds

    def __init__(
        self, raw: RawNode, log: DriverLog, applier: Applier, proposer: BatchProposer, codec: PayloadCodec,
        kv: KVServer, roster: Roster, link: PeerLink, *,
        request_timeout: float,
        idle_mark_after: float = 0.1,
        install: Install = no_snapshots,
        points: Points = NO_POINTS,
        members_changed: Callable[[], None] = lambda: None,
        roster_mended: Callable[[RosterState, RosterState], None] = lambda _before, _told: None,
        budgets: Budgets | None = None,
    ) -> None:  # fmt: skip
        self.raw = raw
        self.log = log
        self.applier = applier
        self.proposer = proposer
        self.codec = codec
        self.kv = kv
        self.roster = roster
        self.link = link
        self.request_timeout = request_timeout
        self.idle_mark_after = idle_mark_after
        self.install = install
        self.points = points
        self.reads = self.reads_type(raw, kv)
        self.changes = MembershipChanges(raw, roster, codec, kv.waiters, link)
        self.committed = CommittedChanges(raw, roster, applier, members_changed, roster_mended)
        self.pending = Pending(kv, proposer, link, self.reads, self.changes.take, request_timeout)
        self.leader_id = 0
        # If nothing has changed since the previous run of this member, no Ready brings a hard state with these values.
        self.term = applier.store.raft_term = raw.term
        self.stopping = False
        #: Whether `pump` left work that it can do without waiting. The owner should then call it again soon.
        self.backlog = False
        self._holding = False
        # ---- the log
        # Readies handed to the log and not yet reported to the core: (number, whether a sync covers it).
        self._unreported: deque[tuple[int, bool]] = deque()
        self._synced = 0  # the last Ready that the log has reported
        self._installing: tuple[int, int] | None = None  # (Ready's number, index)
        self._hard_state: HardState | None = None  # the newest hard state that a Ready had
        self._late: tuple[int, HardState] | None = None  # (Ready's number, hard state) not handed to the log yet
        self._commit_asked = 0  # the commit index that the log was asked to make durable
        self._last_append = 0.0
        #: Whether watchers wait here for what is applied: see `set_watched`.
        self.watched = False
        #: When a leader sends the others a commit index that no append has carried (seconds); None: all have it.
        self.tell_at: float | None = None
        #: Whether a marker proves all that the log holds. A tick writes it when the log has been idle for a while.
        self.marked = True
        # ---- the state
        self._budgets = budgets if budgets is not None else Budgets()
        self._spent = 0  # units that applying has cost in this turn
        # The entry images that are being applied (None: there are none), and the offset up to which they are applied.
        self._images: Any = None
        self._at = 0
        self._unwritten = 0  # the last applied entry, as long as the engine does not have it
        #: When `pump` tries a busy engine again (seconds); None: the engine is not busy.
        self.retry_at: float | None = None
        self.engine_busy = 0  # how often the engine was busy
        #: Since when the engine has been busy (seconds); None: it is not.
        self.busy_since: float | None = None

    # ---- what the owner asks

    @property
    def is_leader(self) -> bool:
        """Whether this node is the leader it knows of."""
        return self.leader_id != 0 and self.leader_id == self.raw.id

    @property
    def quiet(self) -> bool:
        """Whether nothing is queued, in the log's hands, or waiting for an answer, and the others know the commit
        index.
        """
        return not (
            self.kv.waiters or self.kv.reads or self.proposer.queued or self._unreported or self.reads.waiting
            or self._unwritten or self._images is not None or self.tell_at is not None
        )  # fmt: skip

    @property
    def whole(self) -> bool:
        """Whether the engine holds every applied entry, and no entry in part."""
        return self.retry_at is None and self.applier.whole

    def campaign(self) -> None:
        """Stands for election at once, as a sole voter does at its start."""
        self.raw.campaign()

    def pump(self, now: float) -> None:
        """Ends a turn: does everything that is possible at `now` (seconds, monotonic) without waiting for the disk or a
        peer. News of the disk and a tick in the same turn have used up some of its budget: three times the budget was
        30 ms of RocksDB."""
        self._go_on(now)
        self._spent = 0
        again = self._budgets.again
        while again and self._images is not None and self.applier.halted and self.retry_at is None:
            # Where the machine is quick, a turn has time for more. Each turn asks the system for events.
            if self._budgets.share() < ENOUGH:
                break
            again -= 1
            self._go_on(now)
            self._spent = 0

    def _go_on(self, now: float) -> None:
        """Does what is possible within the budget that this turn has left.

        After PUMP_READIES Readies with committed entries it stops and sets `backlog`. A long replay at start therefore
        does not keep the caller from its sockets, ticks and signals.
        """
        applied, raw, judge = 0, self.raw, self.changes.judging
        if self.retry_at is not None and self.retry_at <= now:
            self._commit(now)
        if self._images is not None and self.retry_at is None:
            self._apply_on(now)
        self._propose(now)
        if self.proposer.removed:
            self.pending.confirm_withdrawals()
        if self.reads.rounds or self.kv.reads:
            self.reads.start(now, self.leader_id)
        raw.patient = not self.kv.waiters and not self.watched
        if self.tell_at is not None and (now >= self.tell_at or self.stopping):
            raw.tell_commit()
        full = False
        while raw.has_ready():
            full = applied == PUMP_READIES
            if full:
                break
            ready = raw.ready()
            if self._carry(ready, now):
                self._durable(self.log.settle())
            applied += ready.committed_last > 0
            # What a Ready may have brought about: room for a batch, leadership, or that a change can be judged.
            if (
                self.proposer.queued
                or self.changes.requests
                or judge.waiting
                or judge.restate
                or judge.term != raw.term
            ):
                self._propose(now)
        self.backlog = full or (self._images is not None and self.applier.halted and self.retry_at is None)
        if not raw.untold:
            self.tell_at = None
        elif self.tell_at is None or now >= self.tell_at:
            self.tell_at = now + TELL_AFTER

    def on_disk(self, now: float) -> None:
        """The log finished a group: reports what is durable, then goes on. Raises DiskFailed if the group failed."""
        # The log does not start the next group by itself, so that this group also holds what gathered meanwhile.
        self._durable(self.log.poll(start=False))
        self._go_on(now)
        self.log.submit()

    def tick(self, now: float) -> None:
        """Runs one Raft tick: elections and heartbeats, timeouts, and the marker of an idle log."""
        if not self._holding:
            self.raw.tick(now)
        self._expire(now)
        if (
            not self.marked
            and self.log.idle
            and not self.proposer.queued
            and (self.stopping or now - self._last_append >= self.idle_mark_after)
        ):
            if self._late is not None:
                number, state = self._late
                self._late = None
                self.log.append(number, None, state, False)
            self.log.mark()
            self.marked = True
        self._go_on(now)

    def hold(self, holding: bool) -> None:
        """While `holding`, this member takes part in nothing: its Raft clock stands still, so it does not
        stand for election.
        """
        self._holding = holding

    def set_watched(self, watched: bool) -> None:
        """Says whether watchers wait for what is applied here. The leader learns of it at once, so from then on a
        commit index comes here without delay.
        """
        self.watched = watched
        self.raw.patient = not self.kv.waiters and not watched
        self.raw.ask_commit()

    def stop(self) -> None:
        """Makes all queued work due at once; `quiet` shows when it is done."""
        self.stopping = True

    def abandon(self, cause: BaseException | None = None) -> None:
        """Answers every caller that still waits, at the end of a drain or because of `cause`.

        Applied operations get their result even if the engine did not write them, because a majority has them in its
        log.
        """
        try:
            self.applier.release()
        finally:
            self.pending.abandon(cause)

    def unanswered(self) -> list[Waiter]:
        """All callers that wait. This is for another thread, while the member's own one stands still."""
        reads = [waiter for waiter, _, _ in self.reads.unanswered()]
        return [*self.applier.unanswered(), *self.kv.unanswered(), *reads]

    # ---- from peers and clients

    def receive(self, message: Message) -> None:
        """Handles a Raft message of a peer. Raises FormatError if it is damaged; then nothing has changed."""
        if message.term > MAX_TERM or (self.raw.term and message.term > self.raw.term + MAX_LEAP):
            raise errors.FormatError(f"a message of term {message.term}, after term {self.raw.term} here")
        self.changes.heard(message.from_)
        self.raw.step(message)

    def propose(self, operations: list[bytes]) -> bool:
        """Log operations that the leader itself wants, as one entry. Whether they are in its log now.

        They are never queued: what is queued goes to the next leader when leadership is lost. The next `pump` has the
        entry written.
        """
        if not self.is_leader:
            return False
        try:
            self.raw.propose(self.codec.encode(frame(operations)))
        except (ProposalDropped, errors.NotLeader, errors.NoLeader):
            return False
        return True

    def unreachable(self, ident: int) -> None:
        """A message for member `ident` was lost."""
        self.changes.lost(ident)
        self.raw.report_unreachable(ident)

    def receive_forward(self, sender: int, batch: bytes, now: float) -> None:
        """Take operations that `sender` wants proposed. Raises FormatError if they cannot be read."""
        self.pending.receive_forward(sender, batch, now, self.is_leader)
        self.raw.hasten(sender)

    def receive_refusal(self, sender: int, code: int, ids: list[int]) -> None:
        """The leader did not log these operations of ours. WITHDRAWN: `sender` wants its own not to be logged."""
        if code == WITHDRAWN:
            self.withdraw(ids, sender)
        else:
            self.pending.receive_refusal(code, ids)

    def withdraw(self, ids: list[int], member: int = 0) -> None:
        """Nobody waits for the operations with these request ids any more: those that are in no log yet must not get
        there, neither here nor at the leader that they were forwarded to.

        `member` is the other member that they came from, or 0. It is told which of them were dropped. Their waiters
        stay where an operation may still be applied, because they count for the back pressure until then.
        """
        self.changes.withdraw(ids)
        self.pending.withdraw(ids, 0 if self.is_leader else self.leader_id, member)

    def change_members(self, operation: bytes, now: float) -> None:
        """Carries out an encoded operation of kind MEMBER, whose waiter is in `kv.waiters` already.

        Like a put, the operation waits for a leader, and for a connection to it, until the waiter times out. Raises
        TooManyRequests when the operation is surely not logged; the caller then removes the waiter.
        """
        self.changes.ask(operation, now + self.request_timeout)
        self.changes.hand_on(self.leader_id)

    def _lead_changed(self, lead: int, now: float) -> None:
        before, self.leader_id = self.leader_id, lead
        if before == lead:
            return
        self.reads.ask_again(now)
        self.changes.leader_changed()
        if before:
            self.pending.leader_lost(now)

    def _expire(self, now: float) -> None:
        """Fails the operations that were admitted `request_timeout` ago, with the granularity of one tick."""
        if self.retry_at is not None:
            self.applier.release()
        late = self.pending.expire(now, self.leader_id)
        if late:
            # The callers get an open outcome, but an operation that is not logged yet is kept out of the log.
            self.withdraw(late)

    # ---- from a batch to the log

    def _propose(self, now: float) -> None:
        changes, proposer = self.changes, self.proposer
        if changes.requests:
            changes.hand_on(self.leader_id)
        if not self.leader_id or self.leader_id != self.raw.id:
            if self.leader_id and proposer.queued:
                self.pending.forward(self.leader_id, now)
            return
        judge = changes.judging
        if judge.waiting or judge.restate or judge.term != self.raw.term or now >= judge.restate_at:
            judge.judge(now)
        while proposer.queued:
            payload = proposer.take(now, not self._unreported and self.log.idle, self.stopping, self.codec)
            if payload is None:
                return
            try:
                index = self.raw.propose(payload)
            except (ProposalDropped, errors.NotLeader, errors.NoLeader):
                # The core's bound on uncommitted entries is reached, or a leadership transfer is under way. The batch
                # stays first in line.
                proposer.untake()
                return
            self.pending.proposed(index)

    def _carry(self, ready: Ready, now: float) -> bool:
        """Persists, sends, applies and replies for one Ready, in this order. Returns whether the log has
        news already.
        """
        news = self._persist(ready, now)
        if ready.soft_state is not None:
            self._lead_changed(ready.soft_state.lead, now)
        if ready.messages:
            self.link.send(ready.messages)
        if ready.committed_last:
            self._apply(ready, now)
        for state in ready.read_states:
            self.reads.confirmed(state, self.applier.applied_index, now)
        if ready.read_states and self.kv.reads:
            self.reads.go_on(now, self.leader_id)
        if ready.dropped_reads:
            self.reads.ask_again(now)
        if not ready.must_sync:
            self._durable(0)
        return news

    def _persist(self, ready: Ready, now: float) -> bool:
        state = ready.hard_state
        if state is not None:
            self._hard_state = state
            self.term = state.term
            self.applier.store.raft_term = state.term
        if ready.snapshot is not None:
            # The snapshot file is complete and synced, so a start after a crash at this point uses it.
            snapshot = ready.snapshot
            self.log.save_snapshot_position(snapshot.index, snapshot.term, snapshot.conf_state.encode())
        if ready.must_sync:
            if state is None and self._late is not None:
                state = self._late[1]
            self._late = None
            self.log.append(ready.number, ready.entry_images, state)
        elif state is not None:
            # This is only a commit index. It goes into the next group, and no client waits for it until then.
            self._late = (ready.number, state)
        self._unreported.append((ready.number, ready.must_sync))
        if ready.snapshot is not None:
            self._installing = (ready.number, ready.snapshot.index)
            self.install(ready.snapshot, partial(self._installed, ready.snapshot.index))
        if ready.must_sync:
            self._last_append = now
            self.marked = False
            # With one operation in flight and no peers there is no work to do until the disk has finished.
            if self.proposer.inflight == 1 and not self.proposer.queued and self.link.alone:
                return self.log.submit(self.kv.writer)
            self.log.submit()
        return False

    def _durable(self, synced: int) -> None:
        """Reports every persisted Ready to the core: those up to `synced`, and the following ones that need no sync."""
        last = 0
        waiting = self._unreported
        if synced > self._synced:
            self._synced = synced
        while waiting and (waiting[0][0] <= self._synced or not waiting[0][1]):
            if self._installing is not None and waiting[0][0] >= self._installing[0]:
                # The contents of a snapshot count as persisted, and later entries may be applied, when the engine holds
                # them.
                break
            last = waiting.popleft()[0]
        if last:
            self.raw.on_persisted(last)

    def _installed(self, index: int) -> None:
        """The engine now holds the contents of the snapshot at `index`."""
        if self._installing is None or self._installing[1] != index:
            # A newer snapshot came meanwhile.
            return
        self._installing = None
        self._images = None
        # Entries that were applied and not written are in the snapshot, too.
        self._written()
        self.applier.release()
        self.applier.store.reload()
        self.applier.reload()
        self.committed.replaced()
        self._passed(index)
        self._durable(self._synced)

    # ---- from the log to the state

    def _apply(self, ready: Ready, now: float) -> None:
        if self.points.active:
            self.points.hit("apply.before")
        self._images, self._at = ready.committed_images, 0
        self._apply_on(now)

    def _apply_on(self, now: float) -> None:
        """Applies the entries handed out, in the order of the log, up to the end or a membership change
        that must wait.
        """
        images, applier = self._images, self.applier
        if self.raw.restoring:
            # The core works with the snapshot's membership already, and the remaining entries are in the snapshot.
            self._images = None
            return
        while True:
            if self.committed.due is not None:
                if not self._change_may_take_effect(applier.applied_index):
                    break
                self.committed.enter()
            if self._at == len(images):
                self._images = None
                break
            self._at = applier.apply_images(images, self._at, self._budgets.part(self._budgets.apply, self._spent))
            self._spent += applier.cost
            if applier.halted:
                break
            if self._at == len(images) or applier.pause:
                continue
            entry, behind = decode_entry(images, self._at)
            if not self._change_may_take_effect(entry.index):
                break
            self.committed.apply(entry)
            applier.passed(entry.index, entry.term)
            self._at = behind
            if self.points.active:
                self.points.hit("apply.member")
        self._unwritten = applier.applied_index if applier.applied_index > self.raw.applied else 0
        if self._unwritten or applier.halfway:
            self._commit(now)
        else:
            self.raw.apply_held = self._images is not None

    def _change_may_take_effect(self, index: int) -> bool:
        """Whether the commit index that allows the membership change at entry `index` is durable here.

        If it is not, the log is asked to sync it and reports through `on_disk`. Without this rule a crash could take
        the member back to the previous membership. By its rules the member might find no quorum any more, or a quorum
        that the others do not know of.
        """
        if self.log.durable_commit >= index:
            return True
        if self._commit_asked < index:
            assert self._hard_state is not None and self._hard_state.commit >= index, "committed, and nobody said so"
            self.log.save_commit(self._hard_state)
            self._commit_asked = self._hard_state.commit
            self._late = None
            self.marked = False
            self.log.submit()
        return False

    def _commit(self, now: float) -> None:
        """Lets the engine write what is applied, and answers the waiting callers. A busy engine postpones both.

        In the middle of an entry the engine's log position must not move. Callers whose entries come before a long
        operation need not wait for its end: a majority has these entries in its log, and readers see them.
        """
        applier = self.applier
        try:
            if applier.halfway:
                applier.relieve()
            else:
                applier.commit()
        except errors.EngineBusy as busy:
            self.engine_busy += 1
            self.raw.apply_held = True
            self.retry_at = now + BUSY_RETRY
            if self.busy_since is None:
                self.busy_since = now
            if isinstance(busy, errors.EngineFull):
                self.reads.give_up(errors.StateBehind)
            return
        last = self._unwritten
        self._written()
        if applier.halfway:
            if applier.lengthy:
                applier.release()
                self._passed(applier.applied_index)
            return
        if self.points.active:
            self.points.hit("apply.after")
        if last:
            self.raw.on_applied(last)
        applier.release()
        self._passed(applier.applied_index)

    def _written(self) -> None:
        """The engine now has every applied entry."""
        self._unwritten = 0
        self.retry_at = self.busy_since = None
        self.raw.apply_held = self._images is not None

    def _passed(self, last: int) -> None:
        """Entry `last` has been applied: settles accounts and serves the reads that waited for it."""
        self.pending.passed(last)
        if self.reads.confirmed_rounds:
            self.reads.passed(last)
