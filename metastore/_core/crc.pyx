"""CRC-32 (IEEE 802.3, the polynomial of zlib and gzip), callable without the GIL.

Own code because the callers hold raw buffers without the GIL, and because the zlib headers are not
part of a plain Python development install. Slicing by eight: eight table look-ups take in eight bytes.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef uint32_t[8][256] TABLE


cdef void fill_table() noexcept nogil:
    cdef uint32_t value
    cdef int byte, bit, lane
    for byte in range(256):
        value = <uint32_t>byte
        for bit in range(8):
            value = (value >> 1) ^ (<uint32_t>0xEDB88320 if value & 1 else <uint32_t>0)
        TABLE[0][byte] = value
    for byte in range(256):
        for lane in range(1, 8):
            TABLE[lane][byte] = (TABLE[lane - 1][byte] >> 8) ^ TABLE[0][TABLE[lane - 1][byte] & 0xFF]


fill_table()


cdef uint32_t crc32(uint32_t crc, const uint8_t* data, size_t size) noexcept nogil:
    """CRC of `size` bytes at `data`, continuing from `crc` (0 to begin)."""
    cdef uint64_t word
    crc = ~crc
    while size >= 8:
        memcpy(&word, data, 8)
        word ^= crc
        crc = (TABLE[7][word & 0xFF] ^ TABLE[6][(word >> 8) & 0xFF]
               ^ TABLE[5][(word >> 16) & 0xFF] ^ TABLE[4][(word >> 24) & 0xFF]
               ^ TABLE[3][(word >> 32) & 0xFF] ^ TABLE[2][(word >> 40) & 0xFF]
               ^ TABLE[1][(word >> 48) & 0xFF] ^ TABLE[0][word >> 56])
        data += 8
        size -= 8
    while size > 0:
        crc = (crc >> 8) ^ TABLE[0][(crc ^ data[0]) & 0xFF]
        data += 1
        size -= 1
    return ~crc


def checksum(const uint8_t[::1] data not None, uint32_t crc=0):
    """CRC-32 of a contiguous buffer, continuing from `crc`. Equal to `zlib.crc32`."""
    if data.shape[0] == 0:
        return crc
    return crc32(crc, &data[0], <size_t>data.shape[0])
