from libc.stdint cimport uint64_t

from metastore._core.raft_log cimport RaftLog
from metastore._core.raft_promises cimport Promises
from metastore._core.raft_quorum cimport Peer
from metastore._core.raft_types cimport ConfState, Message, RaftConfig
from metastore._core.raft_reads cimport Reads

# The bits of `planted`. raft.pyx has the same for Python.
cdef enum:
    VOTE_NOT_PERSISTED = 1
    ACK_BEFORE_SYNC = 2
    COMMIT_OLD_TERM = 4
    READ_WITHOUT_ROUND = 8
    LEASE_KEPT = 16
    JOINT_HALF = 32
    ABA_IGNORED = 64
    PROMISE_FORGOTTEN = 128
    READ_OVERTAKES = 256
    REMOVAL_UNTOLD = 512

# The fields of a node and what all its parts do with messages. raft_state.pyx describes the layers.
cdef class NodeState:
    cdef readonly RaftConfig config
    cdef readonly RaftLog log
    cdef readonly uint64_t id
    cdef readonly uint64_t term
    cdef readonly uint64_t vote
    cdef readonly uint64_t lead
    cdef readonly int state
    cdef readonly ConfState conf_state
    cdef readonly uint64_t doubt   # not 0: acknowledged entries of this term or before may be missing
    cdef dict votes
    cdef set doubtful              # ids of nodes that granted a vote in doubt
    cdef dict peers
    cdef list peer_list            # sorted by id
    cdef list voters_in
    cdef list voters_out
    cdef Peer me
    cdef bint sole
    cdef bint promotable
    cdef uint64_t pending_conf_index
    cdef readonly uint64_t term_start   # index of this leader's first entry
    cdef readonly uint64_t lead_transferee
    cdef public bint apply_held           # the caller cannot apply now, so no committed entries are handed out
    cdef int election_elapsed
    cdef int heartbeat_elapsed
    cdef int guard                 # ticks during which this node votes for no other node
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
    cdef bint tell_all             # the commit index is to reach every peer with the next messages
    cdef readonly bint untold      # leader: a patient peer has not been sent the commit index
    cdef public bint patient       # nobody here waits for entries, so the commit index may come late
    cdef readonly bint apply_waiting   # committed entries were requested and are NotYetLoaded
    cdef bint hup_waiting          # a sole voter's election waits until membership changes are applied
    cdef bint snapshot_out
    cdef uint64_t next_number
    cdef uint64_t persisted_number
    cdef uint64_t state_number     # newest Ready with state that messages may depend on
    cdef uint64_t out_term
    cdef uint64_t out_vote
    cdef uint64_t out_commit
    cdef uint64_t out_lead
    cdef int out_state
    cdef Reads reads

    cpdef step(self, Message m)

    cdef Message make(self, int type, uint64_t to)
    cdef uint64_t unsettled(self) noexcept
    cdef int send(self, Message m) except -1
    cdef int release_held(self) except -1
