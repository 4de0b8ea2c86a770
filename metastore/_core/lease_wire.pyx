"""Messages about leases: those of etcd's Lease service (lease.proto) that are many or long, and those that members send
each other (FORMATS.md, "Questions about leases")."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from metastore import errors
from metastore._core.grpc cimport PREFIX, prefix_write
from metastore._core.kv_messages cimport KV_OK, WIRE_VARINT, Field, Header, Wire, header_size, header_write, wire_next, wire_of
from metastore._core.le cimport get16, get32, get64, put16, put32, put64
from metastore._core.mvcc cimport Store
from metastore._core.varint cimport varint_size, varint_write

from metastore.errors import FormatError
from metastore.settings import MAX_BATCH_OPS

cdef enum:
    WIRE_VERSION = 1
    QUESTION_HEAD = 16
    ANSWER_HEAD = 24
    ANSWER_SIZE = 24
    FIELD_ID = 0x10          # tags of fields 2 to 5 of the responses
    FIELD_TTL = 0x18
    FIELD_GRANTED = 0x20
    FIELD_KEY = 0x2A
    FIELD_LEASE = 0x12       # field 2 of LeaseLeasesResponse
    STATUS_ID = 0x08         # field 1 of LeaseStatus

#: What a question between members is about.
RENEW = 1
TIME_TO_LIVE = 2
#: Leases that one question names at most.
MOST_ASKED = MAX_BATCH_OPS

cdef size_t LIMIT = MAX_BATCH_OPS


cdef inline size_t field_size(uint64_t value) noexcept nogil:
    return 1 + varint_size(value) if value else 0


cdef inline uint8_t* field_write(uint8_t* p, uint8_t tag, uint64_t value) noexcept nogil:
    if value == 0:
        return p
    p[0] = tag
    return varint_write(p + 1, value)


# ---- etcd's messages


def reply_head(Store store not None) -> bytes:
    """Field 1 of a response: the header for the state of this moment."""
    cdef Header header
    store.fill_header(&header)
    cdef size_t size = header_size(&header)
    cdef bytes made = PyBytes_FromStringAndSize(NULL, 2 + size)
    header_write(<uint8_t*>PyBytes_AS_STRING(made), &header, size)
    return made


def decode_keepalives(list messages not None) -> list:
    """The lease ids of encoded LeaseKeepAliveRequests. Raises MalformedRequest."""
    cdef list found = []
    cdef bytes message
    cdef Wire wire
    cdef Field field
    cdef uint64_t ident
    for message in messages:
        ident = 0
        wire = wire_of(<const uint8_t*>PyBytes_AS_STRING(message), PyBytes_GET_SIZE(message))
        while wire_next(&wire, &field):
            if field.number == 1:
                if field.type != WIRE_VARINT:
                    wire.code = KV_OK + 1
                    break
                ident = field.value
        if wire.code != KV_OK:
            raise errors.MalformedRequest("grpc: error unmarshalling request: LeaseKeepAliveRequest")
        found.append(<int64_t>ident)
    return found


def decode_call(bytes body not None, str name not None) -> tuple:
    """Fields 1 and 2 of a LeaseGrantRequest, LeaseRevokeRequest or LeaseTimeToLiveRequest. All of them are numbers. Raises
    MalformedRequest with the `name` of the message."""
    cdef int64_t first = 0, second = 0
    cdef Field field
    cdef Wire wire = wire_of(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
    while wire_next(&wire, &field):
        if field.number == 1 or field.number == 2:
            if field.type != WIRE_VARINT:
                wire.code = KV_OK + 1
                break
            if field.number == 1:
                first = <int64_t>field.value
            else:
                second = <int64_t>field.value
    if wire.code != KV_OK:
        raise errors.MalformedRequest(f"grpc: error unmarshalling request: {name}")
    return first, second


def keepalive_replies(bytes head not None, list idents not None, list ttls not None, Py_ssize_t at,
                      Py_ssize_t until) -> bytes:
    """Encoded LeaseKeepAliveResponses for the leases `idents[at:until]`, each behind gRPC's prefix and `head`.

    One object for all of them: an object for each reply, and its way to the stream, took a third of a renewal."""
    cdef size_t size = PyBytes_GET_SIZE(head), whole = 0, one
    cdef uint64_t ident, ttl
    cdef bytes made
    cdef uint8_t* p
    cdef Py_ssize_t i
    for i in range(at, until):
        whole += (PREFIX + size + field_size(<uint64_t><int64_t>idents[i]) + field_size(<uint64_t><int64_t>ttls[i]))
    made = PyBytes_FromStringAndSize(NULL, whole)
    p = <uint8_t*>PyBytes_AS_STRING(made)
    for i in range(at, until):
        ident, ttl = <uint64_t><int64_t>idents[i], <uint64_t><int64_t>ttls[i]
        one = size + field_size(ident) + field_size(ttl)
        prefix_write(p, one)
        memcpy(p + PREFIX, PyBytes_AS_STRING(head), size)
        field_write(field_write(p + PREFIX + size, FIELD_ID, ident), FIELD_TTL, ttl)
        p += PREFIX + one
    return made


def time_to_live_reply(bytes head not None, int64_t ident, int64_t ttl, int64_t granted, list keys not None) -> bytes:
    """Encoded LeaseTimeToLiveResponse."""
    cdef size_t size = (PyBytes_GET_SIZE(head) + field_size(<uint64_t>ident) + field_size(<uint64_t>ttl)
                        + field_size(<uint64_t>granted))
    cdef bytes key, reply
    cdef uint8_t* p
    for key in keys:
        size += 1 + varint_size(PyBytes_GET_SIZE(key)) + <size_t>PyBytes_GET_SIZE(key)
    reply = PyBytes_FromStringAndSize(NULL, size)
    p = <uint8_t*>PyBytes_AS_STRING(reply)
    memcpy(p, PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head))
    p = field_write(p + PyBytes_GET_SIZE(head), FIELD_ID, <uint64_t>ident)
    p = field_write(field_write(p, FIELD_TTL, <uint64_t>ttl), FIELD_GRANTED, <uint64_t>granted)
    for key in keys:
        p[0] = FIELD_KEY
        p = varint_write(p + 1, PyBytes_GET_SIZE(key))
        memcpy(p, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        p += PyBytes_GET_SIZE(key)
    return reply


def leases_part(list idents not None, Py_ssize_t at, Py_ssize_t until) -> bytes:
    """The leases `idents[at:until]` as they stand in a LeaseLeasesResponse."""
    cdef size_t size = 0
    cdef uint64_t ident
    cdef bytes part
    cdef uint8_t* p
    for i in range(at, until):
        size += 2 + field_size(<uint64_t><int64_t>idents[i])
    part = PyBytes_FromStringAndSize(NULL, size)
    p = <uint8_t*>PyBytes_AS_STRING(part)
    for i in range(at, until):
        ident = <uint64_t><int64_t>idents[i]
        p[0] = FIELD_LEASE
        p[1] = <uint8_t>field_size(ident)
        p = field_write(p + 2, STATUS_ID, ident)
    return part


# ---- between members


def encode_question(int kind, uint64_t number, list idents not None) -> bytes:
    """A question about leases. Raises ValueError for no lease, or more than MOST_ASKED."""
    cdef size_t n = <size_t>len(idents)
    cdef bytes made
    cdef uint8_t* p
    if not 0 < n <= LIMIT or not RENEW <= kind <= TIME_TO_LIVE:
        raise ValueError(f"a question of kind {kind} about {n} leases")
    made = PyBytes_FromStringAndSize(NULL, QUESTION_HEAD + 8 * n)
    p = head_write(<uint8_t*>PyBytes_AS_STRING(made), kind, n, number)
    for ident in idents:
        put64(p, <uint64_t><int64_t>ident)
        p += 8
    return made


def decode_question(bytes data not None) -> tuple:
    """(kind, number, lease ids). Raises FormatError."""
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(data)
    cdef size_t n = head_check(p, PyBytes_GET_SIZE(data), QUESTION_HEAD, 8)
    cdef size_t i
    return p[1], get64(p + 8), [<int64_t>get64(p + QUESTION_HEAD + 8 * i) for i in range(n)]


def encode_answer(int kind, uint64_t number, uint64_t index, list found not None) -> bytes:
    """The answer to a question. `found`: (place of the lease in the question, TTL, granted TTL) for each lease that is
    answered; `index`: the entry up to which the answering leader has applied."""
    cdef size_t n = <size_t>len(found)
    cdef bytes made
    cdef uint8_t* p
    if not 0 < n <= LIMIT:
        raise ValueError(f"an answer about {n} leases")
    made = PyBytes_FromStringAndSize(NULL, ANSWER_HEAD + ANSWER_SIZE * n)
    p = head_write(<uint8_t*>PyBytes_AS_STRING(made), kind, n, number)
    put64(p, index)
    p += 8
    for place, ttl, granted in found:
        put32(p, <uint32_t>place)
        put32(p + 4, 0)
        put64(p + 8, <uint64_t><int64_t>ttl)
        put64(p + 16, <uint64_t><int64_t>granted)
        p += ANSWER_SIZE
    return made


def decode_answer(bytes data not None) -> tuple:
    """(kind, number, index, [(place, TTL, granted TTL)]). Raises FormatError."""
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(data)
    cdef size_t n = head_check(p, PyBytes_GET_SIZE(data), ANSWER_HEAD, ANSWER_SIZE)
    cdef const uint8_t* at = p + ANSWER_HEAD
    cdef list found = []
    cdef size_t i
    for i in range(n):
        if get32(at + 4):
            raise FormatError("questions about leases: reserved bytes in an answer")
        found.append((get32(at), <int64_t>get64(at + 8), <int64_t>get64(at + 16)))
        at += ANSWER_SIZE
    return p[1], get64(p + 8), get64(p + 16), found


cdef uint8_t* head_write(uint8_t* p, int kind, size_t n, uint64_t number) noexcept nogil:
    p[0] = WIRE_VERSION
    p[1] = <uint8_t>kind
    put16(p + 2, 0)
    put32(p + 4, <uint32_t>n)
    put64(p + 8, number)
    return p + QUESTION_HEAD


cdef size_t head_check(const uint8_t* p, size_t size, size_t head, size_t each) except? 0:
    cdef size_t n
    if size < head or p[0] != WIRE_VERSION or not RENEW <= p[1] <= TIME_TO_LIVE or get16(p + 2):
        raise FormatError("questions about leases: unknown version or kind")
    n = get32(p + 4)
    if not 0 < n <= LIMIT or size != head + each * n:
        raise FormatError(f"questions about leases: {size} bytes about {n} leases")
    return n
