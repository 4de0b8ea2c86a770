"""The write-ahead log as bytes: records, segments and the table of entries. Layout: FORMATS.md, "WAL"."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from metastore._core.entry cimport HardState

cdef enum:
    SEGMENT_HEADER = 64
    RECORD_HEADER = 48
    START_FIXED = 80

cdef enum:
    REC_START = 1
    REC_ENTRY = 2
    REC_HARD_STATE = 3
    REC_SNAPSHOT = 4
    REC_MARKER = 5


cdef inline size_t align8(size_t n) noexcept nogil:
    return (n + 7) & ~<size_t>7


# Results of record_read.
cdef enum:
    READ_OK = 0
    READ_NONE = 1   # not of this generation: the log ends here, or the bytes are stale
    READ_BAD = 2    # it has this generation, but its CRC, length or fields are wrong

cdef struct RecordView:
    uint8_t type
    uint32_t crc
    uint32_t prev
    uint64_t group
    uint64_t synced
    uint64_t proven         # in bytes, not in units of 8
    const uint8_t* payload
    size_t length           # of the payload
    size_t size             # of the record with header and padding

# Reads the record at buf[pos:end]. It also checks the CRC of an entry's payload.
cdef int record_read(const uint8_t* buf, size_t pos, size_t end, uint64_t generation, RecordView* out) noexcept nogil

# Place of an entry's record.
cdef struct Place:
    uint64_t term
    uint32_t segment        # number of the segment
    uint32_t at             # offset of the record, divided by 8
    uint32_t size           # bytes of the entry's image
    uint8_t type            # type of the entry


cdef class LogState:
    cdef Place* places
    cdef size_t head, count, capacity
    cdef readonly uint64_t first
    cdef readonly uint64_t base_term
    cdef readonly uint64_t missing
    cdef readonly uint64_t snapshot_index, snapshot_term
    cdef public uint64_t hard_term, hard_vote, hard_commit
    cdef readonly bytes metadata, conf_state
    cdef int add(self, const uint8_t* image, uint32_t segment, uint64_t offset, uint32_t size) except -1
    cdef Place* place(self, uint64_t index) except NULL
    cpdef compact(self, uint64_t index, uint64_t term, bytes conf_state)
    cdef uint64_t last(self) noexcept
    cdef uint64_t last_term_known(self) noexcept
    cdef int apply(self, const RecordView* rec, uint32_t segment, uint64_t offset) except -1
    cdef int begin(self, const uint8_t* p) except -1


cdef class Group:
    """Bytes that go to disk with one write and one sync."""
    cdef uint8_t* data
    cdef size_t size, capacity
    cdef readonly uint64_t generation
    cdef readonly uint64_t offset
    cdef readonly uint64_t group
    cdef readonly uint64_t before
    cdef readonly uint64_t number
    cdef readonly bint must_sync
    cdef readonly bint content
    cdef readonly bint firm
    cdef int reserve(self, size_t more) except -1


cdef class Writer:
    cdef readonly LogState state
    cdef readonly uint64_t generation, capacity, position, group
    cdef readonly uint64_t number
    cdef readonly uint64_t pending_bytes
    cdef readonly int pending_sync
    cdef readonly bint group_commit
    # Groups may be written before earlier ones are synced. These two say up to which group and offset all are synced.
    cdef bint lagging
    cdef uint64_t known_group, known_end
    cdef bint firm
    cdef uint64_t start_number, start_end
    cdef uint32_t chain
    cdef size_t max_group
    cdef object plan
    cdef list pending
    cdef list spare
    cdef Group open
    cdef Group new_group(self)
    cdef Group target(self)
    cdef int put(self, uint8_t type, const uint8_t* payload, size_t n) except -1
    cdef int put_entry(self, const uint8_t* image, size_t n) except -1
    cdef int fit(self, size_t n) except -1
    cdef int write_start(self) except -1
    cdef int finish(self, uint64_t number, bint must_sync, bint content, bint firm) except -1
    cdef int put_hard_state(self) except -1
    cdef int append_images(self, const uint8_t* data, size_t n) except -1
    cpdef append(self, uint64_t number, images, HardState hard_state, bint must_sync=*, bint firm=*)
    cdef int add(self, uint64_t number, const uint8_t* images, size_t n, HardState hard_state,
                 bint must_sync) except -1
    cpdef Group take(self)
    cpdef Group peek(self)
    cpdef recycle(self, Group group)
    cpdef uint64_t next_before(self)
