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
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy

from metastore._core.nghttp2 cimport *

from collections import deque

from metastore import errors

# Why a request was turned away while its headers were read (Request.reject).
cdef enum:
    FINE = 0
    BAD_METHOD = 1
    BAD_TYPE = 2
    BAD_ENCODING = 3
    BAD_TIMEOUT = 4

cdef enum:
    PREFIX = 5                    # gRPC's length prefix: compressed flag, big-endian u32
    FIRST_PART = 64 * 1024        # first allocation for a message that spans DATA frames
    FRAME_ROOM = 16 * 1024 + 9    # the largest frame nghttp2 makes for us
    NV_STATIC = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE

cdef nghttp2_nv[2] HEAD_OK
cdef nghttp2_nv[1] TRAILER_OK
cdef ms_h2_data_provider PROVIDER
cdef nghttp2_session_callbacks* CALLBACKS = NULL
cdef nghttp2_option* OPTION = NULL
cdef uint8_t* SPARE = NULL        # the output buffer all sessions take turns with
cdef size_t SPARE_SIZE = 0


cdef inline void set_nv(nghttp2_nv* nv, const char* name, size_t nlen, const char* value, size_t vlen) noexcept:
    nv.name = <uint8_t*>name
    nv.namelen = nlen
    nv.value = <uint8_t*>value
    nv.valuelen = vlen
    nv.flags = NV_STATIC


cdef inline bint same(const uint8_t* a, const char* b, size_t n) noexcept:
    return memcmp(a, b, n) == 0


def percent_encode(str text not None) -> bytes:
    """`text` as a grpc-message value: printable ASCII stays, '%' and all other UTF-8 bytes become %XX."""
    raw = text.encode("utf-8", "replace")
    cdef bytes one
    if raw.isascii() and text.isprintable() and b"%" not in raw:
        return raw
    return b"".join([one if 0x20 <= one[0] <= 0x7E and one != b"%" else b"%%%02X" % one[0]
                     for one in [raw[i:i + 1] for i in range(len(raw))]])


cdef double parse_timeout(const uint8_t* p, size_t n) noexcept:
    """Seconds of a grpc-timeout value (at most 8 digits and a unit), negative when it is none."""
    cdef double value = 0
    cdef size_t i
    if n < 2 or n > 9:
        return -1
    for i in range(n - 1):
        if p[i] < 48 or p[i] > 57:
            return -1
        value = value * 10 + (p[i] - 48)
    cdef uint8_t unit = p[n - 1]
    if unit == c"S":
        return value
    if unit == c"m":
        return value / 1e3
    if unit == c"u":
        return value / 1e6
    if unit == c"n":
        return value / 1e9
    if unit == c"M":
        return value * 60
    if unit == c"H":
        return value * 3600
    return -1


cdef class Limits:
    """Bounds of the sessions that share this object (and the one sum `total_buffered` they keep in it).

    Sizes in bytes, rates per second. `max_message` bounds one gRPC message, `max_header_list` a request's
    headers as RFC 9113 6.5.2 counts them, `max_buffered` and `max_total_buffered` the bodies of unanswered
    requests of one session and of all, `max_output` the reply bytes above which a session delivers no further
    requests. A client may reset `reset_burst` requests at once and `reset_rate` a second, and send
    `control_burst`/`control_rate` frames that make us answer (PING, SETTINGS) or do nothing at all (empty DATA).
    """

    def __init__(self, *, size_t max_message=2 * 1024 * 1024, uint32_t max_concurrent_streams=4096,
                 size_t max_header_list=32 * 1024, size_t max_buffered=64 * 1024 * 1024,
                 size_t max_total_buffered=512 * 1024 * 1024, size_t max_output=16 * 1024 * 1024,
                 double reset_burst=1000, double reset_rate=100, double control_burst=1000,
                 double control_rate=100):
        self.max_message = max_message
        self.max_concurrent_streams = max_concurrent_streams
        self.max_header_list = max_header_list
        self.max_buffered = max_buffered
        self.max_total_buffered = max_total_buffered
        self.max_output = max_output
        self.reset_burst = reset_burst
        self.reset_rate = reset_rate
        self.control_burst = control_burst
        self.control_rate = control_rate


cdef class MethodTable:
    """Path -> small int. Methods in `streaming` get their Request at its headers and their messages one by one
    (bidirectional and client-streaming calls); all others get it with its one message complete."""

    def __init__(self, dict paths not None, streaming=()):
        for path in paths:
            if not isinstance(path, bytes) or path[:1] != b"/" or path.count(b"/") != 2:
                raise ValueError(f"not a gRPC path: {path!r}")
        unknown = set(streaming) - set(paths)
        if unknown:
            raise ValueError(f"streaming methods without an id: {sorted(unknown)!r}")
        self.paths = dict(paths)
        self.streaming = frozenset(paths[path] for path in streaming)
        self.services = frozenset(path[1:path.rindex(b"/")] for path in paths)

    cdef bint is_streaming(self, int method) except -1:
        return method in self.streaming

    def unknown(self, bytes path not None) -> str:
        """The text of the UNIMPLEMENTED error for `path` (the words of grpc-go, which clients have seen)."""
        cdef bytes name = path[1:] if path[:1] == b"/" else path
        service, slash, method = name.rpartition(b"/")
        if not slash:
            return "malformed method name: \"%s\"" % path.decode("utf-8", "replace")
        text = service.decode("utf-8", "replace")
        if service in self.services:
            return "unknown method %s for service %s" % (method.decode("utf-8", "replace"), text)
        return "unknown service %s" % text


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
        free(self.part)

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

    @property
    def limits(self):
        """The Limits of the session, or None once the stream is closed."""
        return self.session.limits if self.session is not None else None

    # ---- answers

    cpdef complete(self, object reply):
        """Answer a unary call with `reply` (bytes: the encoded message). A no-op once answered or closed."""
        if self.closed or self.answered:
            return
        self.answered = True
        self.finished = True
        self.reply = <bytes>reply
        self.queued = PREFIX + <size_t>PyBytes_GET_SIZE(self.reply)
        self.session.pending_output += self.queued
        self.uncharge()
        self.begin(True)

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
        self.begin(True)

    cpdef finish(self, int code=0, object text=""):
        """End a streaming reply with a gRPC status; what was sent before goes out first."""
        if self.closed or self.answered:
            return
        if not self.started and code != 0:
            self.refuse(code, text)
            return
        self.answered = True
        self.finished = True
        self.status = code
        if text:
            self.status_text = percent_encode(text)
        self.uncharge()
        self.begin(True)

    cpdef start(self, object on_message=None, object on_end=None, object on_close=None):
        """Take over a streaming call: `on_message(bytes)` for each message, `on_end()` when the client has sent
        its last, `on_close()` when the stream is gone. What came already is delivered before this returns.
        The response headers leave at once, as clients of long streams wait for them."""
        self.on_message = on_message
        self.on_end = on_end
        self.on_close = on_close
        if not self.closed and not self.answered:
            self.begin(True)
        self.deliver()

    cpdef reset(self, uint32_t code=NGHTTP2_CANCEL):
        """End the stream with RST_STREAM."""
        if self.closed:
            return
        self.answered = True
        self.swallow = True
        nghttp2_submit_rst_stream(self.session.h2, NGHTTP2_FLAG_NONE, self.stream_id, code)
        self.session.mark()

    cdef int begin(self, bint with_body) except -1:
        """Submit the response headers once; wake the data provider up when it was asleep."""
        cdef Session session = self.session
        cdef ms_h2_data_provider provider
        if not self.started:
            self.started = True
            provider.source.ptr = <void*>self
            provider.read_callback = on_read
            if ms_h2_submit_response(session.h2, self.stream_id, HEAD_OK, 2, &provider) != 0:
                self.reset(NGHTTP2_INTERNAL_ERROR)
            if session.controls > 0:
                session.controls = 0
        elif self.deferred:
            self.deferred = False
            nghttp2_session_resume_data(session.h2, self.stream_id)
        if not session.in_dirty:
            session.mark()
        return 0

    cdef int refuse(self, int code, object text) except -1:
        """An error as the whole answer: headers that are trailers too, or a finish when headers are out."""
        cdef nghttp2_nv[5] nv
        cdef size_t count = 2
        cdef bytes number = b"%d" % code
        cdef bytes message = percent_encode(text)
        if self.started:
            self.finish(code, text)
            return 0
        self.answered = self.finished = self.started = True
        self.uncharge()
        nv[0] = HEAD_OK[0]
        nv[1] = HEAD_OK[1]
        if self.reject == BAD_METHOD:
            set_nv(&nv[0], b":status", 7, b"405", 3)
        elif self.reject == BAD_TYPE:
            set_nv(&nv[0], b":status", 7, b"415", 3)
        set_nv(&nv[2], b"grpc-status", 11, PyBytes_AS_STRING(number), PyBytes_GET_SIZE(number))
        set_nv(&nv[3], b"grpc-message", 12, PyBytes_AS_STRING(message), PyBytes_GET_SIZE(message))
        nv[2].flags = nv[3].flags = NGHTTP2_NV_FLAG_NO_COPY_NAME
        count = 4 if message else 3
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
                prefix[0] = 0
                prefix[1] = (size >> 24) & 0xFF
                prefix[2] = (size >> 16) & 0xFF
                prefix[3] = (size >> 8) & 0xFF
                prefix[4] = size & 0xFF
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
        cdef bytes number
        cdef int result
        if self.status == 0 and self.status_text is None:
            result = nghttp2_submit_trailer(self.session.h2, self.stream_id, TRAILER_OK, 1)
        else:
            number = b"%d" % self.status
            set_nv(&nv[0], b"grpc-status", 11, PyBytes_AS_STRING(number), PyBytes_GET_SIZE(number))
            nv[0].flags = NGHTTP2_NV_FLAG_NO_COPY_NAME
            if self.status_text is not None:
                set_nv(&nv[1], b"grpc-message", 12, PyBytes_AS_STRING(self.status_text),
                       PyBytes_GET_SIZE(self.status_text))
                nv[1].flags = NGHTTP2_NV_FLAG_NO_COPY_NAME
            result = nghttp2_submit_trailer(self.session.h2, self.stream_id, nv,
                                            1 if self.status_text is None else 2)
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

    cdef int take_data(self, const uint8_t* data, size_t n) except -1:
        """DATA payload: the common case is one whole message in one piece."""
        cdef size_t size
        if self.swallow or n == 0:
            return 0
        if self.got == 0 and n >= PREFIX and data[0] == 0 and (self.body is None or self.streaming):
            size = (<size_t>data[1] << 24) | (<size_t>data[2] << 16) | (<size_t>data[3] << 8) | data[4]
            if size == n - PREFIX and size <= self.session.limits.max_message:
                if not self.charge(size):
                    self.session.rejects.append((self, errors.RESOURCE_EXHAUSTED, errors.TooManyRequests.default))
                    self.swallow = True
                    return 0
                return self.message_done(PyBytes_FromStringAndSize(<const char*>data + PREFIX, size))
        return self.take_partial(data, n)

    cdef int take_partial(self, const uint8_t* data, size_t n) except -1:
        cdef size_t part, limit = self.session.limits.max_message
        cdef list rejects = self.session.rejects
        while n:
            if self.body is not None and not self.streaming:
                rejects.append((self, errors.UNIMPLEMENTED, "grpc: more than one message for a unary call"))
                self.swallow = True
                return 0
            if self.got < PREFIX:
                part = min(PREFIX - self.got, n)
                memcpy(self.prefix + self.got, data, part)
                self.got += part
                data += part
                n -= part
                if self.got < PREFIX:
                    return 0
                self.need = ((<size_t>self.prefix[1] << 24) | (<size_t>self.prefix[2] << 16)
                             | (<size_t>self.prefix[3] << 8) | self.prefix[4])
                self.part_size = 0
                if self.prefix[0] != 0:
                    rejects.append((self, errors.INTERNAL,
                                    "grpc: compressed flag set with identity or empty encoding"))
                    self.swallow = True
                    return 0
                if self.need > limit:
                    rejects.append((self, errors.RESOURCE_EXHAUSTED,
                                    "grpc: received message larger than max (%d vs. %d)" % (self.need, limit)))
                    self.swallow = True
                    return 0
            part = min(self.need - self.part_size, n)
            if part:
                if not self.charge(part):
                    rejects.append((self, errors.RESOURCE_EXHAUSTED, errors.TooManyRequests.default))
                    self.swallow = True
                    return 0
                self.grow(self.part_size + part)
                memcpy(self.part + self.part_size, data, part)
                self.part_size += part
                data += part
                n -= part
            if self.part_size == self.need:
                self.message_done(PyBytes_FromStringAndSize(<const char*>self.part, self.need))
                free(self.part)
                self.part = NULL
                self.part_cap = 0
                self.got = 0
        return 0

    cdef int grow(self, size_t want) except -1:
        """Room for `want` bytes of the message, never more than it was announced to have."""
        cdef size_t cap = self.part_cap
        cdef uint8_t* moved
        if want <= cap:
            return 0
        cap = max(cap * 2, want, <size_t>FIRST_PART)
        cap = min(cap, self.need)
        moved = <uint8_t*>realloc(self.part, cap)
        if moved == NULL:
            raise MemoryError
        self.part = moved
        self.part_cap = cap
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
        if self.got != 0:
            self.session.rejects.append((self, errors.INTERNAL, "grpc: message cut short by the end of the stream"))
            self.swallow = True
        elif self.streaming:
            self.ended = True
            self.session.events.append(self)
        elif self.body is None:
            self.session.rejects.append((self, errors.UNIMPLEMENTED, "grpc: no message for a unary call"))
            self.swallow = True
        else:
            self.session.ready.append(self)
        return 0

    cdef int header(self, const uint8_t* name, size_t nlen, const uint8_t* value, size_t vlen) except -1:
        if nlen == 5 and same(name, b":path", 5):
            return self.session.lookup(value, vlen, self)
        if nlen == 7 and (same(name, b":scheme", 7) or same(name, b":method", 7)):
            if name[1] == c"m":
                self.post = vlen == 4 and same(value, b"POST", 4)
            return 0
        if nlen == 12 and same(name, b"content-type", 12):
            self.grpc_type = vlen >= 16 and same(value, b"application/grpc", 16) and (
                vlen == 16 or value[16] == c"+" or value[16] == c";")
            return 0
        if nlen == 12 and same(name, b"grpc-timeout", 12):
            self.timeout_s = parse_timeout(value, vlen)
            if self.timeout_s < 0:
                self.reject = BAD_TIMEOUT
            return 0
        if nlen == 13 and same(name, b"grpc-encoding", 13):
            if not (vlen == 8 and same(value, b"identity", 8)):
                self.reject = BAD_ENCODING
                self.context = (<const char*>value)[:vlen]
            return 0
        if ((nlen == 10 and (same(name, b":authority", 10) or same(name, b"user-agent", 10)))
                or (nlen == 2 and same(name, b"te", 2))
                or (nlen == 14 and same(name, b"content-length", 14))
                or (nlen == 20 and same(name, b"grpc-accept-encoding", 20))):
            return 0
        if self.extra is None:
            self.extra = []
        self.extra.append(((<const char*>name)[:nlen], (<const char*>value)[:vlen]))
        return 0

    cdef int headers_done(self) except -1:
        """All headers are in: decide whether this call is taken at all."""
        cdef list rejects = self.session.rejects
        if not self.post:
            self.reject = BAD_METHOD
            rejects.append((self, errors.INTERNAL, "grpc: the request's :method must be POST"))
        elif not self.grpc_type:
            self.reject = BAD_TYPE
            rejects.append((self, errors.INVALID_ARGUMENT, "grpc: the request's content-type must be application/grpc"))
        elif self.reject == BAD_TIMEOUT:
            rejects.append((self, errors.INTERNAL, "grpc: malformed grpc-timeout"))
        elif self.method < 0:
            rejects.append((self, errors.UNIMPLEMENTED, self.session.methods.unknown(self.path)))
        elif self.reject == BAD_ENCODING:
            rejects.append((self, errors.UNIMPLEMENTED,
                            'grpc: Decompressor is not installed for grpc-encoding "%s"'
                            % self.context.decode("utf-8", "replace")))
            self.context = None
        else:
            if self.streaming:
                self.session.ready.append(self)
            return 0
        self.swallow = True
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
            for message in inbox:
                if self.on_message is not None:
                    self.on_message(message)
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
        free(self.part)
        self.part = NULL
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
    cdef uint8_t kind = frame.hd.type
    cdef void* found
    cdef Request req
    try:
        if kind == NGHTTP2_HEADERS or kind == NGHTTP2_DATA:
            found = nghttp2_session_get_stream_user_data(h2, frame.hd.stream_id)
            if found == NULL:
                return 0
            req = <Request>found
            if kind == NGHTTP2_HEADERS and frame.headers.cat == NGHTTP2_HCAT_REQUEST:
                req.headers_done()
            if frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
                req.input_done()
            elif kind == NGHTTP2_DATA and frame.hd.length == 0:
                session.control(False)
        elif kind == NGHTTP2_RST_STREAM:
            session.control(True)
        elif (kind == NGHTTP2_PING or kind == NGHTTP2_SETTINGS) and not frame.hd.flags & NGHTTP2_FLAG_ACK:
            session.control(False)
        elif kind == NGHTTP2_PRIORITY:
            session.control(False)
    except Exception as error:
        session.give_up(error)
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int on_data_chunk(nghttp2_session* h2, uint8_t flags, int32_t stream_id, const uint8_t* bytes_in, size_t n,
                       void* data) noexcept:
    cdef void* found = nghttp2_session_get_stream_user_data(h2, stream_id)
    if found == NULL:
        return 0
    try:
        (<Request>found).take_data(bytes_in, n)
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
        self.ready = []
        self.rejects = []
        self.events = []
        self.parked = []
        self.half = []
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
        cdef Limits limits = self.limits
        if reset:
            self.resets += 1
        else:
            self.controls += 1
        if self.resets > limits.reset_burst or self.controls > limits.control_burst:
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
        if now > self.seen_at:
            self.resets = max(0.0, self.resets - (now - self.seen_at) * self.limits.reset_rate)
            self.controls = max(0.0, self.controls - (now - self.seen_at) * self.limits.control_rate)
            self.seen_at = now
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
        cdef const uint8_t* piece
        cdef ms_h2_ssize got
        cdef size_t size = 0, cap
        cdef uint8_t* out
        cdef uint8_t* moved
        self.in_dirty = False
        if self.h2 == NULL or self.busy:
            return b""
        out = SPARE
        cap = SPARE_SIZE
        SPARE = NULL
        SPARE_SIZE = 0
        self.busy = True
        while size < limit:
            got = ms_h2_mem_send(self.h2, &piece)
            if got < 0:
                self.give_up((<const char*>nghttp2_strerror(<int>got)).decode("ascii"))
                break
            if got == 0:
                if not self.half:
                    break
                self.cut_input()
                continue
            if size + <size_t>got > cap:
                cap = max(cap * 2, size + <size_t>got, <size_t>(4 * FRAME_ROOM))
                moved = <uint8_t*>realloc(out, cap)
                if moved == NULL:
                    self.give_up("out of memory")
                    break
                out = moved
            memcpy(out + size, piece, <size_t>got)
            size += <size_t>got
        self.busy = False
        self.taken += size
        try:
            return PyBytes_FromStringAndSize(<const char*>out, <Py_ssize_t>size) if size else b""
        finally:
            if SPARE == NULL:
                SPARE = out
                SPARE_SIZE = cap
            else:
                free(out)
            if self.events:
                self.run_events()

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
        self.parked = []
        self.rejects = []
        self.events = []
        self.half = []
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
    nghttp2_session_callbacks_set_on_begin_headers_callback(CALLBACKS, on_begin_headers)
    nghttp2_session_callbacks_set_on_header_callback(CALLBACKS, on_header)
    nghttp2_session_callbacks_set_on_frame_recv_callback(CALLBACKS, on_frame_recv)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(CALLBACKS, on_data_chunk)
    nghttp2_session_callbacks_set_on_stream_close_callback(CALLBACKS, on_stream_close)
    return 0


prepare()
