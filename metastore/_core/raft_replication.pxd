from libc.stdint cimport uint8_t, uint64_t

from metastore._core.raft_quorum cimport Peer
from metastore._core.raft_types cimport ConfState, Message
from metastore._core.raft_state cimport NodeState

# Replication from the leader to the followers, and the reads that the leader's heartbeats confirm.
cdef class Replication(NodeState):
    cpdef read_index(self, bytes context, double now=*)
    cpdef bint lease_valid(self, double now)

    cdef int commit_to(self, uint64_t index) except -1
    cdef int cut_claims(self, uint64_t index) except -1
    cdef int on_append(self, Message m) except -1
    cdef int on_heartbeat(self, Message m) except -1
    cdef int on_snapshot(self, Message m) except -1
    cdef bint restore(self, Message m) except -1

    cdef uint64_t propose_bytes(self, uint8_t type, const uint8_t* payload, size_t n) except 0
    cdef int heartbeat(self, bint by_clock) except -1
    cdef int on_append_resp(self, Peer peer, Message m) except -1
    cdef int on_heartbeat_resp(self, Peer peer, Message m) except -1
    cdef bint maybe_commit(self) except -1
    cpdef tell_commit(self)
    cpdef hasten(self, uint64_t id)
    cpdef ask_commit(self)
    cdef bint must_hear(self, Peer peer) noexcept
    cdef int send_appends(self) except -1
    cdef bint send_append(self, Peer peer) except -1
    cdef bint send_snapshot(self, Peer peer) except -1
    cdef int send_timeout_now(self, uint64_t to) except -1

    cdef int serve_reads(self) except -1
    cdef int confirm_rounds(self) except -1
    cdef int answer_reads(self, uint64_t index, list reads) except -1

    cdef int use_conf(self, ConfState conf) except -1
