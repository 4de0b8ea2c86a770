"""Elections: roles, votes, check quorum and the transfer of leadership (Raft paper, sections 5.2 and 5.4.1;
dissertation, sections 3.10, 4.2.3, 6.2 and 9.6).
"""

from libc.stdint cimport uint64_t

from metastore._core.entry cimport ENTRY_NORMAL
from metastore._core.raft_log cimport TERM_OK
from metastore._core.raft_quorum cimport PROGRESS_PROBE, VOTE_LOST, VOTE_WON, Peer
from metastore._core.raft_types cimport *
from metastore._core.raft_state cimport JOINT_HALF, PROMISE_FORGOTTEN
from metastore._core.raft_replication cimport Replication

from metastore._core.raft_quorum import doubting_vote, joint_vote
from metastore._core.raft_types import RaftInvariantBroken
from metastore._core.raft_state import TRANSFER


cdef class Election(Replication):
    """See raft_election.pxd."""

    # -- roles ----------------------------------------------------------------------------------------------

    cdef int draw_timeout(self) except -1:
        """Draw an election timeout from [election_ticks, 2 * election_ticks) (Raft paper, section 5.2)."""
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
        self.send_due = self.tell_all = self.untold = False
        self.dropped_reads += self.reads.drop(self.id)
        for peer in self.peer_list:
            peer.match = peer.sent_commit = peer.read_ack = peer.awaited = 0
            peer.next = self.log.last_index + 1
            peer.recent_active = peer.active_before = peer.waiting_load = peer.heartbeat_due = peer.nudge = False
            peer.patient = False
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
        """Take the lead after a won election. The first entry is empty, because counting copies commits only entries
        of the leader's own term (Raft paper, sections 5.4.2 and 8)."""
        if self.state != STATE_CANDIDATE:
            raise RaftInvariantBroken("only a candidate can become the leader")
        self.reset(self.term)
        self.lead = self.id
        self.state = STATE_LEADER
        self.me.become_replicate()
        self.me.recent_active = True
        self.me.match = self.log.persisted
        # The log may hold membership changes of earlier terms that are not applied. No new one until they are.
        self.pending_conf_index = self.log.last_index
        self.propose_bytes(ENTRY_NORMAL, NULL, 0)
        self.term_start = self.log.last_index
        return 0

    cpdef campaign(self):
        """Start an election now, with a pre-vote first if that is configured."""
        self.hup(False)

    cdef int hup(self, bint transfer) except -1:
        """Start an election, unless committed membership changes are not applied yet. In that case the election would
        use an old membership, so the node waits for its next timeout. An election as soon as the changes are applied
        could depose a leader whose messages are still unread. Only a sole voter, which has no other leader, starts
        its election right then."""
        if self.state == STATE_LEADER or not self.promotable or self.log.pending_snapshot is not None:
            return 0
        self.hup_waiting = self.log.has_conf_change(self.log.applied + 1, self.log.committed)
        if self.hup_waiting:
            return 0
        return self.start_election(self.config.pre_vote and not transfer, transfer)

    cdef int start_election(self, bint pre, bint transfer) except -1:
        """Request votes from all voters (Raft paper, section 5.2). A pre-vote (dissertation, section 9.6) changes no
        term."""
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

    cdef int check_quorum(self) except -1:
        """Step down if no quorum answered for an election timeout (dissertation, section 6.2)."""
        cdef Peer peer
        cdef dict active = {}
        for peer in self.peer_list:
            active[peer.id] = peer.recent_active or peer is self.me
            peer.active_before = peer.recent_active
            peer.recent_active = peer is self.me
        if joint_vote(self.conf_state.voters, self.conf_state.voters_outgoing, active) != VOTE_WON:
            self.become_follower(self.term, 0)
        return 0

    # -- votes ---------------------------------------------------------------------------------------------

    cdef bint newer_term(self, Message m) except -1:
        """Process the term of a message from a later term: adopt it, unless the message is a vote request that must
        not disturb a working leader."""
        if (m.type == MSG_VOTE or m.type == MSG_PRE_VOTE) and self.bound(m):
            return False
        if m.type == MSG_PRE_VOTE or (m.type == MSG_PRE_VOTE_RESP and not m.reject):
            return True
        if m.type == MSG_APP or m.type == MSG_HEARTBEAT or m.type == MSG_SNAP:
            self.become_follower(m.term, m.from_)
        else:
            self.become_follower(m.term, 0)
        return True

    cdef bint bound(self, Message m) except? True:
        """Whether this node must not help the candidate that sent `m`: it leads itself, or a leader relies on it.

        A node that answers a heartbeat promises not to help another candidate for an election timeout. The promise
        holds whatever happens meanwhile, even if the node hears of a later term or no longer knows who leads, because
        the leader may serve reads by a lease that depends on it (dissertation, sections 4.2.3, 6.4.1 and 9.6). After
        a restart a node does not know when it last answered, so it keeps the promise for one more timeout. The only
        candidate that gets help at once is one to which the leader itself hands over."""
        if not self.config.check_quorum or m.context == TRANSFER:
            return False
        if self.planted & PROMISE_FORGOTTEN and not self.lead:
            return False
        return self.state == STATE_LEADER or self.guard > 0

    cdef int step_vote(self, Message m) except -1:
        """Process a vote request or a pre-vote request (Raft paper, figure 2 and section 5.4.1; dissertation, section
        9.6). Learners vote too, because they may already be voters and not know it yet."""
        cdef bint pre = m.type == MSG_PRE_VOTE
        cdef Message answer = self.make(MSG_PRE_VOTE_RESP if pre else MSG_VOTE_RESP, m.from_)
        cdef uint64_t own = self.log.last_term()
        cdef bint can_vote = not self.bound(m) and (
            self.vote == m.from_ or (self.vote == 0 and self.lead == 0) or (pre and m.term > self.term))
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
        """Send a refusal, which also carries the commit index of this node."""
        cdef uint64_t term
        answer.reject = True
        if self.log.term_at(self.log.committed, &term) == TERM_OK:
            answer.commit, answer.log_term = self.log.committed, term
        return 0

    cdef int learn_commit(self, Message m) except -1:
        """Take the commit index from a refused vote.

        A leader sends entries before they are on its own disk. After a crash it may lack the last of these, and its
        commit index may be lower than that of members which committed entries demoted or removed. Those members have
        longer logs and refuse to vote for it, but cannot lead themselves. Without this rule it could ask them for
        ever, under a membership that is out of date. An entry that is committed anywhere is committed if it is in our
        log."""
        cdef uint64_t known = self.log.committed
        if not m.reject or m.commit <= known or not m.log_term or not self.log.match_term(m.commit, m.log_term):
            return 0
        self.commit_to(m.commit)
        if self.log.has_conf_change(known + 1, m.commit) and self.state != STATE_LEADER and (
                self.state != STATE_FOLLOWER or self.planted & PROMISE_FORGOTTEN):
            self.become_follower(self.term, 0)   # its own election used a membership that is out of date
        return 0

    # -- handing over --------------------------------------------------------------------------------------

    def transfer_leader(self, uint64_t id):
        """Hand leadership to this voter as soon as its log is complete (dissertation, section 3.10).

        A follower forwards the request to the leader. The transfer is given up after an election timeout. A request
        for a learner or an unknown id does nothing."""
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
        self.tell_commit()
        if peer.match == self.log.last_index:
            self.send_timeout_now(peer.id)
        else:
            peer.nudge = self.send_due = True
        return 0
