from libc.stdint cimport int64_t

from metastore._core.kvpb cimport Header, RangeReq
from metastore._core.mvcc cimport KvList, Store


cdef class LongRange:
    """A Range that is answered piece by piece, out of one state."""
    cdef bytes body           # what `req` points into
    cdef RangeReq req
    cdef Header header
    cdef Store store          # the live one for the first piece, then one over a view of the engine
    cdef bint own_view
    cdef KvList kvs
    cdef list parts           # encoded pairs of earlier pieces
    cdef size_t taken         # how many
    cdef bytes at             # engine key that the next piece begins with
    cdef int64_t rev
    cdef int want
    cdef bint encoding        # pairs are encoded piece by piece: the order of the keys is the order of the reply
    cdef bint limited         # not even kept are pairs above the limit
    cdef readonly size_t cost # of the last piece, in units of `budget`

    cdef int begin(self, Store store, bytes body) except -1
    cpdef bytes step(self, size_t budget)
    cdef int freeze(self) except -1
    cdef bytes finish(self)
    cpdef close(self)


cdef LongRange start_range(Store store, bytes body)
