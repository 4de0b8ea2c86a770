"""A range from its end to its start: `Store.collect_slice` in the other direction."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t

from metastore._core.engine cimport EngineCursor
from metastore._core.kv_messages cimport Slice
from metastore._core.mvcc cimport Store, first_key
from metastore._core.mvcc_keys cimport REV_SIZE, IndexView, index_read, rev_write, same_prefix
from metastore._core.mvcc_pairs cimport KvList
from metastore._core.ordered_map cimport OrderedMap
from metastore._core.ordered_map_walk cimport Cursor, cursor_below, cursor_prev
from metastore._core.record cimport Record, key_cmp, rec_deleted, rec_key, rec_ref, rec_release
from metastore._core.work cimport COST_BYTES, COST_KEY, detour_cost

cdef enum:
    STEPS = 6            # records of one key that the walk goes over before it jumps
    UP_TO_LIMIT = 16     # as for `Store.collect_slice`


cdef class Downwards:
    """See `mvcc_down.pxd`. Set `below` and `overlay`, then `seek`."""

    cdef Record* pick(self) except? NULL:
        cdef int order
        while self.from_above != NULL:
            order = 1
            if self.from_below != NULL:
                order = key_cmp(rec_key(self.from_above), self.from_above.klen,
                                rec_key(self.from_below), self.from_below.klen)
            if order < 0:
                return self.from_below
            if order == 0:
                self.from_below = self.below.prev()
            if not rec_deleted(self.from_above):
                return self.from_above
            self.from_above = cursor_prev(&self.above)
        return self.from_below

    cdef Record* seek(self, const uint8_t* key, size_t n) except? NULL:
        self.from_below = self.below.seek_below(key, n)
        self.from_above = cursor_below(&self.above, self.overlay.root, key, n)
        return self.pick()

    cdef Record* prev(self, Record* last) except? NULL:
        """Return the record before `last`, which pick() returned."""
        if last == self.from_above:
            self.from_above = cursor_prev(&self.above)
        else:
            self.from_below = self.below.prev()
        return self.pick()

    cdef Record* alive(self, const uint8_t* key, size_t n, bint* knows) except? NULL:
        """Go to the last living version below `key`, if the engine knows. The overlay must be empty."""
        cdef Record* rec = self.below.alive_below(key, n, knows)
        if knows[0]:
            self.from_below = rec
        return rec

    cdef bint version(self, Record* group, size_t n, int64_t at, IndexView* view, Record** here) except -1:
        """Find the version at main revision `at` of the key whose last version is `group`, on which the walk stands.
        Return whether there is one. `here` becomes the record on which the walk stands then."""
        cdef bytes place
        cdef int steps = 0
        here[0] = group
        index_read(group, view)
        while view.main > at:
            steps += 1
            if steps < STEPS:
                here[0] = self.prev(here[0])
            else:
                place = (<char*>rec_key(group))[:n + REV_SIZE]
                rev_write(<uint8_t*>PyBytes_AS_STRING(place) + n, at + 1, 0)
                here[0] = self.seek(<const uint8_t*>PyBytes_AS_STRING(place), n + REV_SIZE)
            if here[0] == NULL or not same_prefix(here[0], rec_key(group), n):
                return False
            index_read(here[0], view)
        return True


cdef bytes collect_down(Store store, const Slice* key, bytes before, int64_t at, size_t limit, int want, size_t budget,
                        KvList* out):
    """Collect pairs below the engine key `before`, down to `key` or until they have cost `budget` units.

    Return the engine key below which to go on, or None at the start of the range. The cost is added to `out.cost`.
    """
    cdef Downwards walk = Downwards()
    cdef bytes start = first_key(key)
    cdef const uint8_t* low = <const uint8_t*>PyBytes_AS_STRING(start)
    cdef size_t n, detours = 0, low_n = PyBytes_GET_SIZE(start), most = out.cost + budget
    cdef Record* rec = NULL
    cdef Record* group
    cdef IndexView view
    cdef bint found, up_to_limit = (want & UP_TO_LIMIT) != 0
    cdef int steps
    # Whether the engine can go from one living key to the one before it. It holds all that is visible at `at`.
    cdef bint newest = at >= store.rev and not store.overlay.count and store.whole()
    want &= ~UP_TO_LIMIT
    walk.below = store.engine.cursor()
    walk.overlay = store.overlay
    detour_cost(store.engine.detours, &detours)
    if newest:
        rec = walk.alive(<const uint8_t*>PyBytes_AS_STRING(before), PyBytes_GET_SIZE(before), &newest)
    if not newest:
        rec = walk.seek(<const uint8_t*>PyBytes_AS_STRING(before), PyBytes_GET_SIZE(before))
    while rec != NULL and key_cmp(rec_key(rec), rec.klen, low, low_n) >= 0:
        group = rec
        rec_ref(group)
        try:
            n = group.klen - REV_SIZE
            found = walk.version(group, n, at, &view, &rec)
            if found and not view.tombstone:
                store.keep(&view, group, limit, want, out)
            elif newest:
                rec = walk.alive(rec_key(group), n, &newest)
            steps = 0
            while rec != NULL and same_prefix(rec, rec_key(group), n):
                steps += 1
                rec = walk.prev(rec) if steps < STEPS else walk.seek(rec_key(group), n)
            out.cost += COST_KEY + group.klen // COST_BYTES + detour_cost(store.engine.detours, &detours)
            if out.cost >= most or (up_to_limit and out.n >= limit):
                return (<char*>rec_key(group))[:n]
        finally:
            rec_release(group)
    return None
