from libc.stdint cimport int64_t

cdef extern from "semaphore.h" nogil:
    ctypedef struct sem_t:
        pass

cdef extern from "gate.h" nogil:
    ctypedef struct ms_gate:
        pass
    int ms_gate_wait(ms_gate*, int64_t until)
    void ms_gate_open(ms_gate*, const int64_t* looked)
    void ms_gate_look(ms_gate*)
    int64_t ms_now()

cdef enum:
    MAX_POLLERS = 2

# The state of one thread.
cdef struct Poller:
    sem_t wake
    int asleep
    int cpu              # processor that it is bound to; -1: none yet
    unsigned long thread
    int64_t used         # nanoseconds of processor time


cdef class IdlePollers:
    cdef Poller[MAX_POLLERS] pollers
    cdef int[MAX_POLLERS] cpus
    cdef readonly int count
    cdef int stopping
    cdef int64_t linger      # nanoseconds
    cdef size_t client       # whose write was waited for last
    cdef int64_t answered    # nanoseconds of the monotonic clock: the end of that wait
    cdef int returns         # how reliably one client comes back within `linger`: up to MOST_RETURNS
    cdef int64_t until       # nanoseconds of the monotonic clock
    cdef int64_t looked      # the same clock: when a thread last looked at the gates
    cdef ms_gate* gates[2]
    cdef object owner        # owner of the gates

    cdef int help(self, ms_gate* one, ms_gate* other, object owner) except -1
    cdef void waiting(self, size_t client) noexcept nogil
    cdef void waited(self) noexcept nogil
    cdef void keep(self, int64_t span) noexcept nogil
    cdef void loop(self, Poller* mine) noexcept nogil
