"""A walk over an overlay and the engine below it, as if they were one map."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t

from metastore._core.engine cimport EngineCursor
from metastore._core.ordered_map cimport OrderedMap
from metastore._core.ordered_map_walk cimport Cursor, cursor_ge, cursor_next
from metastore._core.record cimport Record, key_cmp, rec_deleted, rec_key


cdef enum:
    PAGE = 64                # records of one scan; plug-ins are promised no more
    MOST_TOGETHER = 64       # values that a range fetches together


cdef class BoundedCursor(EngineCursor):
    """Walks upwards and ends before `end`, by means of the engine's `scan`. Set `engine` and `end`, then `seek`.

    For few records this is quicker than `iterate` where an engine has files, because RocksDB makes new iterators for that:
    the end of a lease took 41 us instead of 4.
    """

    cdef Record* page(self, bytes start) except? NULL:
        cdef list pairs = self.engine.scan(start, self.end, False, PAGE)
        self.behind = <bytes>pairs[PAGE - 1][0] + b"\0" if len(pairs) == PAGE else None
        self.pairs = iter(pairs)
        return EngineCursor.next(self)

    cdef Record* seek(self, const uint8_t* key, size_t n) except? NULL:
        return self.page(PyBytes_FromStringAndSize(<const char*>key, n))

    cdef Record* next(self) except? NULL:
        cdef Record* rec = EngineCursor.next(self)
        if rec == NULL and self.behind is not None:
            return self.page(self.behind)
        return rec


cdef class Merged:
    """Walks upwards over the records of the overlay and the engine together. Set `below` and `overlay`, then `seek`.

    Records are borrowed: good until the next call, or until overlay or engine change.
    """

    cdef Record* pick(self) except? NULL:
        cdef int order
        while True:
            if self.from_above == NULL:
                return self.from_below
            order = -1
            if self.from_below != NULL:
                order = key_cmp(rec_key(self.from_above), self.from_above.klen,
                                rec_key(self.from_below), self.from_below.klen)
            if order > 0:
                return self.from_below
            if order == 0:
                self.from_below = self.below.next()
            if not rec_deleted(self.from_above):
                return self.from_above
            self.from_above = cursor_next(&self.above)

    cdef Record* seek(self, const uint8_t* key, size_t n) except? NULL:
        self.from_below = self.below.seek(key, n)
        self.from_above = cursor_ge(&self.above, self.overlay.root, key, n)
        return self.pick()

    cdef Record* next(self, Record* last) except? NULL:
        """Return the record after `last`, which pick() returned."""
        if last == self.from_above:
            self.from_above = cursor_next(&self.above)
        else:
            self.from_below = self.below.next()
        return self.pick()

    cdef Record* seek_alive(self, const uint8_t* key, size_t n, bint* knows) except? NULL:
        """Go to the first living version not below `key`, if the engine knows. The overlay must be empty."""
        cdef Record* rec = self.below.seek_alive(key, n, knows)
        if knows[0]:
            self.from_below = rec
        return rec


cdef class SliceWalk:
    """See `mvcc_merged.pxd`."""

    cdef void learn(self, size_t cost, size_t budget) noexcept:
        """Choose how many values to fetch together after some have cost so much, of a slice with this budget (0: no
        bound). Values of 1 MiB must not come by the dozen."""
        if budget == 0 or cost < budget // 2:
            self.together = min(4 * self.together, <size_t>MOST_TOGETHER)
        elif cost >= budget:
            self.together = max(self.together // 4, <size_t>1)
