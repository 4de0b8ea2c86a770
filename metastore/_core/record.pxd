# One key and its value in one piece of memory. Maps, views and readers share it by a reference count. The functions are
# inline because every look-up comes through here. The counts are plain integers, because whoever makes, shares or
# releases a record holds the GIL. The functions are `nogil` for loops over records within it, and for reading without it.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memcpy

from metastore._core.slabs cimport SLAB_MOST, slab_share


cdef enum:
    MALLOC_HEADER = 8        # of glibc: the bytes before a piece
    MALLOC_ALIGN = 16
    MALLOC_MAPPED = 131072   # pieces of this size or more may be pages of their own
    PAGE = 4096


cdef inline size_t chunk_of(size_t n) noexcept nogil:
    """Bytes of memory that a piece of n bytes takes: its share of a slab, or what malloc takes (glibc on 64 bits).

    The table shows by how much a process grows for each put of a new key of 16 bytes: its two records and their part of
    the nodes together, in bytes (measured). The account is 0.8 % less at most, and differs by 1.3 % for values of 256 KiB
    and more.

        value      0: 146 bytes (keys in order: 154)     1 KiB:  1,179     64 KiB:    65,767
                  16: 162               (170)            4 KiB:  4,257    256 KiB:   263,854
                 100: 258               (266)           16 KiB: 16,546      1 MiB: 1,066,268
                 400: 550               (558)    key 1 KiB, value 16: 2,203
    """
    if n <= SLAB_MOST:
        return slab_share[(n + 15) >> 4]
    if n >= MALLOC_MAPPED:
        return (n + MALLOC_ALIGN + PAGE - 1) & ~<size_t>(PAGE - 1)
    return (n + MALLOC_HEADER + MALLOC_ALIGN - 1) & ~<size_t>(MALLOC_ALIGN - 1)


# All records and nodes of all maps come from here, so the memory that they take together is known. The caller holds the
# GIL.
cdef void* held_alloc(size_t n) noexcept nogil
cdef void held_free(void* piece, size_t n) noexcept nogil
cdef size_t held_bytes() noexcept nogil


cdef struct Record:
    # this header, the key, the value
    uint32_t refs
    uint32_t klen
    uint32_t vlen        # 0xFFFFFFFF marks a pending deletion (only in overlays)


cdef inline uint8_t* rec_key(Record* rec) noexcept nogil:
    return (<uint8_t*>rec) + sizeof(Record)


cdef inline uint8_t* rec_value(Record* rec) noexcept nogil:
    return (<uint8_t*>rec) + sizeof(Record) + rec.klen


cdef inline bint rec_deleted(Record* rec) noexcept nogil:
    return rec.vlen == <uint32_t>0xFFFFFFFF


cdef inline size_t rec_bytes(Record* rec) noexcept nogil:
    """Bytes of key and value."""
    return <size_t>rec.klen + (0 if rec_deleted(rec) else rec.vlen)


cdef inline size_t rec_chunk(Record* rec) noexcept nogil:
    """Bytes of memory that the record takes."""
    return chunk_of(sizeof(Record) + rec_bytes(rec))


cdef inline void rec_free(Record* rec) noexcept nogil:
    held_free(rec, sizeof(Record) + rec_bytes(rec))


cdef inline void rec_ref(Record* rec) noexcept nogil:
    rec.refs += 1


cdef inline void rec_release(Record* rec) noexcept nogil:
    rec.refs -= 1
    if rec.refs == 0:
        rec_free(rec)


cdef inline Record* rec_new(const uint8_t* key, size_t klen, size_t vlen) noexcept nogil:
    """Return a record with its key filled in and room for the value, or NULL without memory. The caller owns one
    reference."""
    cdef Record* rec = <Record*>held_alloc(sizeof(Record) + klen + vlen)
    if rec != NULL:
        rec.refs = 1
        rec.klen = <uint32_t>klen
        rec.vlen = <uint32_t>vlen
        memcpy(rec_key(rec), key, klen)
    return rec


cdef inline Record* rec_new_deleted(const uint8_t* key, size_t klen) noexcept nogil:
    """Return a record that stands for a deletion which is still to be done, or NULL without memory."""
    cdef Record* rec = rec_new(key, klen, 0)
    if rec != NULL:
        rec.vlen = <uint32_t>0xFFFFFFFF
    return rec


cdef inline int key_cmp(const uint8_t* a, size_t an, const uint8_t* b, size_t bn) noexcept nogil:
    """Compare in memcmp order. If one key is a prefix of the other, the shorter comes first."""
    cdef int result = memcmp(a, b, an if an < bn else bn)
    if result != 0:
        return result
    return -1 if an < bn else (1 if an > bn else 0)
