from libc.stdint cimport uint8_t, uint64_t

from metastore._core.batch cimport FrameReader
from metastore._core.codec cimport PayloadCodec
from metastore._core.entry cimport EntryView
from metastore._core.mvcc cimport Store
from metastore._core.op cimport OpView
from metastore._core.waiter cimport Waiter
from metastore._core.work cimport Work


# Raises the error, if any, with which the given alarms (bits) refuse an operation.
cdef int check_alarms(int kinds, int kind, const uint8_t* body, size_t n) except -1


cdef class Applier:
    cdef readonly Store store
    cdef readonly PayloadCodec codec
    cdef readonly dict waiters
    cdef readonly uint64_t applied_index
    cdef readonly uint64_t applied_term
    cdef readonly uint64_t operations     # operations applied, also those that ended in an error
    cdef readonly uint64_t nbytes         # decompressed bytes of the batches applied
    cdef readonly uint64_t rejected       # operations that ended in an error
    cdef readonly uint64_t undecodable    # operations among these that could not be decoded
    cdef readonly object alarms           # replica.alarms.Alarms: the alarms of the state as applied
    cdef readonly int barred              # kinds of those alarms as bits; 0: nothing is refused for them
    cdef object on_member                 # callable(request: bytes) -> reply: bytes; raises ApiError
    cdef public bint pause                # stop behind the entry under way
    cdef readonly bint inside             # an entry has been begun and has not ended
    cdef readonly bint halted             # the last call stopped because its budget was used up
    cdef readonly size_t cost             # units that the last call took (work.pxd)
    cdef public size_t spill_at           # with so many records in the overlay a part of an entry goes to the engine
    cdef size_t budget                    # of the call under way, in units
    cdef size_t pace                      # Engine.pace
    cdef object images                    # keeps the bytes of the entry under way alive
    cdef object owner
    cdef Work work                        # the operation under way, if it is done in pieces
    cdef uint64_t work_id                 # the request id of that operation
    cdef FrameReader frames
    cdef list targets                     # waiters that `release` answers
    cdef list results                     # their replies (bytes) or errors

    cdef bint apply_payload(self, const EntryView* view) except -1
    cdef int apply_operation(self, const uint8_t* p, size_t n) except -1
    cdef bytes execute(self, const OpView* op, bint want)
    cdef Work long_work(self, const OpView* op, bint want)
    cdef int begin(self, const OpView* op) except -1
    cdef bint go_on(self) except -1
    cdef int keep(self, object waiter, object result) except -1
    cdef int reject(self, error) except -1
    cpdef Py_ssize_t apply_images(self, object images, Py_ssize_t at=*, size_t budget=*) except -1
    cdef bint is_halfway(self) noexcept
    cdef bint spent(self, size_t entry_cost) noexcept
    cdef bint clean(self) except -1
    cpdef relieve(self)
    cpdef passed(self, uint64_t index, uint64_t term)
    cpdef answer(self, uint64_t request_id, object result)
    cpdef commit(self)
    cpdef Py_ssize_t release(self)
