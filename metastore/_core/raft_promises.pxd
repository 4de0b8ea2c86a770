from libc.stdint cimport uint64_t

from metastore._core.raft_types cimport Message

# What a handed-out Ready will make durable.
cdef class Claim:
    cdef readonly uint64_t number
    cdef readonly uint64_t last_index
    cdef readonly uint64_t last_term
    cdef readonly uint64_t snapshot_index

# A message that waits for Ready `need` to be durable.
cdef class Held:
    cdef uint64_t need
    cdef Message message

# The Readies whose report is still missing, and the messages that wait for them. Both are in ascending order.
cdef class Promises:
    cdef list claims
    cdef list held

    cdef int claim(self, uint64_t number, uint64_t last_index, uint64_t last_term, uint64_t snapshot) except -1
    cdef int cut(self, uint64_t index) except -1
    cdef Claim kept(self, uint64_t number)
    cdef int hold(self, uint64_t need, Message m) except -1
    cdef Message freed(self, uint64_t number, uint64_t term)

cdef bint covers(Message m, Message before) except -1
