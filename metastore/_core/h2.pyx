"""HTTP/2 server session and gRPC framing without any I/O: bytes in, requests out; replies in, bytes out.

libnghttp2 implements RFC 9113 (HTTP/2). The gRPC wire protocol ("gRPC over HTTP2", PROTOCOL-HTTP2.md) is our own code.
The caller's duties:

* Pass every buffer that arrives to `Session.feed`, which returns the requests that became complete.
* A session that has output puts itself once into the `dirty` list that it was given. Go through that list and call
  `take_output` of each session until it returns nothing. The replies of one turn then leave together.
* Call `close()` when the connection is gone. A Request outlives it; answering it later does nothing. A session with
  many calls takes long to close, so `quit()`, `let_go()` and `free()` do the same in pieces.

No code here calls nghttp2's mem_recv or mem_send inside a callback, and no Python code of the server runs inside one.
Callbacks only put their results into lists, which are processed afterwards.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from metastore._core.grpc cimport *
from metastore._core.h2_link cimport Link
from metastore._core.h2_request cimport Request, set_callbacks
from metastore._core.nghttp2 cimport *

cdef nghttp2_session_callbacks* CALLBACKS = NULL
cdef nghttp2_option* OPTION = NULL
cdef uint8_t* SPARE = NULL        # the output buffer that all sessions use in turn
cdef size_t SPARE_SIZE = 0


@cython.final
cdef class Session(Link):
    """The server's side of one HTTP/2 connection. It never raises for anything that the client sent. A connection that
    cannot go on is `closed` after its last output was taken, or `failed`, and `error` gives the reason."""

    def __cinit__(self, MethodTable methods not None, Limits limits=None, list dirty=None):
        cdef nghttp2_settings_entry[3] settings
        self.methods = methods
        self.limits = Limits() if limits is None else limits
        self.dirty = [] if dirty is None else dirty
        self.ready, self.rejects, self.events, self.parked, self.half = [], [], [], [], []
        self.last_method = self.last_told = -1
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
        """Whether take_output would return anything."""
        return not self.over and not self.failed and nghttp2_session_want_write(self.h2) != 0

    @property
    def closed(self):
        """Whether this session is over. Close the connection once the output taken so far is sent."""
        return self.over or self.failed or not (
            nghttp2_session_want_read(self.h2) or nghttp2_session_want_write(self.h2))

    @property
    def at_rest(self):
        """Whether nothing waits here for the client or for its connection, and the session goes on."""
        return self.rests()

    cdef bint rests(self) noexcept:
        return not (self.pending_output or self.choked or self.parked or self.over or self.failed) and (
            nghttp2_session_want_read(self.h2) != 0 or nghttp2_session_want_write(self.h2) != 0)

    @property
    def parked_count(self):
        """Number of complete requests that are held back because the client does not take its replies."""
        return len(self.parked)

    cpdef list feed(self, object data, Py_ssize_t n=-1, double now=0.0):
        """Process the first `n` bytes of `data` (all if negative), as `receive` does."""
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self.receive(<const uint8_t*>view.buf, view.len if n < 0 or n > view.len else n, now)
        finally:
            PyBuffer_Release(&view)

    cdef list receive(self, const uint8_t* data, Py_ssize_t n, double now):
        """Process `n` bytes, which arrived at `now` (monotonic seconds).

        Returns the requests that became ready: unary ones with their message, streaming ones when their headers are
        complete. The bytes are not looked at any more when Python code can run.
        """
        cdef ms_h2_ssize used
        cdef size_t fine
        cdef list ready
        if self.over or self.failed or self.ending:
            return []
        self.now = now
        flood_pass(&self.flood, self.limits, now)
        self.received += <size_t>n
        self.busy_until = min(max(self.busy_until, now) + n / self.limits.receive_rate, now + self.limits.receive_timeout)
        self.busy = True
        self.saw_close = False
        fine = scan_frames(&self.scan, data, <size_t>n)
        used = ms_h2_mem_recv(self.h2, data, fine)
        self.busy = False
        if self.scan.wrong and used >= 0:
            if self.scan.wrong == SCAN_CLOSED:
                self.terminate(NGHTTP2_STREAM_CLOSED, "a frame for a stream that its client had closed")
            else:
                self.terminate(NGHTTP2_PROTOCOL_ERROR, "a stream id lower than one before")
        if used < 0:
            self.give_up((<const char*>nghttp2_strerror(<int>used)).decode("ascii"))
        ready = self.ready
        self.ready = []
        if ready:
            self.limits.heard += 1
            self.limits.returned += self.answered_in + 1 >= self.limits.rounds
        self.count_queue()
        if self.rejects or self.events:
            self.run_events()
        if self.over:
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
        """Process what the callbacks found: refusals, and messages or ends of streaming calls."""
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
        """Return the bytes to send now, at most about `limit`; empty if there are none."""
        global SPARE, SPARE_SIZE
        cdef uint8_t* out = SPARE
        cdef size_t cap = SPARE_SIZE, size = 0
        cdef bytes taken
        self.in_dirty = False
        if self.over or self.busy:
            return b""
        SPARE = NULL
        SPARE_SIZE = 0
        self.busy = True
        try:
            self.drain(&out, &cap, &size, limit)
            taken = PyBytes_FromStringAndSize(<const char*>out, <Py_ssize_t>size) if size else b""
        finally:
            self.busy = False
            self.count_queue()
            if SPARE == NULL:
                SPARE = out
                SPARE_SIZE = cap
            else:
                free(out)
        self.taken += size
        if size:
            self.answered_in = self.limits.rounds
        if self.events:
            self.run_events()
        return taken

    cdef int drain(self, uint8_t** out, size_t* cap, size_t* size, size_t limit) except -1:
        """Copy nghttp2's frames into one buffer. Each frame is valid only until the next call."""
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
        """End the streams that are answered while their client is still sending (RFC 9113 8.1). This must wait until
        the answer has left, because nghttp2 drops the queued frames of a stream that has an RST_STREAM queued."""
        cdef Request req
        cdef list half = self.half
        self.half = []
        for req in half:
            if not req.closed and not req.input_over:
                nghttp2_submit_rst_stream(self.h2, NGHTTP2_FLAG_NONE, req.stream_id, NGHTTP2_NO_ERROR)
        return 0

    cpdef list unpark(self):
        """Return the requests held back so far once enough output has left. Those whose stream closed are dropped."""
        cdef list held
        if not self.parked or self.pending_output > self.limits.max_output:
            return []
        held = [req for req in self.parked if not (<Request>req).closed]
        self.parked = []
        return held

    cpdef retire(self):
        """Ask the client to use another connection: a GOAWAY with the highest stream id. Calls that the client makes
        before it learns of this are still accepted. Its answer to a PING shows that it has learned, and `shutdown`
        follows automatically."""
        if self.over or self.failed or self.retiring or self.last_told >= 0:
            return
        self.retiring = True
        if (nghttp2_submit_shutdown_notice(self.h2) != 0
                or nghttp2_submit_ping(self.h2, NGHTTP2_FLAG_NONE, NULL) != 0):
            raise MemoryError
        self.mark()

    cpdef shutdown(self):
        """Tell the client which of its calls was the last (GOAWAY). Running calls go on, and `closed` is true after
        them. Idempotent."""
        if self.over or self.failed or self.last_told >= 0:
            return
        self.last_told = nghttp2_session_get_last_proc_stream_id(self.h2)
        nghttp2_submit_goaway(self.h2, NGHTTP2_FLAG_NONE, self.last_told, NGHTTP2_NO_ERROR, NULL, 0)
        self.mark()

    @property
    def held(self):
        """Number of calls and frames that `close` would have to let go."""
        return self.open_streams + <Py_ssize_t>self.queued_frames

    cpdef quit(self):
        """End the session at once; idempotent. Nothing goes in or out any more, and to answer its calls has no effect.

        The calls and frames still take their memory, which stays on the account of `limits` until `let_go` and `free`.
        4,096 calls take 0.1 ms.
        """
        cdef PyObject* at = self.first_open
        if self.busy:
            raise RuntimeError("Session.quit inside of a callback")
        self.over = True
        while at != NULL:
            (<Request>at).closed = True
            at = (<Request>at).next_open
        self.rejects, self.events, self.parked, self.half = [], [], [], []

    cpdef bint let_go(self, Py_ssize_t count) except *:
        """Let go at most `count` calls of a session that was quit, and tell their `on_close`. Returns whether all are
        gone."""
        cdef Request req
        while self.first_open != NULL and count > 0:
            count -= 1
            req = <Request>self.first_open
            Py_DECREF(req)                          # the stream's reference
            req.detach()
            req.deliver()
        return self.first_open == NULL

    def free(self):
        """Give back nghttp2's memory of a session whose calls are gone; idempotent.

        No Python object is touched and the GIL is not held, so another thread may do this while the node works. 8,196
        frames that were not sent take 30 ms.
        """
        cdef nghttp2_session* h2 = self.h2
        if not self.over or self.first_open != NULL:
            raise RuntimeError("Session.free before its calls are gone")
        self.h2 = NULL
        if h2 != NULL:
            with nogil:
                nghttp2_session_del(h2)
        self.limits.total_queued -= <long long>self.queued_frames
        self.queued_frames = 0

    cpdef close(self):
        """Drop everything at once. Requests stay valid objects, but answering them has no effect from now on."""
        self.quit()
        self.let_go(self.open_streams)
        self.free()


cdef int prepare() except -1:
    """Create the callback set that all sessions share."""
    global CALLBACKS, OPTION
    if nghttp2_option_new(&OPTION) != 0 or nghttp2_session_callbacks_new(&CALLBACKS) != 0:
        raise MemoryError
    nghttp2_option_set_no_closed_streams(OPTION, 1)
    ms_h2_no_reset_limit(OPTION)
    nghttp2_option_set_no_http_messaging(OPTION, 1)     # nghttp2 is stricter than etcd's clients: see `field_valid`
    set_callbacks(CALLBACKS)
    return 0


prepare()
