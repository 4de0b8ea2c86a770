"""Keys in requests that a storage engine could not hold are found before anything enters the log.

What stands in the log must be applied, also by a member whose engine takes no such key. The length of a key is counted
as the engine will have it: a zero byte counts twice (mvcc_keys.pyx).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t

from metastore._core.kv_messages cimport WIRE_BYTES, Field, Slice, Wire, wire_next, wire_of

from metastore.errors import RequestTooLarge

cdef enum:
    DEPTH = 129              # transactions are not nested any deeper (mvcc_txn.pxd)
    COMPARE = 5              # a kind of message; the others are numbers of fields in a RequestOp


cdef inline size_t length_of(Slice key) noexcept nogil:
    cdef size_t i, count = key.n
    for i in range(key.n):
        count += key.p[i] == 0
    return count


cdef size_t longest(int kind, const uint8_t* body, size_t n, int depth, size_t most) noexcept nogil:
    """Return the length of the first key above `most` in a message, or 0."""
    cdef Wire wire = wire_of(body, n)
    cdef Field field
    cdef size_t found
    while wire_next(&wire, &field):
        found = 0
        if field.type != WIRE_BYTES:
            continue
        if kind == KEYS_TXN:
            if field.number == 1:
                found = longest(COMPARE, field.bytes.p, field.bytes.n, depth, most)
            elif field.number == 2 or field.number == 3:
                found = longest_op(field.bytes, depth, most)
        elif kind == COMPARE:
            if field.number == 3 or field.number == 64:
                found = length_of(field.bytes)
        elif field.number == 1 or (field.number == 2 and kind != KEYS_PUT):
            found = length_of(field.bytes)
        if found > most:
            return found
    return 0


cdef size_t longest_op(Slice body, int depth, size_t most) noexcept nogil:
    cdef Wire wire = wire_of(body.p, body.n)
    cdef Field field
    cdef size_t found
    while wire_next(&wire, &field):
        if field.type != WIRE_BYTES or not KEYS_RANGE <= field.number <= KEYS_TXN:
            continue
        if field.number == KEYS_TXN and depth >= DEPTH:
            continue
        found = longest(<int>field.number, field.bytes.p, field.bytes.n, depth + 1, most)
        if found > most:
            return found
    return 0


cdef int check_keys(int kind, const uint8_t* body, size_t n, size_t most) except -1:
    cdef size_t found
    if most == 0 or kind > KEYS_TXN:
        return 0
    with nogil:
        found = longest(kind, body, n, 0, most)
    if found > most:
        raise RequestTooLarge(
            f"{RequestTooLarge.default}: a key takes {found} bytes, limits.max_key_bytes is {most} (for writes the "
            "least of all members)")
    return 0


def check_request(int kind, bytes body not None, size_t most):
    """Raise RequestTooLarge if a request (1 range, 2 put, 3 delete range, 4 transaction) has a key or an end of a range
    of more than `most` bytes (0: no limit), where zero bytes count twice."""
    check_keys(kind, <const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), most)
