"""The compiled path of an ordinary Ready through the driver: what every put passes, on a leader and on a follower.

`replica/driver.py` has the contract of a turn, and its `Driver` is the only subclass that a member uses. It leaves this
path for what is rare: a change of the leader, membership changes, snapshots, a busy engine. What a put costs here is
mostly the way through cold caches, and the interpreter is what takes most of those.

Compiled code does not see the methods of a subclass, except those that are declared `cpdef`. The simulator plants bugs
in these.
"""

from libc.stdint cimport uint64_t

from metastore._core.batch cimport BatchProposer
from metastore._core.codec cimport PayloadCodec
from metastore._core.driver_budgets cimport Budgets
from metastore._core.driver_parts cimport JudgeFields
from metastore._core.entry cimport HardState
from metastore._core.kv_server cimport KVServer
from metastore._core.mvcc_apply cimport Applier
from metastore._core.raft cimport RawNode
from metastore._core.raft_types cimport Message, Ready

from metastore import errors
from metastore._core.raft_types import ProposalDropped

cdef enum:
    PUMP_READIES = 8  # at most this many Readies with committed entries in one call of pump

cdef double ENOUGH = 0.75  # the share of a turn that must be left for one more budget of applying
# Seconds for which a leader holds back a commit index that nobody waits for. It is 10 ms, and the loop's timers may be
# 1 ms late.
cdef double HOLD_BACK = 0.009
TELL_AFTER = HOLD_BACK
# A message's term may be so far ahead of ours (MAX_LEAP), and no term may be beyond MAX_TERM. No cluster holds so many
# elections, and a cluster that took over the last possible term could never hold another election. A member without a
# term may have been away for any length of time, so only MAX_TERM applies to it.
cdef uint64_t LEAP = <uint64_t>1 << 32
cdef uint64_t LAST_TERM = <uint64_t>1 << 62
MAX_LEAP, MAX_TERM = LEAP, LAST_TERM
REFUSALS = (ProposalDropped, errors.NotLeader, errors.NoLeader)


cdef class DriverPath:
    """The base of `replica.driver.Driver`, which makes `reads`, `changes`, `committed` and `pending`.

    It also has the methods for what is rare: `_lead_changed`, `_save_position`, `_begin_install`, `_take_effect`,
    `_carry_out_change` and `_engine_busy`.
    """

    def __init__(self, RawNode raw not None, log, Applier applier not None, BatchProposer proposer not None,
                 PayloadCodec codec not None, KVServer kv not None, link, points, Budgets budgets not None):
        self.raw = raw
        self.log = log
        self.applier = applier
        self.proposer = proposer
        self.codec = codec
        self.kv = kv
        self.link = link
        self.points = points
        self._budgets = budgets
        # If nothing has changed since the previous run of this member, no Ready brings a hard state with these values.
        self.term = applier.store.raft_term = raw.term
        self.marked = True
        self._unsynced = []

    # ---- what the owner calls

    cpdef pump(self, double now):
        """End a turn: do everything that is possible at `now` (seconds, monotonic) without waiting for the disk or a
        peer. News of the disk and a tick in the same turn have used up some of its budget: three times the budget was
        30 ms of RocksDB.

        At its end the log learns whether anybody waits for the disk. If nobody does, the end of the group brings no
        turn, and the next turn takes the group in, which is that of a tick at the latest. So it is on a leader as long
        as no follower has answered. A lone put took 4.2 turns on a leader of three and takes 3.3."""
        cdef int again
        if self.log.has_ended():
            self.on_disk(now)
        else:
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
        if self.log.listen(self.stopping or self.proposer.queued or self.raw.awaits_disk()):
            self.on_disk(now)
            self._spent = 0

    cpdef on_disk(self, double now):
        """The log finished a group: report what is durable, then go on. Raises DiskFailed if the group failed."""
        # The log does not start the next group by itself, so that this group also holds what gathered meanwhile.
        self._durable(self.log.poll(False))
        self._go_on(now)
        self.log.submit()

    def receive(self, Message message not None):
        """Handle a Raft message of a peer. Raises FormatError if it is damaged; then nothing has changed."""
        cdef RawNode raw = self.raw
        if message.term > LAST_TERM or (raw.term and message.term > raw.term + LEAP):
            raise errors.FormatError(f"a message of term {message.term}, after term {raw.term} here")
        if self.changes.judging.silent:
            self.changes.judging.silent.discard(message.from_)
        raw.step(message)

    def receive_forward(self, uint64_t sender, bytes batch not None, double now):
        """Take operations that `sender` wants proposed. Raises FormatError if they cannot be read."""
        self.pending.receive_forward(sender, batch, now, self.leader_id != 0 and self.leader_id == self.raw.id)
        self.raw.hasten(sender)

    # ---- one turn

    cpdef _go_on(self, double now):
        """Do what is possible within the budget that this turn has left.

        After PUMP_READIES Readies with committed entries it stops and sets `backlog`. A long replay at start therefore
        does not keep the caller from its sockets, ticks and signals.
        """
        cdef RawNode raw = self.raw
        cdef Ready ready
        cdef int applied = 0
        cdef bint full = False
        if self.retry_at is not None and self.retry_at <= now:
            self._commit(now)
        if self._images is not None and self.retry_at is None:
            self._apply_on(now)
        self._propose(now)
        if self.proposer.removed:
            self.pending.confirm_withdrawals()
        if self.kv.reads or self.reads.rounds:
            self.reads.start(now, self.leader_id)
        raw.patient = not self.kv.waiters and not self.watched
        if self.tell_at is not None and (self.stopping or now >= self.tell_at):
            raw.tell_commit()
        while raw.has_ready():
            full = applied == PUMP_READIES
            if full:
                break
            ready = raw.ready()
            if self.carry(ready, now):
                self._durable(self.log.settle())
            applied += ready.committed_last > 0
            # What a Ready may have brought about: room for a batch, leadership, or that a change can be judged.
            if self.proposer.queued or self.must_judge(False, now):
                self._propose(now)
        self.backlog = full or (self._images is not None and self.applier.halted and self.retry_at is None)
        if not raw.untold:
            self.tell_at = None
        elif self.tell_at is None or now >= self.tell_at:
            self.tell_at = now + HOLD_BACK

    cdef bint must_judge(self, bint leads, double now) except -1:
        """Whether a membership change waits for its leader, or to be judged by this one."""
        cdef JudgeFields judge = self.changes.judging
        return ((not leads and self.changes.requests) or judge.waiting or judge.restate
                or self.raw.term != judge.term or (leads and now >= judge.restate_at))

    # ---- from a batch to the log

    cpdef _propose(self, double now):
        """Propose the batches that are due, or forward what is queued to the leader."""
        cdef RawNode raw = self.raw
        cdef uint64_t index
        if self.changes.requests:
            self.changes.hand_on(self.leader_id)
        if not self.leader_id or self.leader_id != raw.id:
            if self.leader_id and self.proposer.queued:
                self.pending.forward(self.leader_id, now)
            return
        if self.must_judge(True, now):
            self.changes.judging.judge(now)
        while self.proposer.queued:
            idle = self._handed == self._reported and self.log.idle
            payload = self.proposer.take(now, idle, self.stopping, self.codec)
            if payload is None:
                return
            try:
                index = raw.propose(payload)
            except REFUSALS:
                # The core's bound on uncommitted entries is reached, or a leadership transfer is under way. The batch
                # stays first in line.
                self.proposer.untake()
                return
            self.pending.proposed(index)

    cdef bint carry(self, Ready ready, double now) except -1:
        """Persist, send, apply and reply for one Ready, in this order. Return whether the log has news already."""
        cdef bint news = self._persist(ready, now)
        if ready.soft_state is not None:
            self._lead_changed(ready.soft_state.lead, now)
        if ready.messages:
            self.link.send(ready.messages)
        if ready.committed_last:
            if self.points.active:
                self.points.hit("apply.before")
            self._images, self._at = ready.committed_images, 0
            self._apply_on(now)
        if ready.read_states or ready.dropped_reads:
            self.confirm_reads(ready, now)
        if not ready.must_sync:
            self._durable(0)
        return news

    cdef int confirm_reads(self, Ready ready, double now) except -1:
        for state in ready.read_states:
            self.reads.confirmed(state, self.applier.applied_index, now)
        if ready.read_states and self.kv.reads:
            self.reads.go_on(now, self.leader_id)
        if ready.dropped_reads:
            self.reads.ask_again(now)
        return 0

    cpdef bint _persist(self, Ready ready, double now) except -1:
        """Hand to the log what a Ready has for it. Return whether the log has news already."""
        cdef HardState state = ready.hard_state
        if state is not None:
            self._hard_state = state
            self.term = self.applier.store.raft_term = state.term
        if ready.snapshot is not None:
            self._save_position(ready.snapshot)
        if ready.must_sync:
            if state is None:
                state = self._late
            self._late = None
            self.log.append(ready.number, ready.entry_images, state)
            self._unsynced.append(ready.number)
        elif state is not None:
            # This is only a commit index. It goes into the next group, and no client waits for it until then.
            self._late, self._late_number = state, ready.number
        self._handed = ready.number
        if ready.snapshot is not None:
            self._begin_install(ready.number, ready.snapshot)
        if not ready.must_sync:
            return False
        self._last_append = now
        self.marked = False
        # With one operation in flight and no peers there is no work to do until the disk has finished.
        if self.proposer.inflight == 1 and not self.proposer.queued and self.link.alone:
            return self.log.submit(self.kv.writer)
        self.log.submit()
        return False

    cpdef _durable(self, uint64_t synced):
        """Report every persisted Ready to the core: those up to `synced`, and the following ones that need no sync."""
        cdef Py_ssize_t done = 0
        cdef uint64_t last = self._handed
        if synced > self._synced:
            self._synced = synced
        while done < len(self._unsynced) and <uint64_t>self._unsynced[done] <= self._synced:
            done += 1
        if done:
            del self._unsynced[:done]
        if self._unsynced:
            last = <uint64_t>self._unsynced[0] - 1
        if self._installing is not None:
            # The contents of a snapshot count as persisted, and later entries may be applied, when the engine holds
            # them.
            last = min(last, <uint64_t>self._installing[0] - 1)
        if last > self._reported:
            self._reported = last
            self.raw.on_persisted(last)

    # ---- from the log to the state

    cpdef _apply_on(self, double now):
        """Apply the entries handed out, in the order of the log, up to the end or a membership change that must wait.
        """
        cdef Applier applier = self.applier
        cdef RawNode raw = self.raw
        cdef Py_ssize_t size
        images = self._images
        if raw.log.pending_snapshot is not None:
            # The core works with the snapshot's membership already, and the remaining entries are in the snapshot.
            self._images = None
            return
        size = len(images)
        while True:
            if self.committed.due is not None and not self._take_effect():
                break
            if self._at == size:
                self._images = None
                break
            self.apply_part(images)
            if applier.halted:
                break
            if self._at == size or applier.pause:
                continue
            if not self._carry_out_change():
                break
        self._unwritten = applier.applied_index if applier.applied_index > raw.log.applied else 0
        if self._unwritten or applier.is_halfway():
            self._commit(now)
        else:
            raw.apply_held = self._images is not None

    cdef int apply_part(self, object images) except -1:
        """Apply up to a membership change, or what this turn has time for. The clock says how much that is, but a part
        is applied in any case, and few turns have more."""
        cdef Applier applier = self.applier
        cdef Budgets budgets = self._budgets
        cdef Py_ssize_t left, before = self._spent
        self._at = applier.apply_images(images, self._at, budgets.least(budgets.apply, before))
        self._spent += applier.cost
        if applier.halted:
            left = budgets.part(budgets.apply, before) - <Py_ssize_t>applier.cost
            if left > 0:
                self._at = applier.apply_images(images, self._at, left)
                self._spent += applier.cost
        return 0

    cpdef _commit(self, double now):
        """Let the engine write what is applied, and answer the waiting callers. A busy engine postpones both.

        In the middle of an entry the engine's log position must not move. Callers whose entries come before a long
        operation need not wait for its end: a majority has these entries in its log, and readers see them.
        """
        cdef Applier applier = self.applier
        cdef uint64_t last
        try:
            if applier.is_halfway():
                applier.relieve()
            else:
                applier.commit()
        except errors.EngineBusy as busy:
            self._engine_busy(busy, now)
            return
        last = self._unwritten
        self._written()
        if applier.is_halfway():
            if applier.work is not None:
                applier.release()
                self._passed(applier.applied_index)
            return
        if self.points.active:
            self.points.hit("apply.after")
        if last:
            self.raw.on_applied(last)
        applier.release()
        self._passed(applier.applied_index)

    cpdef _written(self):
        """The engine now has every applied entry."""
        self._unwritten = 0
        self.retry_at = self.busy_since = None
        self.raw.apply_held = self._images is not None

    cpdef _passed(self, uint64_t last):
        """Entry `last` has been applied: settle accounts and serve the reads that waited for it."""
        self.pending.passed(last)
        if self.reads.confirmed_rounds:
            self.reads.passed(last)
