from libc.stdint cimport int64_t, uint64_t

cdef enum:
    MOST_RANGES = 4096       # of one sweep


cdef class Runs:
    """Which of the revisions that a sweep looks at have nothing that stays."""
    cdef int64_t base         # revisions above it,
    cdef int64_t last         # and not above this one, are known
    cdef uint64_t* single     # a bit for each: its change records are removed one by one, if at all
    cdef int64_t at           # `next_ranges` has gone so far
    cdef size_t made          # ranges so far

    cdef void keep(self, int64_t main) noexcept
    cdef bint gone(self, int64_t main) noexcept
    cdef list next_ranges(self)
    cdef int64_t free_from(self, int64_t at, int64_t end) noexcept
    cdef int64_t taken_from(self, int64_t at, int64_t end) noexcept


cdef Runs start_runs(int64_t swept, int64_t last)
