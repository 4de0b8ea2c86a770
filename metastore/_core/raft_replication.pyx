"""Replication: the leader's appends, heartbeats, snapshots and reads, and how a follower processes them (Raft paper,
sections 5.3 and 7; dissertation, sections 3.10 and 6.4).
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint64_t

from metastore._core.entry cimport ENTRY_MAX_PAYLOAD, entry_size
from metastore._core.raft_log cimport TERM_COMPACTED, TERM_OK
from metastore._core.raft_quorum cimport PROGRESS_PROBE, PROGRESS_REPLICATE, PROGRESS_SNAPSHOT, Peer, majority_index
from metastore._core.raft_types cimport *
from metastore._core.raft_state cimport (ABA_IGNORED, ACK_BEFORE_SYNC, COMMIT_OLD_TERM, JOINT_HALF, LEASE_KEPT,
                                        READ_OVERTAKES, READ_WITHOUT_ROUND, REMOVAL_UNTOLD, NodeState)
from metastore._core.raft_reads cimport Round

from metastore._core.raft_types import (LogCompacted, NotYetLoaded, ProposalDropped, RaftInvariantBroken,
                                    SnapshotNotReady)
from metastore._core.raft_state import COMMIT_ONLY, PATIENT
from metastore.errors import FormatError, NoLeader, NotLeader, RequestTooLarge, TooManyRequests


cdef class Replication(NodeState):
    """See raft_replication.pxd."""

    # -- as a follower --------------------------------------------------------------------------------------

    cdef int commit_to(self, uint64_t index) except -1:
        if index > self.log.last_index:
            raise RaftInvariantBroken(f"commit index {index} is beyond the log's end {self.log.last_index}: "
                                      "was the log lost?")
        if index > self.log.committed:
            self.log.committed = index
            if self.log.chunk_bytes > self.log.max_tail_bytes:
                self.log.trim(0)
        return 0

    cdef int cut_claims(self, uint64_t index) except -1:
        """Cut the promises of handed-out Readies at `index`, where the log was cut."""
        return 0 if self.planted & ABA_IGNORED else self.promises.cut(index)

    cdef int on_append(self, Message m) except -1:
        """Process AppendEntries (Raft paper, figure 2). A rejection names the position to go on from (section 5.3)."""
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
        if answer.reject or m.context != COMMIT_ONLY:
            self.send(answer)
        return 0

    cdef int on_heartbeat(self, Message m) except -1:
        cdef Message answer = self.make(MSG_HEARTBEAT_RESP, m.from_)
        self.commit_to(m.commit)
        answer.context = m.context
        self.send(answer)
        return 0

    cdef int on_snapshot(self, Message m) except -1:
        """Process InstallSnapshot (Raft paper, section 7)."""
        cdef Message answer = self.make(MSG_APP_RESP, m.from_)
        answer.index = self.log.last_index if self.restore(m) else self.log.committed
        self.send(answer)
        return 0

    cdef bint restore(self, Message m) except -1:
        """Take over a snapshot. Return False if it contains nothing new. Its membership may lack this node: a new
        member can get a snapshot from before it was added, and the entries after that add it."""
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

    cdef int heartbeat(self, bint by_clock) except -1:
        """Send heartbeats to all peers. Each names the newest round, so the next one makes up for a lost one."""
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
            # Never above the index that the peer is known to have: its log may differ after that.
            m.commit = min(peer.match, self.log.committed)
            m.context = context
            self.send(m)
            if peer.state == PROGRESS_REPLICATE and m.commit > peer.sent_commit:
                peer.sent_commit = m.commit
            if by_clock:
                peer.heartbeat_due = True
                peer.adapt()
        return 0

    cdef int on_append_resp(self, Peer peer, Message m) except -1:
        cdef uint64_t hint, term
        peer.recent_active = True
        peer.patient = m.context == PATIENT
        if not peer.patient and peer.sent_commit < self.log.committed:
            self.send_due = True
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
                # Entries or their answer may have been lost, so send an append that asks for one.
                peer.nudge = self.send_due = True
        if len(m.context) == 8:
            answered = <uint64_t>int.from_bytes(m.context, "little")
            if peer.read_ack < answered <= self.reads.number:
                peer.read_ack = answered
                self.confirm_rounds()
        return 0

    cdef bint maybe_commit(self) except -1:
        """Advance the commit index to the last entry of this term that a quorum has (Raft paper, 5.3 and 5.4.2)."""
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
        if self.lead_transferee or self.log.committed < max(self.pending_conf_index, self.term_start):
            # A member that this entry removes hears nothing later, and after a transfer a leader says nothing any more.
            self.tell_all = not self.planted & REMOVAL_UNTOLD
        self.commit_to(index)
        self.send_due = True
        return True

    cpdef tell_commit(self):
        """Send the commit index to all peers that do not know it, with the next Ready."""
        if self.state == STATE_LEADER:
            self.tell_all = self.send_due = True

    cpdef hasten(self, uint64_t id):
        """Note that peer `id` waits for entries. It is sent each commit index at once, until it says in an answer that
        it is patient. This does nothing on a node that does not lead, and for an unknown id."""
        cdef Peer peer = self.peers.get(id)
        if self.state == STATE_LEADER and peer is not None:
            peer.patient = False
            self.send_due = True

    cpdef ask_commit(self):
        """Tell the leader now, and not only with the next answer, whether this follower is patient."""
        cdef Message m
        if self.state == STATE_FOLLOWER and self.lead:
            m = self.make(MSG_APP_RESP, self.lead)
            m.index = self.log.committed   # the leader has all entries up to there
            self.send(m)

    cdef bint must_hear(self, Peer peer) noexcept:
        """Whether this peer is to be sent the commit index without waiting for the next entries."""
        return self.log.committed > peer.sent_commit and (
            self.tell_all or not peer.patient or peer.sent_commit < peer.awaited or peer.state != PROGRESS_REPLICATE)

    cdef int send_appends(self) except -1:
        cdef Peer peer
        self.untold = False
        for peer in self.peer_list:
            if peer is self.me:
                continue
            if peer.held(self.log.committed):
                if peer.state == PROGRESS_REPLICATE and not peer.waiting_load and (
                        peer.nudge or (self.tell_all and self.must_hear(peer))):
                    self.send_append(peer)
                continue
            while not peer.held(self.log.committed) and self.send_append(peer):
                pass
            if self.log.committed > peer.sent_commit and peer.state == PROGRESS_REPLICATE:
                self.untold = True
        self.tell_all = False
        return 0

    cdef bint send_append(self, Peer peer) except -1:
        """Send one append or snapshot to a peer if there is anything to send. Return whether it was sent."""
        cdef uint64_t previous = peer.next - 1
        cdef uint64_t size, term, last = previous
        cdef int answer
        cdef object images = None
        cdef Message m
        try:
            answer = self.log.term_at(previous, &term)
        except NotYetLoaded:
            peer.waiting_load = True
            return False
        if answer == TERM_COMPACTED:
            return self.send_snapshot(peer)
        if answer != TERM_OK:
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
        elif not peer.nudge and not self.must_hear(peer):
            return False
        m = self.make(MSG_APP, peer.id)
        m.index = previous
        m.log_term = term
        m.commit = self.log.committed
        m._images = images
        if images is None and not peer.nudge and peer.state == PROGRESS_REPLICATE:
            m.context = COMMIT_ONLY
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
            return False   # the snapshot would not arrive
        try:
            snapshot = self.log.storage.snapshot()
        except (SnapshotNotReady, NotYetLoaded):
            snapshot = None
        if snapshot is None or snapshot.index + 1 < self.log.first_index():
            peer.probe_sent = True   # tried again after the next heartbeat
            return False
        m = self.make(MSG_SNAP, peer.id)
        m.snapshot = snapshot
        self.send(m)
        peer.become_snapshot(snapshot.index)
        return True

    def report_unreachable(self, uint64_t id):
        """Report that messages to this peer were lost. The leader goes back to one append at a time."""
        cdef Peer peer = self.peers.get(id)
        if self.state == STATE_LEADER and peer is not None and peer.state == PROGRESS_REPLICATE:
            peer.become_probe()

    def report_snapshot(self, uint64_t id, bint ok):
        """Report whether the snapshot reached this peer. The leader sends again after the peer's next answer."""
        cdef Peer peer = self.peers.get(id)
        if self.state != STATE_LEADER or peer is None or peer.state != PROGRESS_SNAPSHOT:
            return
        if not ok:
            peer.pending_snapshot = 0
        peer.become_probe()
        peer.probe_sent = True

    cdef int send_timeout_now(self, uint64_t to) except -1:
        # The target may act on this message at any later time, and voters do not wait for a lease to end before they
        # vote for it. There are no more lease reads in this term, even if the transfer is given up.
        self.reads.lease_ended = True
        return self.send(self.make(MSG_TIMEOUT_NOW, to))

    # -- reads ----------------------------------------------------------------------------------------------

    cpdef read_index(self, bytes context, double now=0.0):
        """Ask for an index at which a read is linearizable. The answer is a ReadState with this context.

        Raises NoLeader, or TooManyRequests over the limit of pending reads. `now` (monotonic seconds) allows lease
        reads without a round. A request that is forwarded to the leader may be lost; then ask again."""
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
        """Create a round for the collected reads. Only a round that is created after a read arrived can confirm it. The
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
        """Answer the reads of all rounds that a quorum has answered, and extend the lease."""
        cdef Round done
        for done in self.reads.confirm(self.voters_in, self.voters_out):
            self.answer_reads(done.index, done.reads)
        return 0

    cdef int answer_reads(self, uint64_t index, list reads) except -1:
        cdef Message m
        cdef Peer peer
        for origin, context in reads:
            if origin == self.id:
                self.read_states.append(ReadState(index, context))
            else:
                m = self.make(MSG_READ_INDEX_RESP, origin)
                m.index = index
                m.context = context
                self.send(m)
                peer = self.peers.get(origin)
                if peer is not None and peer.sent_commit < index and not self.planted & READ_OVERTAKES:
                    peer.awaited = index
                    self.send_due = True
        return 0

    # -- membership ----------------------------------------------------------------------------------------

    cdef int use_conf(self, ConfState conf) except -1:
        """Use this membership from now on. The state of members that stay is kept."""
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
                # Otherwise check quorum could fail before a new member has had time to answer.
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
