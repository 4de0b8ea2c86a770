"""Base of engines whose look-ups are slow. It keeps the newest index records of recently used keys in memory.

Every put looks up the newest version of its key. In RocksDB this takes an iterator and 4 us (measured); here it takes a
search of 0.3 us in an ordered map. There are two maps, a fresh and an older one. When the fresh one has half of the
budget, it becomes the older one, and the old older one is dropped.

A record that is found here is right, because for each key in the maps all versions from some version up to the newest
one are here. So if the greatest record not above the wanted revision is of the wanted key, the engine has the same
record. Records come in by writes (always the newest version) and by look-ups of the newest version.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from metastore._core.engine cimport Engine
from metastore._core.mvcc_keys cimport REV_KEY_SIZE, REV_SIZE, rev_read
from metastore._core.ordered_map cimport OrderedMap
from metastore._core.ordered_map_walk cimport Cursor, cursor_first, cursor_ge, cursor_next, tree_le
from metastore._core.record cimport Record, rec_deleted, rec_key, rec_ref, rec_release, rec_value

cdef enum:
    OVERHEAD = 64            # bytes that a record takes besides key and value
    DEFAULT_BUDGET = 16 << 20
    MOST_FORGOTTEN = 500     # records that are dropped one by one (0.3 us each)

# The revision that asks for the newest version.
cdef const uint8_t* NEWEST = <const uint8_t*>b"\x7f\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"

# A walk answers at least so many look-ups next to each other: its first step costs as much as three look-ups.
cdef enum:
    LEAST_RUN = 4
    NEAR = 2                 # records that a walk may step over to the next one that is wanted


cdef inline bint same_key(Record* rec, const uint8_t* key, size_t n) noexcept nogil:
    """Whether an index record is of the key that the index key is of."""
    return rec.klen == n and memcmp(rec_key(rec), key, n - REV_SIZE) == 0


cdef class RecentEngine(Engine):
    """Subclasses call `remember` after each write and `forget` when their contents are replaced.

    `hits` counts look-ups answered here, `misses` those that the engine answered. `budget` is in bytes.
    """

    def __cinit__(self, *_args, **_options):
        self.fresh = OrderedMap()
        self.older = OrderedMap()
        self.budget = DEFAULT_BUDGET

    def set_budget(self, size_t nbytes) -> None:
        """Set the bytes that the kept records may take; 0 keeps none."""
        self.budget = nbytes
        self.forget()

    cdef Record* find_le(self, const uint8_t* key, size_t n) except? NULL:
        cdef Record* rec
        if n <= REV_SIZE or key[0] != c'k':
            return Engine.find_le(self, key, n)
        rec = self.kept(key, n)
        if rec != NULL:
            self.hits += 1
            rec_ref(rec)
            return rec
        self.misses += 1
        rec = Engine.find_le(self, key, n)
        if rec != NULL and same_key(rec, key, n) and memcmp(key + n - REV_SIZE, NEWEST, REV_SIZE) == 0:
            try:
                self.keep(rec)
                self.turn_over()
            except BaseException:
                rec_release(rec)
                raise
        return rec

    cdef Record* kept(self, const uint8_t* key, size_t n) noexcept:
        """The record of `find_le` if it is kept here, else NULL. It belongs to the maps."""
        cdef Record* rec = tree_le(self.fresh.root, key, n)
        if rec == NULL or not same_key(rec, key, n):
            rec = tree_le(self.older.root, key, n)
        return rec if rec != NULL and same_key(rec, key, n) else NULL

    cdef int keep(self, Record* rec) except -1:
        if self.budget:
            rec_ref(rec)
            self.fresh.put_record(rec)
        return 0

    cdef int turn_over(self) except -1:
        if 2 * (self.fresh.nbytes + OVERHEAD * self.fresh.count) > self.budget:
            self.older = self.fresh
            self.fresh = OrderedMap()
        return 0

    cpdef remember(self, OrderedMap batch):
        """Keep the index records of a batch that was written."""
        cdef Cursor cur
        cdef Record* rec
        if self.budget == 0:
            return
        rec = cursor_ge(&cur, batch.root, <const uint8_t*>b"k", 1)
        while rec != NULL and rec_key(rec)[0] == c'k':
            if rec_deleted(rec):
                self.fresh.remove(rec_key(rec), rec.klen)
                self.older.remove(rec_key(rec), rec.klen)
            else:
                self.keep(rec)
            rec = cursor_next(&cur)
        self.turn_over()

    cpdef forget(self):
        """Drop all records, because the engine's contents were replaced."""
        self.fresh = OrderedMap()
        self.older = OrderedMap()

    cpdef forget_ranges(self, list ranges):
        """Drop the records of ranges that were removed. Of more than MOST_FORGOTTEN, all records are dropped."""
        cdef OrderedMap kept
        cdef list found
        for start, end in ranges:
            for kept in (self.fresh, self.older):
                found = kept.scan(start, end, False, MOST_FORGOTTEN + 1)
                if len(found) > MOST_FORGOTTEN:
                    self.forget()
                    return
                for key, _ in found:
                    kept.delete(key)

    cpdef feed(self, OrderedMap batch, object put, object delete):
        """Call put(key, value) or delete(key) for each record of a batch, in order."""
        cdef Cursor cur
        cdef bytes key
        cdef Record* rec = cursor_first(&cur, batch.root)
        while rec != NULL:
            key = PyBytes_FromStringAndSize(<const char*>rec_key(rec), rec.klen)
            if rec_deleted(rec):
                delete(key)
            else:
                put(key, PyBytes_FromStringAndSize(<const char*>rec_value(rec), rec.vlen))
            rec = cursor_next(&cur)


# --- many look-ups ---------------------------------------------------------------------------------------

cdef bint near(bytes a, bytes b):
    """Whether `b` is the key of a revision shortly behind that of `a`, so that few records can stand between them."""
    cdef int64_t first, second
    cdef uint32_t first_sub, second_sub
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(a)
    cdef const uint8_t* q = <const uint8_t*>PyBytes_AS_STRING(b)
    if PyBytes_GET_SIZE(a) != REV_KEY_SIZE or PyBytes_GET_SIZE(b) != REV_KEY_SIZE or p[0] != c'r' or q[0] != c'r':
        return False
    rev_read(p + 1, &first, &first_sub)
    rev_read(q + 1, &second, &second_sub)
    if first == second:
        return second_sub - first_sub <= NEAR
    return second - first <= NEAR and second_sub < NEAR


def find_each(list keys not None, object walk, object get) -> list:
    """Return the value of each of `keys`, or None, in their order.

    `walk` is an iterator of rocksdict, and `get` looks up a single key; None: the walk does that, too. Keys whose revisions
    follow each other are read by the walk. Raises what these two raise.
    """
    cdef Py_ssize_t n
    cdef dict found
    cdef list order
    for n in range(1, len(keys)):
        if not <bytes>keys[n - 1] < <bytes>keys[n]:
            order = sorted(set(keys))
            found = dict(zip(order, find_sorted(order, walk, get)))
            return [found[key] for key in keys]
    return find_sorted(keys, walk, get)


cdef list find_sorted(list keys, object walk, object get):
    """Return the values of keys in ascending order."""
    cdef list values = []
    cdef Py_ssize_t first = 0, end, count = len(keys)
    while first < count:
        end = first + 1
        while end < count and near(keys[end - 1], keys[end]):
            end += 1
        if end - first < LEAST_RUN:
            while first < end:
                values.append(value_at(walk, keys[first]) if get is None else get(keys[first]))
                first += 1
        else:
            find_run(keys, first, end, walk, get, values)
            first = end
    return values


cdef object value_at(object walk, bytes key):
    """Return the value of a key as the walk finds it, or None."""
    walk.seek(key)
    if walk.key() == key:
        return walk.value()
    walk.status()               # where a block is damaged, the walk just ends
    return None


cdef int find_run(list keys, Py_ssize_t first, Py_ssize_t end, object walk, object get, list values) except -1:
    """Add the values of the keys from number `first` to `end`, which a walk meets shortly behind each other."""
    cdef object here
    cdef bytes key
    cdef int steps
    walk.seek(keys[first])
    step, read_key, read_value = walk.next, walk.key, walk.value
    here = read_key()
    while first < end:
        key = keys[first]
        first += 1
        steps = 0
        while here is not None and <bytes>here < key and steps < NEAR:
            step()
            here = read_key()
            steps += 1
        if here is not None and <bytes>here == key:
            values.append(read_value())
        else:
            # The walk ends where a block is damaged, and a look-up tells about that. It may have moved the walk.
            values.append(value_at(walk, key) if get is None else get(key))
            walk.seek(key)
            here = read_key()
    return 0


# --- walks -----------------------------------------------------------------------------------------------

cdef class SharedWalk:
    """An iterator of rocksdict, which several walks use by turns. `fault` makes our errors of those of rocksdict."""
    cdef object walk, step, read_key, read_value, fault
    cdef uint64_t walks       # walks that have begun or gone on where another one was
    # No reference to the walk: a cycle would keep the iterator, and with it files, until the collector comes.

    def __init__(self, object walk, object fault):
        self.walk = walk
        self.step, self.read_key, self.read_value = walk.next, walk.key, walk.value
        self.fault = fault

    def pairs(self, bytes start not None):
        """Return an iterator over the (key, value) pairs from `start` on."""
        cdef Walk one = Walk.__new__(Walk)
        one.shared = self
        one.start = start
        return one


cdef class Walk:
    """Iterates over pairs. As a generator in Python this took 0.3 us a pair more, of the 2.7 us that a range takes."""
    cdef SharedWalk shared
    cdef bytes start          # where it begins, and from then on the last key
    cdef bint begun
    cdef uint64_t number      # `walks` when it last placed the iterator; 0: never

    def __iter__(self):
        return self

    def __next__(self):
        cdef SharedWalk shared = self.shared
        cdef object key, value
        try:
            if shared.walks != self.number or not self.number:
                # Another walk has used the iterator meanwhile.
                shared.walks += 1
                self.number = shared.walks
                shared.walk.seek(self.start + b"\0" if self.begun else self.start)
            key = shared.read_key()
            if key is not None:
                value = shared.read_value()
                shared.step()
            else:
                shared.walk.status()
        except Exception as error:
            raise shared.fault(error) from error
        if key is None:
            raise StopIteration
        self.start = key
        self.begun = True
        return (key, value)
