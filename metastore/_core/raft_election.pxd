from libc.stdint cimport uint64_t

from metastore._core.raft_quorum cimport Peer
from metastore._core.raft_types cimport Message
from metastore._core.raft_replication cimport Replication

# Elections: roles, votes and the transfer of leadership.
cdef class Election(Replication):
    cpdef campaign(self)

    cdef int draw_timeout(self) except -1
    cdef int reset(self, uint64_t term) except -1
    cdef int become_follower(self, uint64_t term, uint64_t lead) except -1
    cdef int become_candidate(self) except -1
    cdef int become_leader(self) except -1
    cdef int hup(self, bint transfer) except -1
    cdef int start_election(self, bint pre, bint transfer) except -1
    cdef int count_vote(self, uint64_t voter, bint granted, bint doubt) except -1
    cdef int check_quorum(self) except -1

    cdef bint newer_term(self, Message m) except -1
    cdef bint bound(self, Message m) except? True
    cdef int step_vote(self, Message m) except -1
    cdef int refuse_vote(self, Message answer) except -1
    cdef int learn_commit(self, Message m) except -1

    cdef int on_transfer(self, Peer peer) except -1
