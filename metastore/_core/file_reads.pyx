"""How an engine in files reads many records: walks over pairs, and look-ups of many keys.

rocksdict 0.3.29 has two kinds of iterators. One of `iter` is placed anywhere, tells what has ended it, and takes three
calls for a record. One of `items` takes one call for a record, 0.16 us in table 'k' and 0.23 us in table 'r' where the
other takes 0.23 and 0.34, but it cannot be placed again, and it just ends, also at a damaged block and before many
removed records. So records that follow each other come from `items`, and where that ends a walk goes on that tells why.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp

from metastore._core.engine cimport Engine, EngineCursor, record_of
from metastore._core.gaps cimport GapWalk
from metastore._core.kv_messages cimport Kv
from metastore._core.mvcc_keys cimport REV_KEY_SIZE, rev_key, rev_read
from metastore._core.record cimport Record, rec_release
from metastore._core.work cimport Detours

# A run answers at least so many look-ups next to each other: its first step costs as much as three look-ups.
cdef enum:
    LEAST_RUN = 4
    NEAR = 2                 # records that a run may step over to the next one that is wanted
    REACH = 65_536           # revisions: a file of 32 MiB has some 100,000 with values of 256 bytes

cdef object END = object()   # behind the last pair of an iterator
cdef int64_t NOWHERE = 0x7FFFFFFFFFFFFFFF    # the main revision of what is none


# --- walks -----------------------------------------------------------------------------------------------

cdef class SharedWalk:
    """A GapWalk, which several walks use by turns. `fault` makes our errors of those of rocksdict."""

    def __init__(self, GapWalk walk not None, object fault):
        self.walk, self.fault = walk, fault

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
        cdef bytes key
        cdef object value = None
        try:
            if shared.walks != self.number or not self.number:
                # Another walk has used the iterator meanwhile.
                shared.walks += 1
                self.number = shared.walks
                shared.walk.seek(self.start + b"\0" if self.begun else self.start)
            key = shared.walk.key()
            if key is not None:
                value = shared.walk.value()
                shared.walk.next()
            else:
                shared.walk.status()
        except Exception as error:
            raise shared.fault(error) from error
        if key is None:
            raise StopIteration
        self.start = key
        self.begun = True
        return (key, value)


cdef class ItemsWalk:
    """Iterates over pairs: those of `items`, an iterator of rocksdict that begins at `start`, up to that of the key
    `until` (None: all), and then those that the iterator `others(from)` has."""
    cdef object items, others, fault
    cdef bytes until
    cdef bytes start          # where it begins
    cdef object last          # the last pair, or None

    def __init__(self, items, bytes start not None, bytes until, others, fault):
        self.items, self.start, self.until, self.others, self.fault = items, start, until, others, fault

    def __iter__(self):
        return self

    def __next__(self):
        cdef object pair
        if self.others is None:
            return next(self.items)
        try:
            pair = next(self.items, END)
        except Exception as error:
            raise self.fault(error) from error
        if pair is not END:
            self.last = pair
            if self.until is None or <bytes>(<tuple?>pair)[0] != self.until:
                return pair
        # A new iterator of `items` for each gap took twice as long as to leap over it.
        self.items = self.others(self.start if self.last is None else <bytes>(<tuple?>self.last)[0] + b"\0")
        self.others = None
        return next(self.items) if pair is END else pair


cdef class WalkCursor(EngineCursor):
    """A cursor of an engine in files. From where it begins, it walks with the pairs of `iterate`. A range over keys with
    many versions goes on elsewhere for each key, and then a walk is placed there that the engine has for all such
    cursors: that takes 2 us, and another iterator 10."""

    cdef Record* seek(self, const uint8_t* key, size_t n) except? NULL:
        if not self.begun:
            self.begun = True
            return EngineCursor.seek(self, key, n)
        self.pairs = None
        # Of the present state: an engine has another walk after each write.
        self.shared = self.engine.walks()
        return self.place(PyBytes_FromStringAndSize(<const char*>key, n))

    cdef Record* place(self, bytes key) except? NULL:
        """Go to the first record not below a key."""
        self.shared.walks += 1
        self.number = self.shared.walks
        try:
            self.shared.walk.seek(key)
        except Exception as error:
            raise self.shared.fault(error) from error
        return self.take()

    cdef Record* next(self) except? NULL:
        if self.shared is None:
            return EngineCursor.next(self)
        if self.held == NULL:
            return NULL
        if self.shared.walks != self.number:
            # Another walk has used the iterator meanwhile.
            return self.place(self.last + b"\0")
        try:
            self.shared.walk.next()
        except Exception as error:
            raise self.shared.fault(error) from error
        return self.take()

    cdef Record* take(self) except? NULL:
        """Return the record at which the walk stands."""
        if self.held != NULL:
            rec_release(self.held)
            self.held = NULL
        try:
            self.last = self.shared.walk.key()
            if self.last is None:
                self.shared.walk.status()
            else:
                self.held = record_of(self.last, self.shared.walk.value())
        except Exception as error:
            raise self.shared.fault(error) from error
        return self.held


cdef class WalkedEngine(Engine):
    """Base of engines in files, and of their views."""

    def walks(self):
        """Return a SharedWalk over the present state."""
        raise NotImplementedError

    def finder(self):
        """Return a Finder for the present state."""
        raise NotImplementedError

    def fault(self, error):
        """Return our error for one of rocksdict."""
        raise NotImplementedError

    cdef EngineCursor cursor(self):
        cdef WalkCursor cursor = WalkCursor.__new__(WalkCursor)
        cursor.engine = self
        return cursor

    cpdef list find_many(self, object keys):
        """See Engine."""
        try:
            return (<Finder?>self.finder()).find(list(keys))
        except Exception as error:
            raise self.fault(error) from error

    cdef list find_revisions(self, const Kv* pairs, size_t n):
        try:
            return (<Finder?>self.finder()).find_revisions(pairs, n)
        except Exception as error:
            raise self.fault(error) from error


# --- many look-ups ---------------------------------------------------------------------------------------

cdef void rev_of(bytes key, Rev* out) noexcept:
    """Read the revision in the key of a record of table 'r'. Of any other record it is NOWHERE."""
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(key)
    if PyBytes_GET_SIZE(key) == REV_KEY_SIZE and p[0] == c'r':
        rev_read(p + 1, &out.main, &out.sub)
    else:
        out.main, out.sub = NOWHERE, 0


cdef bytes key_of(const Rev* rev):
    cdef uint8_t[REV_KEY_SIZE] at
    rev_key(at, rev.main, rev.sub)
    return (<char*>at)[:REV_KEY_SIZE]


cdef bint before(const Rev* a, const Rev* b) noexcept:
    return a.main < b.main or (a.main == b.main and a.sub < b.sub)


cdef bint near(const Rev* a, const Rev* b) noexcept:
    """Whether `b` comes shortly behind `a`, so that few records can stand between them."""
    if b.main == NOWHERE or not before(a, b):
        return False
    if a.main == b.main:
        return b.sub - a.sub <= NEAR
    return b.main - a.main <= NEAR and b.sub < NEAR


cdef bint below(bytes a, bytes b) noexcept:
    """Whether key `a` comes before key `b`."""
    cdef Py_ssize_t n = PyBytes_GET_SIZE(a), m = PyBytes_GET_SIZE(b)
    cdef int order = memcmp(PyBytes_AS_STRING(a), PyBytes_AS_STRING(b), min(n, m))
    return order < 0 or (order == 0 and n < m)


cdef class Finder:
    """Looks up many keys of one state of an engine.

    `walk` is of this state. `items(key)` returns an iterator of rocksdict's `items` over it, or None from when on that
    cannot be had any more. `get` looks up a single key; None: the walk does that, too. Values whose revisions follow
    each other are read in a run: by `items`, or else by the walk. `detours.runs` counts these. `nbytes` counts the bytes
    of all values.

    `filling` is given where nothing that `items` reads stays in the cache: the index of a file does not either then, and
    each run would read and unpack it anew (17 us; a run of 100 values takes 38 without). So this walk looks at a record
    before a run that is far from where the last such look was, by any Finder of the engine.

    Revisions are compared as numbers. When keys were made to compare them, a pair of a range took 1.12 us in one process,
    and it takes 1.02 now (medians of three runs).
    """

    def __init__(self, GapWalk walk not None, items, get, Detours detours not None, GapWalk filling=None):
        self.walk, self.items, self.get, self.detours, self.filling = walk, items, get, detours, filling
        self.here.main = NOWHERE

    cpdef list find(self, list keys):
        """Return the value of each of `keys`, or None, in their order. Raises what rocksdict raises."""
        cdef Py_ssize_t n
        cdef dict found
        cdef list order
        for n in range(1, len(keys)):
            if not below(keys[n - 1], keys[n]):
                order = sorted(set(keys))
                found = dict(zip(order, self.find(order)))
                return [found[key] for key in keys]
        return self.find_each(NULL, len(keys), keys)

    cdef list find_revisions(self, const Kv* pairs, size_t n):
        """Return the value of the 'r' record of each pair's version, or None."""
        cdef size_t i
        cdef Rev last, this
        last.main = -1
        for i in range(n):
            this.main, this.sub = pairs[i].mod, pairs[i].sub
            if not before(&last, &this):
                keys = []
                for i in range(n):
                    this.main, this.sub = pairs[i].mod, pairs[i].sub
                    keys.append(key_of(&this))
                return self.find(keys)
            last = this
        return self.find_each(pairs, n, None)

    cdef list find_each(self, const Kv* pairs, Py_ssize_t count, list keys):
        """Return the values of pairs or of keys, which are in ascending order."""
        cdef list values = []
        cdef Py_ssize_t n
        cdef Rev* revs = <Rev*>malloc((count + 1) * sizeof(Rev))
        if revs == NULL:
            raise MemoryError
        try:
            for n in range(count):
                if keys is not None:
                    rev_of(keys[n], &revs[n])
                else:
                    revs[n].main, revs[n].sub = pairs[n].mod, pairs[n].sub
            self.find_sorted(revs, count, keys, values)
        finally:
            free(revs)
        return values

    cdef int find_sorted(self, const Rev* revs, Py_ssize_t count, list keys, list values) except -1:
        cdef Py_ssize_t first = 0, end
        while first < count:
            end = first + 1
            while end < count and near(&revs[end - 1], &revs[end]):
                end += 1
            if end - first < LEAST_RUN and not self.leads_to(&revs[first]):
                while first < end:
                    values.append(self.one(key_of(&revs[first]) if keys is None else keys[first]))
                    first += 1
            else:
                self.find_run(revs, first, end, values)
                first = end
        return 0

    cdef bint leads_to(self, const Rev* rev) noexcept:
        """Whether the run stands shortly before a revision."""
        return self.run is not None and near(&self.here, rev)

    cdef object one(self, bytes key):
        """Return the value of a single key, or None."""
        cdef object value = None
        if self.get is not None:
            value = self.get(key)
        else:
            self.walk.seek(key)
            if self.walk.key() == key:
                value = self.walk.value()
            else:
                self.walk.status()               # where a block is damaged, the walk just ends
        if value is not None:
            self.nbytes += <size_t>PyBytes_GET_SIZE(<bytes?>value)
        return value

    cdef int find_run(self, const Rev* revs, Py_ssize_t first, Py_ssize_t end, list values) except -1:
        """Add the values of the revisions from number `first` to `end`, which a run meets shortly behind each other."""
        cdef const Rev* rev
        cdef bytes key
        cdef int steps
        if not self.leads_to(&revs[first]):
            self.place(&revs[first], key_of(&revs[first]))
        while first < end:
            rev = &revs[first]
            first += 1
            steps = 0
            if self.run is not None and not before(rev, &self.border):
                # `items` would go on to the next record, over all that was removed.
                self.here.main = NOWHERE
            while before(&self.here, rev) and steps < NEAR:
                self.step()
                steps += 1
            if self.here.main == rev.main and self.here.sub == rev.sub:
                values.append(self.take())
                self.detours.runs += 1
            else:
                # The run ends where a block is damaged, and a look-up tells about that. It may have moved the walk.
                key = key_of(rev)
                values.append(self.one(key))
                self.place(rev, key)
        return 0

    cdef int place(self, const Rev* rev, bytes key) except -1:
        """Begin a run at the first record not below `key`, which is that of `rev`."""
        cdef bytes border
        self.border.main = NOWHERE
        if self.items is not None:
            border = self.walk.border(key)
            if border is not None:
                rev_of(border, &self.border)
                if not below(key, border):
                    self.here.main = NOWHERE
                    self.run = None
                    return 0
            if self.filling is not None and not self.detours.filled <= rev.main < self.detours.filled + REACH:
                self.filling.seek(key)
                self.detours.filled = rev.main
            self.run = self.items(key)
            if self.run is not None:
                return self.step()
            self.items = None
        self.walk.seek(key)
        return self.stand()

    cdef int stand(self) except -1:
        """Note where the walk stands."""
        cdef bytes key = self.walk.key()
        if key is None:
            self.here.main = NOWHERE
        else:
            rev_of(key, &self.here)
        return 0

    cdef int step(self) except -1:
        """Go to the next record."""
        cdef object pair
        if self.run is None:
            self.walk.next()
            return self.stand()
        pair = next(self.run, END)
        if pair is END:
            self.here.main = NOWHERE
            self.value = None
        else:
            key, self.value = <tuple?>pair
            rev_of(<bytes?>key, &self.here)
        return 0

    cdef object take(self):
        """Return the value of the record on which the run stands."""
        cdef object value = self.value
        if self.run is None:
            value = self.walk.value()
        self.value = None
        self.nbytes += <size_t>PyBytes_GET_SIZE(<bytes?>value)
        return value
