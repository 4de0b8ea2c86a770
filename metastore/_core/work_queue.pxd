from libc.stdint cimport int64_t

from metastore._core.waiter cimport Waiter
from metastore._core.work cimport Work


cdef enum:
    QUANTUM = 8192            # units that a client gets at a time, if nobody waits for the next turn,
    PIECE = 2048              # or else: 0.13 ms in memory. The half of it makes a page of RocksDB 1.5 times as dear.


cdef class Waiting:
    """A request that is done in pieces."""
    cdef Waiter waiter
    cdef int method
    cdef bytes body
    cdef double now           # when it came (seconds)
    cdef Work work            # None: not begun
    cdef size_t counted       # bytes of its `held` that the queue's sum contains
    cdef size_t walk          # not 0: a transaction that waits until it may look at so many keys

    cdef bint gone(self)


cdef class Starter:
    """Begins the requests that the queue holds, and finishes them."""
    cdef public object pressed    # tells whether somebody waits for the next turn; None: this is not known
    cdef int64_t spent            # what the last call of `go_on` has cost

    cdef bint put_off(self, Waiting one) except -1
    cdef bint full(self, Waiting one) except -1
    cdef int64_t start(self, Waiting one) except -1
    cdef bint enter_walk(self, Waiting one) except -1
    cdef int finish(self, Waiting one, Work work) except -1
    cdef bint is_pressed(self) except -1
    cdef bint go_on(self, Work work, int64_t budget, int64_t pace) except -1


cdef class WorkQueue:
    """See `work_queue.pyx`."""
    cdef dict lines           # client -> deque of Waiting; a client is its session, this process is None
    cdef object ring          # the clients with a line, in the order of their turns
    cdef Waiting heavy        # the only one that goes on while memory is short
    cdef Waiting first        # the next of the transactions that wait to look at many keys
    cdef object doomed        # works whose memory is to be given back
    cdef readonly size_t count    # requests that wait, begun ones too
    cdef readonly size_t begun
    cdef bint stalled             # nothing can be done before a client takes a reply
    cdef readonly size_t held     # bytes that the begun works hold

    cdef bint serves(self, Waiter waiter)
    cdef int push(self, Waiting one) except -1
    cdef int drop(self, Waiting one) except -1
    cdef list overdue(self, double before)
    cdef list abandon(self)
    cdef int weigh(self, Waiting one) except -1
    cdef bint preferred(self, Waiting one)
    cdef bint leads(self, Waiting one)
    cdef bint may_begin(self) noexcept
    cdef int64_t serve(self, Starter starter, int64_t budget, size_t pace) except? -1
    cdef int64_t serve_one(self, object line, Starter starter, int64_t budget, size_t pace, bint* stuck) except -1
    cdef int64_t clean(self, int64_t budget) except? -1
