from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from metastore._core.kv_messages cimport Slice

cdef enum:
    PARTS = 8                # parts of a list; the oldest one goes when another is needed
    PART_CHANGES = 2048      # changes of a part
    PART_BYTES = 262144      # bytes of the keys of a part


cdef struct Change:
    int64_t rev
    uint32_t at              # where its key stands in the keys of its part
    uint32_t klen
    int32_t by               # +1: the key was born; -1: it died


cdef struct Part:
    size_t n
    size_t used
    Change changes[PART_CHANGES]
    uint8_t keys[PART_BYTES]


cdef class Births:
    """The last births and deaths of keys, in the order in which they were made."""
    cdef Part* parts[PARTS]
    cdef int n_parts
    cdef size_t n
    cdef size_t unwritten         # so many of the last changes are not in the engine
    cdef readonly int64_t since   # every birth and death of a revision above this one is here
    cdef readonly bint lost       # changes are missing here that the engine does not have either

    cdef void add(self, const Slice* key, int64_t rev, int by) noexcept
    cdef void undo(self, int64_t rev) noexcept       # take off the changes of revisions above `rev`
    cdef void wrote(self) noexcept                   # the engine has all changes
    cdef void compacted(self, int64_t rev) noexcept  # nobody asks for revisions below `rev` any more
    cdef bint reaches(self, int64_t at) noexcept     # whether `beyond` is exact at revision `at`
    cdef int64_t beyond(self, const Slice* key, const Slice* end, int64_t at) noexcept
    cdef void drop_first(self) noexcept
    cdef Part* room(self, size_t bytes) noexcept


cdef class PageCounts:
    """How many keys there are from the end of a page on, of the pages that were read last."""
    cdef dict young               # (revision, first key, end) -> count
    cdef dict old
    cdef size_t nbytes            # bytes of the keys of `young`

    cdef int64_t find(self, int64_t rev, const Slice* key, const Slice* end) except? -2   # -1: not known
    cdef int note(self, int64_t rev, bytes key, const Slice* end, int64_t count) except -1


cdef bint in_range(const uint8_t* key, size_t n, const Slice* first, const Slice* end) noexcept
