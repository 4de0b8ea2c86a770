from libc.stdint cimport uint64_t

from metastore._core.ordered_map cimport OrderedMap
from metastore._core.record cimport Record
from metastore._core.work cimport Detours


cdef class Gaps:
    cdef OrderedMap ends              # left end to right end
    cdef bytes pruned                 # how far `prune` is
    cdef Py_ssize_t unsure            # gaps that `prune` is still to look at
    cdef uint64_t removals
    cdef readonly uint64_t writes
    cdef readonly uint64_t learned
    cdef readonly uint64_t faults
    cdef readonly Detours detours     # that the walks have made

    cpdef OrderedMap view(self)
    cpdef tuple ahead(self, bytes start)
    cpdef clear(self)
    cdef bint dense(self, object few, bytes left, bytes right) except -1
    cdef int add(self, bytes left, bytes right) except -1
    cdef bint is_full(self) noexcept
    cpdef learn(self, bytes left, bytes right)
    cpdef list plan(self, OrderedMap batch, object walker)
    cdef bint ends_at(self, Record* rec) noexcept
    cdef bytes left_of(self, OrderedMap batch, bytes key)
    cdef bytes right_of(self, OrderedMap batch, bytes key)
    cdef bytes beside(self, OrderedMap batch, object walk, bytes key, bint up)
    cpdef wiped(self, list ranges, object walk)
    cpdef wrote(self, OrderedMap batch, list planned, object walker, object few)
    cdef int split(self, list born) except -1
    cdef int sample(self, list removed, object walk, object few) except -1
    cpdef prune(self, object few, Py_ssize_t most)


cdef class GapWalk:
    cdef object walk, plain, step, back, read_key, read_value
    cdef OrderedMap ends
    cdef Gaps gaps
    cdef Detours detours              # of all walks of the engine
    cdef uint64_t writes              # `gaps.writes` at the beginning
    cdef bint learns
    cdef bytes here                   # the record on which it stands, or None
    cdef bytes stop                   # the left end of the first gap not before that, or None: not known
    cdef readonly uint64_t leaps
    cdef readonly uint64_t far

    cpdef bytes key(self)
    cpdef object value(self)
    cpdef status(self)
    cpdef seek(self, bytes key)
    cpdef next(self)
    cdef bytes border(self, bytes key)
    cdef bint leap(self) except -1
    cdef int seek_far(self, bytes key, bytes left) except -1
    cdef int learn(self, bytes left, bytes right) except -1
    cdef int prev_far(self, bytes key, bytes right) except -1
