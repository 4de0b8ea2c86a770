"""Operations, the parts of a batch.

A client's request message is logged unchanged. The header before it holds what the request does not say: the user, the
request id, and the values that the leader fixed, so a member applies the operation without a clock or randomness.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from metastore._core.le cimport get64, put64

from metastore.errors import FormatError

PUT = OP_PUT
DELETE_RANGE = OP_DELETE_RANGE
TXN = OP_TXN
COMPACT = OP_COMPACT
MEMBER = OP_MEMBER
ALARM = OP_ALARM
LEASE_GRANT = OP_LEASE_GRANT
LEASE_REVOKE = OP_LEASE_REVOKE
LEASE_CHECKPOINT = OP_LEASE_CHECKPOINT

LEVEL = OP_LEVEL


cdef int op_level(uint8_t kind, uint8_t flags) noexcept nogil:
    # Operations of leases came with level 2, everything else so far with the first version.
    return 2 if kind >= OP_LEASE_GRANT else 1


def level_of(data):
    """Return the operation level that an encoded operation needs. Raises FormatError like decode_op."""
    cdef Operation op = decode_op(data)
    cdef uint8_t flags = 0
    if op.user:
        flags |= OP_FLAG_USER
    if op.lease_id is not None:
        flags |= OP_FLAG_LEASE
    if op.wall_ms is not None:
        flags |= OP_FLAG_WALL
    return op_level(op.kind, flags)


cdef size_t op_write_header(uint8_t* dst, uint8_t kind, uint64_t request_id) noexcept nogil:
    dst[0] = OP_VERSION
    dst[1] = kind
    dst[2] = 0
    dst[3] = 0
    put64(dst + 4, request_id)
    return OP_HEADER


cdef int op_read(const uint8_t* src, size_t size, OpView* out) noexcept nogil:
    cdef const uint8_t* at = src + OP_HEADER
    cdef size_t extra
    out.request_id = 0
    if size < OP_HEADER:
        return OP_SHORT
    out.request_id = get64(src + 4)
    if src[0] != OP_VERSION:
        return OP_BAD_VERSION
    if src[1] == 0 or src[1] > OP_KIND_LAST:
        return OP_BAD_KIND
    out.kind = src[1]
    out.flags = src[2]
    out.user = NULL
    out.user_len = src[3]
    out.auth_rev = out.lease_id = out.wall_ms = 0
    if out.flags == 0:
        if out.user_len != 0:
            return OP_BAD_FLAGS
        out.body = at
        out.n = size - OP_HEADER
        return OP_OK
    if out.flags > OP_FLAGS_KNOWN or ((out.flags & OP_FLAG_USER) != 0) != (out.user_len != 0):
        return OP_BAD_FLAGS
    extra = OP_HEADER
    extra += out.user_len + 8 if out.flags & OP_FLAG_USER else 0
    extra += 8 if out.flags & OP_FLAG_LEASE else 0
    extra += 8 if out.flags & OP_FLAG_WALL else 0
    if size < extra:
        return OP_SHORT
    if out.flags & OP_FLAG_USER:
        out.user = at
        out.auth_rev = get64(at + out.user_len)
        at += out.user_len + 8
    if out.flags & OP_FLAG_LEASE:
        out.lease_id = get64(at)
        at += 8
    if out.flags & OP_FLAG_WALL:
        out.wall_ms = get64(at)
        at += 8
    out.body = at
    out.n = size - extra
    return OP_OK


cdef int op_raise(int answer) except -1:
    if answer == OP_SHORT:
        raise FormatError("operation: cut short")
    if answer == OP_BAD_VERSION:
        raise FormatError("operation: unknown version")
    if answer == OP_BAD_KIND:
        raise FormatError("operation: unknown kind")
    if answer != OP_OK:
        raise FormatError("operation: unknown flags")
    return 0


cdef class Operation:
    """A decoded operation.

    kind (PUT, ...), request_id (unsigned 64-bit, unique over restarts), user (bytes; empty if nobody is logged in),
    auth_rev (the auth revision at which the user was checked), lease_id and wall_ms (int or None; the leader fixed
    them; wall_ms is in milliseconds since 1970), request (the client's message, bytes).
    """

    def __init__(self):
        raise TypeError("made by decode_op only")

    def __repr__(self):
        return (f"Operation(kind={self.kind}, request_id={self.request_id}, user={self.user!r}, "
                f"auth_rev={self.auth_rev}, lease_id={self.lease_id}, wall_ms={self.wall_ms}, "
                f"request={self.request!r})")


def encode_op(uint8_t kind, uint64_t request_id, bytes request not None, *, bytes user not None=b"",
              uint64_t auth_rev=0, lease_id=None, wall_ms=None):
    """Encode an operation as bytes. The arguments are those of Operation.

    Raises ValueError for an unknown kind, a user name over 255 bytes, or an auth revision without a user.
    """
    cdef size_t user_len = PyBytes_GET_SIZE(user)
    cdef size_t extra = 0
    cdef uint8_t flags = 0
    cdef uint8_t* at
    if kind == 0 or kind > OP_KIND_LAST:
        raise ValueError(f"unknown kind of operation {kind}")
    if user_len > 255:
        raise ValueError(f"a user name of {user_len} bytes; at most 255 fit")
    if user_len:
        flags |= OP_FLAG_USER
        extra += user_len + 8
    elif auth_rev:
        raise ValueError("an auth revision without a user")
    if lease_id is not None:
        flags |= OP_FLAG_LEASE
        extra += 8
    if wall_ms is not None:
        flags |= OP_FLAG_WALL
        extra += 8
    cdef bytes out = PyBytes_FromStringAndSize(NULL, OP_HEADER + extra + PyBytes_GET_SIZE(request))
    at = <uint8_t*>PyBytes_AS_STRING(out)
    at += op_write_header(at, kind, request_id)
    (at - OP_HEADER)[2] = flags
    (at - OP_HEADER)[3] = <uint8_t>user_len
    if user_len:
        memcpy(at, PyBytes_AS_STRING(user), user_len)
        put64(at + user_len, auth_rev)
        at += user_len + 8
    if lease_id is not None:
        put64(at, <uint64_t>lease_id)
        at += 8
    if wall_ms is not None:
        put64(at, <uint64_t>wall_ms)
        at += 8
    memcpy(at, PyBytes_AS_STRING(request), PyBytes_GET_SIZE(request))
    return out


def decode_op(buf):
    """Decode an Operation. Raises FormatError if the bytes are cut, or for an unknown version, kind or flag."""
    cdef Py_buffer view
    cdef OpView found
    cdef Operation op
    PyObject_GetBuffer(buf, &view, PyBUF_SIMPLE)
    try:
        op_raise(op_read(<const uint8_t*>view.buf, view.len, &found))
        op = Operation.__new__(Operation)
        op.kind = found.kind
        op.request_id = found.request_id
        op.user = PyBytes_FromStringAndSize(<const char*>found.user, found.user_len) if found.user_len else b""
        op.auth_rev = found.auth_rev
        op.lease_id = found.lease_id if found.flags & OP_FLAG_LEASE else None
        op.wall_ms = found.wall_ms if found.flags & OP_FLAG_WALL else None
        op.request = PyBytes_FromStringAndSize(<const char*>found.body, found.n)
        return op
    finally:
        PyBuffer_Release(&view)
