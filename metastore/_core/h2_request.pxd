from cpython.object cimport PyObject
from libc.stdint cimport int32_t, uint8_t, uint32_t

from metastore._core.grpc cimport Fields, Limits, Reader
from metastore._core.h2_link cimport Link
from metastore._core.nghttp2 cimport nghttp2_session_callbacks
from metastore._core.waiter cimport Waiter


cdef class Request(Waiter):
    cdef readonly Link session
    cdef readonly int32_t stream_id
    cdef readonly int method                # id from the table, -1 while unknown
    cdef readonly bytes path
    cdef readonly bytes body                # the message without its 5-byte prefix; None once answered
    cdef readonly bint closed               # the stream is gone, and answers have no effect
    cdef public object context              # any object that the server keeps with the request
    cdef object on_message, on_messages, on_end, on_close, on_drained
    cdef list extra                         # the metadata that services read
    cdef bytes reply                        # the message that is being sent
    cdef object outbox                      # deque of the messages, or of parts of them, behind it
    cdef bint apart                         # `reply` and `outbox` have the prefixes of the messages in them
    cdef bytes status_text
    cdef size_t reply_at, queued, charged, header_bytes
    cdef Reader reader
    cdef Fields fields
    cdef public unsigned long long ident    # request id of the operation that the call became; 0: none
    cdef double timeout_s, arrived          # seconds; `arrived` is the `now` of the session's `feed`
    cdef int status, reject
    cdef readonly bint answered
    cdef bint streaming, swallow, ended, started, finished, deferred, post, grpc_type
    cdef list inbox
    cdef bint input_over, end_told
    cdef bint packs                         # the messages of the call may be compressed
    cdef bint waits                         # the call is in the list of its Limits
    cdef bint whole                         # the call arrived completely, or its first message if it is streaming
    cdef bint patient                       # its client may leave replies unread
    cdef bint choked                        # its connection is not to be read
    cdef bint gone                          # the client reset the call
    cdef object unopened                    # deque of (compressed, message) to unpack, in this order
    cdef PyObject* next_open
    cdef PyObject* prev_open
    cdef PyObject* next_waiting
    cdef PyObject* prev_waiting

    cpdef complete(self, object reply)
    cpdef fail(self, object error)
    cpdef send(self, bytes message, bint framed=*)
    cpdef finish(self, int code=*, object text=*)
    cpdef start(self, object on_message=*, object on_end=*, object on_close=*, object on_messages=*, bint patient=*)
    cpdef choke(self, bint on)
    cpdef when_drained(self, object call)
    cpdef when_closed(self, object call)
    cdef void owe(self, Py_ssize_t n) noexcept
    cpdef reset(self, uint32_t code=*)
    cdef int begin(self) except -1
    cdef int refuse(self, int code, object text) except -1
    cdef int take_data(self, const uint8_t* data, size_t n) except -1
    cdef int take_pieces(self, const uint8_t* data, size_t n) except -1
    cdef int turn_away(self, int code, object text) except -1
    cdef int message_in(self, bytes message, bint packed) except -1
    cdef int message_done(self, bytes message) except -1
    cdef void come(self) noexcept
    cdef int body_over(self) except -1
    cdef bytes open_message(self, bytes message)
    cdef size_t unpack(self, list ready) except *
    cdef bint expired(self, double now) noexcept
    cdef void begin_waiting(self) noexcept
    cdef void end_waiting(self) noexcept
    cdef int keep(self, const uint8_t* name, size_t nlen, const uint8_t* value, size_t vlen) except -1
    cdef int input_done(self) except -1
    cdef int lookup(self, const uint8_t* path, size_t n) except -1
    cdef int header(self, const uint8_t* name, size_t nlen, const uint8_t* value, size_t vlen) except -1
    cdef int headers_done(self) except -1
    cdef int charge(self, size_t n) except -1
    cdef void uncharge(self) noexcept
    cdef void forget(self) noexcept
    cdef Py_ssize_t fill(self, uint8_t* buf, size_t room, uint32_t* flags) except -1000
    cdef int trailers(self) except -1
    cdef int deliver(self) except -1
    cdef void detach(self) noexcept


cdef void set_callbacks(nghttp2_session_callbacks* callbacks) noexcept
