"""A hash of the logical records of a store at one revision. It is equal on every member that has the same records.

At revision R after a compaction at C these records count: every version of a key above C and not above R, and the
newest version of each key not above C, unless that is a tombstone below C. These are the records that a completed sweep
(mvcc_sweep.pyx) leaves; records that the sweep has still to remove do not count. So the hash depends on R, C and the
history alone, and not on the engine or on the progress of the sweep.

Index records are hashed in the order of keys, then change records in the order of revisions. These are two walks in the
engine's own order, which need no search for each key.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc

from metastore import errors
from metastore._core.crc cimport crc32
from metastore._core.engine cimport Engine, EngineCursor
from metastore._core.mvcc_keys cimport (REV_KEY_SIZE, REV_SIZE, IndexView, RevView, index_prefix, index_read, index_room,
                                       rev_read, rev_record_read, rev_write, same_prefix)
from metastore._core.mvcc cimport read_meta
from metastore._core.record cimport Record, rec_key, rec_ref, rec_release

from metastore._core.engine import APPLIED_KEY
from metastore._core.mvcc_keys import COMPACT_KEY, REVISION_KEY, SWEPT_KEY

cdef enum:
    COST_BYTES = 512         # bytes that count as one record more
    COST_SEARCH = 4          # a search counts as that many records

cdef uint32_t EMPTY = 1          # the hash of nothing: in an answer, 0 would look like a field that is not there
cdef uint32_t LAST_SUB = 0xFFFFFFFFUL

#: Meta records that may differ between members whose state is the same.
OWN_META = (APPLIED_KEY, SWEPT_KEY)


cdef class Hasher:
    """Hashes a view (Engine) slice by slice. The hasher owns the view and closes it.

    `revision` is the last revision that counts; 0 stands for the current one. `whole` adds the replicated meta records
    (members, alarms, ...) and the leases with their keys, all as they are now. Raises Compacted and FutureRevision as etcd 3.6 does; at the compact revision itself there
    is an answer.
    """
    cdef readonly int64_t revision        # R
    cdef readonly int64_t current         # the view's revision
    cdef readonly int64_t compact_revision  # C; -1: never compacted
    cdef readonly uint32_t hash
    cdef readonly bint done
    cdef bint swept                       # whether the sweep up to C has ended
    cdef bint whole
    cdef Engine view
    cdef EngineCursor cursor
    cdef uint8_t table                    # the table that is walked: 'k', 'r', then 'm', 'a' and 'l'
    cdef Record* rec                      # borrowed: the record where the walk stands
    cdef Record* last                     # owned: an index record whose fate depends on the one after it
    cdef IndexView last_view

    def __init__(self, Engine view not None, int64_t revision=0, bint whole=False):
        self.current = read_meta(view, REVISION_KEY, 1)
        self.compact_revision = read_meta(view, COMPACT_KEY, -1)
        self.swept = read_meta(view, SWEPT_KEY, -1) >= self.compact_revision
        self.revision = revision if revision else self.current
        if revision > self.current:
            raise errors.FutureRevision()
        if 0 < revision < self.compact_revision:
            raise errors.Compacted()
        self.view = view
        self.whole = whole
        self.hash = EMPTY
        self.begin(c'k')

    def __dealloc__(self):
        if self.last != NULL:
            rec_release(self.last)

    cdef int begin(self, uint8_t table) except -1:
        self.table = table
        self.cursor = self.view.cursor()
        self.rec = self.cursor.seek(&table, 1)
        return 0

    cdef void add(self, Record* rec) noexcept:
        cdef uint32_t sizes[2]
        sizes[0] = rec.klen
        sizes[1] = rec.vlen
        self.hash = crc32(self.hash, <const uint8_t*>sizes, sizeof(sizes))
        self.hash = crc32(self.hash, rec_key(rec), <size_t>rec.klen + rec.vlen)

    cdef bint counts(self, const IndexView* view, bint newest) noexcept:
        """Whether a version belongs to the state. `newest` says that it is above C, or the newest of its key not above
        C."""
        if view.main > self.revision or not newest:
            return False
        return not (view.tombstone and view.main < self.compact_revision)

    cdef size_t index_step(self) except 0:
        """Take in one index record and return its cost."""
        cdef Record* rec = self.rec
        cdef IndexView view
        cdef bint newest
        cdef size_t cost = 1
        if rec != NULL and rec_key(rec)[0] != c'k':
            rec = NULL
        if rec != NULL:
            index_read(rec, &view)
        if self.last != NULL:
            newest = not (rec != NULL and view.main <= self.compact_revision
                          and same_prefix(rec, rec_key(self.last), self.last.klen - REV_SIZE))
            if self.counts(&self.last_view, newest):
                self.add(self.last)
            rec_release(self.last)
            self.last = NULL
        if rec == NULL:
            self.begin(c'r')
            return cost
        rec_ref(rec)
        self.last = rec
        self.last_view = view
        self.rec = self.cursor.next()
        return cost

    cdef size_t change_step(self) except 0:
        """Take in one change record and return its cost."""
        cdef Record* rec = self.rec
        cdef int64_t main = 0
        cdef uint32_t sub = 0
        cdef size_t cost = 1
        if rec != NULL and (rec_key(rec)[0] != c'r' or rec.klen != REV_KEY_SIZE):
            rec = NULL
        if rec != NULL:
            rev_read(rec_key(rec) + 1, &main, &sub)
        if rec == NULL or main > self.revision:
            self.rec = NULL
            if self.whole:
                self.begin(c'm')
            else:
                self.done = True
            return cost
        if main <= self.compact_revision and not self.swept:
            cost += COST_SEARCH
            if self.alive(rec, main, sub):
                self.add(rec)
        else:
            self.add(rec)
        cost += rec.vlen // COST_BYTES
        self.rec = self.cursor.next()
        return cost

    cdef bint alive(self, Record* rec, int64_t main, uint32_t sub) except -1:
        """Whether a change not above C is the newest of its key there, and not a tombstone below C."""
        cdef RevView change
        cdef IndexView view
        cdef size_t n
        cdef uint8_t* at
        cdef Record* index = NULL
        rev_record_read(rec, &change)
        at = <uint8_t*>malloc(index_room(change.klen))
        if at == NULL:
            raise MemoryError
        try:
            n = index_prefix(at, change.key, change.klen)
            rev_write(at + n, self.compact_revision, LAST_SUB)
            index = self.view.find_le(at, n + REV_SIZE)
            if index == NULL or not same_prefix(index, at, n):
                return False
            index_read(index, &view)
            return view.main == main and view.sub == sub and self.counts(&view, True)
        finally:
            if index != NULL:
                rec_release(index)
            free(at)

    cdef size_t other_step(self) except 0:
        """Take in one record of another table and return its cost."""
        cdef Record* rec = self.rec
        if rec == NULL or rec_key(rec)[0] != self.table:
            if self.table == c'l':
                self.rec = NULL
                self.done = True
            else:
                self.begin(c'a' if self.table == c'm' else c'l')
            return 1
        if self.table != c'm' or (<char*>rec_key(rec))[:rec.klen] not in OWN_META:
            self.add(rec)
        self.rec = self.cursor.next()
        return 1

    cpdef bint step(self, size_t budget) except -1:
        """Go on for about `budget` records. Return True while there is more. Raises DamagedData and the engine's
        errors."""
        cdef size_t cost = 0
        while not self.done and cost < budget:
            if self.table == c'k':
                cost += self.index_step()
            elif self.table == c'r':
                cost += self.change_step()
            else:
                cost += self.other_step()
        return not self.done

    def close(self) -> None:
        """Close the view. Idempotent."""
        self.rec = NULL
        self.done = True
        self.cursor = None
        if self.last != NULL:
            rec_release(self.last)
            self.last = NULL
        if self.view is not None:
            self.view.close()
            self.view = None
