"""What an encoded request asks for, as far as admission must know it. The contract is in kv_kinds.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memchr

from metastore._core.kv_messages cimport KV_OK, DeleteReq, RangeReq, decode_delete, decode_range, kv_raise
from metastore._core.mvcc_txn cimport txn_puts
from metastore._core.op cimport OP_LEASE_GRANT, OP_PUT, OP_TXN


cdef bint deletes_ranges(int kind, const uint8_t* body, size_t size) except -1:
    cdef DeleteReq req
    if kind == OP_TXN:
        # A range deletion in a transaction begins with this tag. The byte may mean something else; a closer look finds
        # out.
        return memchr(body, 0x1A, size) != NULL
    kv_raise(decode_delete(body, size, &req), "DeleteRangeRequest")
    return req.end.n != 0


cdef bint takes_room(int kind, const uint8_t* body, size_t size) except -1:
    return kind == OP_PUT or kind == OP_LEASE_GRANT or (kind == OP_TXN and txn_puts(body, size))


cdef bint range_is_long(bytes body, int64_t few) except -1:
    cdef RangeReq req
    if decode_range(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), &req) != KV_OK:
        return False
    return req.end.n > 0 and (req.limit <= 0 or req.limit > few)
