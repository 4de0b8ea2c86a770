"""One gRPC call on an HTTP/2 stream: its headers and messages arrive, its replies and its status leave.

The functions that nghttp2's callbacks call only record what they find. `deliver` passes it on outside of callbacks.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcmp, memcpy

from metastore._core.grpc cimport *
from metastore._core.nghttp2 cimport *
from metastore._core.work cimport Parts

import zlib
from collections import deque

from metastore import errors

cdef nghttp2_nv[3] HEAD_OK
cdef nghttp2_nv[1] TRAILER_OK
cdef const char* ACCEPTED = b"grpc-accept-encoding"
cdef const char* ENCODINGS = b"identity,gzip"


@cython.final
@cython.no_gc
cdef class Request(Waiter):
    """One gRPC call. Only Session creates it; the .pyi describes its attributes.

    The garbage collector does not track it: the cycle with its session ends when its stream closes.
    """

    def __cinit__(self):
        self.method = -1
        self.timeout_s = -1

    def __dealloc__(self):
        reader_next(&self.reader)

    @property
    def headers(self):
        """The metadata that services read (H_KEPT of `header_kind`): list of (name, value) bytes pairs."""
        return self.extra if self.extra is not None else []

    @property
    def timeout(self):
        """The client's grpc-timeout in seconds, or None."""
        return self.timeout_s if self.timeout_s >= 0 else None

    @property
    def queued_bytes(self):
        """Bytes of this call's replies that have not left the session."""
        return self.queued

    # ---- answers

    cpdef complete(self, object reply):
        """Answer a unary call with `reply`: the encoded message (bytes), or its Parts. No effect once it is over."""
        if self.closed or self.answered:
            return
        self.answered = self.finished = True
        self.forget()
        if isinstance(reply, Parts):
            self.apart = True
            self.outbox = deque((<Parts>reply).items)
            self.reply, self.reply_at = PyBytes_FromStringAndSize(NULL, PREFIX), PREFIX
            prefix_write(<uint8_t*>PyBytes_AS_STRING(self.reply), (<Parts>reply).size)
            self.owe(PREFIX + (<Parts>reply).size)
        else:
            self.reply = <bytes>reply
            self.owe(PREFIX + PyBytes_GET_SIZE(self.reply))
        self.uncharge()
        self.begin()

    cpdef fail(self, object error):
        """Answer with the code and text of `error` (a MetaStoreError). No effect once answered or closed."""
        if not self.closed and not self.answered:
            self.refuse(error.code, error.text)

    cpdef send(self, bytes message, bint framed=False):
        """Queue one message of a streaming reply. No effect once finished or closed. A call whose pieces are `framed`
        sends nothing else: several messages, or parts of one, that have their prefixes."""
        if self.closed or self.answered:
            return
        self.apart = framed
        if self.reply is None:
            self.reply, self.reply_at = message, PREFIX if framed else 0
        else:
            self.outbox = deque() if self.outbox is None else self.outbox
            self.outbox.append(message)
        self.owe(PyBytes_GET_SIZE(message) + (0 if framed else PREFIX))
        self.begin()

    cpdef finish(self, int code=0, object text=""):
        """End a streaming reply with a gRPC status. The messages sent before go out first."""
        if self.closed or self.answered:
            return
        if not self.started and code != 0:
            self.refuse(code, text)
            return
        self.answered = self.finished = True
        self.forget()
        self.status = code
        if text:
            self.status_text = percent_encode(text)
        self.uncharge()
        self.begin()

    cpdef start(self, object on_message=None, object on_end=None, object on_close=None, object on_messages=None,
                bint patient=False):
        """Take over a streaming call. `on_message(bytes)` is called for each message, `on_end()` when the client has
        sent its last, `on_close()` when the stream is gone. What has already arrived is delivered before this returns.
        The response headers leave at once, because clients of long streams wait for them. `on_messages(list)` is called
        instead for all messages that came together. The client of a `patient` stream may leave its replies unread for
        as long as it likes."""
        if patient and not self.closed:
            self.patient = True
            self.session.patient_streams += 1
        self.on_message, self.on_messages, self.on_end, self.on_close = on_message, on_messages, on_end, on_close
        if not self.closed and not self.answered:
            self.begin()
        self.deliver()

    cpdef choke(self, bint on):
        """Do not read from this call's connection until `choke(False)`; no effect once the stream is gone."""
        if self.choked != on and self.session is not None:
            self.choked = on
            self.session.choked += 1 if on else -1
            self.session.mark()

    cpdef when_drained(self, object call):
        """Call `call(self)` once when all messages sent so far have left the session. None takes that back."""
        self.on_drained = call

    cpdef when_closed(self, object call):
        """Call `call()` once when the stream of this unary call is gone, also because it was answered."""
        self.on_close = call
        if self.closed:
            self.deliver()

    cdef void owe(self, Py_ssize_t n) noexcept:
        """Count `n` more bytes of replies (negative: bytes that have left)."""
        self.queued += n
        self.session.pending_output += n
        self.session.limits.total_output += n
        if self.patient:
            self.session.patient_output += n

    cpdef reset(self, uint32_t code=NGHTTP2_CANCEL):
        """End the stream with RST_STREAM."""
        if self.closed:
            return
        self.answered = self.swallow = True
        nghttp2_submit_rst_stream(self.session.h2, NGHTTP2_FLAG_NONE, self.stream_id, code)
        self.session.mark()

    cdef int begin(self) except -1:
        """Submit the response headers once. Wake the data provider if it sleeps."""
        cdef Link session = self.session
        cdef ms_h2_data_provider provider
        if not self.started:
            self.started = True
            provider.source.ptr = <void*>self
            provider.read_callback = on_read
            # Only a client that compresses needs to know which encodings we accept; all others save these bytes.
            if ms_h2_submit_response(session.h2, self.stream_id, HEAD_OK, 3 if self.packs else 2, &provider) != 0:
                self.reset(NGHTTP2_INTERNAL_ERROR)
            session.flood.controls = 0
            session.spoke = True
        elif self.deferred:
            self.deferred = False
            nghttp2_session_resume_data(session.h2, self.stream_id)
        if not session.in_dirty:
            session.mark()
        return 0

    cdef int refuse(self, int code, object text) except -1:
        """Send an error as the whole answer: headers that are trailers too, or a finish if the headers are out."""
        cdef nghttp2_nv[5] nv
        cdef size_t count
        if self.started:
            self.finish(code, text)
            return 0
        self.answered = self.finished = self.started = True
        self.forget()
        self.uncharge()
        reader_next(&self.reader)
        cdef bytes number = b"%d" % code, message = percent_encode(text)
        nv[0] = HEAD_OK[0]
        nv[1] = HEAD_OK[1]
        if self.reject == BAD_METHOD:
            set_nv(&nv[0], b":status", 7, b"405", 3)
        elif self.reject == BAD_TYPE:
            set_nv(&nv[0], b":status", 7, b"415", 3)
        count = 2 + status_nv(&nv[2], number, message)
        if self.reject == BAD_ENCODING or self.packs:
            set_nv(&nv[count], ACCEPTED, 20, ENCODINGS, 13)
            count += 1
        cdef nghttp2_session* h2 = self.session.h2
        if ms_h2_submit_response(h2, self.stream_id, nv, count, NULL) != 0:
            nghttp2_submit_rst_stream(h2, NGHTTP2_FLAG_NONE, self.stream_id, NGHTTP2_INTERNAL_ERROR)
        elif not self.input_over:
            self.session.half.append(self)
        self.swallow = self.session.spoke = True
        self.session.mark()
        return 0

    cdef Py_ssize_t fill(self, uint8_t* buf, size_t room, uint32_t* flags) except -1000:
        """Copy the next bytes of the reply for a DATA frame. This is nghttp2's data provider."""
        cdef size_t done = 0, size, part
        cdef uint8_t[PREFIX] prefix
        while done < room:
            if self.reply is None:
                if not self.outbox:
                    break
                self.reply = self.outbox.popleft()
                self.reply_at = PREFIX if self.apart else 0
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
        self.owe(-<Py_ssize_t>done)
        self.session.replied += done
        self.session.spoke = True           # clients measure with PINGs while replies arrive, even within a long one
        if self.on_drained is not None and self.queued == 0:
            self.session.events.append(self)
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
        if self.session.flood.resets >= 1:
            self.session.flood.resets -= 1      # each finished call lets the client cancel one more
        if not self.input_over:
            self.swallow = True
            self.session.half.append(self)
        return 0

    # ---- the request's bytes

    cdef int charge(self, size_t n) except -1:
        """Count `n` more body bytes. Returns False if the session or all sessions together hold too many already."""
        cdef Link session = self.session
        cdef Limits limits = session.limits
        if not limits.room(session.buffered, n):
            return False
        self.charged += n
        session.buffered += n
        limits.total_buffered += n
        return True

    cdef void forget(self) noexcept:
        """The call is answered. Its bytes go now and not with the stream, which lives until its client has read the
        reply: they do not count any more."""
        self.body = None
        self.extra = None

    cdef void uncharge(self) noexcept:
        cdef Link session = self.session
        if self.charged <= CALL_COST:
            return
        self.charged -= CALL_COST
        session.buffered -= self.charged
        session.limits.total_buffered -= self.charged
        self.charged = CALL_COST                # stays counted until the stream is gone

    cdef int turn_away(self, int code, object text) except -1:
        """Refuse the call after the callback. Whatever its client still sends is ignored."""
        self.session.rejects.append((self, code, text))
        self.swallow = True
        reader_next(&self.reader)
        return 0

    cdef int take_data(self, const uint8_t* data, size_t n) except -1:
        """Process DATA payload. The common case is one whole message in one piece."""
        cdef size_t size
        if self.swallow or n == 0:
            return 0
        if self.reader.got == 0 and n >= PREFIX and data[0] == 0 and (self.body is None or self.streaming):
            size = prefix_length(data)
            if size == n - PREFIX and size <= self.session.limits.max_message:
                if not self.charge(size):
                    return self.turn_away(errors.RESOURCE_EXHAUSTED, errors.TooManyRequests.default)
                return self.message_in(PyBytes_FromStringAndSize(<const char*>data + PREFIX, size), False)
        return self.take_pieces(data, n)

    cdef int take_pieces(self, const uint8_t* data, size_t n) except -1:
        """Process DATA payload that holds a part of a message, or several."""
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
                self.message_in(PyBytes_FromStringAndSize(<const char*>self.reader.part, self.reader.need),
                                self.reader.prefix[0] == 1)
                reader_next(&self.reader)
            elif found == READ_COMPRESSED:
                return self.turn_away(errors.INTERNAL, "grpc: compressed flag set with identity or empty encoding")
            elif found == READ_TOO_LARGE:
                return self.turn_away(errors.RESOURCE_EXHAUSTED, "grpc: received message larger than max (%d vs. %d)"
                                      % (self.reader.need, limit))
        return 0

    cdef int message_in(self, bytes message, bint packed) except -1:
        """Process a message. A compressed one waits for `unpack`, and so does everything behind it in this stream."""
        if not packed and self.unopened is None:
            return self.message_done(message)
        if not self.streaming:
            self.body = message                 # lets a second message be noticed
        if not self.unopened:
            self.unopened = deque()
            self.session.limits.packed.append(self)
        self.unopened.append((packed, message))
        return 0

    cdef int message_done(self, bytes message) except -1:
        if not self.streaming:
            self.body = message
            return 0
        self.come()
        if self.inbox is None:
            self.inbox = []
            self.session.events.append(self)
        self.inbox.append(message)
        return 0

    cdef int input_done(self) except -1:
        """Process END_STREAM: a unary call is ready now."""
        self.input_over = True
        if self.swallow:
            return 0
        if self.reader.got != 0:
            return self.turn_away(errors.INTERNAL, "grpc: message cut short by the end of the stream")
        if self.body is None and not self.streaming:
            return self.turn_away(errors.UNIMPLEMENTED, "grpc: no message for a unary call")
        self.come()
        return 0 if self.unopened is not None else self.body_over()

    cdef void come(self) noexcept:
        """Note that the call has arrived completely, so the time limit for it ends."""
        self.whole = self.session.asked = True
        self.session.asked_at = self.session.now

    cdef int body_over(self) except -1:
        """All messages are there, and none is compressed any more."""
        if self.streaming:
            self.ended = True
            self.session.events.append(self)
        else:
            self.session.ready.append(self)
        return 0

    # ---- compressed messages, outside of nghttp2's callbacks

    cdef bytes open_message(self, bytes message):
        """Unpack a gzip message, at most to the size a message may have. None if the call was refused for it."""
        cdef size_t limit = self.session.limits.max_message
        opener = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            found = opener.decompress(message, limit + 1)
        except zlib.error as error:
            self.refuse(errors.INTERNAL, "grpc: failed to decompress the received message: %s" % error)
            return None
        if <size_t>len(found) > limit:
            self.refuse(errors.RESOURCE_EXHAUSTED,
                        "grpc: received message after decompression larger than max %d" % limit)
        elif not opener.eof or opener.unused_data:
            self.refuse(errors.INTERNAL, "grpc: failed to decompress the received message: not one gzip member")
        elif len(found) > len(message) and not self.charge(len(found) - len(message)):
            self.refuse(errors.RESOURCE_EXHAUSTED, errors.TooManyRequests.default)
        else:
            return found
        return None

    cdef size_t unpack(self, list ready) except *:
        """Unpack the next message and return its size in bytes. A unary call that is now complete goes to `ready`."""
        cdef bytes message
        packed, message = self.unopened.popleft()
        if not self.unopened:
            self.unopened = None
        if packed:
            message = self.open_message(message)
            if message is None:
                self.unopened = None
                return self.session.limits.max_message
        if not self.streaming:
            self.body = message
            if self.input_over:
                ready.append(self)
            return <size_t>len(message)
        self.come()
        if self.inbox is None:
            self.inbox = []
        self.inbox.append(message)
        self.ended = self.input_over and self.unopened is None
        self.deliver()
        return <size_t>len(message)

    cdef int lookup(self, const uint8_t* path, size_t n) except -1:
        """Find the method of a :path. A client mostly calls the same method again, so that one is compared first."""
        cdef Link session = self.session
        cdef bytes last = session.last_path
        if last is None or <size_t>PyBytes_GET_SIZE(last) != n or memcmp(PyBytes_AS_STRING(last), path, n) != 0:
            last = PyBytes_FromStringAndSize(<const char*>path, n)
            self.method = session.methods.paths.get(last, -1)
            if self.method < 0:
                self.path = last[:SHOWN]
                return 0
            session.last_path = last
            session.last_method = self.method
            session.last_streaming = session.methods.is_streaming(self.method)
        self.path = last
        self.method = session.last_method
        self.streaming = session.last_streaming
        return 0

    cdef int header(self, const uint8_t* name, size_t nlen, const uint8_t* value, size_t vlen) except -1:
        cdef HeaderKind kind = header_kind(name, nlen)
        if kind == H_OTHER:
            return 0
        if kind == H_PATH:
            return self.lookup(value, vlen)
        if kind == H_METHOD:
            self.post = vlen == 4 and memcmp(value, b"POST", 4) == 0
        elif kind == H_TYPE:
            self.grpc_type = is_grpc_type(value, vlen)
        elif kind == H_TIMEOUT:
            self.timeout_s = parse_timeout(value, vlen)
            if self.timeout_s < 0:
                self.reject = BAD_TIMEOUT
        elif kind == H_ENCODING:
            if vlen == 4 and memcmp(value, b"gzip", 4) == 0:
                self.packs = self.reader.packed_too = True
            elif vlen != 8 or memcmp(value, b"identity", 8) != 0:
                self.reject = BAD_ENCODING
                self.context = (<const char*>value)[:min(vlen, <size_t>SHOWN)]
        else:
            return self.keep(name, nlen, value, vlen)
        return 0

    cdef int keep(self, const uint8_t* name, size_t nlen, const uint8_t* value, size_t vlen) except -1:
        """Keep a field of the metadata that services read. Its bytes count, as one byte of HPACK can mean 4 KiB."""
        if self.extra is None:
            self.extra = []
        if not self.charged or len(self.extra) >= MAX_KEPT or not self.charge(nlen + vlen):
            self.reject = TOO_MUCH
            return 0
        self.extra.append(((<const char*>name)[:nlen], (<const char*>value)[:vlen]))
        return 0

    cdef int headers_done(self) except -1:
        """All headers are in. Decide whether this call is accepted."""
        if not self.post:
            self.reject = BAD_METHOD
            return self.turn_away(errors.INTERNAL, "grpc: the request's :method must be POST")
        if not self.grpc_type:
            self.reject = BAD_TYPE
            return self.turn_away(errors.INVALID_ARGUMENT, "grpc: the request's content-type must be application/grpc")
        if self.reject == TOO_MUCH or not self.charged:
            return self.turn_away(errors.RESOURCE_EXHAUSTED, errors.TooManyRequests.default)
        if self.reject == BAD_TIMEOUT:
            return self.turn_away(errors.INTERNAL, "grpc: malformed grpc-timeout")
        if self.method < 0:
            return self.turn_away(errors.UNIMPLEMENTED, self.session.methods.unknown(self.path))
        if self.reject == BAD_ENCODING:
            name, self.context = self.context.decode("utf-8", "replace"), None
            text = f'grpc: Decompressor is not installed for grpc-encoding "{name}"'
            return self.turn_away(errors.UNIMPLEMENTED, text)
        if self.streaming:
            self.session.ready.append(self)
        return 0

    # ---- time limits

    cdef void begin_waiting(self) noexcept:
        cdef Limits limits = self.session.limits
        self.waits = True
        self.next_waiting = limits.first_waiting
        if limits.first_waiting != NULL:
            (<Request>limits.first_waiting).prev_waiting = <PyObject*>self
        limits.first_waiting = <PyObject*>self

    cdef void end_waiting(self) noexcept:
        if not self.waits:
            return
        self.waits = False
        if self.prev_waiting != NULL:
            (<Request>self.prev_waiting).next_waiting = self.next_waiting
        else:
            self.session.limits.first_waiting = self.next_waiting
        if self.next_waiting != NULL:
            (<Request>self.next_waiting).prev_waiting = self.prev_waiting
        self.next_waiting = self.prev_waiting = NULL

    cdef bint expired(self, double now) noexcept:
        """Whether the client's grpc-timeout has passed."""
        return self.timeout_s >= 0 and now >= self.arrived + self.timeout_s

    # ---- life of the stream

    cdef int deliver(self) except -1:
        """Pass on what arrived for a streaming call; only outside of nghttp2's callbacks."""
        cdef list inbox
        if self.inbox is not None and (self.on_message is not None or self.on_messages is not None):
            inbox = self.inbox
            self.inbox = None
            if self.session is not None:
                self.uncharge()
            try:
                if self.on_messages is not None:
                    self.on_messages(inbox)
                    inbox = []
                for message in inbox:
                    if self.on_message is not None:
                        self.on_message(message)
            except errors.ApiError as error:
                self.fail(error)
        if self.ended and not self.end_told and self.on_end is not None:
            self.end_told = True
            self.on_end()
        if self.on_drained is not None and self.queued == 0:
            on_drained = self.on_drained
            self.on_drained = None
            if not self.closed:
                on_drained(self)
        if self.closed:
            on_close = self.on_close
            self.on_message = self.on_messages = self.on_end = self.on_close = None
            if on_close is not None:
                on_close()
        return 0

    cdef void detach(self) noexcept:
        """The stream is gone. Drop the session and keep only what a late answer may read."""
        cdef Link session = self.session
        self.closed = True
        self.end_waiting()
        session.buffered -= self.charged
        session.limits.total_buffered -= self.charged
        self.charged = 0
        self.unopened = None
        self.owe(-<Py_ssize_t>self.queued)
        session.patient_streams -= self.patient
        self.choke(False)
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


# ---- nghttp2's callbacks. The GIL is held. An exception fails the session, never the process. They run for every field
# and every frame, so they are in one module with the functions that they call, which makes these calls direct.

cdef int broken(Link session, Request req) except -1:
    """End a stream that breaks HTTP/2's rules. A client that keeps doing so is disconnected."""
    req.reset(NGHTTP2_PROTOCOL_ERROR)
    return session.control(True)


cdef int on_invalid_frame(nghttp2_session* h2, const nghttp2_frame* frame, int code, void* data) noexcept:
    """nghttp2 refused a stream because there are too many. This counts as if the client had reset it."""
    cdef Link session = <Link>data
    try:
        if frame.hd.type == NGHTTP2_HEADERS:
            session.control(True)
    except Exception as error:
        session.give_up(error)
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int on_begin_headers(nghttp2_session* h2, const nghttp2_frame* frame, void* data) noexcept:
    cdef Link session = <Link>data
    cdef Request req
    if frame.hd.type != NGHTTP2_HEADERS or frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0
    if 0 <= session.last_told < frame.hd.stream_id:
        # nghttp2 refuses it only after the GOAWAY has left. The client repeats this call elsewhere, so refuse it here.
        nghttp2_submit_rst_stream(h2, NGHTTP2_FLAG_NONE, frame.hd.stream_id, NGHTTP2_REFUSED_STREAM)
        return 0
    try:
        req = Request.__new__(Request)
    except MemoryError:
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    req.session = session
    req.stream_id = frame.hd.stream_id
    Py_INCREF(req)                                  # the stream's reference; on_stream_close releases it
    nghttp2_session_set_stream_user_data(h2, req.stream_id, <void*>req)
    req.next_open = session.first_open
    if session.first_open != NULL:
        (<Request>session.first_open).prev_open = <PyObject*>req
    session.first_open = session.current = <PyObject*>req
    session.open_streams += 1
    req.arrived = session.now
    if session.limits.room(session.buffered, CALL_COST):
        req.charged = CALL_COST
        session.buffered += CALL_COST
        session.limits.total_buffered += CALL_COST
    req.begin_waiting()
    return 0


cdef int on_header(nghttp2_session* h2, const nghttp2_frame* frame, const uint8_t* name, size_t nlen,
                   const uint8_t* value, size_t vlen, uint8_t flags, void* data) noexcept:
    cdef Link session = <Link>data
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
        broken(session, req)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    if frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0                                    # trailers of a request have no meaning in gRPC
    try:
        req.header(name, nlen, value, vlen)
    except Exception as error:
        session.give_up(error)
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int on_frame_recv(nghttp2_session* h2, const nghttp2_frame* frame, void* data) noexcept:
    cdef Link session = <Link>data
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
                broken(session, req)
                return 0
            if kind == NGHTTP2_HEADERS and frame.headers.cat == NGHTTP2_HCAT_REQUEST:
                req.headers_done()
            if ended:
                req.input_done()
            elif kind == NGHTTP2_DATA and frame.hd.length == 0:
                session.control(False)
        elif kind == NGHTTP2_RST_STREAM:
            found = nghttp2_session_get_stream_user_data(h2, frame.hd.stream_id)
            if found != NULL:
                (<Request>found).gone = True
            session.control(True)
        elif kind == NGHTTP2_PRIORITY or (kind == NGHTTP2_SETTINGS and not frame.hd.flags & NGHTTP2_FLAG_ACK):
            session.control(False)
        elif kind == NGHTTP2_PING and not frame.hd.flags & NGHTTP2_FLAG_ACK:
            session.control(False)
            session.ping()
        elif kind == NGHTTP2_PING and session.retiring:
            (<object>session).shutdown()
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
            broken(<Link>data, <Request>found)
    except Exception as error:
        (<Link>data).give_up(error)
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int on_stream_close(nghttp2_session* h2, int32_t stream_id, uint32_t code, void* data) noexcept:
    cdef Link session = <Link>data
    cdef void* found = nghttp2_session_get_stream_user_data(h2, stream_id)
    cdef Request req
    cdef bint cut
    if found == NULL:
        return 0
    nghttp2_session_set_stream_user_data(h2, stream_id, NULL)
    req = <Request>found
    Py_DECREF(req)
    cut = code != NGHTTP2_NO_ERROR and not req.gone and not req.answered
    req.detach()
    session.saw_close = True
    try:
        if cut:
            session.control(True)       # the client caused this reset, so it counts as one of its own
        if req.on_close is not None or req.on_message is not None or req.on_messages is not None:
            session.events.append(req)
    except Exception as error:
        session.give_up(error)
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef ms_h2_ssize on_read(nghttp2_session* h2, int32_t stream_id, uint8_t* buf, size_t length, uint32_t* flags,
                         nghttp2_data_source* source, void* data) noexcept:
    try:
        return (<Request>source.ptr).fill(buf, length, flags)
    except Exception as error:
        (<Link>data).give_up(error)
        return NGHTTP2_ERR_CALLBACK_FAILURE


cdef void set_callbacks(nghttp2_session_callbacks* callbacks) noexcept:
    """Set the callbacks of all sessions. The user data of each session is its Link."""
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(callbacks, on_invalid_frame)
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers)
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header)
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame_recv)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data_chunk)
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close)


def unpack(Limits limits not None, size_t budget) -> list:
    """Unpack compressed messages of the sessions that share `limits`, until about `budget` bytes are unpacked. Returns
    the calls that became ready. The rest stays in `limits.packed`."""
    cdef Request req
    cdef list ready = []
    cdef size_t done = 0
    while limits.packed and done < budget:
        req = limits.packed[0]
        if req.closed or req.answered or req.unopened is None:
            req.unopened = None
        else:
            done += req.unpack(ready)
        if req.unopened is None:
            limits.packed.popleft()
    return ready


cdef void prepare() noexcept:
    """Create the header fields that all replies share."""
    set_nv(&HEAD_OK[0], b":status", 7, b"200", 3)
    set_nv(&HEAD_OK[1], b"content-type", 12, b"application/grpc", 16)
    set_nv(&HEAD_OK[2], ACCEPTED, 20, ENCODINGS, 13)
    set_nv(&TRAILER_OK[0], b"grpc-status", 11, b"0", 1)


prepare()
