from cpython.object cimport PyObject

from metastore._core.grpc cimport Flood, Limits, MethodTable
from metastore._core.nghttp2 cimport nghttp2_session


cdef class Link:
    cdef nghttp2_session* h2
    cdef readonly Limits limits
    cdef readonly MethodTable methods
    cdef readonly size_t pending_output     # reply bytes not yet taken
    cdef readonly size_t buffered           # request bytes not yet answered
    cdef readonly size_t taken              # bytes ever handed out by take_output
    cdef readonly int open_streams
    cdef readonly bint failed
    cdef readonly bint greeted              # the client's SETTINGS came
    cdef readonly object error              # str, why `failed`
    cdef public object owner                # the connection, for whoever walks `dirty`
    cdef list dirty
    cdef bint in_dirty, busy, close_wanted, saw_close
    cdef list ready, rejects, events, parked, half
    cdef bytes last_path
    cdef int last_method
    cdef bint last_streaming
    cdef PyObject* current
    cdef PyObject* first_open
    cdef Flood flood

    cdef void mark(self) noexcept
    cdef int control(self, bint reset) except -1
    cdef void give_up(self, object why) noexcept
