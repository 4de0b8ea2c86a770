"""Parts of the gRPC wire protocol (gRPC over HTTP2, PROTOCOL-HTTP2.md): message prefix, header names, timeouts, status
texts and paths, and the limits of a session. Pure."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy

from collections import deque

cdef enum:
    PREFACE = 24                  # bytes
    FRAME_DATA = 0
    FRAME_HEADERS = 1
    FRAME_RST = 3
    FIRST_PART = 1024             # smallest allocation for a message that spans DATA frames


cdef size_t prefix_length(const uint8_t* p) noexcept:
    """Length that a prefix states."""
    return (<size_t>p[1] << 24) | (<size_t>p[2] << 16) | (<size_t>p[3] << 8) | p[4]


cdef void prefix_write(uint8_t* p, size_t n) noexcept:
    """Write the prefix of an uncompressed message of `n` bytes (under 4 GiB)."""
    p[0] = 0
    p[1] = (n >> 24) & 0xFF
    p[2] = (n >> 16) & 0xFF
    p[3] = (n >> 8) & 0xFF
    p[4] = n & 0xFF


cdef ReaderResult reader_take(Reader* r, const uint8_t** data, size_t* n, size_t limit) noexcept:
    """Take from `data` the bytes of the current message, and move the pointer on.

    On READ_PART the caller calls reader_room for the available bytes and then this function again.
    """
    cdef size_t part
    if r.got < PREFIX:
        part = min(PREFIX - r.got, n[0])
        memcpy(r.prefix + r.got, data[0], part)
        r.got += part
        data[0] += part
        n[0] -= part
        if r.got < PREFIX:
            return READ_MORE
        r.need = prefix_length(r.prefix)
        r.size = 0
        if r.prefix[0] != 0 and not (r.packed_too and r.prefix[0] == 1):
            return READ_COMPRESSED
        if r.need > limit:
            return READ_TOO_LARGE
    part = min(r.need - r.size, n[0])
    if r.size + part > r.cap:
        return READ_PART
    memcpy(r.part + r.size, data[0], part)
    r.size += part
    data[0] += part
    n[0] -= part
    return READ_MESSAGE if r.size == r.need else READ_MORE


cdef bint reader_room(Reader* r, size_t more) noexcept:
    """Make space for `more` bytes of the message, at most for its stated length. Returns False without memory."""
    cdef size_t want = min(r.size + more, r.need)
    cdef size_t cap = min(max(r.cap * 2, want, <size_t>FIRST_PART), r.need)
    cdef uint8_t* moved = <uint8_t*>realloc(r.part, cap)
    if moved == NULL:
        return False
    r.part = moved
    r.cap = cap
    return True


cdef void reader_next(Reader* r) noexcept:
    """Drop the message and get ready for the next prefix."""
    free(r.part)
    r.part = NULL
    r.got = r.need = r.size = r.cap = 0


cdef size_t scan_frames(Scan* s, const uint8_t* data, size_t n) noexcept:
    """Check the next `n` bytes for frames on closed streams (RFC 9113 5.1). Returns `n` if they are in order, otherwise
    the number of bytes before the header of the wrong frame, and sets `s.wrong`.

    nghttp2 does not remember closed streams (`no_closed_streams`) and ignores such frames. This costs 3 ns per frame.
    """
    cdef size_t at = 0, part
    if not s.begun:
        s.begun = True
        s.skip = PREFACE
    while at < n and not s.wrong:
        part = min(s.skip, n - at)
        at += part
        s.skip -= part
        while at < n and s.got < 9:
            s.head[s.got] = data[at]
            s.got += 1
            at += 1
        if s.got == 9 and s.skip == 0:
            s.got = 0
            s.skip = (<size_t>s.head[0] << 16) | (<size_t>s.head[1] << 8) | s.head[2]
            scan_head(s)
    # nghttp2 already has the bytes of a header that arrived earlier. They are harmless without the rest.
    return at - min(at, <size_t>9) if s.wrong else n


cdef void scan_head(Scan* s) noexcept:
    """Check and record a frame by its header."""
    cdef uint8_t kind = s.head[3], flags = s.head[4]
    cdef uint32_t stream = (((<uint32_t>s.head[5] & 0x7F) << 24) | (<uint32_t>s.head[6] << 16)
                            | (<uint32_t>s.head[7] << 8) | s.head[8])
    cdef uint32_t behind
    if (kind != FRAME_DATA and kind != FRAME_HEADERS and kind != FRAME_RST) or stream & 1 == 0:
        return
    if stream > s.last:
        if kind != FRAME_HEADERS:
            return
        behind = (stream - s.last) >> 1
        s.used = (s.used << behind if behind < 64 else 0) | 1
        s.over = s.over << behind if behind < 64 else 0
        s.last = stream
    behind = (s.last - stream) >> 1
    if behind >= 64:
        return
    if kind == FRAME_RST:
        s.over |= <uint64_t>1 << behind
        return
    if s.over >> behind & 1:
        s.wrong = SCAN_CLOSED
    elif not s.used >> behind & 1:
        s.wrong = SCAN_LOWER
    elif flags & 1:
        s.over |= <uint64_t>1 << behind


cdef void flood_pass(Flood* f, Limits limits, double now) noexcept:
    """Let the counts decay until `now` (monotonic seconds)."""
    if now > f.seen_at:
        f.resets = max(0.0, f.resets - (now - f.seen_at) * limits.reset_rate)
        f.controls = max(0.0, f.controls - (now - f.seen_at) * limits.control_rate)
        f.seen_at = now


cdef bint flood_count(Flood* f, Limits limits, bint reset) noexcept:
    """Count one more event. Returns whether there are too many."""
    if reset:
        f.resets += 1
    else:
        f.controls += 1
    return f.resets > limits.reset_burst or f.controls > limits.control_burst


cdef inline bint same(const uint8_t* a, const char* b, size_t n) noexcept:
    return memcmp(a, b, n) == 0


# Allowed characters of a field's name (RFC 9110 token without upper case) and value (no controls but the tab).
cdef uint8_t[256] NAME_CHARS
cdef uint8_t[256] VALUE_CHARS
for _number in range(256):
    NAME_CHARS[_number] = _number in b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
    VALUE_CHARS[_number] = _number == 9 or (_number >= 32 and _number != 127)


cdef int pseudo_bit(const uint8_t* name, size_t n) noexcept:
    """SEEN_ bit of a request's pseudo-header; 0 for an unknown one."""
    if n == 5 and same(name, b":path", 5):
        return SEEN_PATH
    if n == 7 and same(name, b":method", 7):
        return SEEN_METHOD
    if n == 7 and same(name, b":scheme", 7):
        return SEEN_SCHEME
    return SEEN_AUTHORITY if n == 10 and same(name, b":authority", 10) else 0


cdef bint of_connection(const uint8_t* name, size_t n, const uint8_t* value, size_t vn) noexcept:
    """Whether HTTP/2 forbids the field (RFC 9113 section 8.2.2)."""
    if n == 2:
        return same(name, b"te", 2) and not (vn == 8 and same(value, b"trailers", 8))
    return ((n == 10 and (same(name, b"connection", 10) or same(name, b"keep-alive", 10)))
            or (n == 7 and same(name, b"upgrade", 7))
            or (n == 16 and same(name, b"proxy-connection", 16))
            or (n == 17 and same(name, b"transfer-encoding", 17)))


cdef bint length_valid(Fields* f, const uint8_t* value, size_t n) noexcept:
    """Record a content-length. Returns False for a second one or one that is not a number."""
    cdef size_t i
    if f.seen & SEEN_LENGTH or n == 0 or n > 18:
        return False
    f.length = 0
    for i in range(n):
        if not c"0" <= value[i] <= c"9":
            return False
        f.length = f.length * 10 + value[i] - c"0"
    f.seen |= SEEN_LENGTH
    return True


cdef bint field_valid(Fields* f, const uint8_t* name, size_t n, const uint8_t* value, size_t vn) noexcept:
    """Whether a header or trailer field is allowed (RFC 9113 sections 8.2 and 8.3). Records what it contains.

    :authority may be any text, because etcd's Go client of 3.4 sends a whole URL there and Go's server accepts it.
    """
    cdef size_t i
    cdef int bit
    for i in range(vn):
        if not VALUE_CHARS[value[i]]:
            return False
    if n and name[0] == c":":
        bit = pseudo_bit(name, n)
        if bit == 0 or f.seen & (bit | SEEN_REGULAR) or (vn == 0 and bit != SEEN_AUTHORITY):
            return False
        f.seen |= bit
        return True
    f.seen |= SEEN_REGULAR
    for i in range(n):
        if not NAME_CHARS[name[i]]:
            return False
    if n == 14 and same(name, b"content-length", 14):
        return length_valid(f, value, vn)
    return n != 0 and not of_connection(name, n, value, vn)


cdef bint fields_complete(const Fields* f) noexcept:
    """Whether the headers of a request are complete."""
    return f.seen & (SEEN_METHOD | SEEN_PATH | SEEN_SCHEME) == (SEEN_METHOD | SEEN_PATH | SEEN_SCHEME)


cdef bint data_fits(Fields* f, size_t n, bint end) noexcept:
    """Count `n` more bytes of DATA. Returns whether they agree with a content-length."""
    f.data += <long long>n
    return not f.seen & SEEN_LENGTH or (f.data == f.length if end else f.data <= f.length)


cdef HeaderKind header_kind(const uint8_t* name, size_t n) noexcept:
    """Which header `name` is. The length decides first."""
    if n == 5:
        if same(name, b":path", 5):
            return H_PATH
        if same(name, b"token", 5):
            return H_KEPT
    elif n == 7 and same(name, b":method", 7):
        return H_METHOD
    elif n == 12:
        if same(name, b"content-type", 12):
            return H_TYPE
        if same(name, b"grpc-timeout", 12):
            return H_TIMEOUT
    elif n == 13:
        if same(name, b"grpc-encoding", 13):
            return H_ENCODING
        if same(name, b"authorization", 13):
            return H_KEPT
    elif n == 9 and same(name, b"hasleader", 9):
        return H_KEPT
    return H_OTHER


cdef bint is_grpc_type(const uint8_t* value, size_t n) noexcept:
    """Whether a content-type is gRPC's, with or without a message format. grpc-web is another protocol."""
    return n >= 16 and same(value, b"application/grpc", 16) and (n == 16 or value[16] == c"+" or value[16] == c";")


cpdef bytes percent_encode(str text):
    """Encode `text` as a grpc-message value: printable ASCII stays, '%' and all other UTF-8 bytes become %XX."""
    raw = text.encode("utf-8", "replace")
    cdef bytes one
    if raw.isascii() and text.isprintable() and b"%" not in raw:
        return raw
    return b"".join([one if 0x20 <= one[0] <= 0x7E and one != b"%" else b"%%%02X" % one[0]
                     for one in [raw[i:i + 1] for i in range(len(raw))]])


cdef double parse_timeout(const uint8_t* p, size_t n) noexcept:
    """Seconds of a grpc-timeout value (at most 8 digits and a unit). The result is negative if it is invalid."""
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
    """Limits of the sessions that share this object, and the sums that the sessions keep in it.

    Sizes are in bytes, times in seconds, rates per second. `max_message` limits one gRPC message. `max_header_list`
    limits the headers of a request as RFC 9113 6.5.2 counts them. `max_buffered` limits the unanswered requests of one
    session, and `max_total_buffered` those of all sessions. What is left of the latter is shared fairly: a session may
    hold as many bytes as are still free, so sessions that hold much never take the last of it. Above `max_output` reply
    bytes a session delivers no further requests. Above `max_total_output` reply bytes of all sessions reads wait.

    A request must be complete `receive_timeout` after it began, and one second later for each `receive_rate` bytes that
    arrived. It may wait longer while its connection as a whole brings that many bytes per second, and up to
    `receive_timeout` after that.

    A client may reset `reset_burst` requests at once, `reset_rate` per second, and one more for each that was answered.
    `control_burst` and `control_rate` limit in the same way the frames that need an answer from us (SETTINGS) or do
    nothing at all (empty DATA).
    """

    def __init__(self, *, size_t max_message=2 * 1024 * 1024, uint32_t max_concurrent_streams=4096,
                 size_t max_header_list=32 * 1024, size_t max_buffered=64 * 1024 * 1024,
                 size_t max_total_buffered=512 * 1024 * 1024, size_t max_output=16 * 1024 * 1024,
                 size_t max_total_output=256 * 1024 * 1024, double receive_timeout=10, double receive_rate=16 * 1024,
                 double reset_burst=4096, double reset_rate=100, double control_burst=1000, double control_rate=100):
        self.rounds = 2  # so that nobody seems to have been answered in the round before
        self.max_message = max_message
        self.max_concurrent_streams = max_concurrent_streams
        self.max_header_list = max_header_list
        self.max_buffered = max_buffered
        self.max_total_buffered = max_total_buffered
        self.max_output = max_output
        self.max_total_output = max_total_output
        # A reply needs two frames beside its data, and one more if the client is still sending.
        self.max_queued = 3 * <size_t>max_concurrent_streams + 1000
        self.receive_timeout = receive_timeout
        self.receive_rate = receive_rate
        self.reset_burst = reset_burst
        self.reset_rate = reset_rate
        self.control_burst = control_burst
        self.control_rate = control_rate
        self.packed = deque()

    @property
    def timed(self):
        """Whether some request is incomplete or has a timeout, so that `expire` has something to look at."""
        return self.first_waiting != NULL

    cdef bint room(self, size_t held, size_t more) noexcept:
        """Whether a session that holds `held` bytes of requests may hold `more` bytes in addition."""
        cdef size_t wanted = held + more
        return wanted <= self.max_buffered and self.total_buffered + wanted <= self.max_total_buffered


cdef class MethodTable:
    """Maps paths to small ints. A method in `streaming` (bidirectional and client-streaming calls) gets its Request
    when the headers are complete, and its messages one by one. All others get it with their one complete message."""

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
        """The text of the UNIMPLEMENTED error for `path`. Clients know this text from grpc-go."""
        cdef bytes name
        path = path[:SHOWN]
        name = path[1:] if path[:1] == b"/" else path
        service, slash, method = name.rpartition(b"/")
        if not slash:
            return "malformed method name: \"%s\"" % path.decode("utf-8", "replace")
        text = service.decode("utf-8", "replace")
        if service in self.services:
            return "unknown method %s for service %s" % (method.decode("utf-8", "replace"), text)
        return "unknown service %s" % text
