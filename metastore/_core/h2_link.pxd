from cpython.object cimport PyObject
from libc.stdint cimport int32_t, uint32_t

from metastore._core.grpc cimport Flood, Limits, MethodTable, Scan
from metastore._core.nghttp2 cimport nghttp2_session


cdef class Link:
    cdef nghttp2_session* h2
    cdef readonly Limits limits
    cdef readonly MethodTable methods
    cdef readonly size_t pending_output     # reply bytes not yet taken
    cdef readonly size_t buffered           # request bytes not yet answered
    cdef readonly size_t taken              # bytes ever handed out by take_output
    cdef readonly size_t received           # bytes ever given to feed
    cdef readonly int open_streams
    cdef readonly bint failed
    cdef readonly bint asked                # a whole request came, or the first message of a streaming one
    cdef readonly double asked_at           # when the last of them did
    cdef readonly object error              # str, why `failed`
    cdef public object owner                # the connection, for whoever walks `dirty`
    cdef list dirty
    cdef bint in_dirty, busy, saw_close, ending
    cdef list ready, rejects, events, parked, half
    cdef bytes last_path
    cdef int last_method
    cdef bint last_streaming
    cdef PyObject* current
    cdef PyObject* first_open
    cdef Flood flood
    cdef double now                         # of the last `feed`
    cdef double busy_until                  # so long bytes keep coming at `receive_rate`, had no more come
    cdef double pinged                      # when the last PING came
    cdef int strikes                        # PINGs that came too soon
    cdef bint spoke                         # a reply was begun since the last PING
    cdef double owed_at                     # when a PING last came while reply bytes were pending; 0: never
    cdef size_t queued_frames
    cdef Scan scan
    cdef bint retiring                      # the client was asked to go elsewhere
    cdef int32_t last_told                  # the client was told that this stream is the last one; -1: it was not

    cdef void mark(self) noexcept
    cdef int control(self, bint reset) except -1
    cdef int terminate(self, uint32_t code, object why) except -1
    cdef int ping(self) except -1
    cdef int count_queue(self) except -1
    cdef void give_up(self, object why) noexcept
