"""HTTP/2 server session and gRPC framing without any I/O: bytes in, requests out; replies in, bytes out.

RFC 9113 (HTTP/2) is libnghttp2's part; the gRPC wire protocol ("gRPC over HTTP2", PROTOCOL-HTTP2.md) is ours.
The caller's duties:

* every buffer that arrives goes through `Session.feed`, which returns the requests that became complete;
* a session that has something to say puts itself once into the `dirty` list it was given; whoever walks that
  list calls `take_output` until it returns nothing, and so one turn's replies leave in one piece;
* `close()` when the connection is gone. A Request outlives that: answering it later does nothing.

Nothing here calls nghttp2's mem_recv or mem_send from inside a callback, and no Python code of the server runs
inside one: what callbacks find is put into lists, and those are worked off afterwards.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy

from metastore._core.grpc cimport *
from metastore._core.nghttp2 cimport *

from collections import deque

from metastore import errors
from metastore._core import grpc as _grpc

# Here too, for it is sessions that need them.
globals().update(Limits=_grpc.Limits, MethodTable=_grpc.MethodTable)

cdef nghttp2_nv[2] HEAD_OK
cdef nghttp2_nv[1] TRAILER_OK
cdef nghttp2_session_callbacks* CALLBACKS = NULL
cdef nghttp2_option* OPTION = NULL
cdef uint8_t* SPARE = NULL        # the output buffer all sessions take turns with
cdef size_t SPARE_SIZE = 0


@cython.final
@cython.no_gc
cdef class Request(Waiter):
    """One gRPC call. Made by Session only; see the .pyi for what each attribute is.

    Not tracked by the garbage collector: the cycle with its session ends when its stream closes.
    """

    def __cinit__(self):
        self.method = -1
        self.timeout_s = -1

    def __dealloc__(self):
        reader_next(&self.reader)

    @property
    def headers(self):
        """The request's own metadata: list of (name, value) bytes pairs, without the standard headers."""
        return self.extra if self.extra is not None else []

    @property
    def timeout(self):
        """The client's grpc-timeout in seconds, or None."""
        return self.timeout_s if self.timeout_s >= 0 else None

    @property
    def queued_bytes(self):
        """Bytes of this call's replies that have not left the session yet."""
        return self.queued

    # ---- answers

    cpdef complete(self, object reply):
        """Answer a unary call with `reply` (bytes: the encoded message). A no-op once answered or closed."""
        if self.closed or self.answered:
            return
        self.answered = self.finished = True
        self.reply = <bytes>reply
        self.queued = PREFIX + <size_t>PyBytes_GET_SIZE(self.reply)
        self.session.pending_output += self.queued
        self.uncharge()
        self.begin()

    cpdef fail(self, object error):
        """Answer with the code and text of `error` (a MetaStoreError). A no-op once answered or closed."""
        if self.closed or self.answered:
            return
        self.refuse(error.code, error.text)

    cpdef send(self, bytes message):
        """Queue one message of a streaming reply. A no-op once finished or closed."""
        if self.closed or self.answered:
            return
        if self.reply is None:
            self.reply = message
            self.reply_at = 0
        else:
            if self.outbox is None:
                self.outbox = deque()
            self.outbox.append(message)
        cdef size_t n = PREFIX + <size_t>PyBytes_GET_SIZE(message)
        self.queued += n
        self.session.pending_output += n
        self.begin()

    cpdef finish(self, int code=0, object text=""):
        """End a streaming reply with a gRPC status; what was sent before goes out first."""
        if self.closed or self.answered:
            return
        if not self.started and code != 0:
            self.refuse(code, text)
            return
        self.answered = self.finished = True
        self.status = code
        if text:
            self.status_text = percent_encode(text)
        self.uncharge()
        self.begin()

    cpdef start(self, object on_message=None, object on_end=None, object on_close=None):
        """Take over a streaming call: `on_message(bytes)` for each message, `on_end()` when the client has sent
        its last, `on_close()` when the stream is gone. What came already is delivered before this returns.
        The response headers leave at once, as clients of long streams wait for them."""
        self.on_message = on_message
        self.on_end = on_end
        self.on_close = on_close
        if not self.closed and not self.answered:
            self.begin()
        self.deliver()

    cpdef reset(self, uint32_t code=NGHTTP2_CANCEL):
        """End the stream with RST_STREAM."""
        if self.closed:
            return
        self.answered = self.swallow = True
        nghttp2_submit_rst_stream(self.session.h2, NGHTTP2_FLAG_NONE, self.stream_id, code)
        self.session.mark()

    cdef int begin(self) except -1:
        """Submit the response headers once; wake the data provider up when it was asleep."""
        cdef Session session = self.session
        cdef ms_h2_data_provider provider
        if not self.started:
            self.started = True
            provider.source.ptr = <void*>self
            provider.read_callback = on_read
            if ms_h2_submit_response(session.h2, self.stream_id, HEAD_OK, 2, &provider) != 0:
                self.reset(NGHTTP2_INTERNAL_ERROR)
            session.flood.controls = 0      # clients measure with PINGs while replies come
        elif self.deferred:
            self.deferred = False
            nghttp2_session_resume_data(session.h2, self.stream_id)
        if not session.in_dirty:
            session.mark()
        return 0

    cdef int refuse(self, int code, object text) except -1:
        """An error as the whole answer: headers that are trailers too, or a finish when headers are out."""
        cdef nghttp2_nv[5] nv
        cdef size_t count
        if self.started:
            self.finish(code, text)
            return 0
        self.answered = self.finished = self.started = True
        self.uncharge()
        cdef bytes number = b"%d" % code, message = percent_encode(text)
        nv[0] = HEAD_OK[0]
        nv[1] = HEAD_OK[1]
        if self.reject == BAD_METHOD:
            set_nv(&nv[0], b":status", 7, b"405", 3)
        elif self.reject == BAD_TYPE:
            set_nv(&nv[0], b":status", 7, b"415", 3)
        count = 2 + status_nv(&nv[2], number, message)
        if self.reject == BAD_ENCODING:
            set_nv(&nv[count], b"grpc-accept-encoding", 20, b"identity", 8)
            count += 1
        cdef nghttp2_session* h2 = self.session.h2
        if ms_h2_submit_response(h2, self.stream_id, nv, count, NULL) != 0:
            nghttp2_submit_rst_stream(h2, NGHTTP2_FLAG_NONE, self.stream_id, NGHTTP2_INTERNAL_ERROR)
        elif not self.input_over:
            self.session.half.append(self)
        self.swallow = True
        self.session.mark()
        return 0

    cdef Py_ssize_t fill(self, uint8_t* buf, size_t room, uint32_t* flags) except -1000:
        """Next bytes of the reply for a DATA frame; nghttp2's data provider."""
        cdef size_t done = 0, size, part
        cdef uint8_t[PREFIX] prefix
        while done < room:
            if self.reply is None:
                if not self.outbox:
                    break
                self.reply = self.outbox.popleft()
                self.reply_at = 0
            size = PyBytes_GET_SIZE(self.reply)
            if self.reply_at < PREFIX:
                prefix_write(prefix, size)
                part = min(PREFIX - self.reply_at, room - done)
                memcpy(buf + done, prefix + self.reply_at, part)
                self.reply_at += part
                done += part
            part = min(size + PREFIX - self.reply_at, room - done)
            if part:
                memcpy(buf + done, PyBytes_AS_STRING(self.reply) + self.reply_at - PREFIX, part)
                self.reply_at += part
                done += part
            if self.reply_at == size + PREFIX:
                self.reply = None
        self.queued -= done
        self.session.pending_output -= done
        if self.reply is None and not self.outbox:
            if self.finished:
                flags[0] |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM
                self.trailers()
            elif done == 0:
                self.deferred = True
                return NGHTTP2_ERR_DEFERRED
        return done

    cdef int trailers(self) except -1:
        cdef nghttp2_nv[2] nv
        cdef nghttp2_session* h2 = self.session.h2
        cdef int result
        cdef bytes number
        if self.status == 0 and self.status_text is None:
            result = nghttp2_submit_trailer(h2, self.stream_id, TRAILER_OK, 1)
        else:
            number = b"%d" % self.status
            result = nghttp2_submit_trailer(h2, self.stream_id, nv, status_nv(nv, number, self.status_text))
        if result != 0:
            raise MemoryError
        if not self.input_over:
            self.swallow = True
            self.session.half.append(self)
        return 0

    # ---- the request's bytes

    cdef int charge(self, size_t n) except -1:
        """Count `n` more body bytes; False when the session or all of them hold too much already."""
        cdef Session session = self.session
        cdef Limits limits = session.limits
        if session.buffered + n > limits.max_buffered or limits.total_buffered + n > limits.max_total_buffered:
            return False
        self.charged += n
        session.buffered += n
        limits.total_buffered += n
        return True

    cdef void uncharge(self) noexcept:
        cdef Session session = self.session
        session.buffered -= self.charged
        session.limits.total_buffered -= self.charged
        self.charged = 0

    cdef int turn_away(self, int code, object text) except -1:
        """Refuse the call after the callback; what its client still sends is swallowed."""
        self.session.rejects.append((self, code, text))
        self.swallow = True
        reader_next(&self.reader)
        return 0

    cdef int take_data(self, const uint8_t* data, size_t n) except -1:
        """DATA payload: the common case is one whole message in one piece."""
        cdef size_t size
        if self.swallow or n == 0:
            return 0
        if self.reader.got == 0 and n >= PREFIX and data[0] == 0 and (self.body is None or self.streaming):
            size = prefix_length(data)
            if size == n - PREFIX and size <= self.session.limits.max_message:
                if not self.charge(size):
                    return self.turn_away(errors.RESOURCE_EXHAUSTED, errors.TooManyRequests.default)
                return self.message_done(PyBytes_FromStringAndSize(<const char*>data + PREFIX, size))
        return self.take_pieces(data, n)

    cdef int take_pieces(self, const uint8_t* data, size_t n) except -1:
        """DATA payload with a part of a message, or several."""
        cdef size_t before, limit = self.session.limits.max_message
        cdef ReaderResult found
        while n:
            if self.body is not None and not self.streaming:
                return self.turn_away(errors.UNIMPLEMENTED, "grpc: more than one message for a unary call")
            before = self.reader.size
            found = reader_take(&self.reader, &data, &n, limit)
            if found == READ_PART:
                if not reader_room(&self.reader, n):
                    raise MemoryError
                found = reader_take(&self.reader, &data, &n, limit)
            if self.reader.size > before and not self.charge(self.reader.size - before):
                return self.turn_away(errors.RESOURCE_EXHAUSTED, errors.TooManyRequests.default)
            if found == READ_MESSAGE:
                self.message_done(PyBytes_FromStringAndSize(<const char*>self.reader.part, self.reader.need))
                reader_next(&self.reader)
            elif found == READ_COMPRESSED:
                return self.turn_away(errors.INTERNAL, "grpc: compressed flag set with identity or empty encoding")
            elif found == READ_TOO_LARGE:
                return self.turn_away(errors.RESOURCE_EXHAUSTED, "grpc: received message larger than max (%d vs. %d)"
                                      % (self.reader.need, limit))
        return 0

    cdef int message_done(self, bytes message) except -1:
        if not self.streaming:
            self.body = message
            return 0
        if self.inbox is None:
            self.inbox = []
        self.inbox.append(message)
        self.session.events.append(self)
        return 0

    cdef int input_done(self) except -1:
        """END_STREAM: a unary call is ready now."""
        self.input_over = True
        if self.swallow:
            return 0
        if self.reader.got != 0:
            return self.turn_away(errors.INTERNAL, "grpc: message cut short by the end of the stream")
        if self.streaming:
            self.ended = True
            self.session.events.append(self)
        elif self.body is None:
            return self.turn_away(errors.UNIMPLEMENTED, "grpc: no message for a unary call")
        else:
            self.session.ready.append(self)
        return 0

    cdef int header(self, const uint8_t* name, size_t nlen, const uint8_t* value, size_t vlen) except -1:
        cdef HeaderKind kind = header_kind(name, nlen)
        if kind == H_IGNORED:
            return 0
        if kind == H_PATH:
            return self.session.lookup(value, vlen, self)
        if kind == H_METHOD:
            self.post = vlen == 4 and memcmp(value, b"POST", 4) == 0
        elif kind == H_TYPE:
            self.grpc_type = is_grpc_type(value, vlen)
        elif kind == H_TIMEOUT:
            self.timeout_s = parse_timeout(value, vlen)
            if self.timeout_s < 0:
                self.reject = BAD_TIMEOUT
        elif kind == H_ENCODING:
            if vlen != 8 or memcmp(value, b"identity", 8) != 0:
                self.reject = BAD_ENCODING
                self.context = (<const char*>value)[:vlen]
        else:
            if self.extra is None:
                self.extra = []
            self.extra.append(((<const char*>name)[:nlen], (<const char*>value)[:vlen]))
        return 0

    cdef int headers_done(self) except -1:
        """All headers are in: decide whether this call is taken at all."""
        if not self.post:
            self.reject = BAD_METHOD
            return self.turn_away(errors.INTERNAL, "grpc: the request's :method must be POST")
        if not self.grpc_type:
            self.reject = BAD_TYPE
            return self.turn_away(errors.INVALID_ARGUMENT,
                                  "grpc: the request's content-type must be application/grpc")
        if self.reject == BAD_TIMEOUT:
            return self.turn_away(errors.INTERNAL, "grpc: malformed grpc-timeout")
        if self.method < 0:
            return self.turn_away(errors.UNIMPLEMENTED, self.session.methods.unknown(self.path))
        if self.reject == BAD_ENCODING:
            name = self.context.decode("utf-8", "replace")
            self.context = None
            return self.turn_away(errors.UNIMPLEMENTED,
                                  'grpc: Decompressor is not installed for grpc-encoding "%s"' % name)
        if self.streaming:
            self.session.ready.append(self)
        return 0

    # ---- life of the stream

    cdef int deliver(self) except -1:
        """Hand over what came for a streaming call; outside of nghttp2's callbacks only."""
        cdef list inbox
        if self.on_message is not None and self.inbox is not None:
            inbox = self.inbox
            self.inbox = None
            if self.session is not None:
                self.uncharge()
            try:
                for message in inbox:
                    if self.on_message is not None:
                        self.on_message(message)
            except errors.ApiError as error:
                self.fail(error)
        if self.ended and not self.end_told and self.on_end is not None:
            self.end_told = True
            self.on_end()
        if self.closed:
            on_close = self.on_close
            self.on_message = self.on_end = self.on_close = None
            if on_close is not None:
                on_close()
        return 0

    cdef void detach(self) noexcept:
        """The stream is gone: forget the session, keep only what a late answer may look at."""
        cdef Session session = self.session
        self.closed = True
        self.uncharge()
        session.pending_output -= self.queued
        self.queued = 0
        self.reply = None
        self.outbox = None
        reader_next(&self.reader)
        if self.prev_open != NULL:
            (<Request>self.prev_open).next_open = self.next_open
        else:
            session.first_open = self.next_open
        if self.next_open != NULL:
            (<Request>self.next_open).prev_open = self.prev_open
        self.next_open = self.prev_open = NULL
        session.open_streams -= 1
        if session.current == <PyObject*>self:
            session.current = NULL
        self.session = None


# ---- nghttp2's callbacks. The GIL is held; an exception becomes the session's failure, never the process's.

cdef int on_begin_headers(nghttp2_session* h2, const nghttp2_frame* frame, void* data) noexcept:
    cdef Session session = <Session>data
    cdef Request req
    if frame.hd.type != NGHTTP2_HEADERS or frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0
    try:
        req = Request.__new__(Request)
    except MemoryError:
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    req.session = session
    req.stream_id = frame.hd.stream_id
    Py_INCREF(req)                                  # the stream's reference, given up in on_stream_close
    nghttp2_session_set_stream_user_data(h2, req.stream_id, <void*>req)
    req.next_open = session.first_open
    if session.first_open != NULL:
        (<Request>session.first_open).prev_open = <PyObject*>req
    session.first_open = session.current = <PyObject*>req
    session.open_streams += 1
    return 0


cdef int on_header(nghttp2_session* h2, const nghttp2_frame* frame, const uint8_t* name, size_t nlen,
                   const uint8_t* value, size_t vlen, uint8_t flags, void* data) noexcept:
    cdef Session session = <Session>data
    cdef Request req
    if session.current == NULL or (<Request>session.current).stream_id != frame.hd.stream_id:
        session.current = <PyObject*>nghttp2_session_get_stream_user_data(h2, frame.hd.stream_id)
        if session.current == NULL:
            return 0
    req = <Request>session.current
    req.header_bytes += nlen + vlen + 32
    if req.header_bytes > session.limits.max_header_list:
        req.swallow = True
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    if not field_valid(&req.fields, name, nlen, value, vlen):
        req.reset(NGHTTP2_PROTOCOL_ERROR)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    if frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0                                    # trailers of a request mean nothing in gRPC
    try:
        req.header(name, nlen, value, vlen)
    except Exception as error:
        session.give_up(error)
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int on_frame_recv(nghttp2_session* h2, const nghttp2_frame* frame, void* data) noexcept:
    cdef Session session = <Session>data
    cdef uint8_t kind = frame.hd.type, ended
    cdef void* found
    cdef Request req
    try:
        if kind == NGHTTP2_HEADERS or kind == NGHTTP2_DATA:
            found = nghttp2_session_get_stream_user_data(h2, frame.hd.stream_id)
            if found == NULL:
                return 0
            req = <Request>found
            ended = frame.hd.flags & NGHTTP2_FLAG_END_STREAM
            if (not fields_complete(&req.fields) or (ended and not data_fits(&req.fields, 0, True))
                    or (kind == NGHTTP2_HEADERS and not ended and frame.headers.cat != NGHTTP2_HCAT_REQUEST)):
                req.reset(NGHTTP2_PROTOCOL_ERROR)
                return 0
            if kind == NGHTTP2_HEADERS and frame.headers.cat == NGHTTP2_HCAT_REQUEST:
                req.headers_done()
            if ended:
                req.input_done()
            elif kind == NGHTTP2_DATA and frame.hd.length == 0:
                session.control(False)
        elif kind == NGHTTP2_RST_STREAM:
            session.control(True)
        elif kind == NGHTTP2_SETTINGS and not session.greeted:
            session.greeted = True
        elif kind == NGHTTP2_PRIORITY or (
                (kind == NGHTTP2_PING or kind == NGHTTP2_SETTINGS) and not frame.hd.flags & NGHTTP2_FLAG_ACK):
            session.control(False)
    except Exception as error:
        session.give_up(error)
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int on_data_chunk(nghttp2_session* h2, uint8_t flags, int32_t stream_id, const uint8_t* bytes_in, size_t n,
                       void* data) noexcept:
    cdef void* found = nghttp2_session_get_stream_user_data(h2, stream_id)
    try:
        if found != NULL and data_fits(&(<Request>found).fields, n, False):
            (<Request>found).take_data(bytes_in, n)
        elif found != NULL:
            (<Request>found).reset(NGHTTP2_PROTOCOL_ERROR)
    except Exception as error:
        (<Session>data).give_up(error)
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int on_stream_close(nghttp2_session* h2, int32_t stream_id, uint32_t code, void* data) noexcept:
    cdef Session session = <Session>data
    cdef void* found = nghttp2_session_get_stream_user_data(h2, stream_id)
    cdef Request req
    if found == NULL:
        return 0
    nghttp2_session_set_stream_user_data(h2, stream_id, NULL)
    req = <Request>found
    Py_DECREF(req)
    req.detach()
    session.saw_close = True
    if req.on_close is not None or req.on_message is not None:
        try:
            session.events.append(req)
        except MemoryError as error:
            session.give_up(error)
            return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef ms_h2_ssize on_read(nghttp2_session* h2, int32_t stream_id, uint8_t* buf, size_t length, uint32_t* flags,
                         nghttp2_data_source* source, void* data) noexcept:
    try:
        return (<Request>source.ptr).fill(buf, length, flags)
    except Exception as error:
        (<Session>data).give_up(error)
        return NGHTTP2_ERR_CALLBACK_FAILURE


@cython.final
cdef class Session:
    """The server's side of one HTTP/2 connection. Never raises for what the client sent: a connection that
    cannot go on is `closed` (or `failed`, with `error` saying why) after its last output was taken."""

    def __cinit__(self, MethodTable methods not None, Limits limits=None, list dirty=None):
        cdef nghttp2_settings_entry[3] settings
        self.methods = methods
        self.limits = Limits() if limits is None else limits
        self.dirty = [] if dirty is None else dirty
        self.ready, self.rejects, self.events, self.parked, self.half = [], [], [], [], []
        self.last_method = -1
        if nghttp2_session_server_new2(&self.h2, CALLBACKS, <void*>self, OPTION) != 0:
            raise MemoryError
        settings[0].settings_id = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
        settings[0].value = self.limits.max_concurrent_streams
        settings[1].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
        settings[1].value = 1024 * 1024
        settings[2].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
        settings[2].value = <uint32_t>self.limits.max_header_list
        if (nghttp2_submit_settings(self.h2, NGHTTP2_FLAG_NONE, settings, 3) != 0
                or nghttp2_session_set_local_window_size(self.h2, NGHTTP2_FLAG_NONE, 0, 4 * 1024 * 1024) != 0):
            raise MemoryError
        self.mark()

    def __dealloc__(self):
        if self.h2 != NULL:
            nghttp2_session_del(self.h2)

    @property
    def want_write(self):
        """Whether take_output has something to give."""
        return self.h2 != NULL and not self.failed and nghttp2_session_want_write(self.h2) != 0

    @property
    def closed(self):
        """Whether this session is over: close the connection once the output taken so far is sent."""
        return self.h2 == NULL or self.failed or not (
            nghttp2_session_want_read(self.h2) or nghttp2_session_want_write(self.h2))

    @property
    def parked_count(self):
        """Complete requests held back because the client does not take its replies."""
        return len(self.parked)

    cdef void mark(self) noexcept:
        if not self.in_dirty:
            self.in_dirty = True
            try:
                self.dirty.append(self)
            except MemoryError:
                self.give_up("out of memory")

    cdef void give_up(self, object why) noexcept:
        if not self.failed:
            self.failed = True
            self.error = str(why)

    cdef int lookup(self, const uint8_t* path, size_t n, Request req) except -1:
        """Method of a :path; a client mostly calls what it called last."""
        cdef bytes last = self.last_path
        if last is None or <size_t>PyBytes_GET_SIZE(last) != n or memcmp(PyBytes_AS_STRING(last), path, n) != 0:
            last = PyBytes_FromStringAndSize(<const char*>path, n)
            self.last_path = last
            self.last_method = self.methods.paths.get(last, -1)
            self.last_streaming = self.last_method >= 0 and self.methods.is_streaming(self.last_method)
        req.path = last
        req.method = self.last_method
        req.streaming = self.last_streaming
        return 0

    cdef int control(self, bint reset) except -1:
        """Count a frame that costs us and gains nobody anything; too many of them end the connection."""
        if flood_count(&self.flood, self.limits, reset):
            nghttp2_session_terminate_session(self.h2, NGHTTP2_ENHANCE_YOUR_CALM)
            self.error = "flood of %s frames" % ("RST_STREAM" if reset else "control")
        return 0

    cpdef list feed(self, object data, Py_ssize_t n=-1, double now=0.0):
        """Take the first `n` bytes of `data` (all when negative), received at `now` (monotonic seconds).

        Returns the requests that became ready: unary ones with their message, streaming ones at their headers.
        """
        cdef Py_buffer view
        cdef ms_h2_ssize used
        cdef list ready
        if self.h2 == NULL or self.failed:
            return []
        flood_pass(&self.flood, self.limits, now)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        if n < 0 or n > view.len:
            n = view.len
        self.busy = True
        self.saw_close = False
        used = ms_h2_mem_recv(self.h2, <const uint8_t*>view.buf, <size_t>n)
        PyBuffer_Release(&view)
        self.busy = False
        if used < 0:
            self.give_up((<const char*>nghttp2_strerror(<int>used)).decode("ascii"))
        ready = self.ready
        self.ready = []
        if self.rejects or self.events:
            self.run_events()
        if self.h2 == NULL:
            return []
        if not self.in_dirty and (self.failed or nghttp2_session_want_write(self.h2)
                                  or not nghttp2_session_want_read(self.h2)):
            self.mark()
        if self.saw_close:
            ready = [req for req in ready if not (<Request>req).closed]
        if self.pending_output > self.limits.max_output and ready:
            self.parked.extend(ready)
            return []
        return ready

    cdef int run_events(self) except -1:
        """Work off what the callbacks found: refusals, and messages or ends of streaming calls."""
        cdef Request req
        cdef list rejects = self.rejects, events = self.events
        self.rejects = []
        self.events = []
        for entry in rejects:
            req = <Request>(<tuple>entry)[0]
            if not req.closed and not req.answered:
                req.refuse(<int>(<tuple>entry)[1], (<tuple>entry)[2])
        for entry in events:
            (<Request>entry).deliver()
        return 0

    cpdef bytes take_output(self, size_t limit=1024 * 1024):
        """Bytes to send now, about `limit` of them at most; empty when there is nothing (more)."""
        global SPARE, SPARE_SIZE
        cdef uint8_t* out = SPARE
        cdef size_t cap = SPARE_SIZE, size = 0
        cdef bytes taken
        self.in_dirty = False
        if self.h2 == NULL or self.busy:
            return b""
        SPARE = NULL
        SPARE_SIZE = 0
        self.busy = True
        try:
            self.drain(&out, &cap, &size, limit)
            taken = PyBytes_FromStringAndSize(<const char*>out, <Py_ssize_t>size) if size else b""
        finally:
            self.busy = False
            if SPARE == NULL:
                SPARE = out
                SPARE_SIZE = cap
            else:
                free(out)
        self.taken += size
        if self.events:
            self.run_events()
        return taken

    cdef int drain(self, uint8_t** out, size_t* cap, size_t* size, size_t limit) except -1:
        """Copy nghttp2's frames, each of which is valid until the next call only, into one buffer."""
        cdef const uint8_t* piece
        cdef ms_h2_ssize got
        cdef uint8_t* moved
        while size[0] < limit:
            got = ms_h2_mem_send(self.h2, &piece)
            if got < 0:
                self.give_up((<const char*>nghttp2_strerror(<int>got)).decode("ascii"))
                break
            if got == 0:
                if not self.half:
                    break
                self.cut_input()
                continue
            if size[0] + <size_t>got > cap[0]:
                cap[0] = max(cap[0] * 2, size[0] + <size_t>got, <size_t>(4 * FRAME_ROOM))
                moved = <uint8_t*>realloc(out[0], cap[0])
                if moved == NULL:
                    cap[0] = 0
                    raise MemoryError
                out[0] = moved
            memcpy(out[0] + size[0], piece, <size_t>got)
            size[0] += <size_t>got
        return 0

    cdef int cut_input(self) except -1:
        """End the streams that are answered while their client still sends (RFC 9113 8.1). Only after the answer
        left: nghttp2 drops the queued frames of a stream that has an RST_STREAM queued."""
        cdef Request req
        cdef list half = self.half
        self.half = []
        for req in half:
            if not req.closed and not req.input_over:
                nghttp2_submit_rst_stream(self.h2, NGHTTP2_FLAG_NONE, req.stream_id, NGHTTP2_NO_ERROR)
        return 0

    cpdef list unpark(self):
        """Requests held back so far, once enough output left; the ones whose stream closed are dropped."""
        cdef list held
        if not self.parked or self.pending_output > self.limits.max_output:
            return []
        held = [req for req in self.parked if not (<Request>req).closed]
        self.parked = []
        return held

    cpdef shutdown(self):
        """Tell the client to go elsewhere (GOAWAY); calls that are running go on, `closed` is true after them."""
        if self.h2 == NULL or self.failed:
            return
        nghttp2_submit_goaway(self.h2, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(self.h2),
                              NGHTTP2_NO_ERROR, NULL, 0)
        self.mark()

    cpdef close(self):
        """Drop everything at once. Requests stay valid objects; answering them does nothing from now on."""
        cdef Request req
        cdef list told = []
        if self.h2 == NULL:
            return
        if self.busy:
            raise RuntimeError("Session.close inside of a callback")
        while self.first_open != NULL:
            req = <Request>self.first_open
            nghttp2_session_set_stream_user_data(self.h2, req.stream_id, NULL)
            Py_DECREF(req)
            req.detach()
            told.append(req)
        nghttp2_session_del(self.h2)
        self.h2 = NULL
        self.rejects, self.events, self.parked, self.half = [], [], [], []
        for req in told:
            req.deliver()


cdef int prepare() except -1:
    """The tables and callback sets that all sessions share."""
    global CALLBACKS, OPTION
    set_nv(&HEAD_OK[0], b":status", 7, b"200", 3)
    set_nv(&HEAD_OK[1], b"content-type", 12, b"application/grpc", 16)
    set_nv(&TRAILER_OK[0], b"grpc-status", 11, b"0", 1)
    if nghttp2_option_new(&OPTION) != 0 or nghttp2_session_callbacks_new(&CALLBACKS) != 0:
        raise MemoryError
    nghttp2_option_set_no_closed_streams(OPTION, 1)
    nghttp2_option_set_no_http_messaging(OPTION, 1)     # it is stricter than etcd's clients: see `field_valid`
    nghttp2_session_callbacks_set_on_begin_headers_callback(CALLBACKS, on_begin_headers)
    nghttp2_session_callbacks_set_on_header_callback(CALLBACKS, on_header)
    nghttp2_session_callbacks_set_on_frame_recv_callback(CALLBACKS, on_frame_recv)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(CALLBACKS, on_data_chunk)
    nghttp2_session_callbacks_set_on_stream_close_callback(CALLBACKS, on_stream_close)
    return 0


prepare()
