from libc.stdint cimport uint8_t, uint64_t

from metastore._core.batch cimport FrameReader
from metastore._core.codec cimport PayloadCodec
from metastore._core.entry cimport EntryView
from metastore._core.mvcc cimport Store
from metastore._core.op cimport OpView
from metastore._core.waiter cimport Waiter


# Raises the error that an operation gets while alarms of these kinds are raised, if it gets one.
cdef int check_alarms(int kinds, int kind, const uint8_t* body, size_t n) except -1


cdef class Applier:
    cdef readonly Store store
    cdef readonly PayloadCodec codec
    cdef readonly dict waiters
    cdef readonly uint64_t applied_index
    cdef readonly uint64_t applied_term
    cdef readonly uint64_t operations     # applied, those that ended in an error included
    cdef readonly uint64_t nbytes         # of the batches applied, decompressed
    cdef readonly uint64_t rejected       # ended in an error
    cdef readonly uint64_t undecodable    # of those: could not even be read
    cdef readonly object alarms           # alarms.Alarms: which are raised, in the state as applied
    cdef readonly int barred              # their kinds as bits; 0: nothing is refused for them
    cdef public object on_member          # callable(request: bytes) -> reply: bytes; ApiError
    cdef public bint pause                # stop behind the entry under way
    cdef FrameReader frames
    cdef list who
    cdef list what

    cdef int apply_payload(self, const EntryView* view) except -1
    cdef int apply_operation(self, const uint8_t* p, size_t n) except -1
    cdef bytes execute(self, const OpView* op, bint want)
    cpdef Py_ssize_t apply_images(self, object images, Py_ssize_t at=*) except -1
    cpdef passed(self, uint64_t index, uint64_t term)
    cpdef answer(self, uint64_t request_id, object result)
    cpdef commit(self)
    cpdef Py_ssize_t release(self)
