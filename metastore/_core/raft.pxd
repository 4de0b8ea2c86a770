from libc.stdint cimport uint8_t, uint64_t

from metastore._core.log cimport RaftLog
from metastore._core.promises cimport Promises
from metastore._core.quorum cimport Peer
from metastore._core.raftpb cimport ConfState, Message, RaftConfig, Ready, SoftState
from metastore._core.reads cimport Reads

# The bits of `planted`, as raft.pyx has them for Python.
cdef enum:
    VOTE_NOT_PERSISTED = 1
    ACK_BEFORE_SYNC = 2
    COMMIT_OLD_TERM = 4
    READ_WITHOUT_ROUND = 8
    LEASE_KEPT = 16
    JOINT_HALF = 32
    ABA_IGNORED = 64

cdef class RawNode:
    cdef readonly RaftConfig config
    cdef readonly RaftLog log
    cdef readonly uint64_t id
    cdef readonly uint64_t term
    cdef readonly uint64_t vote
    cdef readonly uint64_t lead
    cdef readonly int state
    cdef readonly ConfState conf_state
    cdef readonly uint64_t doubt   # not 0: entries of this term or before, once acknowledged, may be missing
    cdef dict votes
    cdef set doubtful              # who granted a vote in doubt
    cdef dict peers
    cdef list peer_list            # by id
    cdef list voters_in
    cdef list voters_out
    cdef Peer me
    cdef bint sole
    cdef bint promotable
    cdef uint64_t pending_conf_index
    cdef uint64_t term_start       # index of this leader's first entry
    cdef readonly uint64_t lead_transferee
    cdef public bint apply_held           # the caller cannot apply for the moment: nothing committed is handed out
    cdef int election_elapsed
    cdef int heartbeat_elapsed
    cdef int boot_guard
    cdef int election_timeout
    cdef uint64_t random_state
    cdef double now
    cdef int planted
    # output
    cdef list messages
    cdef Promises promises
    cdef list read_states
    cdef list dropped_reads
    cdef bint send_due
    cdef readonly bint apply_waiting   # committed entries were asked for and are NotYetLoaded
    cdef bint hup_waiting          # an election waits for membership changes to be applied
    cdef bint snapshot_out
    cdef uint64_t next_number
    cdef uint64_t persisted_number
    cdef uint64_t state_number     # newest Ready that carried anything messages may depend on
    cdef uint64_t out_term
    cdef uint64_t out_vote
    cdef uint64_t out_commit
    cdef uint64_t out_lead
    cdef int out_state
    cdef Reads reads

    cpdef uint64_t propose(self, payload) except 0
    cdef uint64_t propose_bytes(self, uint8_t type, const uint8_t* payload, size_t n) except 0
    cpdef bint has_ready(self) except -1
    cpdef Ready ready(self)
    cpdef on_persisted(self, uint64_t number)
    cpdef on_applied(self, uint64_t index)
    cpdef read_index(self, bytes context, double now=*)
    cpdef bint lease_valid(self, double now)
    cpdef tick(self, double now=*)
    cpdef campaign(self)
    cpdef step(self, Message m)

    cdef Message make(self, int type, uint64_t to)
    cdef uint64_t unsettled(self) noexcept
    cdef int send(self, Message m) except -1
    cdef int release_held(self) except -1
    cdef int fill(self) except -1
    cdef bint can_apply(self) noexcept
    cdef int take_entries(self, Ready ready) except -1
    cdef int take_committed(self, Ready ready) except -1

    cdef int reset(self, uint64_t term) except -1
    cdef int become_follower(self, uint64_t term, uint64_t lead) except -1
    cdef int become_candidate(self) except -1
    cdef int become_leader(self) except -1
    cdef int hup(self, bint transfer) except -1
    cdef int start_election(self, bint pre, bint transfer) except -1
    cdef int count_vote(self, uint64_t voter, bint granted, bint doubt) except -1
    cdef int draw_timeout(self) except -1

    cdef bint newer_term(self, Message m) except -1
    cdef int older_term(self, Message m) except -1
    cdef int step_local(self, Message m) except -1
    cdef int step_role(self, Message m) except -1
    cdef int step_leader(self, Message m) except -1
    cdef int step_vote(self, Message m) except -1
    cdef int refuse_vote(self, Message answer) except -1
    cdef int learn_commit(self, Message m) except -1
    cdef int step_follower(self, Message m) except -1
    cdef int on_append(self, Message m) except -1
    cdef int on_heartbeat(self, Message m) except -1
    cdef int on_snapshot(self, Message m) except -1
    cdef bint restore(self, Message m) except -1
    cdef int cut_claims(self, uint64_t index) except -1
    cdef int commit_to(self, uint64_t index) except -1

    cdef int on_append_resp(self, Peer peer, Message m) except -1
    cdef int on_heartbeat_resp(self, Peer peer, Message m) except -1
    cdef int on_transfer(self, Peer peer) except -1
    cdef int send_timeout_now(self, uint64_t to) except -1
    cdef bint maybe_commit(self) except -1
    cdef int send_appends(self) except -1
    cdef bint send_append(self, Peer peer) except -1
    cdef bint send_snapshot(self, Peer peer) except -1
    cdef int heartbeat(self, bint by_clock) except -1
    cdef int check_quorum(self) except -1

    cdef int serve_reads(self) except -1
    cdef int confirm_rounds(self) except -1
    cdef int answer_reads(self, uint64_t index, list reads) except -1

    cdef int use_conf(self, ConfState conf) except -1
    cdef int check_conf_change(self, change) except -1
    cdef int maybe_auto_leave(self) except -1
