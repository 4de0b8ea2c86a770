from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    PREFIX = 5                    # gRPC's length prefix: compressed flag, big-endian u32

# The headers of a request that mean something to the session.
cdef enum HeaderKind:
    H_OTHER                       # nobody reads it, and so it is not kept
    H_METHOD
    H_PATH
    H_TYPE
    H_TIMEOUT
    H_ENCODING
    H_KEPT                        # the server's services read it

# Why a request was turned away while its headers were read (Request.reject); 0 when it was not.
cdef enum:
    BAD_METHOD = 1
    BAD_TYPE = 2
    BAD_ENCODING = 3
    BAD_TIMEOUT = 4
    TOO_MUCH = 5                  # the account has no room for it
    FRAME_ROOM = 16 * 1024 + 9    # and, beside that, the size of the largest frame nghttp2 makes for us

# What reader_take found.
cdef enum ReaderResult:
    READ_MORE = 0                 # all taken, the message is not complete
    READ_MESSAGE = 1              # a message, part[0:need]: reader_next before going on
    READ_PART = 2                 # the message needs room: reader_room, and again
    READ_COMPRESSED = 3
    READ_TOO_LARGE = 4


cdef enum:
    # What one call is taken to need beside its bytes: our object, nghttp2's stream, the frames of its reply.
    CALL_COST = 1024
    MAX_KEPT = 8                  # metadata fields kept for one call
    SHOWN = 200                   # bytes of a client's text that our messages repeat
    FREE_FRAMES = 256             # frames that may always wait for a client
    MAX_QUEUED_FRAMES = 1000000   # frames that wait for the clients of one Limits, some 200 bytes each


# Joins one gRPC message that comes in pieces. Zero-filled is empty.
cdef struct Reader:
    uint8_t[5] prefix
    uint8_t* part
    size_t got                    # bytes of the prefix
    size_t need                   # announced length
    size_t size                   # bytes of the message so far
    size_t cap
    bint packed_too               # messages may be compressed

# What the header fields of a request have shown so far. Zero-filled is the beginning.
cdef struct Fields:
    uint8_t seen                  # SEEN_ bits
    long long length              # content-length, when SEEN_LENGTH
    long long data                # bytes of DATA so far

cdef enum:
    SEEN_METHOD = 1
    SEEN_PATH = 2
    SEEN_SCHEME = 4
    SEEN_AUTHORITY = 8
    SEEN_REGULAR = 16             # a field that is no pseudo-header
    SEEN_LENGTH = 32

# Follows a client's frames as far as to know which streams it has closed. Zero-filled is the beginning.
cdef struct Scan:
    uint8_t[9] head
    size_t got                    # bytes of the head
    size_t skip                   # bytes of the frame that are still to come
    uint32_t last                 # the highest stream id
    uint64_t used                 # bit i: stream last - 2 * i was begun
    uint64_t over                 # bit i: and its client has ended it
    bint begun                    # the preface is over
    int wrong                     # SCAN_

cdef enum:
    SCAN_CLOSED = 1               # a frame for a stream that its client had closed
    SCAN_LOWER = 2                # a stream id lower than one before, that was not used


cdef class Limits:
    cdef readonly size_t max_message, max_header_list, max_buffered, max_total_buffered, max_output
    cdef readonly uint32_t max_concurrent_streams
    cdef readonly double reset_burst, reset_rate, control_burst, control_rate
    cdef readonly size_t max_total_output, max_queued
    cdef readonly double receive_timeout, receive_rate
    cdef public size_t total_buffered       # request bytes not yet answered, of all sessions
    cdef public size_t total_output         # reply bytes not yet taken by the sockets
    cdef public long long total_queued      # frames that wait
    cdef readonly object packed             # deque of requests with compressed messages to be unpacked
    cdef PyObject* first_waiting            # requests that are not whole, or have a timeout; the newest first

    cdef bint room(self, size_t held, size_t more) noexcept


# What a client sent that costs us and gains nobody anything; both counts decay with time.
cdef struct Flood:
    double resets
    double controls
    double seen_at

cdef void flood_pass(Flood* f, Limits limits, double now) noexcept
cdef bint flood_count(Flood* f, Limits limits, bint reset) noexcept
cdef size_t scan_frames(Scan* s, const uint8_t* data, size_t n) noexcept
cdef void scan_head(Scan* s) noexcept
cdef ReaderResult reader_take(Reader* r, const uint8_t** data, size_t* n, size_t limit) noexcept
cdef bint reader_room(Reader* r, size_t more) noexcept
cdef void reader_next(Reader* r) noexcept

cdef size_t prefix_length(const uint8_t* p) noexcept
cdef void prefix_write(uint8_t* p, size_t n) noexcept
cdef bint field_valid(Fields* f, const uint8_t* name, size_t n, const uint8_t* value, size_t vn) noexcept
cdef bint fields_complete(const Fields* f) noexcept
cdef bint data_fits(Fields* f, size_t n, bint end) noexcept
cdef HeaderKind header_kind(const uint8_t* name, size_t n) noexcept
cdef double parse_timeout(const uint8_t* p, size_t n) noexcept
cdef bint is_grpc_type(const uint8_t* value, size_t n) noexcept
cpdef bytes percent_encode(str text)


cdef class MethodTable:
    cdef readonly dict paths
    cdef readonly frozenset streaming
    cdef readonly frozenset services
    cdef bint is_streaming(self, int method) except -1
