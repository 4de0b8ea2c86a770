from libc.stdint cimport int64_t, uint8_t

from metastore._core.kv_messages cimport Kv, RangeReq


cdef struct KvList:
    Kv* items            # &one while there is room for only one
    Kv one
    size_t n
    size_t room
    int64_t total        # keys in the range, also those that were not collected
    size_t cost          # units that collecting took (work.pxd); the reader resets it to 0
    size_t held          # bytes of memory that the collected pairs take


cdef void kvs_init(KvList* kvs) noexcept
cdef void kvs_clear(KvList* kvs) noexcept
cdef void kvs_cut(KvList* kvs, size_t n) noexcept
cdef Kv* kvs_add(KvList* kvs) except NULL
cdef void kvs_release(Kv* kv) noexcept
cdef const uint8_t* kvs_hold(Kv* kv, bytes data) noexcept
cdef void kvs_filter(KvList* kvs, const RangeReq* req, size_t first) noexcept
cdef bint arrange(const RangeReq* req, KvList* out) noexcept
