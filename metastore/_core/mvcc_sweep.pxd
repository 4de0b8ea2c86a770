from libc.stdint cimport int64_t

from metastore._core.mvcc cimport Store
from metastore._core.mvcc_keys cimport IndexView
from metastore._core.mvcc_runs cimport Runs
from metastore._core.ordered_map cimport OrderedMap
from metastore._core.record cimport Record


cdef class Sweep:
    """A sweep under way, and where it stands. A slice changes a copy, which takes its place when all of it is written."""
    cdef int64_t rev          # its compact revision
    cdef int phase
    cdef bytes at             # engine key at which the next slice begins
    cdef Runs runs            # None: all records are removed one by one
    # Versions of one key, next to each other, whose change records are gone or will go with the next write:
    cdef bytes first          # the first one; None: none
    cdef list few             # these versions while they are fewer than a run, or None
    # What a slice does:
    cdef OrderedMap batch
    cdef list ranges

    cdef Sweep copy(self)
    cdef int slice(self, Store store, size_t budget) except -1
    cdef int remove_changes(self, Store store) except -1
    cdef bint walk(self, Store store, size_t budget) except -1
    cdef bytes newest(self, Store store, Record* rec)
    cdef bint goes_later(self, const IndexView* view) noexcept
    cdef size_t take(self, Record* rec, const IndexView* view, bint dead) except? 1000
    cdef size_t drop(self, Record* rec, const IndexView* view) except? 1000
    cdef int end_run(self, Record* rec) except -1


cpdef bint sweep_slice(Store store, size_t budget)
