from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

# What can be wrong with a KV request. kv_raise() raises the exception of such a code.
cdef enum:
    KV_OK = 0
    KV_MALFORMED = 1
    KV_EMPTY_KEY = 2
    KV_VALUE_PROVIDED = 3
    KV_LEASE_PROVIDED = 4
    KV_SORT_OPTION = 5
    KV_TOO_MANY_OPS = 6
    KV_DUPLICATE_KEY = 7
    KV_KEY_NOT_FOUND = 8
    KV_LEASE_NOT_FOUND = 9
    KV_COMPACTED = 10
    KV_FUTURE = 11

cdef enum:
    WIRE_VARINT = 0
    WIRE_FIXED64 = 1
    WIRE_BYTES = 2
    WIRE_FIXED32 = 5


cdef struct Slice:
    const uint8_t* p
    size_t n


cdef struct Wire:
    const uint8_t* p
    const uint8_t* end
    int code             # KV_OK, or KV_MALFORMED when the field at `p` could not be read


cdef struct Field:
    uint32_t number
    uint32_t type
    uint64_t value       # with WIRE_VARINT
    Slice bytes          # with WIRE_BYTES


cdef struct PutReq:
    Slice key
    Slice value
    int64_t lease
    bint prev_kv
    bint ignore_value
    bint ignore_lease


cdef struct RangeReq:
    Slice key
    Slice end
    int64_t limit
    int64_t revision
    int32_t sort_order
    int32_t sort_target
    bint serializable
    bint keys_only
    bint count_only
    int64_t min_mod
    int64_t max_mod
    int64_t min_create
    int64_t max_create


cdef struct DeleteReq:
    Slice key
    Slice end
    bint prev_kv


cdef struct CompactReq:
    int64_t revision
    bint physical


cdef struct Header:
    uint64_t cluster_id
    uint64_t member_id
    int64_t revision
    uint64_t raft_term


cdef struct Kv:
    Slice key
    Slice value
    int64_t create
    int64_t mod
    int64_t version
    int64_t lease
    uint32_t sub         # number of the change below the revision `mod`
    void* hold           # what the slices point into; the store releases it (mvcc_pairs.pyx)


cdef Wire wire_of(const uint8_t* body, size_t n) noexcept nogil
cdef bint wire_next(Wire* wire, Field* field) noexcept nogil
cdef int decode_put(const uint8_t* body, size_t n, PutReq* out) noexcept nogil
cdef int decode_range(const uint8_t* body, size_t n, RangeReq* out) noexcept nogil
cdef int decode_delete(const uint8_t* body, size_t n, DeleteReq* out) noexcept nogil
cdef int decode_compact(const uint8_t* body, size_t n, CompactReq* out) noexcept nogil

# Admission: decode and check. They return KV_OK or the code of the first thing that is wrong.
cdef int take_fields(const uint8_t* body, size_t n, size_t* left) noexcept nogil
cdef int verify_put(const uint8_t* body, size_t n) noexcept nogil
cdef int verify_range(const uint8_t* body, size_t n) noexcept nogil
cdef int verify_delete(const uint8_t* body, size_t n) noexcept nogil
cdef int verify_compact(const uint8_t* body, size_t n) noexcept nogil
cdef int check_put_req(PutReq* req) noexcept nogil
cdef int check_range_req(RangeReq* req) noexcept nogil

cpdef check_put(bytes body)
cpdef check_range(bytes body)
cpdef check_delete_range(bytes body)
cpdef check_compact(bytes body)
cpdef bint range_is_serializable(bytes body)

cdef int kv_raise(int code, const char* message) except -1

cdef size_t header_size(const Header* header) noexcept nogil
cdef uint8_t* header_write(uint8_t* p, const Header* header, size_t size) noexcept nogil
cdef size_t kv_size(const Kv* kv) noexcept nogil
cdef uint8_t* kv_write(uint8_t* p, const Kv* kv) noexcept nogil

cdef bytes encode_put_reply(const Header* header, const Kv* prev)
cdef bytes encode_range_reply(const Header* header, const Kv* kvs, size_t n, bint more, int64_t count)
cdef enum:
    PAIR_TAG = 0x12      # tag of a pair in a RangeResponse
    PREV_TAG = 0x1A      # tag of a previous pair in a DeleteRangeResponse

cdef bytes encode_pairs(const Kv* kvs, size_t n, uint8_t tag)
cdef bytes encode_delete_reply(const Header* header, int64_t deleted, const Kv* kvs, size_t n)
cdef bytes encode_header_reply(const Header* header)
cdef bytes encode_grant_reply(const Header* header, int64_t lease, int64_t ttl)
cdef bytes encode_txn_reply(const Header* header, bint succeeded, list responses)
