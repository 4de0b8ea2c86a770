"""Common part of a Raft node: its fields, the messages that it creates or holds back, and its state for callers.

A RawNode (raft.pyx) is built in layers, so each can be read by itself: NodeState (here), Replication
(raft_replication.pyx), Election (raft_election.pyx), RawNode. A layer calls only functions of its own module or of a
layer below it. The one exception is `step`, because a node also sends votes to itself.
"""

from libc.stdint cimport uint64_t

from metastore._core.raft_log cimport TERM_OK
from metastore._core.raft_promises cimport covers
from metastore._core.raft_quorum cimport Peer
from metastore._core.raft_types cimport *

from metastore._core.raft_types import Progress, Status, StateType

TRANSFER = b"CampaignTransfer"
DOUBT = b"doubt"
#: The context of an append that only carries a commit index and needs no answer.
COMMIT_ONLY = b"commit"
#: The context of the answers to appends of a node that is patient.
PATIENT = b"patient"
cdef bytes NOTHING = b""


cdef class NodeState:
    """See raft_state.pxd."""

    cpdef step(self, Message m):
        """Process a message; RawNode implements this."""
        raise NotImplementedError

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
        """Number of the Ready that must be durable before the node may tell its present state to others; 0: none."""
        if (self.out_term != self.term or self.out_vote != self.vote or self.log.emitted < self.log.last_index
                or (self.log.pending_snapshot is not None and not self.snapshot_out)):
            return self.next_number
        return self.state_number if self.state_number > self.persisted_number else 0

    cdef int send(self, Message m) except -1:
        """Queue a message for the next Ready, or hold it until the state that it depends on is durable."""
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
        """Queue the messages that waited for a Ready which is durable now. Answers of earlier terms are dropped."""
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

    # -- state for callers ----------------------------------------------------------------------------------

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
        """The commit index."""
        return self.log.committed

    @property
    def applied(self):
        """Index up to which the caller reported entries as applied."""
        return self.log.applied

    @property
    def last_index(self):
        """Index of the last entry, whether durable or not."""
        return self.log.last_index

    @property
    def changing(self):
        """On a leader: whether the log may hold a membership change that is not applied or not complete."""
        return self.pending_conf_index > self.log.applied or bool(self.conf_state.voters_outgoing)

    @property
    def restoring(self):
        """Whether a received snapshot is about to replace the state. The membership is already that of the snapshot."""
        return self.log.pending_snapshot is not None

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
        """The current election timeout in ticks. A test may set it."""
        return self.election_timeout

    @election_timeout_ticks.setter
    def election_timeout_ticks(self, int ticks):
        if ticks < 1:
            raise ValueError("an election timeout has at least one tick")
        self.election_timeout = ticks

    def term_of(self, uint64_t index):
        """Term of entry `index`; None if the log does not hold it or holds it no longer."""
        cdef uint64_t term
        return term if self.log.term_at(index, &term) == TERM_OK else None

    def status(self):
        """Status of this node; `progress` (id -> Progress) on the leader only."""
        cdef Peer peer
        cdef dict progress = {}
        if self.state == STATE_LEADER:
            for peer in self.peer_list:
                progress[peer.id] = Progress(peer.state, peer.match, peer.next, peer.is_learner, peer.paused(),
                                             peer.pending_snapshot, peer.recent_active, peer.inflights.count,
                                             peer.recent_active or peer.active_before)
        return Status(id=self.id, term=self.term, vote=self.vote, commit=self.log.committed, applied=self.log.applied,
                      lead=self.lead, raft_state=StateType(self.state), config=self.conf_state, progress=progress,
                      last_index=self.log.last_index, persisted=self.log.persisted,
                      lead_transferee=self.lead_transferee)
