from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from metastore._core.kv_messages cimport Slice

cdef enum:
    TXN_MAX_DEPTH = 129      # etcd's 128 operations allow no more; a deeper one is refused whatever the limit is


cdef struct Count:
    size_t ops               # compares and operations that may still come
    size_t fields


cdef struct CompareReq:
    int32_t result
    int32_t target
    Slice key
    Slice end
    uint32_t operand         # field number of the value to compare with; 0: the request has none
    int64_t number
    Slice value


cdef class CompareNode:
    cdef CompareReq req


cdef class OpNode:
    cdef int kind            # field number in RequestOp: 1 range, 2 put, 3 delete range, 4 txn; 0: empty
    cdef Slice body
    cdef TxnNode txn


cdef class TxnNode:
    cdef list compares
    cdef list success
    cdef list failure
    cdef bint too_deep
    cdef bint succeeded      # which branch runs; the runner of the transaction sets it
    cdef size_t counted      # compares and operations on all levels; only in the outermost one


cdef TxnNode decode_txn(const uint8_t* body, size_t n, int depth)
cdef int count_txn(const uint8_t* body, size_t n, int depth, Count* left) noexcept nogil
cdef size_t count_txn_ops(bytes body) noexcept
cdef TxnNode verify_txn(const uint8_t* body, size_t n, int max_ops)
cpdef check_txn(bytes body, int max_ops=*)
cdef bint node_is_readonly(TxnNode node)
cdef bint node_is_serializable(TxnNode node)
cpdef bint txn_is_readonly(bytes body)
cdef bint txn_puts(const uint8_t* body, size_t n) except -1
