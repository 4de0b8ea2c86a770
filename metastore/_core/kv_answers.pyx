"""What a Future of a put needs in compiled form: its request, its waiter, and the step that resolves it."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject_GenericSetAttr
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from metastore._core.varint cimport varint_size, varint_write
from metastore._core.waiter cimport RevisionWaiter


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


cpdef bint resolve(dict fields, result, error) except -1:
    """Resolve a Future of `embedded/answers.py` whose attributes are `fields`, and for which nobody waits: one without
    a condition, and without a state of its own, which is that of the class, RUNNING. Return whether that was so.

    This is one step for all other threads: it keeps the GIL and runs no Python. Whoever waits, or adds a callback, makes
    the condition before he looks at the state.
    """
    if "_condition" in fields or "_state" in fields:
        return False
    fields["_result"] = result
    fields["_exception"] = error
    fields["_state"] = "FINISHED"
    return True


@cython.final
@cython.no_gc
cdef class FuturePut(RevisionWaiter):
    """Waits for one put that asks for nothing of before. Nothing that the collector tracks refers to this.

    future: what is resolved; `kind` makes its result, and has slots for `revision` and `prev`. A Future and a waiter in
    Python, whose result was decoded out of a reply, took twice as long together as the rest of a put.
    """

    def __init__(self, future not None, type kind not None):
        self.future = future
        self._kind = kind

    cpdef complete(self, object reply):
        """Resolve with the result. No thread decodes anything later."""
        cdef object kind = self._kind, result = kind.__new__(kind)
        # The class is frozen, and its own way takes three times as long.
        PyObject_GenericSetAttr(result, "revision", self.revision)
        PyObject_GenericSetAttr(result, "prev", None)
        if not resolve(self.future.__dict__, result, None):
            self.future.give(result)

    cpdef fail(self, object error):
        self.future.give(None, error)
