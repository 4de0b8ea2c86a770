"""Frames between members. Layout: FORMATS.md, "Peer streams"."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from metastore._core.raft_types cimport Message

cdef enum:
    FRAME_HEADER = 20
    MESSAGE_HEAD = 84

cdef enum:
    FRAME_RAFT = 1
    FRAME_FORWARD = 2
    FRAME_REFUSAL = 3
    FRAME_BLOB = 4

cdef struct FrameHeader:
    uint32_t crc
    size_t n              # bytes of the body
    size_t head           # bytes of the body that the CRC covers
    uint8_t type


cdef class Forward:
    cdef readonly bytes frame


cdef class Refusal:
    cdef readonly int code
    cdef readonly list ids


cdef class Blob:
    cdef readonly int tag
    cdef readonly bytes data


cdef class Outbox:
    cdef readonly size_t size             # bytes that wait to be sent
    cdef readonly size_t max_bytes
    cdef readonly size_t max_frame
    cdef readonly uint64_t frames         # frames taken since the outbox was created
    cdef readonly uint64_t dropped        # frames refused since the outbox was created
    cdef readonly uint64_t sent_bytes
    cdef list _pieces                     # bytes-like objects, sealed, in order
    cdef uint8_t* _buf                    # bytes behind the sealed pieces
    cdef size_t _used
    cdef size_t _capacity

    cdef uint8_t* _room(self, size_t n) except NULL
    cdef int _seal(self) except -1
    cdef void _shrink(self) noexcept
    cdef bint _fits(self, size_t n) noexcept
    cdef bint _add_plain(self, uint8_t type, const uint8_t* first, size_t n_first, const uint8_t* data,
                         size_t n) except -1
    cpdef bint add(self, Message message) except -1
    cpdef bint add_forward(self, bytes frame) except -1
    cpdef bint add_refusal(self, int code, list ids) except -1
    cpdef bint add_blob(self, int tag, object data) except -1
    cpdef list pieces(self, size_t max_bytes=*)
    cpdef int sent(self, size_t n) except -1
    cpdef clear(self)


cdef class FrameReader:
    cdef readonly size_t max_frame
    cdef readonly uint64_t from_          # ids that messages must have; 0: any
    cdef readonly uint64_t to
    cdef readonly uint64_t frames         # frames read since the reader was created
    cdef uint8_t _head[FRAME_HEADER]
    cdef size_t _have                     # bytes of _head that are there; FRAME_HEADER while a body is incomplete
    cdef FrameHeader _frame
    cdef bytes _body
    cdef size_t _filled
    cdef bint _broken

    cpdef list feed(self, object buffer, size_t n)
    cdef list take(self, const uint8_t* data, size_t n)
    cdef int _parse(self, const uint8_t* data, size_t n, list out) except -1
    cdef object _decode(self, const FrameHeader* frame, const uint8_t* body, bytes owner)
    cdef Message _message(self, const FrameHeader* frame, const uint8_t* body, bytes owner)
