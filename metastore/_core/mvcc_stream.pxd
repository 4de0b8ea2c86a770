from libc.stdint cimport int64_t, uint64_t

from metastore._core.kv_messages cimport Header, RangeReq
from metastore._core.mvcc cimport Store
from metastore._core.mvcc_merged cimport SliceWalk
from metastore._core.mvcc_pairs cimport KvList
from metastore._core.work cimport Work


cdef class RangeStream:
    """A range that is answered in chunks, all of one revision. It holds nothing but the place where it stands."""
    cdef Store store
    cdef bytes body           # `req` points into it
    cdef RangeReq req
    cdef Header header        # as of the start
    cdef readonly int64_t rev # the revision that all chunks are read at
    cdef uint64_t reloads     # of the store, at the start
    cdef bytes at             # engine key at which the next chunk begins
    cdef int64_t total        # keys that were counted so far
    cdef bint asked           # whether the store was asked for the count
    cdef int64_t known        # keys in the range, which the store told at the first chunk; -1: they are walked over
    cdef int64_t taken        # pairs that were sent so far
    cdef size_t nbytes        # their bytes
    cdef int want
    cdef size_t most          # bytes that a chunk has at most, unless it is a single pair
    cdef readonly size_t target   # bytes that the next chunk is to have
    cdef double sent          # when the last chunk was sent (seconds)

    cdef int took(self, double seconds) except -1


cdef class Chunk(Work):
    """The making of the next chunk of a stream. Its reply is the Parts of an encoded RangeStreamResponse, behind gRPC's
    prefix."""
    cdef RangeStream stream
    cdef Store store          # the live store until `freeze`, then one over a view of the engine
    cdef SliceWalk walk       # over that view; None before `freeze`
    cdef KvList kvs
    cdef bint full            # the next pair would make it too large
    cdef bint last            # the range ends in this chunk

    cdef int single(self) except -1
    cdef bint collect(self, size_t budget) except -1
    cdef int at_most_once(self, bint once) except -1
    cdef int keep(self) except -1
    cdef int close(self) except -1


cdef int check_stream(bytes body) except -1
cdef Chunk next_chunk(RangeStream stream)
cdef RangeStream start_stream(Store store, bytes body, size_t most)
