"""The physical side of a compaction. It removes, slice by slice, the records that no reader can reach any more.

A version is removed when a later version of the same key is not above the compact revision, or when it is a tombstone
below that revision. A tombstone at the compact revision itself stays, because a watch may still start there. The sweep
is idempotent. After a restart it begins again while the engine's record "mswept" is behind "mcompact".
"""

from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from metastore import errors
from metastore._core.mvcc_keys import SWEPT_KEY
from metastore._core.engine cimport EngineCursor
from metastore._core.mvcc_keys cimport REV_KEY_SIZE, REV_SIZE, IndexView, index_read, rev_key, same_prefix
from metastore._core.mvcc cimport Store, meta_value
from metastore._core.ordered_map cimport OrderedMap
from metastore._core.record cimport Record, rec_key, rec_new_deleted, rec_ref, rec_release
from metastore._core.work cimport detour_cost

cdef enum:
    REMOVAL_COST = 4         # a removal counts as that many records looked at


cdef int mark_removed(OrderedMap batch, Record* rec, IndexView* view) except -1:
    """Put the deletions of an index record and of its change record into the batch."""
    cdef uint8_t at[REV_KEY_SIZE]
    cdef Record* marker = rec_new_deleted(rec_key(rec), rec.klen)
    if marker == NULL:
        raise MemoryError
    batch.put_record(marker)
    rev_key(at, view.main, view.sub)
    marker = rec_new_deleted(at, REV_KEY_SIZE)
    if marker == NULL:
        raise MemoryError
    batch.put_record(marker)
    return 0


cdef bint walk(Store store, OrderedMap batch, size_t budget) except -1:
    """Look at about `budget` records from store.sweep_at on. Return False when the end of the table is reached.

    Whether a record is removed depends on the one after it, so the next slice starts at the last record of this one.
    """
    cdef EngineCursor cursor = store.engine.cursor()
    cdef Record* rec = cursor.seek(<const uint8_t*>PyBytes_AS_STRING(store.sweep_at), PyBytes_GET_SIZE(store.sweep_at))
    cdef Record* last = NULL
    cdef IndexView view, last_view
    cdef size_t cost = 0, detours = 0
    cdef bint remove
    detour_cost(store.engine.detours, &detours)
    try:
        while True:
            if rec != NULL and rec_key(rec)[0] != c'k':
                rec = NULL
            if rec != NULL:
                index_read(rec, &view)
            if last != NULL:
                remove = last_view.tombstone and last_view.main < store.sweep_rev
                if rec != NULL and view.main <= store.sweep_rev and same_prefix(rec, rec_key(last), last.klen - REV_SIZE):
                    remove = True
                if remove:
                    mark_removed(batch, last, &last_view)
                    cost += REMOVAL_COST
                rec_release(last)
                last = NULL
            if rec == NULL:
                return False
            if cost >= budget:
                store.sweep_at = PyBytes_FromStringAndSize(<char*>rec_key(rec), rec.klen)
                return True
            last = rec
            last_view = view
            rec_ref(last)
            cost += 1 + detour_cost(store.engine.detours, &detours)
            rec = cursor.next()
    finally:
        if last != NULL:
            rec_release(last)


cpdef bint sweep_slice(Store store, size_t budget):
    """Sweep one slice of about `budget` records. Return True while there is more. It does nothing while operations wait
    for their commit. Raises what the engine raises; after EngineBusy the same slice can be tried again."""
    cdef OrderedMap batch
    cdef bytes began
    cdef bint more
    if store.sweep_at is None:
        if store.swept >= store.compacted:
            return False
        if store.overlay.count or not store.whole():
            return True
        store.sweep_at = b"k"
        store.sweep_rev = store.compacted
    elif store.overlay.count or not store.whole():
        return True
    began = store.sweep_at
    batch = OrderedMap()
    more = walk(store, batch, budget if budget > 2 else 2)
    if not more:
        batch.set(SWEPT_KEY, meta_value(store.sweep_rev))
    if batch.count:
        index, term = store.engine.applied()
        try:
            store.engine.write(batch, index, term)
        except errors.EngineBusy:
            # Nothing was removed, so the slice is done again.
            store.sweep_at = began
            raise
    if more:
        return True
    store.swept = store.sweep_rev
    store.sweep_at = None
    return store.swept < store.compacted
