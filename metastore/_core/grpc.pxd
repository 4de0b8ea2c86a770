from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    PREFIX = 5                    # gRPC's length prefix: compressed flag, big-endian u32

# The request headers that the session uses.
cdef enum HeaderKind:
    H_OTHER                       # nothing reads it, so it is not kept
    H_METHOD
    H_PATH
    H_TYPE
    H_TIMEOUT
    H_ENCODING
    H_KEPT                        # the services of the server read it

# Reasons for refusing a request while its headers were read (Request.reject); 0 if it was not refused.
cdef enum:
    BAD_METHOD = 1
    BAD_TYPE = 2
    BAD_ENCODING = 3
    BAD_TIMEOUT = 4
    TOO_MUCH = 5                  # the account has no space for it
    FRAME_ROOM = 16 * 1024 + 9    # size of the largest frame that nghttp2 makes for us, in addition

# Results of reader_take.
cdef enum ReaderResult:
    READ_MORE = 0                 # all bytes are taken, and the message is not complete
    READ_MESSAGE = 1              # part[0:need] is a message; call reader_next before going on
    READ_PART = 2                 # the message needs space; call reader_room, then reader_take again
    READ_COMPRESSED = 3
    READ_TOO_LARGE = 4


cdef enum:
    # Estimated memory of one call beside its bytes: our object, nghttp2's stream, the frames of its reply.
    CALL_COST = 1024
    MAX_KEPT = 8                  # metadata fields kept for one call
    SHOWN = 200                   # bytes of a client's text that our error messages repeat
    FREE_FRAMES = 256             # frames that may always wait for a client
    MAX_QUEUED_FRAMES = 1000000   # frames that wait for the clients of one Limits, some 200 bytes each


# Joins one gRPC message that arrives in pieces. A zero-filled Reader is empty.
cdef struct Reader:
    uint8_t[5] prefix
    uint8_t* part
    size_t got                    # bytes of the prefix
    size_t need                   # stated length
    size_t size                   # bytes of the message so far
    size_t cap
    bint packed_too               # messages may be compressed

# What the header fields of a request have shown so far. It begins zero-filled.
cdef struct Fields:
    uint8_t seen                  # SEEN_ bits
    long long length              # content-length, if SEEN_LENGTH is set
    long long data                # bytes of DATA so far

cdef enum:
    SEEN_METHOD = 1
    SEEN_PATH = 2
    SEEN_SCHEME = 4
    SEEN_AUTHORITY = 8
    SEEN_REGULAR = 16             # a field that is not a pseudo-header
    SEEN_LENGTH = 32

# Follows a client's frames only to know which streams it has closed. It begins zero-filled.
cdef struct Scan:
    uint8_t[9] head
    size_t got                    # bytes of the frame header
    size_t skip                   # bytes of the frame that have not arrived yet
    uint32_t last                 # the highest stream id so far
    uint64_t used                 # bit i: stream last - 2 * i was begun
    uint64_t over                 # bit i: the client has ended that stream
    bint begun                    # the connection preface is complete
    int wrong                     # SCAN_

cdef enum:
    SCAN_CLOSED = 1               # a frame for a stream that its client had closed
    SCAN_LOWER = 2                # an unused stream id that is lower than an earlier one


cdef class Limits:
    cdef readonly size_t max_message, max_header_list, max_buffered, max_total_buffered, max_output
    cdef readonly uint32_t max_concurrent_streams
    cdef readonly double reset_burst, reset_rate, control_burst, control_rate
    cdef readonly size_t max_total_output, max_queued
    cdef readonly double receive_timeout, receive_rate
    cdef public size_t total_buffered       # request bytes of all sessions that are not answered yet
    cdef public size_t total_output         # reply bytes that the sockets have not taken yet
    cdef public long long total_queued      # frames that wait to be sent
    cdef public uint64_t rounds             # the owner counts here how often it answered those who write
    cdef readonly uint64_t heard            # requests or bundles of them that connections sent in one go
    cdef readonly uint64_t returned         # those of them that came within a round of an answer on that connection
    cdef readonly object packed             # deque of requests whose compressed messages wait to be unpacked
    cdef PyObject* first_waiting            # requests that are incomplete or have a timeout, newest first

    cdef bint room(self, size_t held, size_t more) noexcept


# Counts of frames that cost us work and are of no use to a client; both counts decay with time.
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
