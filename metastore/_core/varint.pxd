"""Unsigned numbers of varying length: seven bits a byte, lowest first, the high bit on all but the last. Protobuf has
them, and the records of the index."""

from libc.stdint cimport uint8_t, uint64_t


cdef extern from *:
    int __builtin_clzll(unsigned long long value) nogil


cdef inline size_t varint_size(uint64_t value) noexcept nogil:
    """How many bytes the number takes: 1 to 10."""
    # The number of bits in sevens, rounded up: nine times it over 64 is right up to 64 bits.
    return (9 * (64 - <size_t>__builtin_clzll(value | 1)) + 64) >> 6


cdef inline uint8_t* varint_write(uint8_t* p, uint64_t value) noexcept nogil:
    """Where the number ends that is written at `p`."""
    while value >= 0x80:
        p[0] = <uint8_t>(value | 0x80)
        p += 1
        value >>= 7
    p[0] = <uint8_t>value
    return p + 1


cdef inline const uint8_t* varint_read(const uint8_t* p, const uint8_t* end, uint64_t* out) noexcept nogil:
    """Where the number ends that begins at `p`; NULL when it does not end before `end` or after ten bytes, or `p` is
    NULL. What a tenth byte has beyond 64 bits is dropped, as Go does it."""
    cdef int shift = 0
    cdef uint64_t value = 0
    while p != NULL and p < end and shift < 64:
        value |= <uint64_t>(p[0] & 0x7F) << shift
        if p[0] < 0x80:
            out[0] = value
            return p + 1
        shift += 7
        p += 1
    return NULL
