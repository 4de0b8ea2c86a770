"""Little-endian numbers at any address, aligned or not. All formats on disk and between members use this byte order."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from "<endian.h>" nogil:
    uint16_t htole16(uint16_t)
    uint32_t htole32(uint32_t)
    uint64_t htole64(uint64_t)
    uint16_t le16toh(uint16_t)
    uint32_t le32toh(uint32_t)
    uint64_t le64toh(uint64_t)


cdef inline void put16(uint8_t* at, uint16_t value) noexcept nogil:
    value = htole16(value)
    memcpy(at, &value, 2)


cdef inline void put32(uint8_t* at, uint32_t value) noexcept nogil:
    value = htole32(value)
    memcpy(at, &value, 4)


cdef inline void put64(uint8_t* at, uint64_t value) noexcept nogil:
    value = htole64(value)
    memcpy(at, &value, 8)


cdef inline uint16_t get16(const uint8_t* at) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, at, 2)
    return le16toh(value)


cdef inline uint32_t get32(const uint8_t* at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, 4)
    return le32toh(value)


cdef inline uint64_t get64(const uint8_t* at) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, at, 8)
    return le64toh(value)
