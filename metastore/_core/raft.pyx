"""The Raft state machine. It takes messages, ticks and proposals, and hands out numbered Readies.

The module is pure: it has no clock, no socket, no file, no thread and no source of random numbers of its own.

The caller's duties
-------------------
Only one thread at a time may call a RawNode. After any call `has_ready()` may have become true. `ready()` returns
the work to do as a Ready with a number; each number is one higher than the last. For each Ready the caller does the
following steps in this order:

1. It stores `snapshot` (if any), then `entry_images` and `hard_state`. Entries that begin at or below the last stored
   index overwrite that entry and all after it. When everything of Ready n and of all earlier Readies is durable, the
   caller calls `on_persisted(n)`. Several Readies may be on their way, but the storage must take them in order. If
   `must_sync` is false, only the commit index moved and nothing depends on a sync. A Ready without snapshot, entries
   and hard state needs no report. A snapshot counts as persisted when the state machine has installed it for good.
2. It sends `messages` at once, without waiting for its own disk. The core holds back each message that depends on
   something that is not durable yet. Messages may be lost, repeated, delayed and reordered. When a MsgSnap was
   delivered or failed, the caller calls `report_snapshot(id, ok)`. When it cannot reach a peer, it calls
   `report_unreachable(id)`.
3. It applies `committed_images` in order and calls `on_applied(last index)`. For an entry of type 1 or 2 it first
   calls `apply_conf_change` with the result of `decode_conf_change`.
4. It serves each read of `read_states` once the applied state has reached its index. It fails each read of
   `dropped_reads` or asks again.

`advance(ready)` reports steps 1 and 3 at once, for callers that do everything synchronously. The caller calls `tick`
at regular intervals and passes messages from peers to `step`. If `step` raises FormatError, the message was damaged
and no part of it entered the log. If any call raises RaftInvariantBroken, the node must stop.

A commit index alone wakes nobody who can wait for it. The caller sets `patient` as long as nobody at this node waits for
entries to be applied: no operation of its own, no watcher. The leader learns of `patient` with each answer to an append,
and of its end by `ask_commit` at once. It does not send a patient peer appends that only carry a commit index, because
the next append carries it too. While `untold` is true on the leader, the caller calls `tell_commit` within the time for
which a commit index may be held back. It calls `hasten` for a peer that has handed in an operation.

What the core guarantees
------------------------
The Ready that contains a vote request, a vote response or an append response appears only after the term, vote and
entries behind that message were reported persisted (Raft paper, figure 2: "updated on stable storage before
responding"). Appends leave at once, and a leader counts its own copy of an entry only when that copy is durable
(dissertation, section 10.2.1, writing to the leader's disk in parallel). `committed_images` holds only entries that
are durable here. If entries were overwritten after they were handed out, the report for them counts only up to the
index where the log was cut, even if the same entries were written again (ABA). The messages of one Ready are in
ascending order of the peer's id.

A commit index is never held back from a peer that waits for it: before or with a read index, when it covers a membership
change or the first entry of a term, and while leadership is handed over. In the first case the peer's read would wait,
in the second a removed member would never learn of its removal, and in the last nobody would send it later. A peer that
says nothing about its patience counts as one that waits. An append that only carries a commit index gets no answer,
unless its position does not match.

Reads: `read_index` collects reads until the next Ready. One round of heartbeats then confirms leadership for all
collected reads (dissertation, section 6.4). With lease reads (section 6.4.1) a round that a quorum answered allows
reads without another round until `lease_seconds` after the *sending* of that round. The caller must ask
`lease_valid(now)` again when it serves the read. After a TimeoutNow was sent there is no lease in that term.

Doubt: a node that reports entries as persisted before they are synced may lose acknowledged entries in a power cut.
Such a node must then be created with `config.doubt` = its term. It moves to a later term, so no leader relies any
longer on what it acknowledged, and it marks its votes. A candidate needs a quorum of unmarked votes, or the votes of
all voters. With fewer votes it might lack a committed entry that only the marked voters ever had. The doubt ends when
the first entry of a later term is in the log, because the leader of that term was elected by this rule and had all
earlier entries. With `accept_loss` the node also moves to a later term, but its votes are unmarked.

`planted` switches on known bugs. It exists so that the simulator can prove that it finds them.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint64_t

from metastore._core.raft_election cimport Election
from metastore._core.entry cimport ENTRY_CONF_CHANGE, ENTRY_CONF_CHANGE_V2, ENTRY_NORMAL, hard_state_make
from metastore._core.raft_log cimport TERM_OK, RaftLog
from metastore._core.raft_promises cimport Claim, Promises
from metastore._core.raft_quorum cimport PROGRESS_SNAPSHOT, Peer
from metastore._core.raft_types cimport *
from metastore._core.raft_state cimport ABA_IGNORED, ACK_BEFORE_SYNC, PROMISE_FORGOTTEN, VOTE_NOT_PERSISTED
from metastore._core.raft_reads cimport MAX_READ_ROUNDS, Reads

from metastore._core.raft_quorum import apply_change
from metastore._core.raft_types import ConfChangeError, NotYetLoaded, RaftInvariantBroken, decode_conf_change
from metastore._core.raft_state import DOUBT, PATIENT
from metastore.errors import DamagedData, FormatError, NoLeader

PLANT_VOTE_NOT_PERSISTED = 1
PLANT_ACK_BEFORE_SYNC = 2
PLANT_COMMIT_OLD_TERM = 4
PLANT_READ_WITHOUT_ROUND = 8
PLANT_LEASE_KEPT = 16
PLANT_JOINT_HALF = 32
PLANT_ABA = 64
PLANT_PROMISE_FORGOTTEN = 128
PLANT_READ_OVERTAKES = 256
PLANT_REMOVAL_UNTOLD = 512
#: Rounds of reads that a leader may have under way at once.
READ_ROUNDS = MAX_READ_ROUNDS
cdef bytes NOTHING = b""


cdef uint64_t message_key(Message m):
    return m.to


cdef bint lacks_one(list voters, Peer me, uint64_t index) except -1:
    """Whether a majority of these voters would have more than the entries up to `index` if `me` did."""
    cdef Peer peer
    cdef Py_ssize_t count = 0
    for peer in voters:
        count += peer is me or peer.match > index
    return 2 * count > len(voters)


cdef class RawNode(Election):
    """A Raft node over a storage, which is a `ports.LogStore`. `config` is a RaftConfig.

    Raises DamagedData if hard state, log and `config.applied` contradict each other.
    """

    def __init__(self, RaftConfig config not None, storage):
        cdef RaftLog log
        hard, conf = storage.initial_state()
        self.config = config
        self.id = config.id
        self.planted = config.planted
        self.random_state = config.seed ^ (config.id * <uint64_t>0x9E3779B97F4A7C15)
        self.log = log = RaftLog(storage, config.max_tail_bytes, config.read_ahead_bytes)
        self.messages, self.read_states, self.dropped_reads = [], [], []
        self.promises = Promises.__new__(Promises)
        self.reads = Reads.__new__(Reads, config)
        self.peers, self.peer_list = {}, []
        self.next_number = 1
        if hard is not None:
            self.term, self.vote = hard.term, hard.vote
            if hard.commit > log.last_index:
                raise DamagedData(f"raft: commit index {hard.commit} is beyond the end of the log {log.last_index}")
            log.committed = max(log.committed, <uint64_t>hard.commit)
        if config.applied:
            if config.applied > log.last_index or config.applied < log.applied:
                raise DamagedData(f"raft: applied index {config.applied} lies outside of the log "
                                  f"({log.applied + 1}..{log.last_index})")
            log.applied = log.applying = config.applied
            log.committed = max(log.committed, config.applied)
        self.out_term, self.out_vote, self.out_commit = self.term, self.vote, log.committed
        if log.last_term() > self.term:
            # A crash tore a Ready between its entries and its hard state. The node sent no vote in that term, because
            # a vote leaves only when it is durable.
            self.term, self.vote = log.last_term(), 0
        if log.last_term() <= config.doubt:
            self.doubt = 0 if config.accept_loss else config.doubt
            if self.term <= config.doubt and config.doubt:
                # A leader that counted acknowledgements of that term must step down and find out what this log holds.
                self.term, self.vote = config.doubt + 1, 0
        self.guard = config.election_ticks if config.lease_reads and self.term else 0
        self.use_conf(ConfState() if conf is None else conf)
        self.become_follower(self.term, 0)

    # -- proposals ------------------------------------------------------------------------------------------

    cpdef uint64_t propose(self, payload) except 0:
        """Append a normal entry with this payload (bytes-like) and return its index.

        Raises NoLeader, NotLeader, ProposalDropped (the limit of uncommitted bytes is reached, or leadership is being
        transferred) or RequestTooLarge; nothing was appended then. Another leader may still overwrite an accepted
        entry. The caller notices this when the entry applied at the index has another term."""
        cdef Py_buffer buffer
        if PyBytes_CheckExact(payload):
            return self.propose_bytes(ENTRY_NORMAL, <const uint8_t*>PyBytes_AS_STRING(payload),
                                      PyBytes_GET_SIZE(payload))
        PyObject_GetBuffer(payload, &buffer, PyBUF_SIMPLE)
        try:
            return self.propose_bytes(ENTRY_NORMAL, <const uint8_t*>buffer.buf, <size_t>buffer.len)
        finally:
            PyBuffer_Release(&buffer)

    def propose_conf_change(self, change):
        """Append a membership change (ConfChange, ConfChangeV2) and return its index.

        Raises ConfChangeError if the change is not possible now, and otherwise the errors of `propose`. Only one
        change may be under way: the previous one must have been applied (dissertation, section 4.1)."""
        cdef bytes payload = change.encode()
        if self.state == STATE_LEADER:
            self.check_conf_change(change)
        kind = ENTRY_CONF_CHANGE if isinstance(change, ConfChange) else ENTRY_CONF_CHANGE_V2
        self.propose_bytes(kind, <const uint8_t*>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        self.pending_conf_index = self.log.last_index
        return self.log.last_index

    cdef int check_conf_change(self, change) except -1:
        if self.pending_conf_index > self.log.applied:
            raise ConfChangeError("another membership change is not applied yet")
        apply_change(self.conf_state, change)
        return 0

    cdef int maybe_auto_leave(self) except -1:
        """Leave a joint configuration with automatic exit, once the change that entered it is applied."""
        if (self.state == STATE_LEADER and self.conf_state.auto_leave and self.conf_state.voters_outgoing
                and self.pending_conf_index <= self.log.applied and not self.lead_transferee):
            self.propose_bytes(ENTRY_CONF_CHANGE_V2, NULL, 0)
            self.pending_conf_index = self.log.last_index
        return 0

    # -- Ready ----------------------------------------------------------------------------------------------

    cdef bint can_apply(self) noexcept:
        if self.apply_waiting or self.apply_held or self.log.pending_snapshot is not None:
            return False
        if self.planted & ACK_BEFORE_SYNC:
            return self.log.applying < self.log.committed
        return self.log.applying < min(self.log.committed, self.log.persisted)

    cdef int fill(self) except -1:
        """Create the messages that are delayed until a Ready is built, so that one message covers several events."""
        if self.state == STATE_LEADER:
            if self.reads.open:
                self.serve_reads()
            if self.send_due:
                self.send_due = False
                self.send_appends()
        return 0

    cpdef bint has_ready(self) except -1:
        """Whether `ready()` would return any work."""
        self.fill()
        return (bool(self.messages) or self.log.emitted < self.log.last_index or self.can_apply()
                or self.out_commit != self.log.committed or self.out_term != self.term or self.out_vote != self.vote
                or bool(self.read_states) or self.out_lead != self.lead or self.out_state != self.state
                or (self.log.pending_snapshot is not None and not self.snapshot_out) or bool(self.dropped_reads))

    cpdef Ready ready(self):
        """Return the work to do now as a Ready with a new number. The Ready may be empty; see `has_ready`."""
        cdef Ready ready = Ready.__new__(Ready)
        cdef bint vote_changed
        cdef Message m
        self.fill()
        ready.number = self.next_number
        ready.entry_images = ready.committed_images = NOTHING
        if self.out_lead != self.lead or self.out_state != self.state:
            ready.soft_state = SoftState(self.lead, self.state)
            self.out_lead, self.out_state = self.lead, self.state
        vote_changed = self.out_term != self.term or self.out_vote != self.vote
        if vote_changed or self.out_commit != self.log.committed:
            ready.hard_state = hard_state_make(
                self.term, 0 if self.planted & VOTE_NOT_PERSISTED else self.vote, self.log.committed)
            self.out_term, self.out_vote, self.out_commit = self.term, self.vote, self.log.committed
        if self.log.pending_snapshot is not None and not self.snapshot_out:
            ready.snapshot = self.log.pending_snapshot
            self.snapshot_out = True
        if self.log.emitted < self.log.last_index:
            self.take_entries(ready)
        if vote_changed or ready.snapshot is not None or ready.last_index:
            ready.must_sync = True
            self.state_number = ready.number
            self.promises.claim(ready.number, ready.last_index, self.log.last_term() if ready.last_index else 0,
                                ready.snapshot.index if ready.snapshot is not None else 0)
        if self.can_apply():
            self.take_committed(ready)
        ready.messages, self.messages = self.messages, []
        if self.patient:
            for m in ready.messages:
                if m.type == MSG_APP_RESP:
                    m.context = PATIENT
        if len(ready.messages) > 1:
            ready.messages.sort(key=message_key)
        ready.read_states, self.read_states = self.read_states, []
        ready.dropped_reads, self.dropped_reads = self.dropped_reads, []
        self.next_number += 1
        return ready

    cdef int take_entries(self, Ready ready) except -1:
        ready.first_index = self.log.emitted + 1
        ready.entry_images = self.log.take_unpersisted()
        ready.last_index = self.log.last_index
        return 0

    cdef int take_committed(self, Ready ready) except -1:
        cdef uint64_t last
        cdef uint64_t low = self.log.applying + 1
        cdef uint64_t high = self.log.committed
        if not self.planted & ACK_BEFORE_SYNC:
            high = min(high, self.log.persisted)
        try:
            ready.committed_images = self.log.read(low, high, self.config.max_committed_size_per_ready, &last)
        except NotYetLoaded:
            self.apply_waiting = True
            return 0
        ready.committed_first = low
        ready.committed_last = last
        self.log.applying = last
        return 0

    cpdef on_persisted(self, uint64_t number):
        """Report that Ready `number` and all before it are durable. Raises ValueError for an unknown number."""
        cdef Claim claim
        cdef RaftLog log = self.log
        cdef uint64_t term
        if number >= self.next_number:
            raise ValueError(f"Ready {number} was not handed out")
        if number <= self.persisted_number:
            return
        self.persisted_number = number
        while (claim := self.promises.kept(number)) is not None:
            if claim.snapshot_index and log.pending_snapshot is not None \
                    and log.pending_snapshot.index == claim.snapshot_index:
                log.persisted = max(log.persisted, claim.snapshot_index)
                log.applied = max(log.applied, claim.snapshot_index)
                log.pending_snapshot = None
                self.snapshot_out = False
            if self.planted & ABA_IGNORED:
                if log.term_at(claim.last_index, &term) != TERM_OK or term != claim.last_term:
                    continue
            if claim.last_index > log.persisted:
                log.persisted = claim.last_index
        if self.state == STATE_LEADER and self.me is not None and self.me.maybe_update(log.persisted):
            self.maybe_commit()
        if log.chunk_bytes > log.max_tail_bytes:
            log.trim(0)
        if self.doubt and log.term_at(log.persisted, &term) == TERM_OK and term > self.doubt:
            self.doubt = 0
        if self.promises.held:
            self.release_held()

    cpdef bint awaits_disk(self) except -1:
        """Whether anything here can go on when all that was handed out is durable. On a follower that is always so,
        because its answer waits for it. A leader waits only if it holds messages back, if its own copy makes a quorum,
        or if entries are committed that it lacks on its disk."""
        cdef RaftLog log = self.log
        if self.state != STATE_LEADER or self.promises.held or log.committed > log.persisted:
            return True
        return lacks_one(self.voters_in, self.me, log.committed) and (
            not self.voters_out or lacks_one(self.voters_out, self.me, log.committed))

    cpdef on_applied(self, uint64_t index):
        """Report that all entries up to `index` are applied. Raises ValueError for an index that was not handed out."""
        cdef RaftLog log = self.log
        cdef Peer peer
        if index > log.applying:
            raise ValueError(f"entry {index} was not handed out for applying")
        if index > log.applied:
            log.applied = index
            if log.chunk_bytes > log.chunk_size:
                if self.state == STATE_LEADER:
                    for peer in self.peer_list:
                        if peer is not self.me and peer.state != PROGRESS_SNAPSHOT and peer.match < index:
                            index = peer.match
                log.trim(index)
        if self.conf_state.auto_leave:
            self.maybe_auto_leave()
        if self.hup_waiting and (self.sole or self.planted & PROMISE_FORGOTTEN):
            self.hup(False)

    def advance(self, Ready ready not None):
        """Report at once that the Ready is persisted and that its committed entries are applied."""
        self.on_persisted(ready.number)
        if ready.committed_last:
            self.on_applied(ready.committed_last)

    def entries_loaded(self):
        """Report that the storage can now answer a request for which it raised NotYetLoaded before."""
        cdef Peer peer
        self.apply_waiting = False
        for peer in self.peer_list:
            if peer.waiting_load:
                peer.waiting_load = False
                self.send_due = True

    # -- time -----------------------------------------------------------------------------------------------

    cpdef tick(self, double now=0.0):
        """Advance time by one tick. `now` is monotonic time in seconds; only lease reads need it."""
        if now > self.now:
            self.now = now
        self.election_elapsed += 1
        if self.guard:
            self.guard -= 1
        if self.state != STATE_LEADER:
            if self.promotable and self.election_elapsed >= self.election_timeout:
                self.election_elapsed = 0
                self.hup(False)
            return
        self.heartbeat_elapsed += 1
        if self.election_elapsed >= self.config.election_ticks:
            self.election_elapsed = 0
            if self.config.check_quorum:
                self.check_quorum()
            if self.state != STATE_LEADER:
                return
            self.lead_transferee = 0   # a transfer that takes longer than an election timeout is given up
        if self.heartbeat_elapsed >= self.config.heartbeat_ticks:
            self.heartbeat_elapsed = 0
            self.heartbeat(True)
            self.maybe_auto_leave()

    # -- messages in ----------------------------------------------------------------------------------------

    cpdef step(self, Message m):
        """Process a message from a peer.

        Raises FormatError if the message is damaged (nothing of it enters the log), RaftInvariantBroken if the node
        must stop, and for a MsgProp the errors of `propose`."""
        if m is None:
            raise TypeError("a Message is needed")
        if m.type in (MSG_HUP, MSG_BEAT, MSG_CHECK_QUORUM, MSG_UNREACHABLE, MSG_SNAP_STATUS):
            self.step_local(m)
            return
        if m.term == 0 and m.type not in (MSG_PROP, MSG_READ_INDEX, MSG_TRANSFER_LEADER):
            raise FormatError("raft message without a term")
        if m.term > self.term:
            if not self.newer_term(m):
                return
        elif m.term and m.term < self.term:
            self.older_term(m)
            return
        if m.type == MSG_VOTE or m.type == MSG_PRE_VOTE:
            self.step_vote(m)
        else:
            self.step_role(m)

    cdef int step_local(self, Message m) except -1:
        """Process a message that the node sends to itself. In the last two types `from_` names the peer concerned."""
        cdef Peer peer
        if m.term:
            raise FormatError("a local raft message came from a peer")
        if m.type == MSG_HUP:
            self.hup(False)
        elif self.state != STATE_LEADER:
            return 0
        elif m.type == MSG_BEAT:
            self.heartbeat(True)
        elif m.type == MSG_CHECK_QUORUM:
            self.check_quorum()
        elif m.type == MSG_UNREACHABLE:
            self.report_unreachable(m.from_)
        else:
            self.report_snapshot(m.from_, not m.reject)
        return 0

    cdef int older_term(self, Message m) except -1:
        """Process a message from an earlier term. A leader that was cut off must learn of the new term: with pre-vote
        or check quorum this node would not start an election that tells it."""
        cdef Message answer
        if m.type == MSG_HEARTBEAT or m.type == MSG_APP:
            if self.config.check_quorum or self.config.pre_vote:
                self.send(self.make(MSG_APP_RESP, m.from_))
        elif m.type == MSG_PRE_VOTE:
            answer = self.make(MSG_PRE_VOTE_RESP, m.from_)
            self.refuse_vote(answer)
            self.send(answer)
        elif m.type == MSG_PRE_VOTE_RESP or m.type == MSG_VOTE_RESP:
            self.learn_commit(m)
        return 0

    cdef int step_role(self, Message m) except -1:
        if self.state == STATE_LEADER:
            return self.step_leader(m)
        if m.type == MSG_APP or m.type == MSG_HEARTBEAT or m.type == MSG_SNAP:
            if self.state != STATE_FOLLOWER:
                self.become_follower(m.term, m.from_)
            elif self.lead and self.lead != m.from_:
                raise RaftInvariantBroken(f"two leaders in term {self.term}: {self.lead} and {m.from_}")
            self.election_elapsed = 0
            self.guard = self.config.election_ticks
            if not self.planted & PROMISE_FORGOTTEN:
                self.hup_waiting = False
            self.lead = m.from_
            if m.type == MSG_APP:
                self.on_append(m)
            elif m.type == MSG_HEARTBEAT:
                self.on_heartbeat(m)
            else:
                self.on_snapshot(m)
        elif m.type == MSG_VOTE_RESP or m.type == MSG_PRE_VOTE_RESP:
            self.learn_commit(m)
            if self.state == (STATE_CANDIDATE if m.type == MSG_VOTE_RESP else STATE_PRE_CANDIDATE):
                self.count_vote(m.from_, not m.reject, m.context == DOUBT)
        else:
            self.step_follower(m)
        return 0

    cdef int step_follower(self, Message m) except -1:
        """Process a request on a node that does not lead: forward it to the leader, if this node knows one."""
        cdef Message on
        if m.type == MSG_READ_INDEX_RESP:
            self.read_states.append(ReadState(m.index, m.context))
        elif m.type == MSG_TIMEOUT_NOW:
            if self.state == STATE_FOLLOWER:
                self.hup(True)
        elif m.type == MSG_PROP or m.type == MSG_TRANSFER_LEADER:
            if not self.lead:
                if m.type == MSG_PROP:
                    raise NoLeader()
                return 0
            on = self.make(m.type, self.lead)
            on.from_ = m.from_
            on.term = 0
            on._images, on._entries = m._images, m._entries
            self.send(on)
        return 0

    cdef int step_leader(self, Message m) except -1:
        cdef Peer peer
        if m.type == MSG_PROP:
            for entry in m.entries:
                if entry.type == ENTRY_NORMAL:
                    self.propose(entry.data)
                else:
                    self.propose_conf_change(decode_conf_change(entry.type, entry.data))
            return 0
        if m.type == MSG_APP or m.type == MSG_HEARTBEAT or m.type == MSG_SNAP:
            raise RaftInvariantBroken(f"two leaders in term {self.term}: {self.id} and {m.from_}")
        peer = self.peers.get(m.from_)
        if peer is None:
            return 0
        if m.type == MSG_APP_RESP:
            self.on_append_resp(peer, m)
        elif m.type == MSG_HEARTBEAT_RESP:
            self.on_heartbeat_resp(peer, m)
        elif m.type == MSG_READ_INDEX:
            self.reads.add(m.from_, m.context)   # over the limit there is no answer, and the follower asks again
        elif m.type == MSG_TRANSFER_LEADER:
            self.on_transfer(peer)
        return 0

    # -- membership -----------------------------------------------------------------------------------------
    def apply_conf_change(self, change):
        """Put a committed membership change into effect and return the new ConfState.

        Raises ConfChangeError if the change is not possible. This happens on every node alike; nothing has changed
        then, and the caller goes on."""
        return self.enter_conf(apply_change(self.conf_state, change))

    def enter_conf(self, ConfState conf not None):
        """Put this membership into effect at once and as a whole, and return `conf`. This is for a node whose
        membership differs from that of the others; all other changes go through `apply_conf_change`."""
        self.use_conf(conf)
        if self.state != STATE_LEADER:
            return self.conf_state
        if not self.promotable:
            # Dissertation, section 4.2.2: a leader that is no longer a voter steps down.
            self.become_follower(self.term, 0)
            return self.conf_state
        self.send_due = True
        self.maybe_commit()
        self.confirm_rounds()
        if self.lead_transferee and self.lead_transferee not in self.conf_state.voters:
            self.lead_transferee = 0
        return self.conf_state
