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
