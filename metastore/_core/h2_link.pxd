from cpython.object cimport PyObject
from libc.stdint cimport int32_t, uint32_t, uint64_t

from metastore._core.grpc cimport Flood, Limits, MethodTable, Scan
from metastore._core.nghttp2 cimport nghttp2_session


cdef class Link:
    cdef nghttp2_session* h2
    cdef readonly Limits limits
    cdef readonly MethodTable methods
    cdef readonly size_t pending_output     # reply bytes that take_output has not returned yet
    cdef readonly size_t patient_output     # those of it that the client may leave unread
    cdef readonly int patient_streams       # the calls that they belong to
    cdef readonly int choked                # calls for whose sake this connection is not to be read
    cdef readonly size_t buffered           # request bytes that are not answered yet
    cdef readonly size_t taken              # bytes that take_output has returned in all
    cdef readonly size_t replied            # those of them that are messages of replies
    cdef readonly size_t received           # bytes that feed has received in all
    cdef readonly int open_streams
    cdef readonly bint failed
    cdef readonly bint asked                # a whole request arrived, or the first message of a streaming one
    cdef readonly double asked_at           # time at which the last of these arrived
    cdef readonly object error              # reason for `failed` (str)
    cdef public object owner                # the connection, for the code that goes through `dirty`
    cdef list dirty
    cdef bint in_dirty, busy, saw_close, ending
    cdef bint over                          # `quit` was called: nothing goes in or out any more
    cdef list ready, rejects, events, parked, half
    cdef bytes last_path
    cdef int last_method
    cdef bint last_streaming
    cdef PyObject* current
    cdef PyObject* first_open
    cdef Flood flood
    cdef double now                         # time of the last `feed`
    cdef double busy_until                  # the bytes so far count as arriving at `receive_rate` until this time
    cdef double pinged                      # time at which the last PING arrived
    cdef int strikes                        # PINGs that came too early
    cdef bint spoke                         # a reply began since the last PING
    cdef double owed_at                     # time of the last PING while reply bytes were pending; 0: never
    cdef size_t queued_frames
    cdef uint64_t answered_in               # the round (`Limits.rounds`) in which bytes last went to the client; 0: never
    cdef Scan scan
    cdef bint retiring                      # the client was asked to use another connection
    cdef int32_t last_told                  # the last stream id that a GOAWAY told the client; -1: none

    cdef void mark(self) noexcept
    cdef int control(self, bint reset) except -1
    cdef int terminate(self, uint32_t code, object why) except -1
    cdef int ping(self) except -1
    cdef int count_queue(self) except -1
    cdef void give_up(self, object why) noexcept
