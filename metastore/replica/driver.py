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

What every put passes is compiled (`_core/driver_path.pyx`), and what is rare is here. The driver's other jobs have
files of their own, which know nothing of the driver: the rounds of reads (read_rounds.py), changes of the membership
(membership_changes.py), and the waiting operations (pending.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from .. import errors
from .._core.batch import frame
from .._core.driver_budgets import Budgets
from .._core.driver_path import REFUSALS, DriverPath
from .._core.entry import decode_entry
from .._core.raft_wire import WITHDRAWN
from ..ports import NO_POINTS
from .membership_changes import CommittedChanges, MembershipChanges
from .pending import Pending
from .read_rounds import ReadRounds

if TYPE_CHECKING:
    from .._core.batch import BatchProposer
    from .._core.codec import PayloadCodec
    from .._core.kv_server import KVServer
    from .._core.mvcc_apply import Applier
    from .._core.raft import RawNode
    from .._core.raft_types import Snapshot
    from .._core.waiter import Waiter
    from ..ports import DriverLog, Points
    from .peer_link import PeerLink
    from .roster import Roster, RosterState

BUSY_RETRY = 0.005  # seconds until an engine that was busy is tried again

#: Called with a snapshot from a Ready, and a function to call in the driver's thread when the engine has its contents.
Install = Callable[["Snapshot", Callable[[], None]], None]


def no_snapshots(snapshot: Snapshot, _done: Callable[[], None]) -> None:
    """The `Install` of a member that receives no snapshots."""
    raise errors.DamagedData(f"a snapshot at entry {snapshot.index} was received, and nobody can install it")


class Driver(DriverPath):
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
    link: PeerLink

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
        budgets = budgets if budgets is not None else Budgets()
        super().__init__(raw, log, applier, proposer, codec, kv, link, points, budgets)
        self.roster = roster
        self.request_timeout = request_timeout
        self.idle_mark_after = idle_mark_after
        self.install = install
        self.reads = self.reads_type(raw, kv)
        self.changes = MembershipChanges(raw, roster, codec, kv.waiters, link)
        self.committed = CommittedChanges(raw, roster, applier, members_changed, roster_mended)
        self.pending = Pending(kv, proposer, link, self.reads, self.changes.take, request_timeout)
        self._holding = False
        self._commit_asked = 0  # the commit index that the log was asked to make durable
        self.engine_busy = 0  # how often the engine was busy

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
            self.kv.waiters or self.kv.reads or self.proposer.queued or self._handed != self._reported
            or self.reads.waiting or self._unwritten or self._images is not None or self.tell_at is not None
        )  # fmt: skip

    @property
    def whole(self) -> bool:
        """Whether the engine holds every applied entry, and no entry in part."""
        return self.retry_at is None and self.applier.whole

    def campaign(self) -> None:
        """Stands for election at once, as a sole voter does at its start."""
        self.raw.campaign()

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
                self.log.append(self._late_number, None, self._late, False)
                self._late = None
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

    # ---- from peers and clients; `receive` takes the messages, `receive_forward` what is forwarded

    def propose(self, operations: list[bytes]) -> bool:
        """Log operations that the leader itself wants, as one entry. Whether they are in its log now.

        They are never queued: what is queued goes to the next leader when leadership is lost. The next `pump` has the
        entry written.
        """
        if not self.is_leader:
            return False
        try:
            self.raw.propose(self.codec.encode(frame(operations)))
        except REFUSALS:
            return False
        return True

    def unreachable(self, ident: int) -> None:
        """A message for member `ident` was lost."""
        self.changes.lost(ident)
        self.raw.report_unreachable(ident)

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

    # ---- a snapshot that a leader sent

    def _save_position(self, snapshot: Snapshot) -> None:
        """Lets the log begin behind a snapshot. Its file is complete and synced, so a start after a crash at this point
        uses it."""
        self.log.save_snapshot_position(snapshot.index, snapshot.term, snapshot.conf_state.encode())

    def _begin_install(self, number: int, snapshot: Snapshot) -> None:
        """Has a snapshot installed, which came with this Ready."""
        self._installing = (number, snapshot.index)
        self.install(snapshot, partial(self._installed, snapshot.index))

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

    # ---- applying

    def _take_effect(self) -> bool:
        """Lets the core work with the membership that is due. Returns whether that is possible now."""
        if not self._change_may_take_effect(self.applier.applied_index):
            return False
        self.committed.enter()
        return True

    def _carry_out_change(self) -> bool:
        """Carries out the membership change in front of which applying has stopped. Returns whether that is possible
        now."""
        assert self._images is not None, "something is being applied"
        entry, behind = decode_entry(self._images, self._at)
        if not self._change_may_take_effect(entry.index):
            return False
        self.committed.apply(entry)
        self.applier.passed(entry.index, entry.term)
        self._at = behind
        if self.points.active:
            self.points.hit("apply.member")
        return True

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

    def _engine_busy(self, busy: errors.EngineBusy, now: float) -> None:
        """The engine took nothing: holds back applying until a later attempt."""
        self.engine_busy += 1
        self.raw.apply_held = True
        self.retry_at = now + BUSY_RETRY
        if self.busy_since is None:
            self.busy_since = now
        if isinstance(busy, errors.EngineFull):
            self.reads.give_up(errors.StateBehind)
