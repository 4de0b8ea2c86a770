from libc.stdint cimport uint8_t, uint32_t, uint64_t

from metastore._core.raft_types cimport Snapshot

# One entry of the in-memory tail; the image itself lies in a Chunk.
cdef struct Slot:
    uint64_t term
    uint64_t end      # bytes of all images up to and including this one, counted since the log was opened
    uint32_t size     # bytes of the image
    uint32_t pos      # offset of the image in its chunk
    uint32_t chunk    # number of the chunk
    uint8_t type

cdef enum:
    TERM_OK = 0
    TERM_COMPACTED = 1
    TERM_UNAVAILABLE = 2

# Append-only memory. Bytes never change once they are written, so views of them are shared without a copy.
cdef class Chunk:
    cdef uint8_t* data
    cdef size_t capacity
    cdef size_t used
    cdef uint64_t last_index

cdef class Block:
    cdef uint64_t first
    cdef uint64_t last
    cdef object view
    cdef uint32_t* offsets   # last - first + 2 elements

cdef class RaftLog:
    cdef readonly object storage
    cdef Slot* slots
    cdef size_t slot_cap
    cdef size_t head
    cdef readonly uint64_t tail_first     # index of the first entry in the tail
    cdef readonly uint64_t last_index
    cdef uint64_t prev_term               # term of entry tail_first - 1
    cdef uint64_t prev_end                # Slot.end of entry tail_first - 1
    cdef list chunks
    cdef list views
    cdef uint32_t chunk_base              # number of chunks[0]
    cdef uint64_t chunk_bytes
    cdef size_t chunk_size
    cdef bint sealed                      # nothing more may be written to the newest chunk
    cdef list blocks
    cdef uint64_t max_tail_bytes
    cdef uint64_t read_ahead_bytes
    cdef readonly Snapshot pending_snapshot
    cdef readonly uint64_t committed
    cdef readonly uint64_t applying       # handed out for applying
    cdef readonly uint64_t applied
    cdef readonly uint64_t persisted      # all entries up to here are durable and will stay
    cdef readonly uint64_t emitted        # handed out for persisting

    cdef Slot* slot(self, uint64_t index) noexcept
    cdef uint8_t* room(self, size_t size) except NULL
    cdef int add_slot(self, uint64_t term, uint8_t type, size_t size) except -1
    cdef uint64_t append_payload(self, uint64_t term, uint8_t type, const uint8_t* payload, size_t n) except 0
    cdef uint64_t append_images(self, const uint8_t* images, size_t n, uint64_t prev, uint64_t max_term,
                                uint64_t* first_new) except? 0
    cdef int truncate(self, uint64_t index) except -1
    cdef int restore(self, Snapshot snapshot) except -1
    cdef int term_at(self, uint64_t index, uint64_t* term) except -1
    cdef bint match_term(self, uint64_t index, uint64_t term) except -1
    cdef uint64_t last_term(self) except? 0
    cdef uint64_t first_index(self) except? 0
    cdef uint64_t find_conflict_by_term(self, uint64_t index, uint64_t term, uint64_t* found) except? 0
    cdef object read(self, uint64_t low, uint64_t high, uint64_t max_size, uint64_t* last)
    cdef object read_tail(self, uint64_t low, uint64_t high, uint64_t max_size, uint64_t* last)
    cdef object read_storage(self, uint64_t low, uint64_t high, uint64_t max_size, uint64_t* last)
    cdef object take_unpersisted(self)
    cdef uint64_t bytes_after(self, uint64_t index) noexcept
    cdef bint has_conf_change(self, uint64_t low, uint64_t high) except -1
    cdef int trim(self, uint64_t needed) except -1
