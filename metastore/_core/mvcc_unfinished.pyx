"""Records of an entry that has not ended.

An entry that changes very many keys would fill the overlay and then need one engine write for all records. So its
records go to the engine in several writes (`spill`) while it is applied in pieces. These writes keep the log position
that the engine has already. The records have revisions above the engine's counter of revisions; the write that ends the
entry moves that counter and the log position together. Meanwhile nobody takes the records for state, because readers
read at a finished revision.

After a crash the engine's log position is before the entry, which is therefore applied again. The records that it had
written must be removed before that; otherwise a deletion would take its own tombstones for the state before it. `purge`
removes all records of revisions above the counter. Both records of a change are in the same write, so the table of
revisions leads to all records.

What a change does to the keys of leases (table 'a') is in the same write as well, and `purge` takes it back: the history
says which lease the key had. Leases themselves (table 'l') wait for the end of the entry, like meta records, because
history does not say whether an earlier operation of the entry has granted one.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc

from metastore._core.engine cimport EngineCursor
from metastore._core.kv_messages cimport Slice
from metastore._core.leases cimport attachment
from metastore._core.mvcc_keys cimport (REV_KEY_SIZE, REV_SIZE, IndexView, RevView, index_prefix, index_read,
                                       index_room, rev_key, rev_read, rev_record_read, rev_write)
from metastore._core.mvcc cimport Store
from metastore._core.ordered_map cimport OrderedMap
from metastore._core.record cimport Record, rec_key, rec_new_deleted, rec_release


cdef int spill(Store store) except -1:
    """Hand the records of keys and revisions in the overlay to the engine, whose log position stays. Leases and meta
    records wait for the end of the entry. Raises EngineBusy (nothing is changed then) and what the engine raises."""
    cdef list later = store.overlay.scan(b"l", b"n")
    cdef bytes name, value
    for name, _ in later:
        store.overlay.delete(name)
    index, term = store.engine.applied()
    try:
        store.engine.write(store.overlay, index, term)
        store.births.wrote()
        store.overlay.clear()
        store.spilled = True
    finally:
        for name, value in later:
            if value is None:
                store.overlay.set_deleted(name)
            else:
                store.overlay.set(name, value)
    return 0


cdef int mark_attachment(Store store, OrderedMap batch, const RevView* change, const uint8_t* at, size_t n) except -1:
    """Put into the batch what restores the key's place in table 'a'. `at` is the engine key of the index record."""
    cdef IndexView view
    cdef Slice key
    cdef int64_t before
    cdef Record* index = store.engine.find(at, n)
    key.p, key.n = change.key, change.klen
    before = store.lease_before(&key)
    if index != NULL:
        try:
            index_read(index, &view)
        finally:
            rec_release(index)
        if view.lease != 0 and view.lease != before:
            store.leases.unsure(view.lease)
            attachment(batch, view.lease, key.p, key.n, False)
    if before != 0:
        store.leases.unsure(before)
        attachment(batch, before, key.p, key.n, True)
    return 0


cdef int mark(Store store, OrderedMap batch, Record* rec) except -1:
    """Put the deletions of a change and of its index record into the batch."""
    cdef int64_t main = 0
    cdef uint32_t sub = 0
    cdef size_t n
    cdef RevView change
    cdef Record* marker = rec_new_deleted(rec_key(rec), REV_KEY_SIZE)
    cdef uint8_t* at
    if marker == NULL:
        raise MemoryError
    batch.put_record(marker)
    rev_read(rec_key(rec) + 1, &main, &sub)
    rev_record_read(rec, &change)
    at = <uint8_t*>malloc(index_room(change.klen))
    if at == NULL:
        raise MemoryError
    try:
        n = index_prefix(at, change.key, change.klen)
        rev_write(at + n, main, sub)
        marker = rec_new_deleted(at, n + REV_SIZE)
        if marker == NULL:
            raise MemoryError
        batch.put_record(marker)
        return mark_attachment(store, batch, &change, at, n + REV_SIZE)
    finally:
        free(at)


cdef bint purge(Store store, size_t budget) except -1:
    """Remove up to `budget` changes of revisions above the engine's counter. Return True while there are more. Raises
    EngineBusy (nothing is changed then) and what the engine raises."""
    cdef uint8_t[REV_KEY_SIZE] first
    cdef OrderedMap batch = OrderedMap()
    cdef EngineCursor cursor = store.engine.cursor()
    cdef Record* rec
    cdef bint more = True
    rev_key(first, store.rev + 1, 0)
    rec = cursor.seek(first, REV_KEY_SIZE)
    while budget > 0 and more:
        if rec == NULL or rec_key(rec)[0] != c'r' or rec.klen != REV_KEY_SIZE:
            more = False
        else:
            mark(store, batch, rec)
            rec = cursor.next()
            budget -= 1
    if batch.count:
        index, term = store.engine.applied()
        store.engine.write(batch, index, term)
    store.stale = more
    return more

