"""Chunks: a byte stream in pieces that are compressed and checked one by one. Layout: FORMATS.md, "Chunk"."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from metastore._core.codec cimport PayloadCodec

cdef enum:
    CHUNK_HEADER = 40
    CHUNK_VERSION = 1
    CHUNK_LAST = 1
    CHUNK_MAX = 64 * 1024 * 1024

# Results of chunk_read.
cdef enum:
    CHUNK_OK = 0
    CHUNK_SHORT = 1       # `avail` ends inside the image; ChunkView.size is its size, or 0 if the header is cut
    CHUNK_CRC = 2
    CHUNK_UNKNOWN = 3     # written by a later version
    CHUNK_BAD = 4         # impossible length, flags or reserved bytes

cdef struct ChunkView:
    uint64_t stream
    uint64_t number
    uint64_t offset       # offset in the stream of its first byte
    uint32_t raw          # bytes of the stream in it
    bint last
    const uint8_t* payload
    size_t n              # bytes of payload, flag byte included
    size_t size           # bytes of the whole image

# Reads one image with at most max_chunk bytes of the stream, and checks its CRC.
cdef int chunk_read(const uint8_t* src, size_t avail, size_t max_chunk, ChunkView* out) noexcept nogil


# Builds the image of a chunk; `payload` is flag byte and content, `raw` the number of bytes of the stream in it.
cdef bytes chunk_image(uint64_t stream, uint64_t number, uint64_t offset, uint32_t raw, bint last, bytes payload)


cdef class Chunk:
    cdef readonly uint64_t stream
    cdef readonly uint64_t number
    cdef readonly uint64_t offset
    cdef readonly uint32_t size
    cdef readonly bint last


cdef class ChunkSplitter:
    cdef readonly uint64_t stream
    cdef readonly size_t chunk_size
    cdef readonly uint64_t chunks         # images created
    cdef readonly uint64_t bytes_in
    cdef readonly uint64_t bytes_out
    cdef readonly bint finished
    cdef object _sink
    cdef PayloadCodec _codec
    cdef uint8_t* _buf
    cdef size_t _used

    cdef int _emit(self, bint last) except -1


cdef class ChunkJoiner:
    cdef readonly uint64_t stream
    cdef readonly size_t max_chunk
    cdef readonly uint64_t expected       # number of the next chunk
    cdef readonly uint64_t offset         # bytes of the stream joined so far
    cdef readonly bint finished
    cdef PayloadCodec _codec
