from libc.stdint cimport uint64_t

from metastore._core.raft_election cimport Election
from metastore._core.raft_types cimport Message, Ready

# The node as its caller sees it: it takes proposals, ticks and messages, and returns Readies.
cdef class RawNode(Election):
    cpdef uint64_t propose(self, payload) except 0
    cpdef bint has_ready(self) except -1
    cpdef Ready ready(self)
    cpdef on_persisted(self, uint64_t number)
    cpdef bint awaits_disk(self) except -1
    cpdef on_applied(self, uint64_t index)
    cpdef tick(self, double now=*)

    cdef int fill(self) except -1
    cdef bint can_apply(self) noexcept
    cdef int take_entries(self, Ready ready) except -1
    cdef int take_committed(self, Ready ready) except -1

    cdef int older_term(self, Message m) except -1
    cdef int step_local(self, Message m) except -1
    cdef int step_role(self, Message m) except -1
    cdef int step_leader(self, Message m) except -1
    cdef int step_follower(self, Message m) except -1

    cdef int check_conf_change(self, change) except -1
    cdef int maybe_auto_leave(self) except -1
