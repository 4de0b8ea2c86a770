from libc.stdint cimport uint8_t, uint64_t

from metastore._core.file_reads cimport WalkedEngine
from metastore._core.ordered_map cimport OrderedMap
from metastore._core.record cimport Record


cdef class RecentEngine(WalkedEngine):
    cdef OrderedMap fresh                 # index records written or looked up lately
    cdef OrderedMap older                 # index records from before those
    cdef readonly size_t budget           # bytes that both maps may take
    cdef readonly uint64_t hits
    cdef readonly uint64_t misses
    cdef Record* kept(self, const uint8_t* key, size_t n) noexcept
    cdef int keep(self, Record* rec) except -1
    cdef int turn_over(self) except -1
    cpdef remember(self, OrderedMap batch)
    cpdef forget(self)
    cpdef forget_ranges(self, list ranges)
    cpdef feed(self, OrderedMap batch, object put, object delete)
