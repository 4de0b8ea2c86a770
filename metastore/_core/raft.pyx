"""The Raft state machine: messages, ticks and proposals in, numbered Readies out. Pure: no clock, no socket, no
file, no thread, no random source of its own.

The caller's duties
-------------------
One thread at a time calls a RawNode. After every call `has_ready()` may have become true; `ready()` hands out what
is to be done and gives it a number, one higher each time. For each Ready the caller, in this order,

1. hands `snapshot` (if any), then `entry_images` and `hard_state` to stable storage. Entries that begin at or
   below the last one stored overwrite it and all after it. When everything of Ready n and of all Readies before it
   is durable, it calls `on_persisted(n)`. It may have many Readies on their way, but the storage must take them in
   order. With `must_sync` false nothing depends on a sync (only the commit index moved). Readies without
   snapshot, entries and hard state need no report. A snapshot counts as persisted when the state machine
   has installed it for good.
2. sends `messages`, at once and without waiting for its own disk: the core has put nothing into them that is not
   durable yet where it must be. Messages may be lost, doubled, delayed and reordered. When a MsgSnap was delivered
   or failed: `report_snapshot(id, ok)`; when a peer cannot be reached: `report_unreachable(id)`.
3. applies `committed_images` in order and calls `on_applied(last index)`. For an entry of type 1 or 2 it calls
   `apply_conf_change` before that, with what `decode_conf_change` makes of it.
4. serves the reads of `read_states` once the state applied reaches their index, and looks after `dropped_reads`.

`advance(ready)` reports 1 and 3 at once, for callers that do everything synchronously. The caller ticks at regular
intervals, and delivers with `step` what peers sent. FormatError from `step` means that a message was damaged and
nothing of it entered the log; RaftInvariantBroken means that the node must stop.

What the core guarantees
------------------------
Vote requests and all append and vote responses come out only in a Ready after the term, vote and entries they
depend on were reported persisted (Raft paper, figure 2: "updated on stable storage before responding"). Appends go
out at once; a leader counts its own copy only when it is durable (dissertation, section 10.2.1, writing to the
leader's disk in parallel). `committed_images` holds only entries that are durable here. A report for entries that
were overwritten since counts only up to where the log was cut, even if the same entries were written again (ABA).
Messages of one Ready are in ascending order of the peer's id.

Reads: `read_index` gathers reads until the next Ready and then confirms leadership for all of them by one round of
heartbeats (dissertation, section 6.4). With lease reads (section 6.4.1) a round that a quorum answered lets reads
go without another until `lease_seconds` after it was *made*; `lease_valid(now)` must be asked again when the read is
served. Once a TimeoutNow went out there is no lease in that term any more.

Doubt: a node that reports entries persisted before they are synced may find, after a power cut, less of its log than
it acknowledged. It must then be made with `config.doubt` = its term. It takes a later term, so that no leader goes on
counting on what it said, and its votes are marked. A candidate needs a quorum of unmarked votes, or the votes of all
voters: with fewer it might lack a committed entry that only the marked ones ever had. The doubt ends with the first
entry of a later term in its log, for that term's leader was elected so and had all before it. With `accept_loss` it
takes a later term all the same, but its votes count.

`planted` switches on known bugs. It exists so that the simulator can prove that it finds them.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint64_t

from metastore._core.entry cimport (ENTRY_CONF_CHANGE, ENTRY_CONF_CHANGE_V2, ENTRY_MAX_PAYLOAD, ENTRY_NORMAL, HardState,
                                    entry_size, hard_state_make)
from metastore._core.log cimport TERM_COMPACTED, TERM_OK, RaftLog
from metastore._core.promises cimport Claim, Promises, covers
from metastore._core.quorum cimport (PROGRESS_PROBE, PROGRESS_REPLICATE, PROGRESS_SNAPSHOT, VOTE_LOST, VOTE_WON, Peer,
                                     majority_index)
from metastore._core.raftpb cimport *
from metastore._core.reads cimport Reads, Round

from metastore._core.quorum import apply_change, doubting_vote, joint_vote
from metastore._core.raftpb import (ConfChangeError, LogCompacted, LogUnavailable, NotYetLoaded, Progress, ProposalDropped,
                                    RaftInvariantBroken, SnapshotNotReady, Status, StateType, decode_conf_change)
from metastore.errors import (DamagedData, FormatError, NoLeader, NotLeader, RequestTooLarge, TooManyRequests)

PLANT_VOTE_NOT_PERSISTED = 1
PLANT_ACK_BEFORE_SYNC = 2
PLANT_COMMIT_OLD_TERM = 4
PLANT_READ_WITHOUT_ROUND = 8
PLANT_LEASE_KEPT = 16
PLANT_JOINT_HALF = 32
PLANT_ABA = 64

cdef bytes TRANSFER = b"CampaignTransfer"
cdef bytes DOUBT = b"doubt"
cdef bytes NOTHING = b""


cdef uint64_t message_key(Message m):
    return m.to


cdef class RawNode:
    """A Raft node over a storage (see log.pyx for its calls). config: RaftConfig.

    Raises DamagedData when hard state, log and `config.applied` contradict each other.
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
            # Torn between entries and hard state of one Ready. No vote of that term was ever sent: it was not durable.
            self.term, self.vote = log.last_term(), 0
        if log.last_term() <= config.doubt:
            self.doubt = 0 if config.accept_loss else config.doubt
            if self.term <= config.doubt and config.doubt:
                # Whoever counts on what was acknowledged in that term must learn anew what is here: leaders step down.
                self.term, self.vote = config.doubt + 1, 0
        self.boot_guard = config.election_ticks if config.lease_reads and self.term else 0
        self.use_conf(ConfState() if conf is None else conf)
        self.become_follower(self.term, 0)

    # -- proposals ------------------------------------------------------------------------------------------

    cpdef uint64_t propose(self, payload) except 0:
        """Append a normal entry with this payload (bytes-like) -> its index.

        Raises NoLeader, NotLeader, ProposalDropped (over the limit of uncommitted bytes, or leadership is being
        transferred) or RequestTooLarge; then nothing was appended. An entry accepted may still be lost to
        another leader: the caller finds out by the term of what is applied at the index."""
        cdef Py_buffer buffer
        if PyBytes_CheckExact(payload):
            return self.propose_bytes(ENTRY_NORMAL, <const uint8_t*>PyBytes_AS_STRING(payload),
                                      PyBytes_GET_SIZE(payload))
        PyObject_GetBuffer(payload, &buffer, PyBUF_SIMPLE)
        try:
            return self.propose_bytes(ENTRY_NORMAL, <const uint8_t*>buffer.buf, <size_t>buffer.len)
        finally:
            PyBuffer_Release(&buffer)

    cdef uint64_t propose_bytes(self, uint8_t type, const uint8_t* payload, size_t n) except 0:
        cdef uint64_t waiting
        if self.state != STATE_LEADER:
            raise NotLeader() if self.lead else NoLeader()
        if self.lead_transferee:
            raise ProposalDropped()
        if n > ENTRY_MAX_PAYLOAD:
            raise RequestTooLarge()
        if n:
            waiting = self.log.bytes_after(self.log.committed)
            if waiting and waiting + entry_size(n) > self.config.max_uncommitted_bytes:
                raise ProposalDropped()
        self.log.append_payload(self.term, type, payload, n)
        if self.planted & ACK_BEFORE_SYNC:
            self.me.maybe_update(self.log.last_index)
            self.maybe_commit()
        self.send_due = True
        return self.log.last_index

    def propose_conf_change(self, change):
        """Append a membership change (ConfChange, ConfChangeV2) -> its index.

        Raises ConfChangeError when it is not possible now, else as `propose`. One change at a time: the one
        before must have been applied (dissertation, section 4.1)."""
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
        """Leave a joint configuration that wants to be left, once the change that entered it is applied."""
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
        """Make the messages that wait for the moment of a Ready: what gathers until then shares them."""
        if self.state == STATE_LEADER:
            if self.reads.open:
                self.serve_reads()
            if self.send_due:
                self.send_due = False
                self.send_appends()
        return 0

    cpdef bint has_ready(self) except -1:
        """Whether `ready()` has anything to say."""
        self.fill()
        return (bool(self.messages) or self.log.emitted < self.log.last_index or self.can_apply()
                or self.out_commit != self.log.committed or self.out_term != self.term or self.out_vote != self.vote
                or bool(self.read_states) or self.out_lead != self.lead or self.out_state != self.state
                or (self.log.pending_snapshot is not None and not self.snapshot_out) or bool(self.dropped_reads))

    cpdef Ready ready(self):
        """What is to be done now, with a number of its own. May be empty: see `has_ready`."""
        cdef Ready ready = Ready.__new__(Ready)
        cdef bint vote_changed
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
        """Ready `number` and all before it are durable. Raises ValueError for a Ready that was not handed out."""
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
        if self.doubt and log.term_at(log.persisted, &term) == TERM_OK and term > self.doubt:
            self.doubt = 0
        if self.promises.held:
            self.release_held()

    cpdef on_applied(self, uint64_t index):
        """Everything up to `index` is applied. Raises ValueError for what was not handed out for applying."""
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
        if self.hup_waiting:
            self.hup(False)

    def advance(self, Ready ready not None):
        """Synchronous shorthand: the Ready is persisted, and what it had to apply is applied."""
        self.on_persisted(ready.number)
        if ready.committed_last:
            self.on_applied(ready.committed_last)

    def entries_loaded(self):
        """The storage can answer now what it answered with NotYetLoaded before."""
        cdef Peer peer
        self.apply_waiting = False
        for peer in self.peer_list:
            if peer.waiting_load:
                peer.waiting_load = False
                self.send_due = True

    # -- sending --------------------------------------------------------------------------------------------

    cdef Message make(self, int type, uint64_t to):
        cdef Message m = Message.__new__(Message)
        m.type = type
        m.to = to
        m.from_ = self.id
        m.term = self.term
        m.context = NOTHING
        return m

    cdef uint64_t unsettled(self) noexcept:
        """Number of the Ready that must be durable before anything about the present state may be said; 0: none."""
        if (self.out_term != self.term or self.out_vote != self.vote or self.log.emitted < self.log.last_index
                or (self.log.pending_snapshot is not None and not self.snapshot_out)):
            return self.next_number
        return self.state_number if self.state_number > self.persisted_number else 0

    cdef int send(self, Message m) except -1:
        """Queue a message: for the next Ready, or until what it depends on is durable."""
        cdef uint64_t need
        if m.type == MSG_APP_RESP or m.type == MSG_VOTE or m.type == MSG_VOTE_RESP or m.type == MSG_PRE_VOTE_RESP:
            need = self.unsettled()
            if self.doubt and m.type != MSG_APP_RESP and m.type != MSG_VOTE:
                m.context = DOUBT
            if self.planted & ACK_BEFORE_SYNC and m.type == MSG_APP_RESP:
                need = 0
            if self.planted & VOTE_NOT_PERSISTED and m.type == MSG_VOTE_RESP and m.to != self.id:
                need = 0
            if need:
                return self.promises.hold(need, m)
        if m.to == self.id:
            self.step(m)
        else:
            self.messages.append(m)
        return 0

    cdef int release_held(self) except -1:
        """Let go what waited for a Ready that is durable now. Answers from a term that is over are not sent."""
        cdef Message m
        cdef Message last = None
        while (m := self.promises.freed(self.persisted_number, self.term)) is not None:
            if m.to == self.id:
                self.step(m)
            elif last is not None and covers(m, last):
                self.messages[len(self.messages) - 1] = last = m
            else:
                last = m
                self.messages.append(m)
        return 0

    # -- roles ----------------------------------------------------------------------------------------------

    cdef int draw_timeout(self) except -1:
        """A new election timeout in [election_ticks, 2 * election_ticks) (Raft paper, section 5.2)."""
        cdef uint64_t x
        if self.config.random is not None:
            self.election_timeout = self.config.election_ticks + <int>self.config.random(self.config.election_ticks)
            return 0
        # splitmix64 (Steele, Lea, Flood 2014)
        self.random_state += <uint64_t>0x9E3779B97F4A7C15
        x = self.random_state
        x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
        x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
        x ^= x >> 31
        self.election_timeout = self.config.election_ticks + <int>(x % <uint64_t>self.config.election_ticks)
        return 0

    cdef int reset(self, uint64_t term) except -1:
        cdef Peer peer
        if term < self.term:
            raise RaftInvariantBroken(f"term {self.term} would fall to {term}")
        if term != self.term:
            self.term = term
            self.vote = 0
        self.lead = 0
        self.election_elapsed = self.heartbeat_elapsed = 0
        self.draw_timeout()
        self.lead_transferee = 0
        self.votes, self.doubtful = {}, set()
        self.hup_waiting = False
        self.pending_conf_index = 0
        self.term_start = 0
        self.send_due = False
        self.dropped_reads += self.reads.drop(self.id)
        for peer in self.peer_list:
            peer.match = peer.sent_commit = peer.read_ack = 0
            peer.next = self.log.last_index + 1
            peer.recent_active = peer.waiting_load = peer.heartbeat_due = peer.nudge = False
            peer.enter(PROGRESS_PROBE)
        return 0

    cdef int become_follower(self, uint64_t term, uint64_t lead) except -1:
        self.reset(term)
        self.lead = lead
        self.state = STATE_FOLLOWER
        return 0

    cdef int become_candidate(self) except -1:
        if self.state == STATE_LEADER:
            raise RaftInvariantBroken("a leader cannot become a candidate")
        self.reset(self.term + 1)
        self.vote = self.id
        self.state = STATE_CANDIDATE
        return 0

    cdef int become_leader(self) except -1:
        """Won. The first entry is an empty one, for only entries of the own term are committed by counting
        (Raft paper, sections 5.4.2 and 8)."""
        if self.state != STATE_CANDIDATE:
            raise RaftInvariantBroken("only a candidate can become the leader")
        self.reset(self.term)
        self.lead = self.id
        self.state = STATE_LEADER
        self.me.become_replicate()
        self.me.recent_active = True
        self.me.match = self.log.persisted
        # Changes of the terms before may be in the log and not applied: none of ours until they are.
        self.pending_conf_index = self.log.last_index
        self.propose_bytes(ENTRY_NORMAL, NULL, 0)
        self.term_start = self.log.last_index
        return 0

    cpdef campaign(self):
        """Start an election now (with the pre-vote first, if that is configured)."""
        self.hup(False)

    cdef int hup(self, bint transfer) except -1:
        if self.state == STATE_LEADER or not self.promotable or self.log.pending_snapshot is not None:
            return 0
        try:
            # Committed membership changes that are not applied would make this an election by old rules.
            self.hup_waiting = self.log.has_conf_change(self.log.applied + 1, self.log.committed)
        except NotYetLoaded:
            self.hup_waiting = True
        if self.hup_waiting:
            return 0
        return self.start_election(self.config.pre_vote and not transfer, transfer)

    cdef int start_election(self, bint pre, bint transfer) except -1:
        """Ask all voters (Raft paper, section 5.2). A pre-vote (dissertation, section 9.6) changes no term."""
        cdef Message m
        cdef uint64_t voter
        if pre:
            self.state = STATE_PRE_CANDIDATE
            self.votes, self.doubtful = {}, set()
            self.lead = 0
            self.draw_timeout()
            self.count_vote(self.id, True, self.doubt != 0)
            if self.state != STATE_PRE_CANDIDATE:
                return 0
        else:
            self.become_candidate()
            self.send(self.make(MSG_VOTE_RESP, self.id))
        for voter in sorted({*self.conf_state.voters, *self.conf_state.voters_outgoing} - {self.id}):
            m = self.make(MSG_PRE_VOTE if pre else MSG_VOTE, voter)
            if pre:
                m.term = self.term + 1
            m.index = self.log.last_index
            m.log_term = self.log.last_term()
            if transfer:
                m.context = TRANSFER
            self.send(m)
        return 0

    cdef int count_vote(self, uint64_t voter, bint granted, bint doubt) except -1:
        if voter not in self.votes:
            self.votes[voter] = granted
            if doubt and granted:
                self.doubtful.add(voter)
        outgoing = () if self.planted & JOINT_HALF else self.conf_state.voters_outgoing
        result = doubting_vote(self.conf_state.voters, outgoing, self.votes, self.doubtful)
        if result == VOTE_WON:
            if self.state == STATE_PRE_CANDIDATE:
                self.start_election(False, False)
            else:
                self.become_leader()
        elif result == VOTE_LOST:
            self.become_follower(self.term, 0)
        return 0

    # -- time -----------------------------------------------------------------------------------------------

    cpdef tick(self, double now=0.0):
        """One tick has passed. `now`: monotonic seconds, needed for lease reads only."""
        if now > self.now:
            self.now = now
        self.election_elapsed += 1
        if self.boot_guard:
            self.boot_guard -= 1
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
            self.lead_transferee = 0   # a transfer that takes longer than an election is given up
        if self.heartbeat_elapsed >= self.config.heartbeat_ticks:
            self.heartbeat_elapsed = 0
            self.heartbeat(True)
            self.maybe_auto_leave()

    cdef int check_quorum(self) except -1:
        """Step down if no quorum was heard for an election timeout (dissertation, section 6.2)."""
        cdef Peer peer
        cdef dict active = {}
        for peer in self.peer_list:
            active[peer.id] = peer.recent_active or peer is self.me
            peer.recent_active = peer is self.me
        if joint_vote(self.conf_state.voters, self.conf_state.voters_outgoing, active) != VOTE_WON:
            self.become_follower(self.term, 0)
        return 0

    cdef int heartbeat(self, bint by_clock) except -1:
        """Heartbeats to all. They name the newest round, so that a lost one is made good by the next."""
        cdef Peer peer
        cdef Message m
        cdef bytes context
        if by_clock:
            self.reads.beat(self.now)
        if self.me is not None:
            self.me.read_ack = self.reads.number
        context = self.reads.token()
        for peer in self.peer_list:
            if peer is self.me:
                continue
            m = self.make(MSG_HEARTBEAT, peer.id)
            # Never beyond what the peer is known to have: its log may differ after that.
            m.commit = min(peer.match, self.log.committed)
            m.context = context
            self.send(m)
            if by_clock:
                peer.heartbeat_due = True
                peer.adapt()
        return 0

    # -- messages in ----------------------------------------------------------------------------------------

    cpdef step(self, Message m):
        """Take in a message. Raises FormatError (damaged: nothing enters the log), RaftInvariantBroken (stop the node), and for
        MsgProp what `propose` raises."""
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
        """Messages that a node sends to itself; from_ names the peer that the last two are about."""
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

    cdef bint newer_term(self, Message m) except -1:
        """A message from a later term: follow it, unless it is a vote that must not disturb a working leader."""
        cdef bint leader_alive
        if m.type == MSG_VOTE or m.type == MSG_PRE_VOTE:
            # Dissertation, sections 4.2.3 and 9.6; the lease of section 6.4.1 rests on it, hence the guard after
            # a restart too.
            leader_alive = self.config.check_quorum and (
                (self.lead != 0 and self.election_elapsed < self.config.election_ticks) or self.boot_guard > 0)
            if leader_alive and m.context != TRANSFER:
                return False
        if m.type == MSG_PRE_VOTE or (m.type == MSG_PRE_VOTE_RESP and not m.reject):
            return True
        if m.type == MSG_APP or m.type == MSG_HEARTBEAT or m.type == MSG_SNAP:
            self.become_follower(m.term, m.from_)
        else:
            self.become_follower(m.term, 0)
        return True

    cdef int older_term(self, Message m) except -1:
        """A message from an earlier term. A leader that was cut off must learn of the new term, for with pre-vote or
        check quorum this node would not disturb it by an election."""
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

    cdef int step_vote(self, Message m) except -1:
        """RequestVote and its rehearsal (Raft paper, figure 2 and section 5.4.1; dissertation, section 9.6).
        Learners vote too: they may be voters already and not know it yet."""
        cdef bint pre = m.type == MSG_PRE_VOTE
        cdef Message answer = self.make(MSG_PRE_VOTE_RESP if pre else MSG_VOTE_RESP, m.from_)
        cdef uint64_t own = self.log.last_term()
        cdef bint can_vote = (self.vote == m.from_ or (self.vote == 0 and self.lead == 0)
                              or (pre and m.term > self.term))
        if can_vote and (m.log_term > own or (m.log_term == own and m.index >= self.log.last_index)):
            answer.term = m.term
            if not pre:
                self.election_elapsed = 0
                self.vote = m.from_
        else:
            self.refuse_vote(answer)
        self.send(answer)
        return 0

    cdef int refuse_vote(self, Message answer) except -1:
        """A refusal tells how far this node knows the log to be committed."""
        cdef uint64_t term
        answer.reject = True
        if self.log.term_at(self.log.committed, &term) == TERM_OK:
            answer.commit, answer.log_term = self.log.committed, term
        return 0

    cdef int learn_commit(self, Message m) except -1:
        """Take the commit index over from a refused vote. A leader sends entries on before they are on its own disk;
        after a crash it may lack the last of them, and know less of the commit index than members that were demoted
        or removed by what is committed. Those have the longer logs and refuse it, but cannot lead; it could ask them
        for ever, by rules that do not hold any more. An entry committed anywhere is committed if it is in our log."""
        cdef uint64_t known = self.log.committed
        if not m.reject or m.commit <= known or not m.log_term or not self.log.match_term(m.commit, m.log_term):
            return 0
        self.commit_to(m.commit)
        try:
            stale = self.log.has_conf_change(known + 1, m.commit)
        except NotYetLoaded:
            stale = True
        if stale and self.state != STATE_LEADER:
            self.become_follower(self.term, 0)
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
        """What a node that does not lead does with requests: pass them on to the leader, if it knows one."""
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

    # -- as a follower --------------------------------------------------------------------------------------

    cdef int commit_to(self, uint64_t index) except -1:
        if index > self.log.last_index:
            raise RaftInvariantBroken(f"commit index {index} is beyond the log's end {self.log.last_index}: "
                                      "was the log lost?")
        if index > self.log.committed:
            self.log.committed = index
        return 0

    cdef int cut_claims(self, uint64_t index) except -1:
        """The log was cut at `index`, and with it what Readies that are out can make durable."""
        return 0 if self.planted & ABA_IGNORED else self.promises.cut(index)

    cdef int on_append(self, Message m) except -1:
        """AppendEntries (Raft paper, figure 2). A rejection names a position from which to go on (section 5.3)."""
        cdef Message answer = self.make(MSG_APP_RESP, m.from_)
        cdef uint64_t hint_term, last, old_last = self.log.last_index
        cdef uint64_t first_new = 0
        cdef Py_buffer buffer
        if m.index < self.log.committed:
            answer.index = self.log.committed
        elif self.log.match_term(m.index, m.log_term):
            PyObject_GetBuffer(m.get_images(), &buffer, PyBUF_SIMPLE)
            try:
                last = self.log.append_images(<const uint8_t*>buffer.buf, <size_t>buffer.len, m.index, m.term,
                                              &first_new)
            finally:
                PyBuffer_Release(&buffer)
            if first_new and first_new <= old_last:
                self.cut_claims(first_new)
            self.commit_to(min(m.commit, last))
            answer.index = last
        else:
            answer.reject = True
            answer.index = m.index
            answer.reject_hint = self.log.find_conflict_by_term(min(m.index, old_last), m.log_term, &hint_term)
            answer.log_term = hint_term
        self.send(answer)
        return 0

    cdef int on_heartbeat(self, Message m) except -1:
        cdef Message answer = self.make(MSG_HEARTBEAT_RESP, m.from_)
        self.commit_to(m.commit)
        answer.context = m.context
        self.send(answer)
        return 0

    cdef int on_snapshot(self, Message m) except -1:
        """InstallSnapshot (Raft paper, section 7)."""
        cdef Message answer = self.make(MSG_APP_RESP, m.from_)
        answer.index = self.log.last_index if self.restore(m) else self.log.committed
        self.send(answer)
        return 0

    cdef bint restore(self, Message m) except -1:
        """Take a snapshot over -> False if it brings nothing new. Its membership may lack this node: a new member can
        get a snapshot from before it was added, the entries after that add it."""
        cdef Snapshot snapshot = m.snapshot
        if snapshot is None or snapshot.index == 0 or snapshot.term > m.term:
            raise FormatError("raft message: bad snapshot")
        if snapshot.index <= self.log.committed:
            return False
        if self.log.match_term(snapshot.index, snapshot.term):
            self.commit_to(snapshot.index)
            return False
        self.log.restore(snapshot)
        self.snapshot_out = False
        self.apply_waiting = False
        self.cut_claims(1)
        self.use_conf(snapshot.conf_state)
        return True

    # -- as the leader --------------------------------------------------------------------------------------

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
            self.reads.add(m.from_, m.context)   # over the limit it is left unanswered: the follower asks again
        elif m.type == MSG_TRANSFER_LEADER:
            self.on_transfer(peer)
        return 0

    cdef int on_append_resp(self, Peer peer, Message m) except -1:
        cdef uint64_t hint, term
        peer.recent_active = True
        if m.reject:
            hint = m.reject_hint
            if m.log_term:
                hint = self.log.find_conflict_by_term(m.reject_hint, m.log_term, &term)
            if peer.maybe_decrease(m.index, hint):
                if peer.state == PROGRESS_REPLICATE:
                    peer.become_probe()
                peer.nudge = self.send_due = True
            return 0
        if m.index > self.log.last_index:
            raise RaftInvariantBroken(f"peer {peer.id} acknowledged {m.index}, the log ends at {self.log.last_index}")
        if not peer.maybe_update(m.index) and not (peer.match == m.index and peer.state == PROGRESS_PROBE):
            return 0
        if peer.state == PROGRESS_REPLICATE:
            peer.answered += peer.inflights.free_up_to(m.index)
        elif peer.state == PROGRESS_PROBE or peer.match + 1 >= self.log.first_index():
            peer.become_replicate()
        self.send_due = True
        self.maybe_commit()
        if peer.id == self.lead_transferee and peer.match == self.log.last_index:
            self.send_timeout_now(peer.id)
        return 0

    cdef int on_heartbeat_resp(self, Peer peer, Message m) except -1:
        cdef uint64_t answered
        peer.recent_active = True
        if peer.heartbeat_due or not m.context:
            peer.heartbeat_due = False
            peer.probe_sent = False
            if peer.match < self.log.last_index or peer.state == PROGRESS_PROBE:
                # Entries, or the answer to them, may have been lost: ask.
                peer.nudge = self.send_due = True
        if len(m.context) == 8:
            answered = <uint64_t>int.from_bytes(m.context, "little")
            if peer.read_ack < answered <= self.reads.number:
                peer.read_ack = answered
                self.confirm_rounds()
        return 0

    cdef bint maybe_commit(self) except -1:
        """Move the commit index to what a quorum has, if that is of this term (Raft paper, sections 5.3, 5.4.2)."""
        cdef uint64_t index = majority_index(self.voters_in, False)
        cdef uint64_t term
        if self.voters_out and not self.planted & JOINT_HALF:
            index = min(index, majority_index(self.voters_out, False))
        if index <= self.log.committed or not self.voters_in:
            return False
        if self.log.term_at(index, &term) != TERM_OK:
            raise RaftInvariantBroken(f"a quorum has entry {index}, the log ends at {self.log.last_index}")
        if term != self.term and not self.planted & COMMIT_OLD_TERM:
            return False
        self.commit_to(index)
        self.send_due = True
        return True

    cdef int send_appends(self) except -1:
        cdef Peer peer
        for peer in self.peer_list:
            if peer is self.me:
                continue
            if peer.held(self.log.committed):
                if peer.nudge and peer.state == PROGRESS_REPLICATE and not peer.waiting_load:
                    self.send_append(peer)
                continue
            while not peer.held(self.log.committed) and self.send_append(peer):
                pass
        return 0

    cdef bint send_append(self, Peer peer) except -1:
        """One append (or snapshot) to a peer, if there is anything to tell -> whether it was sent."""
        cdef uint64_t previous = peer.next - 1
        cdef uint64_t size, term, last = previous
        cdef int found
        cdef object images = None
        cdef Message m
        try:
            found = self.log.term_at(previous, &term)
        except NotYetLoaded:
            peer.waiting_load = True
            return False
        if found == TERM_COMPACTED:
            return self.send_snapshot(peer)
        if found != TERM_OK:
            raise RaftInvariantBroken(f"peer {peer.id} is to get entry {peer.next}, the log ends at "
                                      f"{self.log.last_index}")
        if peer.next <= self.log.last_index and not peer.held(self.log.committed):
            size = peer.piece(self.log.committed, self.config.max_size_per_msg)
            try:
                images = self.log.read(peer.next, self.log.last_index, size, &last)
            except NotYetLoaded:
                peer.waiting_load = True
                return False
            except LogCompacted:
                return self.send_snapshot(peer)
        elif not peer.nudge and self.log.committed <= peer.sent_commit:
            return False
        m = self.make(MSG_APP, peer.id)
        m.index = previous
        m.log_term = term
        m.commit = self.log.committed
        m._images = images
        self.send(m)
        peer.nudge = False
        peer.sent_commit = self.log.committed
        if peer.state == PROGRESS_PROBE:
            peer.probe_sent = True
        elif images is not None:
            peer.next = last + 1
            peer.inflights.push(last, len(images))
        return True

    cdef bint send_snapshot(self, Peer peer) except -1:
        cdef Snapshot snapshot
        cdef Message m
        peer.nudge = False
        if not peer.recent_active:
            return False   # it would not arrive
        try:
            snapshot = self.log.storage.snapshot()
        except (SnapshotNotReady, NotYetLoaded):
            snapshot = None
        if snapshot is None or snapshot.index + 1 < self.log.first_index():
            peer.probe_sent = True   # asked again after the next heartbeat
            return False
        m = self.make(MSG_SNAP, peer.id)
        m.snapshot = snapshot
        self.send(m)
        peer.become_snapshot(snapshot.index)
        return True

    def report_unreachable(self, uint64_t id):
        """Messages to this peer were lost: go back to one append at a time."""
        cdef Peer peer = self.peers.get(id)
        if self.state == STATE_LEADER and peer is not None and peer.state == PROGRESS_REPLICATE:
            peer.become_probe()

    def report_snapshot(self, uint64_t id, bint ok):
        """The snapshot sent to this peer arrived, or did not. Sending goes on after the peer's next answer."""
        cdef Peer peer = self.peers.get(id)
        if self.state != STATE_LEADER or peer is None or peer.state != PROGRESS_SNAPSHOT:
            return
        if not ok:
            peer.pending_snapshot = 0
        peer.become_probe()
        peer.probe_sent = True

    def transfer_leader(self, uint64_t id):
        """Hand leadership to this voter as soon as its log is complete (dissertation, section 3.10). A follower
        passes the wish on. Given up after an election timeout; nothing happens for learners and strangers."""
        cdef Message m
        cdef Peer peer = self.peers.get(id)
        if self.state == STATE_LEADER:
            if peer is not None:
                self.on_transfer(peer)
        elif self.lead:
            m = self.make(MSG_TRANSFER_LEADER, self.lead)
            m.from_ = id
            m.term = 0
            self.send(m)

    cdef int on_transfer(self, Peer peer) except -1:
        if peer.is_learner or peer.id == self.lead_transferee:
            return 0
        self.lead_transferee = 0
        if peer is self.me:
            return 0
        self.election_elapsed = 0
        self.lead_transferee = peer.id
        if peer.match == self.log.last_index:
            self.send_timeout_now(peer.id)
        else:
            peer.nudge = self.send_due = True
        return 0

    cdef int send_timeout_now(self, uint64_t to) except -1:
        # The target may act on this at any later time, and its votes do not wait for leases: no more lease reads
        # in this term, even if the transfer is given up.
        self.reads.lease_ended = True
        return self.send(self.make(MSG_TIMEOUT_NOW, to))

    # -- reads ----------------------------------------------------------------------------------------------

    cpdef read_index(self, bytes context, double now=0.0):
        """Ask for an index that makes a linearizable read; the answer is a ReadState with this context.

        Raises NoLeader, or TooManyRequests over the limit of pending reads. `now` (monotonic seconds) lets lease
        reads go without a round. A request passed to the leader may get lost: ask again."""
        cdef Message m
        if now > self.now:
            self.now = now
        if self.state == STATE_LEADER:
            if self.config.lease_reads and self.lease_valid(now):
                self.read_states.append(ReadState(self.log.committed, context))
                return
            if not self.reads.add(self.id, context):
                raise TooManyRequests()
        elif self.lead:
            m = self.make(MSG_READ_INDEX, self.lead)
            m.term = 0
            m.context = context
            self.send(m)
        else:
            raise NoLeader()

    cpdef bint lease_valid(self, double now):
        """Whether no other leader can exist at `now` (monotonic seconds). Always False without lease reads."""
        if self.state != STATE_LEADER or not self.config.lease_reads or self.log.committed < self.term_start:
            return False
        if not self.planted & LEASE_KEPT and (self.reads.lease_ended or self.lead_transferee):
            return False
        return self.sole or self.reads.lease_holds(now)

    cdef int serve_reads(self) except -1:
        """Give the gathered reads a round of their own: only rounds made after a read came can vouch for it. The
        leader's commit index is known to be complete only after an entry of its own term is committed."""
        if self.log.committed < self.term_start:
            return 0
        if self.sole or self.planted & READ_WITHOUT_ROUND:
            return self.answer_reads(self.log.committed, self.reads.take())
        if self.reads.room():
            self.reads.gather(self.log.committed, self.now)
            self.heartbeat(False)
        return 0

    cdef int confirm_rounds(self) except -1:
        """Answer the reads of all rounds that a quorum has answered, and move the lease on."""
        cdef Round done
        for done in self.reads.confirm(self.voters_in, self.voters_out):
            self.answer_reads(done.index, done.reads)
        return 0

    cdef int answer_reads(self, uint64_t index, list reads) except -1:
        cdef Message m
        for origin, context in reads:
            if origin == self.id:
                self.read_states.append(ReadState(index, context))
            else:
                m = self.make(MSG_READ_INDEX_RESP, origin)
                m.index = index
                m.context = context
                self.send(m)
        return 0

    # -- membership -----------------------------------------------------------------------------------------

    cdef int use_conf(self, ConfState conf) except -1:
        """Work with this membership from now on; what is known of members that stay is kept."""
        cdef Peer peer
        cdef dict old = self.peers
        cdef uint64_t id
        self.conf_state = conf
        self.peers, self.peer_list = {}, []
        for id in sorted({*conf.voters, *conf.voters_outgoing, *conf.learners, *conf.learners_next}):
            peer = old.get(id)
            if peer is None:
                peer = Peer(id, max(self.log.last_index, <uint64_t>1), self.config.max_inflight,
                            self.config.max_inflight_bytes, False)
                # Else check quorum could fail before a new member had the time to answer.
                peer.recent_active = True
            peer.is_learner = id not in conf.voters and id not in conf.voters_outgoing
            self.peers[id] = peer
            self.peer_list.append(peer)
        self.me = self.peers.get(self.id)
        self.voters_in = [self.peers[voter] for voter in conf.voters]
        self.voters_out = [self.peers[voter] for voter in conf.voters_outgoing]
        self.promotable = self.me is not None and not self.me.is_learner
        self.sole = conf.voters == (self.id,) and not conf.voters_outgoing
        self.reads.forget_lease()
        return 0

    def apply_conf_change(self, change):
        """A committed membership change takes effect -> the new ConfState. Raises ConfChangeError if it is not
        possible (on every node alike; then nothing has changed and the caller goes on)."""
        self.use_conf(apply_change(self.conf_state, change))
        if self.state != STATE_LEADER:
            return self.conf_state
        if not self.promotable:
            # Dissertation, section 4.2.2: a leader that is no voter any more steps down.
            self.become_follower(self.term, 0)
            return self.conf_state
        self.send_due = True
        self.maybe_commit()
        self.confirm_rounds()
        if self.lead_transferee and self.lead_transferee not in self.conf_state.voters:
            self.lead_transferee = 0
        return self.conf_state

    # -- looking in -----------------------------------------------------------------------------------------

    @property
    def raft_state(self):
        """The role, a StateType."""
        return StateType(self.state)

    @property
    def is_leader(self):
        """Whether this node leads."""
        return self.state == STATE_LEADER

    @property
    def commit(self):
        """Commit index."""
        return self.log.committed

    @property
    def applied(self):
        """Index up to which applying was reported."""
        return self.log.applied

    @property
    def last_index(self):
        """Index of the last entry, durable or not."""
        return self.log.last_index

    @property
    def persisted(self):
        """Index up to which the log is durable here."""
        return self.log.persisted

    @property
    def uncommitted_bytes(self):
        """Bytes of the entries that are not committed yet."""
        return self.log.bytes_after(self.log.committed)

    @property
    def election_timeout_ticks(self):
        """The election timeout in force, in ticks. A test may set it."""
        return self.election_timeout

    @election_timeout_ticks.setter
    def election_timeout_ticks(self, int ticks):
        if ticks < 1:
            raise ValueError("an election timeout has at least one tick")
        self.election_timeout = ticks

    def term_of(self, uint64_t index):
        """Term of entry `index`; None if it is not (or no longer) in the log."""
        cdef uint64_t term
        return term if self.log.term_at(index, &term) == TERM_OK else None

    def status(self):
        """Status of this node; `progress` (id -> Progress) on the leader only."""
        cdef Peer peer
        cdef dict progress = {}
        if self.state == STATE_LEADER:
            for peer in self.peer_list:
                progress[peer.id] = Progress(peer.state, peer.match, peer.next, peer.is_learner, peer.paused(),
                                             peer.pending_snapshot, peer.recent_active, peer.inflights.count)
        return Status(id=self.id, term=self.term, vote=self.vote, commit=self.log.committed, applied=self.log.applied,
                      lead=self.lead, raft_state=StateType(self.state), config=self.conf_state, progress=progress,
                      last_index=self.log.last_index, persisted=self.log.persisted,
                      lead_transferee=self.lead_transferee)
