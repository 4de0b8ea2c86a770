from libc.stdint cimport uint8_t

from metastore._core.engine cimport EngineCursor
from metastore._core.ordered_map cimport OrderedMap
from metastore._core.ordered_map_walk cimport Cursor
from metastore._core.record cimport Record


cdef class BoundedCursor(EngineCursor):
    cdef bytes end            # engine key at which it ends
    cdef bytes behind         # where the next page begins; None: this is the last one
    cdef Record* page(self, bytes start) except? NULL


cdef class Merged:
    cdef EngineCursor below
    cdef Cursor above
    cdef OrderedMap overlay
    cdef Record* from_below
    cdef Record* from_above
    cdef Record* pick(self) except? NULL
    cdef Record* seek(self, const uint8_t* key, size_t n) except? NULL
    cdef Record* next(self, Record* last) except? NULL
    cdef Record* seek_alive(self, const uint8_t* key, size_t n, bint* knows) except? NULL


cdef class SliceWalk:
    """Where a range stands between two slices of one frozen store (`Store.collect_slice`).

    A slice that begins anew takes new iterators of RocksDB, 10 us each, and fetches few values together at first. With
    80 keys of 256 bytes in a slice, a range took 1.30 us a key for that, and 1.15 without.
    """
    cdef Merged walk          # None: no slice has ended yet
    cdef Record* rec          # the record that the walk stands on, borrowed from it; NULL at its end
    cdef size_t together      # how many values are fetched together,
    cdef size_t less          # and units that each of them will probably take off the cost
    cdef int most_steps
    cdef bint newest

    cdef void learn(self, size_t cost, size_t budget) noexcept
