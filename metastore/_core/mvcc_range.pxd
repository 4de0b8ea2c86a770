from libc.stdint cimport int64_t

from metastore._core.kv_messages cimport DeleteReq, Header, Kv, RangeReq, Slice
from metastore._core.mvcc cimport Store
from metastore._core.mvcc_best cimport Best
from metastore._core.mvcc_births cimport PageCounts
from metastore._core.mvcc_merged cimport SliceWalk
from metastore._core.mvcc_pairs cimport KvList
from metastore._core.work cimport Sorter, Work


cdef class RangeWork(Work):
    """A Range over many keys."""
    cdef object owner         # keeps the bytes that `req` points into
    cdef RangeReq req
    cdef Header header
    cdef Store store          # the live store until `freeze`, then one over a view of the engine
    cdef bint own_view
    cdef SliceWalk walk       # over that view; None before `freeze`
    cdef int phase
    cdef KvList kvs
    cdef Sorter sorter
    cdef size_t taken         # pairs encoded so far
    cdef size_t emit          # pairs to encode once all are collected
    cdef bytes at             # engine key at which the next piece begins, or below which it does if `down`
    cdef int64_t rev
    cdef int want
    cdef bint down            # the walk goes from the end to the start
    cdef bint encoding        # pairs are encoded as they come, in key order, which is the order of the reply
    cdef bint filtered
    cdef bint limited         # pairs above the limit are not even kept
    cdef bint chosen          # `best` keeps the pairs that come first in the order of the reply
    cdef Best best
    cdef bint more
    cdef PageCounts pages     # where the count of the next page is noted; None: nowhere
    cdef bytes next_start     # the first key of the next page, once this one has all its pairs
    cdef bint apart           # the reply is wanted in parts
    cdef bint asked           # whether the engine was asked for the count
    cdef int64_t known        # keys in the range, which the engine told; -1: it is walked over

    cdef int begin(self, Store store, object owner, const RangeReq* req, int64_t now) except -1
    cdef int ask(self) except -1
    cdef int collect(self, size_t budget) except -1
    cdef bint enough(self) noexcept
    cdef bint complete(self) noexcept
    cdef int choose(self, size_t budget) except -1
    cdef int sort(self, size_t budget) except -1
    cdef int after_collect(self) except -1
    cdef int encode(self, size_t n) except -1
    cdef Kv* nth(self, size_t i) noexcept
    cdef int emit_some(self, size_t budget) except -1
    cdef int finish(self) except -1
    cdef void weigh(self) noexcept


cdef size_t cost_delete(Store store) noexcept


cdef class DeleteWork(Work):
    """A DeleteRange over many keys, in the live store."""
    cdef DeleteReq req
    cdef Store store
    cdef KvList kvs
    cdef bytes at
    cdef int64_t deleted
    cdef bint want
    cdef bint alone           # it is no part of a transaction, so its reply has a whole header

    cdef int begin(self, Store store, const DeleteReq* req, bint want, bint alone) except -1
    cdef int finish(self) except -1


cdef RangeWork start_range(Store store, bytes body, bint apart=*)
