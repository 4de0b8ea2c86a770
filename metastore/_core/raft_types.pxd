from libc.stdint cimport uint64_t

cdef enum:
    MSG_HUP = 0
    MSG_BEAT = 1
    MSG_PROP = 2
    MSG_APP = 3
    MSG_APP_RESP = 4
    MSG_VOTE = 5
    MSG_VOTE_RESP = 6
    MSG_SNAP = 7
    MSG_HEARTBEAT = 8
    MSG_HEARTBEAT_RESP = 9
    MSG_UNREACHABLE = 10
    MSG_SNAP_STATUS = 11
    MSG_CHECK_QUORUM = 12
    MSG_TRANSFER_LEADER = 13
    MSG_TIMEOUT_NOW = 14
    MSG_READ_INDEX = 15
    MSG_READ_INDEX_RESP = 16
    MSG_PRE_VOTE = 17
    MSG_PRE_VOTE_RESP = 18

cdef enum:
    STATE_FOLLOWER = 0
    STATE_CANDIDATE = 1
    STATE_LEADER = 2
    STATE_PRE_CANDIDATE = 3

cdef class ConfState:
    cdef readonly tuple voters
    cdef readonly tuple learners
    cdef readonly tuple voters_outgoing
    cdef readonly tuple learners_next
    cdef readonly bint auto_leave
    cpdef bytes encode(self)

cdef class Snapshot:
    cdef readonly uint64_t index
    cdef readonly uint64_t term
    cdef readonly ConfState conf_state
    cdef readonly object data

cdef class ConfChange:
    cdef readonly int type
    cdef readonly uint64_t node_id
    cdef readonly bytes context

cdef class ConfChangeV2:
    cdef readonly int transition
    cdef readonly tuple changes
    cdef readonly bytes context
    cpdef bytes encode(self)

cdef class Message:
    cdef public int type
    cdef public uint64_t to
    cdef public uint64_t from_
    cdef public uint64_t term
    cdef public uint64_t log_term
    cdef public uint64_t index
    cdef public uint64_t commit
    cdef public uint64_t vote
    cdef public uint64_t reject_hint
    cdef public bint reject
    cdef public Snapshot snapshot
    cdef public bytes context
    cdef object _images
    cdef list _entries
    cdef object get_images(self)

cdef class SoftState:
    cdef readonly uint64_t lead
    cdef readonly int raft_state

cdef class ReadState:
    cdef readonly uint64_t index
    cdef readonly bytes request_ctx

cdef class Ready:
    cdef readonly uint64_t number
    cdef readonly SoftState soft_state
    cdef readonly object hard_state
    cdef readonly Snapshot snapshot
    cdef readonly list messages
    cdef readonly list read_states
    cdef readonly list dropped_reads
    cdef readonly bint must_sync
    cdef readonly object entry_images
    cdef readonly uint64_t first_index
    cdef readonly uint64_t last_index
    cdef readonly object committed_images
    cdef readonly uint64_t committed_first
    cdef readonly uint64_t committed_last

cdef class RaftConfig:
    cdef readonly uint64_t id
    cdef readonly uint64_t applied
    cdef readonly int election_ticks
    cdef readonly int heartbeat_ticks
    cdef readonly uint64_t max_size_per_msg
    cdef readonly int max_inflight
    cdef readonly uint64_t max_inflight_bytes
    cdef readonly uint64_t max_uncommitted_bytes
    cdef readonly uint64_t max_committed_size_per_ready
    cdef readonly uint64_t max_tail_bytes
    cdef readonly uint64_t read_ahead_bytes
    cdef readonly size_t max_pending_reads
    cdef readonly bint pre_vote
    cdef readonly bint check_quorum
    cdef readonly bint lease_reads
    cdef readonly double lease_seconds
    cdef readonly uint64_t seed
    cdef readonly object random
    cdef readonly uint64_t doubt
    cdef readonly bint accept_loss
    cdef readonly int planted
