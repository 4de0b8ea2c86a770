from libc.stdint cimport uint64_t

from metastore._core.raft_types cimport RaftConfig

cdef enum:
    MAX_READ_ROUNDS = 16           # heartbeat rounds for reads on their way at once; further reads wait meanwhile

# Reads that share one round of heartbeats.
cdef class Round:
    cdef readonly uint64_t number
    cdef readonly uint64_t index
    cdef readonly list reads

# Reads, rounds and the lease of a leader. A read is (origin, context): the asking node and the asker's own bytes.
cdef class Reads:
    cdef RaftConfig config
    cdef list open                 # reads that wait for a round to be created
    cdef list rounds               # rounds that a quorum has not answered yet
    cdef uint64_t number           # number of the newest round; heartbeats carry it, and peers return it
    cdef uint64_t confirmed
    cdef list lease_times          # (number, time at which the round was created)
    cdef double lease_start
    cdef bint lease_ended          # there is no lease any more in this term

    cdef list drop(self, uint64_t own)
    cdef bint add(self, uint64_t origin, bytes context) except -1
    cdef list take(self)
    cdef bint room(self) except -1
    cdef int gather(self, uint64_t index, double now) except -1
    cdef int beat(self, double now) except -1
    cdef bytes token(self)
    cdef tuple confirm(self, list voters_in, list voters_out)
    cdef int forget_lease(self) except -1
    cdef bint lease_holds(self, double now) noexcept
