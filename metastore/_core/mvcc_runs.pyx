"""Runs of revisions of which a compaction leaves nothing, so that an engine removes their change records at once.

After a compaction of few keys with many versions hardly any change record stays, and these few are mostly the last ones.
So a sweep first finds out which revisions have a record that stays (`keep`). Runs of RUN or more revisions without one
become ranges, at most MOST_RANGES of them, because each range costs the reads that follow it. In all other revisions records
are removed one by one.

The revisions up to the compaction before are not in here: few of their records are left. A bit a revision is 8 MiB for
the MOST_KNOWN revisions that are known at most, the last ones; older ones are removed one by one, too.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free

from cpython.bytes cimport PyBytes_FromStringAndSize

from metastore._core.mvcc_keys cimport REV_KEY_SIZE, rev_key

cdef enum:
    RUN = 64                 # revisions of a range at least: one bit of the mask each
    AT_ONCE = 64             # ranges that are given out together
    WORDS = 1024             # of the mask that are looked at together: 0.2 ms if every other revision is in use
    MOST_KNOWN = 1 << 26

LEAST_RUN = RUN


cdef bytes key_of(int64_t main):
    cdef uint8_t[REV_KEY_SIZE] at
    rev_key(at, main, 0)
    return PyBytes_FromStringAndSize(<const char*>at, REV_KEY_SIZE)


cdef class Runs:
    """See `mvcc_runs.pxd`. Made by `start_runs`."""

    def __dealloc__(self):
        free(self.single)

    cdef void keep(self, int64_t main) noexcept:
        """Note that a record of a revision stays."""
        cdef uint64_t bit
        if self.base < main <= self.last:
            bit = <uint64_t>(main - self.base - 1)
            self.single[bit >> 6] |= <uint64_t>1 << (bit & 63)

    cdef bint gone(self, int64_t main) noexcept:
        """Whether a range has all change records of a revision, when all ranges are given out."""
        cdef uint64_t bit
        if not self.base < main <= self.last:
            return False
        bit = <uint64_t>(main - self.base - 1)
        return not self.single[bit >> 6] >> (bit & 63) & 1

    cdef int64_t free_from(self, int64_t at, int64_t end) noexcept:
        """Return the first number from `at` on whose bit is not set, `end` at most."""
        while at < end and self.single[at >> 6] >> (at & 63) & 1:
            at += 1
            while at < end and not at & 63 and self.single[at >> 6] == ~<uint64_t>0:
                at += 64
        return min(at, end)

    cdef int64_t taken_from(self, int64_t at, int64_t end) noexcept:
        """Return the first number from `at` on whose bit is set, `end` at most."""
        while at < end and not self.single[at >> 6] >> (at & 63) & 1:
            at += 1
            while at < end and not at & 63 and self.single[at >> 6] == 0:
                at += 64
        return min(at, end)

    cdef list next_ranges(self):
        """Return the next ranges of engine keys, or None when all were given out. May be empty."""
        cdef int64_t n = self.last - self.base, end = min(n, self.at + 64 * WORDS), first, i
        cdef list ranges = []
        if self.at >= n:
            return None
        while self.at < end and len(ranges) < AT_ONCE:
            first = self.free_from(self.at, end)
            self.at = self.taken_from(first, end)
            if self.at - first >= RUN and self.made < MOST_RANGES:
                self.made += 1
                ranges.append((key_of(self.base + 1 + first), key_of(self.base + 1 + self.at)))
            else:
                for i in range(first, self.at):
                    self.keep(self.base + 1 + i)
        return ranges


cdef Runs start_runs(int64_t swept, int64_t last):
    """Return the revisions above the last compaction that was swept, -1 for none, up to `last`."""
    cdef Runs runs = Runs()
    runs.last = last
    runs.base = max(swept, <int64_t>0, last - MOST_KNOWN)
    runs.single = <uint64_t*>calloc((last - runs.base + 63) // 64 + 1, sizeof(uint64_t))
    if runs.single == NULL:
        raise MemoryError
    return runs
