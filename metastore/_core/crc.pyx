"""CRC-32 (IEEE 802.3, the polynomial of zlib and gzip), callable without the GIL.

This is our own code because the callers hold raw buffers without the GIL, and because the zlib headers are not part of
a plain Python development install. It has two implementations with equal results, and the import selects one:

- "pclmul" needs a processor with carry-less multiplication (crc_fold.h). It folds 64 bytes per turn and takes the last
  bytes by table.
- "table" works on every processor: eight table look-ups process eight bytes (slicing by eight).

Measured on a virtual machine with AMD EPYC (Zen 4, gcc 12 -O3), data in the cache, ns a call, table / pclmul: 64 bytes
32 / 17, 256 bytes 128 / 22, 1 KiB 500 / 73, 15 KiB 7530 / 1050 (2.0 / 14.6 GB/s). Below 64 bytes the four lanes are not
full, so the table does the work: 28 bytes take 21 ns.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from metastore._core.le cimport get64

cdef extern from "crc_fold.h" nogil:
    enum:
        CRC_FOLD_MIN
    bint crc_fold_init() noexcept
    void crc_fold(uint32_t crc, const uint8_t* data, size_t size, uint8_t* rest) noexcept

cdef uint32_t[8][256] TABLE
cdef bint can_fold = False


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
can_fold = crc_fold_init()


cdef uint32_t by_table(uint32_t crc, const uint8_t* data, size_t size) noexcept nogil:
    """Return the CRC register after `size` bytes. Neither the result nor `crc` is inverted."""
    cdef uint64_t word
    while size >= 8:
        word = get64(data) ^ crc
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
    return crc


cdef uint32_t by_folding(uint32_t crc, const uint8_t* data, size_t size) noexcept nogil:
    """The same as by_table, for processors with carry-less multiplication and at least CRC_FOLD_MIN bytes."""
    cdef uint8_t[16] rest
    cdef size_t tail = size % 16
    crc_fold(crc, data, size, rest)
    return by_table(by_table(0, rest, 16), data + size - tail, tail)


cdef uint32_t crc32(uint32_t crc, const uint8_t* data, size_t size) noexcept nogil:
    """CRC of `size` bytes at `data`, continued from `crc` (0 to begin)."""
    if can_fold and size >= <size_t>CRC_FOLD_MIN:
        return ~by_folding(~crc, data, size)
    return ~by_table(~crc, data, size)


def checksum(const uint8_t[::1] data not None, uint32_t crc=0):
    """CRC-32 of a contiguous buffer, continued from `crc`. Equal to `zlib.crc32`."""
    if data.shape[0] == 0:
        return crc
    return crc32(crc, &data[0], <size_t>data.shape[0])


def implementations():
    """The implementations that this processor supports, of ("pclmul", "table"). The one in use is first."""
    return ("pclmul", "table") if can_fold else ("table",)


def checksum_by(str implementation not None, const uint8_t[::1] data not None, uint32_t crc=0):
    """The same as `checksum`, by one of `implementations()`, for tests and measurements. ValueError if unsupported."""
    cdef size_t size = <size_t>data.shape[0]
    if implementation not in implementations():
        raise ValueError(f"this processor has no CRC-32 by {implementation!r}")
    if size == 0:
        return crc
    if implementation == "pclmul" and size >= <size_t>CRC_FOLD_MIN:
        return <uint32_t>~by_folding(~crc, &data[0], size)
    return <uint32_t>~by_table(~crc, &data[0], size)
