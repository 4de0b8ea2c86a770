from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from metastore._core.record cimport Record, rec_deleted, rec_value

cdef enum:
    REV_SIZE = 12            # main u64, sub u32, big-endian
    REV_KEY_SIZE = 13        # 'r' + revision
    FLAG_TOMBSTONE = 1
    FLAG_LEASE = 2


cdef struct IndexView:
    int64_t main
    uint32_t sub
    int64_t create
    int64_t version
    int64_t lease
    bint tombstone


cdef struct RevView:
    const uint8_t* key
    size_t klen
    const uint8_t* value
    size_t vlen
    bint tombstone


cdef inline size_t index_room(size_t n) noexcept nogil:
    """The most bytes that index_prefix and a revision after it take for a key of `n` bytes."""
    return 2 * n + 3 + REV_SIZE


cdef inline bint index_tombstone(Record* rec) noexcept nogil:
    """Whether a 'k' record says that its key was deleted."""
    return rec.vlen >= 2 and not rec_deleted(rec) and rec_value(rec)[1] & FLAG_TOMBSTONE != 0


cdef size_t index_prefix(uint8_t* dst, const uint8_t* key, size_t n) noexcept nogil
cdef void rev_write(uint8_t* dst, int64_t main, uint32_t sub) noexcept nogil
cdef void rev_read(const uint8_t* src, int64_t* main, uint32_t* sub) noexcept nogil
cdef void rev_key(uint8_t* dst, int64_t main, uint32_t sub) noexcept nogil
cdef Record* index_record(const uint8_t* prefix, size_t n, const IndexView* view) noexcept nogil
cdef Record* rev_record(int64_t main, uint32_t sub, const uint8_t* key, size_t klen,
                        const uint8_t* value, size_t vlen, bint tombstone) noexcept nogil
cdef int index_read(Record* rec, IndexView* out) except -1
cdef int rev_record_read(Record* rec, RevView* out) except -1
cdef int rev_value_read(const uint8_t* p, size_t n, RevView* out) except -1
cdef bint same_prefix(Record* rec, const uint8_t* prefix, size_t n) noexcept nogil
