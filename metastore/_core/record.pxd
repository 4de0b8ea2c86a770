# One key and its value in one malloc'd piece, shared by reference count between maps, views and readers. Inline, for
# every look-up comes through here. Counts are plain integers: only with the GIL held, or where one thread can reach it.

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy


cdef struct Record:
    # This header, the key, the value.
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


cdef inline void rec_ref(Record* rec) noexcept nogil:
    rec.refs += 1


cdef inline void rec_release(Record* rec) noexcept nogil:
    rec.refs -= 1
    if rec.refs == 0:
        free(rec)


cdef inline Record* rec_new(const uint8_t* key, size_t klen, size_t vlen) noexcept nogil:
    """A record with its key filled in and room for the value; NULL without memory. The caller owns one reference."""
    cdef Record* rec = <Record*>malloc(sizeof(Record) + klen + vlen)
    if rec != NULL:
        rec.refs = 1
        rec.klen = <uint32_t>klen
        rec.vlen = <uint32_t>vlen
        memcpy(rec_key(rec), key, klen)
    return rec


cdef inline Record* rec_new_deleted(const uint8_t* key, size_t klen) noexcept nogil:
    """A record that stands for a deletion which is still to be done."""
    cdef Record* rec = rec_new(key, klen, 0)
    if rec != NULL:
        rec.vlen = <uint32_t>0xFFFFFFFF
    return rec


cdef inline int key_cmp(const uint8_t* a, size_t an, const uint8_t* b, size_t bn) noexcept nogil:
    """memcmp order, the shorter first where one is a prefix of the other."""
    cdef int result = memcmp(a, b, an if an < bn else bn)
    if result != 0:
        return result
    return -1 if an < bn else (1 if an > bn else 0)
