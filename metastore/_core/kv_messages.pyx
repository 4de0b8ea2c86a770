"""Wire codec of the KV messages (etcd v3 API). Admission and applying use the same decoder.

It works on raw bytes: a Put or a Range makes no Python object besides its body. It follows the rules of the protobuf
encoding (protobuf.dev, "Encoding"): the last value of a field is used, and unknown fields are skipped. It is stricter
where etcd's own decoder is: a known field with another wire type is malformed, and so is a group. As in etcd's decoder,
a second message inside a oneof replaces the first and is not merged with it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from metastore import errors
from metastore._core.varint cimport varint_read, varint_size, varint_write

cdef dict EXCEPTIONS = {
    KV_MALFORMED: errors.MalformedRequest,
    KV_EMPTY_KEY: errors.EmptyKey,
    KV_VALUE_PROVIDED: errors.ValueProvided,
    KV_LEASE_PROVIDED: errors.LeaseProvided,
    KV_SORT_OPTION: errors.InvalidSortOption,
    KV_TOO_MANY_OPS: errors.TooManyOps,
    KV_DUPLICATE_KEY: errors.DuplicateKey,
    KV_KEY_NOT_FOUND: errors.KeyNotFound,
    KV_LEASE_NOT_FOUND: errors.LeaseNotFound,
    KV_COMPACTED: errors.Compacted,
    KV_FUTURE: errors.FutureRevision,
}


cdef int kv_raise(int code, const char* message) except -1:
    """Raise the exception of `code`. `message` names the request type for KV_MALFORMED. KV_OK raises nothing."""
    if code == KV_OK:
        return 0
    if code == KV_MALFORMED:
        raise errors.MalformedRequest(
            errors.MalformedRequest.default + ": malformed " + (<bytes>message).decode("ascii"))
    raise EXCEPTIONS[code]()


# --- reading ---------------------------------------------------------------------------------------------

cdef Wire wire_of(const uint8_t* body, size_t n) noexcept nogil:
    """Return the state with which `wire_next` reads a message of `n` bytes."""
    cdef Wire wire
    wire.p = body
    wire.end = body + n
    wire.code = KV_OK
    return wire


cdef inline int read_varint(Wire* wire, uint64_t* out) noexcept nogil:
    cdef const uint8_t* end = varint_read(wire.p, wire.end, out)
    if end == NULL:
        return -1
    wire.p = end
    return 0


cdef bint wire_next(Wire* wire, Field* field) noexcept nogil:
    """Read one field. Return False at the end of the message; `wire.code` says whether that is a malformed field."""
    cdef uint64_t tag, size
    if wire.p >= wire.end:
        return False
    wire.code = KV_MALFORMED
    if read_varint(wire, &tag) < 0 or tag > <uint64_t>0xFFFFFFFFUL or tag < 8:
        return False
    field.number = <uint32_t>(tag >> 3)
    field.type = <uint32_t>(tag & 7)
    if field.type == WIRE_VARINT:
        if read_varint(wire, &field.value) < 0:
            return False
    elif field.type == WIRE_BYTES:
        if read_varint(wire, &size) < 0 or size > <uint64_t>(wire.end - wire.p):
            return False
        field.bytes.p = wire.p
        field.bytes.n = <size_t>size
        wire.p += size
    elif field.type == WIRE_FIXED64 or field.type == WIRE_FIXED32:
        size = 8 if field.type == WIRE_FIXED64 else 4
        if size > <uint64_t>(wire.end - wire.p):
            return False
        wire.p += size
    else:
        return False
    wire.code = KV_OK
    return True


cdef inline bint wrong(Field* field, uint32_t first_varint, uint32_t last_varint) noexcept nogil:
    """Whether a known field has the wrong wire type. Fields 1 and 2 are bytes, first_varint..last_varint are
    numbers."""
    if first_varint <= field.number <= last_varint:
        return field.type != WIRE_VARINT
    return field.number < first_varint and field.type != WIRE_BYTES


cdef int decode_put(const uint8_t* body, size_t n, PutReq* out) noexcept nogil:
    """Decode a PutRequest. Return KV_OK or KV_MALFORMED. The slices point into `body`."""
    cdef Wire wire = wire_of(body, n)
    cdef Field field
    memset(out, 0, sizeof(PutReq))
    while wire_next(&wire, &field):
        if wrong(&field, 3, 6):
            return KV_MALFORMED
        if field.number == 1:
            out.key = field.bytes
        elif field.number == 2:
            out.value = field.bytes
        elif field.number == 3:
            out.lease = <int64_t>field.value
        elif field.number == 4:
            out.prev_kv = field.value != 0
        elif field.number == 5:
            out.ignore_value = field.value != 0
        elif field.number == 6:
            out.ignore_lease = field.value != 0
    return wire.code


cdef int decode_range(const uint8_t* body, size_t n, RangeReq* out) noexcept nogil:
    """Decode a RangeRequest. Return KV_OK or KV_MALFORMED. The slices point into `body`."""
    cdef Wire wire = wire_of(body, n)
    cdef Field field
    memset(out, 0, sizeof(RangeReq))
    while wire_next(&wire, &field):
        if wrong(&field, 3, 13):
            return KV_MALFORMED
        if field.number == 1:
            out.key = field.bytes
        elif field.number == 2:
            out.end = field.bytes
        elif field.number == 3:
            out.limit = <int64_t>field.value
        elif field.number == 4:
            out.revision = <int64_t>field.value
        elif field.number == 5:
            out.sort_order = <int32_t>field.value
        elif field.number == 6:
            out.sort_target = <int32_t>field.value
        elif field.number == 7:
            out.serializable = field.value != 0
        elif field.number == 8:
            out.keys_only = field.value != 0
        elif field.number == 9:
            out.count_only = field.value != 0
        elif field.number == 10:
            out.min_mod = <int64_t>field.value
        elif field.number == 11:
            out.max_mod = <int64_t>field.value
        elif field.number == 12:
            out.min_create = <int64_t>field.value
        elif field.number == 13:
            out.max_create = <int64_t>field.value
    return wire.code


cdef int decode_delete(const uint8_t* body, size_t n, DeleteReq* out) noexcept nogil:
    """Decode a DeleteRangeRequest. Return KV_OK or KV_MALFORMED. The slices point into `body`."""
    cdef Wire wire = wire_of(body, n)
    cdef Field field
    memset(out, 0, sizeof(DeleteReq))
    while wire_next(&wire, &field):
        if wrong(&field, 3, 3):
            return KV_MALFORMED
        if field.number == 1:
            out.key = field.bytes
        elif field.number == 2:
            out.end = field.bytes
        elif field.number == 3:
            out.prev_kv = field.value != 0
    return wire.code


cdef int decode_compact(const uint8_t* body, size_t n, CompactReq* out) noexcept nogil:
    """Decode a CompactionRequest. Return KV_OK or KV_MALFORMED."""
    cdef Wire wire = wire_of(body, n)
    cdef Field field
    memset(out, 0, sizeof(CompactReq))
    while wire_next(&wire, &field):
        if wrong(&field, 1, 2):
            return KV_MALFORMED
        if field.number == 1:
            out.revision = <int64_t>field.value
        elif field.number == 2:
            out.physical = field.value != 0
    return wire.code


# --- admission -------------------------------------------------------------------------------------------

cdef int check_put_req(PutReq* req) noexcept nogil:
    """Do etcd's checks of a put, in its order: key, then value, then lease."""
    if req.key.n == 0:
        return KV_EMPTY_KEY
    if req.ignore_value and req.value.n != 0:
        return KV_VALUE_PROVIDED
    if req.ignore_lease and req.lease != 0:
        return KV_LEASE_PROVIDED
    return KV_OK


cdef int check_range_req(RangeReq* req) noexcept nogil:
    """Do etcd's checks of a range: key, then sort order and target."""
    if req.key.n == 0:
        return KV_EMPTY_KEY
    if req.sort_order < 0 or req.sort_order > 2 or req.sort_target < 0 or req.sort_target > 4:
        return KV_SORT_OPTION
    return KV_OK


cdef int take_fields(const uint8_t* body, size_t n, size_t* left) noexcept nogil:
    """Take the fields of a message off `left`, but not those of messages in it. Return KV_TOO_MANY_OPS if it has more."""
    cdef Wire wire = wire_of(body, n)
    cdef Field field
    while wire_next(&wire, &field):
        if left[0] == 0:
            return KV_TOO_MANY_OPS
        left[0] -= 1
    return wire.code


cdef int verify_put(const uint8_t* body, size_t n) noexcept nogil:
    cdef PutReq req
    if decode_put(body, n, &req) != KV_OK:
        return KV_MALFORMED
    return check_put_req(&req)


cdef int verify_range(const uint8_t* body, size_t n) noexcept nogil:
    cdef RangeReq req
    if decode_range(body, n, &req) != KV_OK:
        return KV_MALFORMED
    return check_range_req(&req)


cdef int verify_delete(const uint8_t* body, size_t n) noexcept nogil:
    cdef DeleteReq req
    if decode_delete(body, n, &req) != KV_OK:
        return KV_MALFORMED
    return KV_EMPTY_KEY if req.key.n == 0 else KV_OK


cdef int verify_compact(const uint8_t* body, size_t n) noexcept nogil:
    cdef CompactReq req
    return decode_compact(body, n, &req)


cpdef check_put(bytes body):
    """Check a PutRequest at admission. Raises MalformedRequest, EmptyKey, ValueProvided, LeaseProvided."""
    kv_raise(verify_put(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body)), "PutRequest")


cpdef check_range(bytes body):
    """Check a RangeRequest at admission. Raises MalformedRequest, EmptyKey, InvalidSortOption."""
    kv_raise(verify_range(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body)), "RangeRequest")


cpdef check_delete_range(bytes body):
    """Check a DeleteRangeRequest at admission. Raises MalformedRequest, EmptyKey."""
    kv_raise(verify_delete(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body)), "DeleteRangeRequest")


cpdef check_compact(bytes body):
    """Check a CompactionRequest at admission. Raises MalformedRequest."""
    kv_raise(verify_compact(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body)), "CompactionRequest")


cpdef bint range_is_serializable(bytes body):
    """Return the `serializable` flag of a RangeRequest. Raises MalformedRequest."""
    cdef RangeReq req
    kv_raise(decode_range(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), &req), "RangeRequest")
    return req.serializable


# --- writing ---------------------------------------------------------------------------------------------

cdef inline size_t number_size(uint64_t value) noexcept nogil:
    return 1 + varint_size(value) if value != 0 else 0


cdef inline uint8_t* number_write(uint8_t* p, uint8_t tag, uint64_t value) noexcept nogil:
    if value == 0:
        return p
    p[0] = tag
    return varint_write(p + 1, value)


cdef inline size_t slice_size(const Slice* data) noexcept nogil:
    return 1 + varint_size(data.n) + data.n if data.n != 0 else 0


cdef inline uint8_t* slice_write(uint8_t* p, uint8_t tag, const Slice* data) noexcept nogil:
    if data.n == 0:
        return p
    p[0] = tag
    p = varint_write(p + 1, data.n)
    memcpy(p, data.p, data.n)
    return p + data.n


cdef size_t header_size(const Header* header) noexcept nogil:
    """Return the bytes of a ResponseHeader, without the tag and length before it."""
    return (number_size(header.cluster_id) + number_size(header.member_id)
            + number_size(<uint64_t>header.revision) + number_size(header.raft_term))


cdef uint8_t* header_write(uint8_t* p, const Header* header, size_t size) noexcept nogil:
    """Write field 1 of a response, a ResponseHeader of `size` bytes (at most 44). Return the byte behind it."""
    p[0] = 0x0A
    p[1] = <uint8_t>size
    p = number_write(p + 2, 0x08, header.cluster_id)
    p = number_write(p, 0x10, header.member_id)
    p = number_write(p, 0x18, <uint64_t>header.revision)
    return number_write(p, 0x20, header.raft_term)


cdef size_t kv_size(const Kv* kv) noexcept nogil:
    """Return the bytes of a KeyValue, without the tag and length before it."""
    return (slice_size(&kv.key) + number_size(<uint64_t>kv.create) + number_size(<uint64_t>kv.mod)
            + number_size(<uint64_t>kv.version) + slice_size(&kv.value) + number_size(<uint64_t>kv.lease))


cdef uint8_t* kv_write(uint8_t* p, const Kv* kv) noexcept nogil:
    p = slice_write(p, 0x0A, &kv.key)
    p = number_write(p, 0x10, <uint64_t>kv.create)
    p = number_write(p, 0x18, <uint64_t>kv.mod)
    p = number_write(p, 0x20, <uint64_t>kv.version)
    p = slice_write(p, 0x2A, &kv.value)
    return number_write(p, 0x30, <uint64_t>kv.lease)


cdef uint8_t* kv_field(uint8_t* p, uint8_t tag, const Kv* kv) noexcept nogil:
    p[0] = tag
    p = varint_write(p + 1, kv_size(kv))
    return kv_write(p, kv)


cdef bytes encode_put_reply(const Header* header, const Kv* prev):
    """Encode a PutResponse; `prev` may be NULL."""
    cdef size_t head = header_size(header)
    cdef size_t inner = kv_size(prev) if prev != NULL else 0
    cdef bytes reply = PyBytes_FromStringAndSize(
        NULL, 2 + head + (1 + varint_size(inner) + inner if prev != NULL else 0))
    cdef uint8_t* p = header_write(<uint8_t*>PyBytes_AS_STRING(reply), header, head)
    if prev != NULL:
        kv_field(p, 0x12, prev)
    return reply


cdef size_t kvs_size(const Kv* kvs, size_t n) noexcept nogil:
    cdef size_t total = 0, size, i
    for i in range(n):
        size = kv_size(&kvs[i])
        total += 1 + varint_size(size) + size
    return total


cdef bytes encode_range_reply(const Header* header, const Kv* kvs, size_t n, bint more, int64_t count):
    """Encode a RangeResponse with `n` pairs."""
    cdef size_t head = header_size(header)
    cdef size_t i
    cdef bytes reply = PyBytes_FromStringAndSize(
        NULL, 2 + head + kvs_size(kvs, n) + (2 if more else 0) + number_size(<uint64_t>count))
    cdef uint8_t* p = header_write(<uint8_t*>PyBytes_AS_STRING(reply), header, head)
    for i in range(n):
        p = kv_field(p, 0x12, &kvs[i])
    p = number_write(p, 0x18, more)
    number_write(p, 0x20, <uint64_t>count)
    return reply


cdef bytes encode_pairs(const Kv* kvs, size_t n, uint8_t tag):
    """Encode `n` pairs as they stand in a response."""
    cdef size_t i
    cdef bytes part = PyBytes_FromStringAndSize(NULL, kvs_size(kvs, n))
    cdef uint8_t* p = <uint8_t*>PyBytes_AS_STRING(part)
    for i in range(n):
        p = kv_field(p, tag, &kvs[i])
    return part


cdef bytes encode_delete_reply(const Header* header, int64_t deleted, const Kv* kvs, size_t n):
    """Encode a DeleteRangeResponse with `n` previous pairs."""
    cdef size_t head = header_size(header)
    cdef size_t i
    cdef bytes reply = PyBytes_FromStringAndSize(
        NULL, 2 + head + number_size(<uint64_t>deleted) + kvs_size(kvs, n))
    cdef uint8_t* p = header_write(<uint8_t*>PyBytes_AS_STRING(reply), header, head)
    p = number_write(p, 0x10, <uint64_t>deleted)
    for i in range(n):
        p = kv_field(p, 0x1A, &kvs[i])
    return reply


cdef bytes encode_header_reply(const Header* header):
    """Encode a response that has nothing but a header: CompactionResponse, LeaseRevokeResponse,
    LeaseCheckpointResponse."""
    cdef size_t head = header_size(header)
    cdef bytes reply = PyBytes_FromStringAndSize(NULL, 2 + head)
    header_write(<uint8_t*>PyBytes_AS_STRING(reply), header, head)
    return reply


cdef bytes encode_grant_reply(const Header* header, int64_t lease, int64_t ttl):
    """Encode a LeaseGrantResponse."""
    cdef size_t head = header_size(header)
    cdef bytes reply = PyBytes_FromStringAndSize(
        NULL, 2 + head + number_size(<uint64_t>lease) + number_size(<uint64_t>ttl))
    cdef uint8_t* p = header_write(<uint8_t*>PyBytes_AS_STRING(reply), header, head)
    number_write(number_write(p, 0x10, <uint64_t>lease), 0x18, <uint64_t>ttl)
    return reply


cdef bytes encode_txn_reply(const Header* header, bint succeeded, list responses):
    """Encode a TxnResponse. `responses` holds (field number in ResponseOp, encoded response); an empty one has number
    0."""
    cdef size_t head = header_size(header)
    cdef size_t total = 2 + head + (2 if succeeded else 0)
    cdef size_t inner
    cdef uint8_t* p
    cdef bytes body, reply
    for number, body in responses:
        inner = 1 + varint_size(len(body)) + len(body) if number else 0
        total += 1 + varint_size(inner) + inner
    reply = PyBytes_FromStringAndSize(NULL, total)
    p = header_write(<uint8_t*>PyBytes_AS_STRING(reply), header, head)
    p = number_write(p, 0x10, succeeded)
    for number, body in responses:
        inner = 1 + varint_size(len(body)) + len(body) if number else 0
        p[0] = 0x1A
        p = varint_write(p + 1, inner)
        if number:
            p[0] = <uint8_t>((number << 3) | 2)
            p = varint_write(p + 1, len(body))
            memcpy(p, PyBytes_AS_STRING(body), len(body))
            p += len(body)
    return reply


# --- for tests ---------------------------------------------------------------------------------------------

cdef bytes slice_bytes(Slice* data):
    return PyBytes_FromStringAndSize(<const char*>data.p, data.n) if data.n else b""


def read_put(bytes body) -> dict:
    """Return the fields of a PutRequest by name. Raises MalformedRequest."""
    cdef PutReq req
    kv_raise(decode_put(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), &req), "PutRequest")
    return {"key": slice_bytes(&req.key), "value": slice_bytes(&req.value), "lease": req.lease,
            "prev_kv": bool(req.prev_kv), "ignore_value": bool(req.ignore_value),
            "ignore_lease": bool(req.ignore_lease)}


def read_range(bytes body) -> dict:
    """Return the fields of a RangeRequest by name. Raises MalformedRequest."""
    cdef RangeReq req
    kv_raise(decode_range(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), &req), "RangeRequest")
    return {"key": slice_bytes(&req.key), "range_end": slice_bytes(&req.end), "limit": req.limit,
            "revision": req.revision, "sort_order": req.sort_order, "sort_target": req.sort_target,
            "serializable": bool(req.serializable), "keys_only": bool(req.keys_only),
            "count_only": bool(req.count_only), "min_mod_revision": req.min_mod, "max_mod_revision": req.max_mod,
            "min_create_revision": req.min_create, "max_create_revision": req.max_create}


def read_delete_range(bytes body) -> dict:
    """Return the fields of a DeleteRangeRequest by name. Raises MalformedRequest."""
    cdef DeleteReq req
    kv_raise(decode_delete(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), &req),
             "DeleteRangeRequest")
    return {"key": slice_bytes(&req.key), "range_end": slice_bytes(&req.end), "prev_kv": bool(req.prev_kv)}


def read_compact(bytes body) -> dict:
    """Return the fields of a CompactionRequest by name. Raises MalformedRequest."""
    cdef CompactReq req
    kv_raise(decode_compact(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), &req),
             "CompactionRequest")
    return {"revision": req.revision, "physical": bool(req.physical)}
