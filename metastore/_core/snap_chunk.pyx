"""Splitting a byte stream into chunks and joining them again, in bounded memory.

A snapshot of any size is written, sent, resumed, verified and restored through these functions. Each chunk is
compressed on its own. Its CRC covers the id of its stream, its number and the offset of its bytes. A reader therefore
finds a chunk that is damaged, missing, repeated, in the wrong place or from another stream, and a receiver can request
it again.

The classes are not thread-safe, and only one thread at a time may use the codec. Computing CRCs releases the GIL.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from metastore._core.codec cimport PayloadCodec
from metastore._core.crc cimport crc32
from metastore._core.le cimport get32, get64, put32, put64

from metastore.errors import FormatError

HEADER = CHUNK_HEADER
MAX_CHUNK = CHUNK_MAX


cdef int chunk_read(const uint8_t* src, size_t avail, size_t max_chunk, ChunkView* out) noexcept nogil:
    cdef uint32_t flags
    out.size = 0
    if avail < CHUNK_HEADER:
        return CHUNK_SHORT
    out.n = get32(src + 4)
    # A writer keeps compressed content only if it is shorter, so no payload exceeds a whole chunk and its flag byte.
    if out.n < 1 or out.n > max_chunk + 1:
        return CHUNK_BAD
    out.size = CHUNK_HEADER + out.n
    if avail < out.size:
        return CHUNK_SHORT
    if crc32(0, src + 4, out.size - 4) != get32(src):
        return CHUNK_CRC
    if src[8] != CHUNK_VERSION:
        return CHUNK_UNKNOWN
    flags = get32(src + 8) >> 8
    out.raw = get32(src + 12)
    if flags > CHUNK_LAST or out.raw > max_chunk:
        return CHUNK_BAD
    out.last = flags == CHUNK_LAST
    out.stream = get64(src + 16)
    out.number = get64(src + 24)
    out.offset = get64(src + 32)
    out.payload = src + CHUNK_HEADER
    return CHUNK_OK


cdef int check_max(size_t max_chunk) except -1:
    if not 1 <= max_chunk <= CHUNK_MAX:
        raise ValueError(f"a chunk of {max_chunk} bytes; between 1 and {MAX_CHUNK} are allowed")
    return 0


cdef int read_or_raise(const Py_buffer* view, size_t max_chunk, ChunkView* out) except -1:
    """chunk_read() of a whole buffer that holds one image and nothing else."""
    cdef int answer
    check_max(max_chunk)
    with nogil:
        answer = chunk_read(<const uint8_t*>view.buf, view.len, max_chunk, out)
    if answer == CHUNK_SHORT:
        raise FormatError("chunk: cut short")
    if answer == CHUNK_CRC:
        raise FormatError("chunk: wrong checksum")
    if answer == CHUNK_UNKNOWN:
        raise FormatError("chunk: unknown version")
    if answer != CHUNK_OK:
        raise FormatError("chunk: impossible header")
    if out.size != <size_t>view.len:
        raise FormatError("chunk: bytes after it")
    return 0


cdef class Chunk:
    """The fields of a chunk's header: stream, number (from 0), offset and size (bytes of the stream), last."""

    def __init__(self):
        raise TypeError("made by check_chunk only")

    def __repr__(self):
        return (f"Chunk(stream={self.stream}, number={self.number}, offset={self.offset}, size={self.size}, "
                f"last={bool(self.last)})")


def image_size(header, size_t max_chunk):
    """Size in bytes of the image that begins with these 40 bytes: how much to read from a file or a connection.

    The CRC is not checked yet, but max_chunk bounds the size. Raises FormatError if the header is impossible.
    """
    cdef Py_buffer view
    cdef ChunkView found
    check_max(max_chunk)
    PyObject_GetBuffer(header, &view, PyBUF_SIMPLE)
    try:
        # chunk_read sees only the header, so a valid image is "short".
        if chunk_read(<const uint8_t*>view.buf, min(<size_t>view.len, <size_t>CHUNK_HEADER), max_chunk,
                      &found) == CHUNK_SHORT and found.size:
            return found.size
        raise FormatError("chunk: impossible header")
    finally:
        PyBuffer_Release(&view)


def check_chunk(image, size_t max_chunk):
    """Check the CRC of one whole image (bytes-like) and return its header as a Chunk. Nothing is decompressed.

    Raises FormatError if it is damaged or holds more than max_chunk bytes of the stream.
    """
    cdef Py_buffer view
    cdef ChunkView found
    cdef Chunk chunk
    PyObject_GetBuffer(image, &view, PyBUF_SIMPLE)
    try:
        read_or_raise(&view, max_chunk, &found)
    finally:
        PyBuffer_Release(&view)
    chunk = Chunk.__new__(Chunk)
    chunk.stream = found.stream
    chunk.number = found.number
    chunk.offset = found.offset
    chunk.size = found.raw
    chunk.last = found.last
    return chunk


cdef bytes chunk_image(uint64_t stream, uint64_t number, uint64_t offset, uint32_t raw, bint last, bytes payload):
    """Build the image of a chunk that holds `raw` bytes of the stream; `payload` is flag byte and content."""
    cdef size_t n = PyBytes_GET_SIZE(payload)
    cdef bytes image = PyBytes_FromStringAndSize(NULL, CHUNK_HEADER + n)
    cdef uint8_t* at = <uint8_t*>PyBytes_AS_STRING(image)
    cdef const char* content = PyBytes_AS_STRING(payload)
    with nogil:
        memset(at, 0, CHUNK_HEADER)
        put32(at + 4, <uint32_t>n)
        at[8] = CHUNK_VERSION
        at[9] = CHUNK_LAST if last else 0
        put32(at + 12, raw)
        put64(at + 16, stream)
        put64(at + 24, number)
        put64(at + 32, offset)
        memcpy(at + CHUNK_HEADER, content, n)
        put32(at, crc32(0, at + 4, CHUNK_HEADER - 4 + n))
    return image


def make_chunk(uint64_t stream, uint64_t number, uint64_t offset, bytes data not None, bint last,
               PayloadCodec codec not None) -> bytes:
    """Build the image of one chunk, for a writer that cuts the stream itself (bytes at `offset`, at most MAX_CHUNK).

    It computes the CRC and copies without the GIL, as far as the codec allows. Raises ValueError if it is too long.
    """
    if PyBytes_GET_SIZE(data) > CHUNK_MAX:
        raise ValueError(f"a chunk of {len(data)} bytes; {MAX_CHUNK} are allowed")
    return chunk_image(stream, number, offset, <uint32_t>PyBytes_GET_SIZE(data), last, codec.encode(data))


cdef class ChunkSplitter:
    """Splits a stream into chunks. write() takes the bytes of the stream, sink(image) is called with the image of each
    chunk, and finish() creates the last one.

    Args: sink (callable with one bytes argument), stream (unsigned 64-bit id, the same for all chunks of the stream and
    for no other stream), chunk_size (bytes before compression), codec (PayloadCodec, whose max_decoded must be at least
    chunk_size). An empty stream is one empty chunk. Memory: one chunk, its compressed form and its image. If the sink
    raises, the stream cannot be continued.
    """

    def __cinit__(self, sink, uint64_t stream, size_t chunk_size, PayloadCodec codec not None):
        check_max(chunk_size)
        if codec.max_decoded < chunk_size:
            raise ValueError(f"a codec limited to {codec.max_decoded} bytes cannot take chunks of {chunk_size}")
        self._sink = sink
        self._codec = codec
        self.stream = stream
        self.chunk_size = chunk_size
        self._buf = <uint8_t*>malloc(chunk_size)
        if self._buf == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self._buf)

    def write(self, data):
        """Take the next bytes (bytes-like) of the stream. Raises ValueError after finish()."""
        cdef Py_buffer view
        cdef const uint8_t* at
        cdef size_t left, part
        if self.finished:
            raise ValueError("the stream is finished")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            at = <const uint8_t*>view.buf
            left = view.len
            while left > 0:
                # A full chunk leaves only when another byte arrives. The last chunk is therefore never an extra empty
                # one.
                if self._used == self.chunk_size:
                    self._emit(False)
                part = min(left, self.chunk_size - self._used)
                memcpy(self._buf + self._used, at, part)
                self._used += part
                at += part
                left -= part
        finally:
            PyBuffer_Release(&view)

    def finish(self):
        """Create the last chunk. Raises ValueError if called twice."""
        if self.finished:
            raise ValueError("the stream is finished")
        self._emit(True)
        self.finished = True
        free(self._buf)
        self._buf = NULL

    cdef int _emit(self, bint last) except -1:
        cdef bytes image = chunk_image(self.stream, self.chunks, self.bytes_in, <uint32_t>self._used, last,
                                       self._codec.encode_view(self._buf, self._used))
        cdef size_t n = PyBytes_GET_SIZE(image) - CHUNK_HEADER
        self._sink(image)
        self.chunks += 1
        self.bytes_in += self._used
        self.bytes_out += CHUNK_HEADER + n
        self._used = 0
        return 0


cdef class ChunkJoiner:
    """Joins the chunks of one stream in their order.

    Args: stream (the id that its chunks must have), max_chunk (the most bytes of the stream in a chunk), codec
    (PayloadCodec). To continue a stream that was partly joined before: expected (number of the next chunk), offset
    (bytes joined so far). An error changes nothing, so the right chunk can still be fed.
    """

    def __init__(self, uint64_t stream, size_t max_chunk, PayloadCodec codec not None, *, uint64_t expected=0,
                 uint64_t offset=0):
        check_max(max_chunk)
        if codec.max_decoded < max_chunk:
            raise ValueError(f"a codec limited to {codec.max_decoded} bytes cannot take chunks of {max_chunk}")
        self.stream = stream
        self.max_chunk = max_chunk
        self.expected = expected
        self.offset = offset
        self._codec = codec

    def feed(self, image):
        """Return the bytes of the stream that one chunk's image (bytes-like) holds.

        Raises FormatError if the image is damaged, of another stream, not the expected one, or behind the last one.
        """
        cdef Py_buffer view
        cdef ChunkView found
        cdef const uint8_t* out
        cdef size_t n
        cdef object owner
        PyObject_GetBuffer(image, &view, PyBUF_SIMPLE)
        try:
            read_or_raise(&view, self.max_chunk, &found)
            if self.finished:
                raise FormatError(f"chunk {found.number}: after the last one")
            if found.stream != self.stream:
                raise FormatError(f"chunk {found.number}: of stream {found.stream:x}, not {self.stream:x}")
            if found.number != self.expected:
                raise FormatError(f"chunk {found.number}: expected was chunk {self.expected}")
            if found.offset != self.offset:
                raise FormatError(f"chunk {found.number}: at byte {found.offset}, not {self.offset}")
            owner = self._codec.decode_view(found.payload, found.n, &out, &n)
            if n != found.raw:
                raise FormatError(f"chunk {found.number}: {n} bytes instead of {found.raw}")
            if owner is None:
                owner = PyBytes_FromStringAndSize(<const char*>out, n)
        finally:
            PyBuffer_Release(&view)
        self.expected += 1
        self.offset += n
        self.finished = found.last
        return owner

    def finish(self):
        """Return the size of the stream in bytes. Raises FormatError if its last chunk has not arrived."""
        if not self.finished:
            raise FormatError(f"chunk {self.expected}: missing")
        return self.offset
