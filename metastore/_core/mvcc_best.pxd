from metastore._core.kv_messages cimport Kv
from metastore._core.mvcc_pairs cimport KvList


cdef class Best:
    """The pairs of a list that come first in an order, at most `most`."""
    cdef size_t most
    cdef int target           # a RangeRequest's sort_target; equal pairs are in the order of their keys
    cdef bint down
    cdef size_t n             # the first n pairs of the list are a heap, with the pair that comes last on top
    cdef size_t at            # number of the next pair to look at
    cdef size_t sorted        # the last pairs of the heap that are in their places
    cdef readonly size_t seen # pairs looked at
    cdef readonly size_t cost # units that the last step took

    cdef bint take(self, KvList* kvs, size_t budget) noexcept
    cdef bint sort(self, KvList* kvs, size_t budget) noexcept
    cdef bint first(self, const Kv* a, const Kv* b) noexcept
    cdef void up(self, Kv* items, size_t at) noexcept
    cdef void sink(self, Kv* items, size_t n) noexcept


cdef Best start_best(size_t most, int target, bint down)
