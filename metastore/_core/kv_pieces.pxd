"""Puts of this process that are handed over together, and what becomes of each."""

from libc.stdint cimport int64_t, uint8_t

from metastore._core.waiter cimport RevisionWaiter

cdef enum:
    PIECE_PUTS = 500
    PIECE_BYTES = 1048576    # of keys and values; a piece is full with the put that reaches it


cdef struct PutPlace:
    size_t end               # where the encoded request ends; the next one begins there
    size_t klen
    uint8_t state            # what became of it; 0: not known yet


cdef class Piece:
    cdef readonly Py_ssize_t begin        # the position of its first put
    cdef readonly Py_ssize_t size         # puts
    cdef readonly size_t nbytes           # of all keys and values
    cdef readonly Py_ssize_t next         # the put that the member gets next; `size`: it has got all, or will get none
    cdef readonly bint failed             # one of the puts has an error
    cdef readonly bint done               # all of them have an outcome
    cdef readonly object error            # of the first one that failed, in their order
    cdef readonly int64_t first_revision  # of the first one that is written, in their order; 0: none is
    cdef readonly int64_t last_revision
    cdef public object news               # called when one of them fails, and when all have an outcome
    cdef Py_ssize_t _error_at, _first_at, _last_at
    cdef Py_ssize_t _known                # puts that have an outcome
    cdef uint8_t* _data                   # the encoded PutRequests
    cdef size_t _room
    cdef PutPlace[PIECE_PUTS] _puts

    # Add a put; 0 if it took no Python.
    cdef int put(self, const uint8_t* key, size_t klen, const uint8_t* value, size_t vlen) except -1
    cdef const uint8_t* body(self, Py_ssize_t place, size_t* n) noexcept
    cdef int written(self, Py_ssize_t place, int64_t revision) except -1
    cdef int refused(self, Py_ssize_t place, error) except -1
    cdef int settle(self, Py_ssize_t place, int state, bint failed) except -1


cdef class PiecePut(RevisionWaiter):
    """Waits for one put of a piece."""
    cdef Piece piece
    cdef Py_ssize_t place
