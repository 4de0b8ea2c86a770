"""What a Future of a put needs in compiled form: its request, its reply, and the step that resolves it."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy

from metastore._core.kv_messages cimport WIRE_BYTES, Field, Wire, kv_raise, wire_next, wire_of
from metastore._core.varint cimport varint_size, varint_write


def encode_put(bytes key not None, bytes value not None) -> bytes:
    """Encode a PutRequest that has nothing but a key and a value."""
    cdef size_t klen = PyBytes_GET_SIZE(key), vlen = PyBytes_GET_SIZE(value), size = 0
    cdef bytes out
    cdef uint8_t* p
    if klen:
        size += 1 + varint_size(klen) + klen
    if vlen:
        size += 1 + varint_size(vlen) + vlen
    out = PyBytes_FromStringAndSize(NULL, size)
    p = <uint8_t*>PyBytes_AS_STRING(out)
    if klen:
        p[0] = 0x0A
        p = varint_write(p + 1, klen)
        memcpy(p, PyBytes_AS_STRING(key), klen)
        p += klen
    if vlen:
        p[0] = 0x12
        p = varint_write(p + 1, vlen)
        memcpy(p, PyBytes_AS_STRING(value), vlen)
    return out


def revision_of(bytes reply not None) -> int:
    """Return the revision in the header of an encoded response (0: there is none). Raises MalformedRequest."""
    cdef Wire wire = wire_of(<const uint8_t*>PyBytes_AS_STRING(reply), PyBytes_GET_SIZE(reply))
    cdef Wire header
    cdef Field field
    cdef int64_t revision = 0
    while wire_next(&wire, &field):
        if field.number != 1 or field.type != WIRE_BYTES:
            continue
        header = wire_of(field.bytes.p, field.bytes.n)
        while wire_next(&header, &field):
            if field.number == 3:
                revision = <int64_t>field.value
        kv_raise(header.code, "ResponseHeader")
    kv_raise(wire.code, "response")
    return revision


def resolve(dict fields not None, before, after, result, error) -> bool:
    """Resolve a Future whose attributes are `fields`, and for which nobody waits: one without a condition. Its state
    goes from `before` to `after`. Return whether that was so.

    This is one step for all other threads: it keeps the GIL and runs no Python. Whoever waits, or adds a callback, makes
    the condition before he looks at the state.
    """
    if "_condition" in fields or fields.get("_state") is not before:
        return False
    fields["_result"] = result
    fields["_exception"] = error
    fields["_state"] = after
    return True
