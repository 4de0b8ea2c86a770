"""The Ready driver: the order of persist, send, apply and reply.

Pure: no socket, file, thread or clock. The node drives it with real parts, the simulator with simulated ones;
acknowledgements before sync are born in this order, so there is one copy of it.

One turn (`pump`), see DESIGN "The life of a put":

1. Batches that are due become proposals, or, on a follower, go to the leader as raw operations. An idle disk makes
   everything due, so a lone client never waits for a timer; a busy one lets the next group gather.
2. For every Ready of the Raft core: first its entries go to the log and the disk is started, then its messages go
   out (the core has put nothing into them that depends on what is not yet durable), then committed entries are
   applied, then those who wait are answered. The disk so works on the next group while the finished one is applied.
3. `on_disk` tells the core what is durable. Only then does a sole voter's own vote count, the commit index move, and
   a reply leave.

Entries are applied strictly in the order of the log, membership changes among them, so that what an entry does never
hangs on where a Ready ends. In front of a membership change the applying stops until the commit index that allows it is
durable: no crash may take a member back to an older membership than it has worked with.

An engine may be busy (EngineBusy): then nothing further is applied, and what is applied stays in the store's overlay,
where reads see it, until a later attempt to write it succeeds. The log, the messages and the reads go on meanwhile.
The replies of what is applied leave at the next tick: their outcome is certain, for the log of a majority has it. All
other writes wait, no longer than their deadline, and the bounds on what is in flight push back.

Who waits is answered exactly once: by its operation being applied here, wherever it was proposed; by a refusal of
the leader (then it was surely not logged); or by a timeout or a change of leader (then it may have been logged, and
is never sent again).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import errors
from .._core.batch import frame, unframe
from .._core.entry import decode_entry
from .._core.op import LEVEL, MEMBER, decode_op, level_of
from .._core.raft_types import ConfChangeError, ProposalDropped, decode_conf_change
from .._core.raft_wire import REFUSALS
from ..settings import MAX_BATCH_OPS
from .membership_changes import MAX_CHANGES, Changes
from .roster import Change, Roster

if TYPE_CHECKING:
    from .._core.batch import BatchProposer
    from .._core.codec import PayloadCodec
    from .._core.kv_server import KVServer
    from .._core.mvcc_apply import Applier
    from .._core.raft import RawNode
    from .._core.raft_types import ConfState, Message, Ready, Snapshot
    from ..ports import Transport
    from .roster import RosterState

APPLY_BUDGET = 32768  # units (_core/work) that applying may cost in one call of pump: 3 ms
PUMP_READIES = 8  # at most this many Readies with committed entries in one call of pump
LEADER_GRACE = 1.0  # seconds that operations may still be applied after the leader they went to is gone
BUSY_RETRY = 0.005  # seconds until an engine that was busy is tried again
# How far ahead of ours the term of a message may be, and any term: no cluster holds so many elections, and one that
# took over the last number there is could never hold another. A member without a term yet has been away for ever.
MAX_LEAP = 1 << 32
MAX_TERM = 1 << 62
READ_RETRY = 0.5  # seconds until an unanswered read round is asked for again: its messages may be lost


def refusal_code(error: errors.ApiError) -> int:
    """What stands for `error` on the wire."""
    return REFUSALS.index(type(error) if type(error) in REFUSALS else errors.LeaderChanged)


class Nobody:
    """The transport of a member that is alone."""

    def send(self, messages: list[Message]) -> None:
        """There is nobody."""

    def forward(self, to: int, frame: bytes) -> bool:
        """There is nobody."""
        return False

    def refuse(self, to: int, code: int, ids: list[int]) -> None:
        """There is nobody."""


def _no_snapshots(snapshot: Snapshot, _done: Callable[[], None]) -> None:
    raise errors.DamagedData(f"a snapshot at entry {snapshot.index} was received, and nobody can install it")


class Driver:
    """Carries Readies of one Raft node to its log, peers, state and waiters.

    `log` is the write-ahead log (see storage/wal.py); `request_timeout` and `idle_mark_after`
    are in seconds; `passing` is told the failpoints "apply.before", "apply.after" and, behind a membership change,
    "apply.member"; `members_changed` is called after a change of the roster was applied, `roster_mended` with the one
    that this member had and the one that it took over from the leader. Not thread-safe: one thread calls all methods.
    """

    apply_budget = APPLY_BUDGET
    _budget = 0  # what is left of it in this `pump`
    # Entry images that are to be applied, and the offset up to which they are; None: none.
    _images: Any = None
    _at = 0
    _conf_due: ConfState | None = None  # a membership that the core is to work with
    _hard_state: Any = None  # the newest that a Ready had
    _commit_asked = 0  # the commit index that the log was asked to make durable

    def __init__(
        self,
        raw: RawNode,
        log: Any,
        applier: Applier,
        proposer: BatchProposer,
        codec: PayloadCodec,
        kv: KVServer,
        roster: Roster,
        transport: Transport,
        *,
        request_timeout: float,
        idle_mark_after: float = 0.1,
        passing: Callable[[str], None] = lambda _point: None,
        members_changed: Callable[[], None] = lambda: None,
        roster_mended: Callable[[RosterState, RosterState], None] = lambda _before, _told: None,
    ) -> None:
        self.raw = raw
        self.log = log
        self.applier = applier
        self.proposer = proposer
        self.codec = codec
        self.kv = kv
        self.roster = roster
        self.transport = transport
        self.request_timeout = request_timeout
        self.idle_mark_after = idle_mark_after
        self.passing = passing
        self.members_changed = members_changed
        self.roster_mended = roster_mended
        self.leader_id = 0
        #: Whether this member takes part in nothing yet: its clock stands still, so it does not stand for election.
        self.holding = False
        #: Called with a snapshot out of a Ready, and with what is to be called in this thread when the engine has it.
        self.install: Callable[[Snapshot, Callable[[], None]], None] = _no_snapshots
        self._installing: tuple[int, int] | None = None  # (Ready's number, index)
        self._synced = 0
        #: When the first `pump` tries the engine again, which was busy (seconds); None: it is not.
        self.retry_at: float | None = None
        self._unwritten = 0  # the last entry applied, while the engine does not have it
        self.engine_busy = 0  # how often it was
        # Where nothing has changed since the life before, no Ready brings a hard state that would tell.
        self.term = applier.store.raft_term = raw.term
        self.stopping = False
        self.backlog = False
        applier.on_member = self._apply_member
        # Readies handed out and not yet reported to the core: (number, whether a sync covers it).
        self._unreported: deque[tuple[int, bool]] = deque()
        # Our own proposals in the order of their entries: (index, operations, bytes) for the back pressure's account.
        self._proposed: deque[tuple[int, int, int]] = deque()
        # Batches sent to a leader: (all their request ids are below this, operations, bytes).
        self._forwarded: deque[tuple[int, int, int]] = deque()
        # When whose patience ends: (deadline, all request ids below this, so many reads since the start).
        self._marks: deque[tuple[float, int, int]] = deque()
        self._orphans: deque[tuple[float, int]] = deque()
        self._silent: set[int] = set()
        # Changes of the membership that were asked for here and wait for a leader: (operation, deadline).
        self._asked: deque[tuple[bytes, float]] = deque()
        self.changes = Changes(raw, roster, codec, self._silent, self._refuse_change)
        self._round: list[Any] = []
        # Not from 0: a late answer to a round of the life before must not be taken for one to a round of this life.
        self._round_number = kv.next_id
        self._round_first = 0
        self._round_again = 0.0
        # Reads whose round is confirmed and whose index is not applied yet: (index, reads), the oldest first.
        self._waiting_reads: deque[tuple[int, list[Any]]] = deque()
        self._late: tuple[int, Any] | None = None  # (Ready's number, hard state) not handed to the log yet
        self._last_append = 0.0
        self._marked = True

    # ---- what the owner asks

    @property
    def is_leader(self) -> bool:
        """Whether this node is the leader it knows of."""
        return self.leader_id != 0 and self.leader_id == self.raw.id

    @property
    def quiet(self) -> bool:
        """Whether nothing is queued, in the log's hands or waited for."""
        return not (
            self.kv.waiters or self.proposer.queued or self._unreported or self._round or self._waiting_reads
            or self._unwritten or self._images is not None
        )  # fmt: skip

    @property
    def whole(self) -> bool:
        """Whether the engine holds what is applied, and of no entry a part."""
        return self.retry_at is None and self.applier.whole

    def campaign(self) -> None:
        """Stand for election at once: what a sole voter does at its start."""
        self.raw.campaign()

    def pump(self, now: float) -> None:
        """Do what can be done at `now` (seconds, monotonic) without waiting for the disk or a peer.

        After PUMP_READIES Readies with committed entries it stops and leaves `backlog` set, so that a long replay at
        start does not keep the caller from its sockets, ticks and signals.
        """
        applied = 0
        self._budget = self.apply_budget
        if self.retry_at is not None and self.retry_at <= now:
            self._commit(now)
        if self._images is not None and self.retry_at is None:
            self._apply_on(now)
        self._propose(now)
        self._start_reads(now)
        while self.raw.has_ready():
            if applied == PUMP_READIES:
                self.backlog = True
                return
            ready = self.raw.ready()
            if self._carry(ready, now):
                self._durable(self.log.settle())
            applied += ready.committed_last > 0
            self._propose(now)
        self.backlog = self._images is not None and self.applier.halted and self.retry_at is None

    def on_disk(self, now: float) -> None:
        """The log finished a group: report what is durable, then go on. Raises DiskFailed if it failed."""
        # The log does not go on by itself: what gathered meanwhile is to be in the very next group.
        self._durable(self.log.poll(start=False))
        self.pump(now)
        self.log.submit()

    def tick(self, now: float) -> None:
        """One Raft tick: elections and heartbeats, timeouts, the marker of an idle log."""
        if not self.holding:
            self.raw.tick(now)
        self._expire(now)
        if (
            not self._marked
            and self.log.idle
            and not self.proposer.queued
            and (self.stopping or now - self._last_append >= self.idle_mark_after)
        ):
            if self._late is not None:
                number, state = self._late
                self._late = None
                self.log.append(number, None, state, False)
            self.log.mark()
            self._marked = True
        self.pump(now)

    def stop(self) -> None:
        """From now on everything queued is due at once; `quiet` tells when it is done."""
        self.stopping = True

    def abandon(self) -> None:
        """Answer everyone who still waits, at the end of a drain or when the disk failed: a write may have been logged,
        so its answer must leave the outcome open; a read was surely not served. What is applied has its result, whether
        the engine took it or not: it is in the log of a majority."""
        self.applier.release()
        self._fail_writes(self.kv.next_id, errors.Timeout)
        self._fail_reads(self.kv.reads_begun, errors.Stopped)

    # ---- from peers

    def receive(self, message: Message) -> None:
        """A Raft message of a peer. Raises FormatError if it is damaged (the peer's fault, nothing has changed)."""
        if message.term > MAX_TERM or (self.raw.term and message.term > self.raw.term + MAX_LEAP):
            raise errors.FormatError(f"a message of term {message.term}, after term {self.raw.term} here")
        if self._silent:
            self._silent.discard(message.from_)
        self.raw.step(message)

    def unreachable(self, ident: int) -> None:
        """Something for member `ident` was lost."""
        self._silent.add(ident)
        self.raw.report_unreachable(ident)

    def receive_forward(self, sender: int, batch: bytes, now: float) -> None:
        """Operations that `sender` wants proposed. Raises FormatError if they cannot be read."""
        refused: dict[int, list[int]] = {}
        for data in unframe(batch, MAX_BATCH_OPS):
            operation = decode_op(data)
            try:
                self._take_forwarded(sender, data, operation, now)
            except errors.ApiError as error:
                refused.setdefault(refusal_code(error), []).append(operation.request_id)
        for code, ids in refused.items():
            self.transport.refuse(sender, code, ids)

    def _take_forwarded(self, sender: int, data: bytes, operation: Any, now: float) -> None:
        if not self.is_leader:
            if operation.kind == MEMBER:
                raise errors.LeaderChanged()
            # The sender has not heard yet that leadership went elsewhere: the operation goes on to the leader that this
            # member knows of, or waits for one. It cannot go round: who leads in a member's eyes has led in that
            # member's term, and passes on only to the leader of a later one.
            self.proposer.add(data, now)
            return
        if self.kv.closed_to_writes is not None:
            raise self.kv.closed_to_writes
        if self.kv.cluster_level < LEVEL and level_of(data) > self.kv.cluster_level:
            raise errors.NotCapable()
        if operation.kind == MEMBER:
            self.changes.queue(sender, data, now + self.request_timeout)
        else:
            self.kv.check_forwarded(operation.kind, operation.request)
            self.proposer.add(data, now)

    def receive_refusal(self, code: int, ids: list[int]) -> None:
        """The leader did not log these operations of ours."""
        error = REFUSALS[code] if code < len(REFUSALS) else errors.LeaderChanged
        for ident in ids:
            waiter = self.kv.waiters.pop(ident, None)
            if waiter is not None:
                waiter.fail(error())

    # ---- membership

    def change_members(self, operation: bytes, now: float) -> None:
        """Have an encoded operation of kind MEMBER carried out; its waiter is in `kv.waiters` already. Like a put it
        waits for a leader, and for a connection to it, until the waiter's patience ends.

        Raises TooManyRequests (MAX_CHANGES) when it is surely not logged; the caller takes the waiter out again."""
        if len(self._asked) >= MAX_CHANGES:
            raise errors.TooManyRequests()
        self._asked.append((operation, now + self.request_timeout))
        self._ask_changes()

    def _ask_changes(self) -> None:
        """Have our own changes judged by the leader, whoever that is."""
        while self._asked:
            operation, deadline = self._asked[0]
            if decode_op(operation).request_id in self.kv.waiters:
                if self.is_leader:
                    try:
                        self.changes.queue(self.raw.id, operation, deadline)
                    except errors.ApiError as error:
                        self._refuse_change(self.raw.id, operation, error)
                elif not self.leader_id or not self.transport.forward(self.leader_id, frame([operation])):
                    return
            self._asked.popleft()

    def _refuse_change(self, sender: int, operation: bytes, error: errors.ApiError) -> None:
        ident = decode_op(operation).request_id
        if sender != self.raw.id:
            self.transport.refuse(sender, refusal_code(error), [ident])
            return
        waiter = self.kv.waiters.pop(ident, None)
        if waiter is not None:
            waiter.fail(error)

    def _apply_member(self, request: bytes) -> bytes:
        """A committed operation on the roster that is no entry of its own type."""
        change = Change.decode(request)
        if change.roster is None:
            self.roster.apply(change)
        else:
            self._restate(change.roster)
        self.members_changed()
        return b""

    def _restate(self, told: RosterState) -> None:
        """What the leader says the roster is, at this place in the log."""
        before = self.roster.restate(told)
        if before is None:
            return
        self.roster_mended(before, told)
        if told.conf_state != (self._conf_due or self.raw.conf_state):
            # Nothing behind this entry is applied before the core works with it.
            self._conf_due = told.conf_state
            self.applier.pause = True

    def _apply_conf_change(self, entry: Any) -> None:
        change = decode_conf_change(entry.type, entry.data)
        if not change.context:
            self.roster.set_conf_state(self.raw.apply_conf_change(change))
            return
        operation = decode_op(change.context)
        try:
            member_change = Change.decode(operation.request)
            self.roster.check(member_change)
            self.roster.apply(member_change, self.raw.apply_conf_change(change))
        except (errors.ApiError, ConfChangeError) as error:
            # Decided by the log alone, so the same on every node; Raft's membership has not changed either.
            error = error if isinstance(error, errors.ApiError) else errors.Unhealthy()
            self.applier.answer(operation.request_id, error)
            return
        self.members_changed()
        self.applier.answer(operation.request_id, b"")

    # ---- writes

    def _propose(self, now: float) -> None:
        if self._asked:
            self._ask_changes()
        if not self.is_leader:
            if self.leader_id and self.proposer.queued:
                self._forward(now)
            return
        self.changes.judge(now)
        proposer = self.proposer
        while proposer.queued:
            payload = proposer.take(now, self.log.idle and not self._unreported, self.stopping, self.codec)
            if payload is None:
                return
            try:
                index = self.raw.propose(payload)
            except (ProposalDropped, errors.NotLeader, errors.NoLeader):
                # The core's bound on what is not committed yet, or leadership is on its way to somebody else: the
                # batch stays first in line.
                proposer.untake()
                return
            self._proposed.append((index, proposer.taken_count, proposer.taken_bytes))

    def _forward(self, now: float) -> None:
        """Send what is queued to the leader, which does the batching; only operations that were never sent."""
        while (batch := self.proposer.take(now, True, True)) is not None:
            if not self.transport.forward(self.leader_id, batch):
                # Surely not sent, so it may wait for this leader's connection, or for the next leader.
                self.proposer.untake()
                return
            self._forwarded.append((self.kv.next_id, self.proposer.taken_count, self.proposer.taken_bytes))

    def _carry(self, ready: Ready, now: float) -> bool:
        """Persist, send, apply and reply for one Ready, in this order; whether the log has news already."""
        news = self._persist(ready, now)
        if ready.soft_state is not None:
            self._lead_changed(ready.soft_state.lead, now)
        if ready.messages:
            self.transport.send(ready.messages)
        if ready.committed_last:
            self._apply(ready, now)
        for state in ready.read_states:
            self._round_confirmed(state)
        if ready.dropped_reads:
            self._round_again = now
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
            # Its file is complete and synced: should the process die now, the next start takes it from there.
            snapshot = ready.snapshot
            self.log.save_snapshot_position(snapshot.index, snapshot.term, snapshot.conf_state.encode())
        if ready.must_sync:
            if state is None and self._late is not None:
                state = self._late[1]
            self._late = None
            self.log.append(ready.number, ready.entry_images, state)
        elif state is not None:
            # A commit index only. It rides with the next group, and until then keeps no client waiting.
            self._late = (ready.number, state)
        self._unreported.append((ready.number, ready.must_sync))
        if ready.snapshot is not None:
            self._installing = (ready.number, ready.snapshot.index)
            self.install(ready.snapshot, partial(self._installed, ready.snapshot.index))
        if ready.must_sync:
            self._last_append = now
            self._marked = False
            # With one operation in flight and no peers there is nothing to be done before the disk is.
            if self.proposer.inflight == 1 and not self.proposer.queued and isinstance(self.transport, Nobody):
                return bool(self.log.submit(True))
            self.log.submit()
        return False

    def _durable(self, synced: int) -> None:
        """Report every Ready that is persisted: those up to `synced`, and those behind them that need no sync."""
        last = 0
        waiting = self._unreported
        self._synced = max(self._synced, synced)
        while waiting and (waiting[0][0] <= self._synced or not waiting[0][1]):
            if self._installing is not None and waiting[0][0] >= self._installing[0]:
                # What a snapshot holds counts as persisted, and what follows may be applied, when the engine holds it.
                break
            last = waiting.popleft()[0]
        if last:
            self.raw.on_persisted(last)

    def _installed(self, index: int) -> None:
        """The engine's contents are those of the snapshot at `index` now."""
        if self._installing is None or self._installing[1] != index:
            # A newer one came meanwhile.
            return
        self._installing = None
        self._images = self._conf_due = None
        # What was applied and not written is in the snapshot, too.
        self._written()
        self.applier.release()
        self.applier.store.reload()
        self.applier.reload()
        self.roster.load()
        self.members_changed()
        self._passed(index)
        self._durable(self._synced)

    def _apply(self, ready: Ready, now: float) -> None:
        self.passing("apply.before")
        self._images, self._at = ready.committed_images, 0
        self._apply_on(now)

    def _apply_on(self, now: float) -> None:
        """Apply what was handed out, strictly in the order of the log, up to its end or to a membership change whose
        turn it is not yet."""
        images, applier = self._images, self.applier
        if self.raw.restoring:
            # The core works with the snapshot's membership already, and what is left here is in the snapshot.
            self._images = None
            return
        while True:
            if self._conf_due is not None:
                if not self._change_may_take_effect(applier.applied_index):
                    break
                self.raw.enter_conf(self._conf_due)
                self._conf_due = None
            if self._at == len(images):
                self._images = None
                break
            self._at = applier.apply_images(images, self._at, max(1, self._budget))
            self._budget -= applier.cost
            if applier.halted:
                break
            if self._at == len(images) or applier.pause:
                continue
            entry, behind = decode_entry(images, self._at)
            if not self._change_may_take_effect(entry.index):
                break
            self._apply_conf_change(entry)
            applier.passed(entry.index, entry.term)
            self._at = behind
            self.passing("apply.member")
        self._unwritten = applier.applied_index if applier.applied_index > self.raw.applied else 0
        if self._unwritten or applier.halfway:
            self._commit(now)
        else:
            self.raw.apply_held = self._images is not None

    def _change_may_take_effect(self, index: int) -> bool:
        """Whether the commit index that allows the membership change of entry `index` is durable here; if not, the
        log is asked to make it so, and tells through `on_disk`.

        Else a crash could take the member back to the membership before, by whose rules it might find no quorum any
        more, or one that others know nothing of."""
        if self.log.durable_commit >= index:
            return True
        if self._commit_asked < index:
            assert self._hard_state is not None and self._hard_state.commit >= index, "committed, and nobody said so"
            self.log.save_commit(self._hard_state)
            self._commit_asked = self._hard_state.commit
            self._late = None
            self._marked = False
            self.log.submit()
        return False

    def _commit(self, now: float) -> None:
        """Have the engine write what is applied, and answer who waits for it; all of that later if it is busy.

        In the middle of an entry the engine's log position must not move. Who waits for what is before a long operation
        need not wait for its end: it is in the log of a majority, and readers see it."""
        applier = self.applier
        try:
            if applier.halfway:
                applier.relieve()
            else:
                applier.commit()
        except errors.EngineBusy:
            self.engine_busy += 1
            self.raw.apply_held = True
            self.retry_at = now + BUSY_RETRY
            return
        last = self._unwritten
        self._written()
        if applier.halfway:
            if applier.lengthy:
                applier.release()
                self._passed(applier.applied_index)
            return
        self.passing("apply.after")
        if last:
            self.raw.on_applied(last)
        applier.release()
        self._passed(applier.applied_index)

    def _written(self) -> None:
        """Nothing is applied that the engine does not have."""
        self._unwritten = 0
        self.retry_at = None
        self.raw.apply_held = self._images is not None

    def _passed(self, last: int) -> None:
        """The state has come to entry `last`: settle accounts, serve the reads that waited for it."""
        while self._proposed and self._proposed[0][0] <= last:
            _, count, size = self._proposed.popleft()
            self.proposer.release(count, size)
        if self._forwarded:
            self._settle_forwarded()
        while self._waiting_reads and self._waiting_reads[0][0] <= last:
            self.kv.serve_reads(self._waiting_reads.popleft()[1])

    def _settle_forwarded(self) -> None:
        """Give back the account of forwarded batches none of whose operations is waited for any more."""
        oldest = next(iter(self.kv.waiters), self.kv.next_id)
        while self._forwarded and self._forwarded[0][0] <= oldest:
            _, count, size = self._forwarded.popleft()
            self.proposer.release(count, size)

    # ---- reads

    def _start_reads(self, now: float) -> None:
        """Begin a ReadIndex round for all reads gathered; one round is under way at a time."""
        if not self._round:
            if not self.kv.reads:
                return
            self._round = self.kv.take_reads()
            self._round_first = self._round_number + 1
            self._round_again = now
        if self._round_again <= now and self.leader_id:
            self._round_again = now + READ_RETRY
            self._round_number += 1
            # A leader may refuse for the moment (too many, leadership in doubt); the round is then asked for again.
            try:
                self.raw.read_index(self._round_number.to_bytes(8, "little"), now)
            except (errors.NoLeader, errors.TooManyRequests):
                return

    def _round_confirmed(self, state: Any) -> None:
        if not self._round or int.from_bytes(state.request_ctx, "little") < self._round_first:
            # A late answer, to a round that was over before the reads of this one came in.
            return
        reads, self._round = self._round, []
        if state.index <= self.applier.applied_index:
            self.kv.serve_reads(reads)
        else:
            self._waiting_reads.append((state.index, reads))

    # ---- leaders and patience

    def _lead_changed(self, lead: int, now: float) -> None:
        before, self.leader_id = self.leader_id, lead
        if before == lead:
            return
        self._round_again = now
        for asked in self.changes.drop():
            if asked.sender == self.raw.id:
                # It never left this member, so it may wait for the next leader.
                self._asked.append((asked.operation, asked.deadline))
            else:
                self._refuse_change(asked.sender, asked.operation, errors.LeaderChanged())
        if before:
            # What went to the old leader may still be committed by the new one; it gets a little time for that.
            self._orphans.append((now + LEADER_GRACE, self.kv.next_id))
            while self._proposed:
                _, count, size = self._proposed.popleft()
                self.proposer.release(count, size)

    def _expire(self, now: float) -> None:
        """Fail what was admitted `request_timeout` ago; the granularity is one tick."""
        if self.retry_at is not None:
            self.applier.release()
        self._marks.append((now + self.request_timeout, self.kv.next_id, self.kv.reads_begun))
        while self._orphans and self._orphans[0][0] <= now:
            limit = self._orphans.popleft()[1]
            if self.leader_id:
                self._fail_writes(limit, errors.LeaderChanged)
        while self._marks and self._marks[0][0] <= now:
            _, limit, reads = self._marks.popleft()
            self._fail_writes(limit, errors.Timeout)
            self._fail_reads(reads, errors.Timeout)
        self.kv.expire(now - self.request_timeout)
        if self._forwarded:
            self._settle_forwarded()

    def _fail_writes(self, below: int, error: type[errors.ApiError]) -> None:
        """Answer those who wait with request ids under `below`; ids rise and dicts keep their order, so they are the
        first ones."""
        waiters = self.kv.waiters
        late = []
        for ident in waiters:
            if ident >= below:
                break
            late.append(ident)
        for ident in late:
            waiters.pop(ident).fail(error())

    def _fail_reads(self, begun: int, error: type[errors.ApiError]) -> None:
        """Answer those of the first `begun` reads since the start that still wait, whatever for. They are answered in
        the order in which they came, so those are the oldest ones."""
        late = begun - (self.kv.reads_begun - self.kv.reads_waiting)
        while late > 0 and self._waiting_reads:
            reads = self._waiting_reads[0][1]
            gone = reads[:late]
            del reads[:late]
            late -= len(gone)
            self.kv.fail_reads(gone, error)
            if not reads:
                self._waiting_reads.popleft()
        for reads in (self._round, self.kv.reads):
            if late > 0:
                gone = reads[:late]
                del reads[:late]
                late -= len(gone)
                self.kv.fail_reads(gone, error)
