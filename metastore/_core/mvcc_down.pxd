from libc.stdint cimport int64_t, uint8_t

from metastore._core.engine cimport EngineCursor
from metastore._core.kv_messages cimport Slice
from metastore._core.mvcc cimport Store
from metastore._core.mvcc_keys cimport IndexView
from metastore._core.mvcc_pairs cimport KvList
from metastore._core.ordered_map cimport OrderedMap
from metastore._core.ordered_map_walk cimport Cursor
from metastore._core.record cimport Record


cdef class Downwards:
    """Walks downwards over the records of the overlay and the engine together. Records are borrowed, as in `Merged`."""
    cdef EngineCursor below
    cdef Cursor above
    cdef OrderedMap overlay
    cdef Record* from_below
    cdef Record* from_above

    cdef Record* pick(self) except? NULL
    cdef Record* seek(self, const uint8_t* key, size_t n) except? NULL     # last record below key
    cdef Record* prev(self, Record* last) except? NULL
    cdef Record* alive(self, const uint8_t* key, size_t n, bint* knows) except? NULL
    cdef bint version(self, Record* group, size_t n, int64_t at, IndexView* view, Record** here) except -1


cdef bytes collect_down(Store store, const Slice* key, bytes before, int64_t at, size_t limit, int want, size_t budget,
                        KvList* out)
