"""Storage engines: an ordered bytes -> bytes map that takes one atomic write for each applied batch.

`Engine` is the base of every engine. `metastore/plugin.pyi` is its contract. A plug-in subclasses it in Python,
declares `CONTRACT` and `persistent`, and overrides get, scan, write, applied, view, size and restore, and
durable_applied too if it is persistent. It may override the methods that have defaults. MemoryEngine overrides the
C-level methods too. Contract suite: metastore/testing/engine_contract.py.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from weakref import WeakSet

from metastore import errors
from metastore.ports import CONTRACT
from metastore._core.kv_messages cimport Kv
from metastore._core.le cimport get64, put64
from metastore._core.mvcc_keys cimport REV_KEY_SIZE, rev_key
from metastore._core.ordered_map cimport OrderedMap, free_garbage, garbage_left, node_release
from metastore._core.ordered_map_pack cimport pack_slice
from metastore._core.ordered_map_walk cimport (Cursor, cursor_alive, cursor_alive_below, cursor_below, cursor_first,
                                               cursor_ge, cursor_next, cursor_prev, tree_get, tree_le)
from metastore._core.record cimport Record, held_bytes, rec_deleted, rec_key, rec_new, rec_ref, rec_release, rec_value

APPLIED_KEY = b"mapplied"        # the engine's own record in table 'm': its position in the log
cdef bytes APPLIED = APPLIED_KEY
cdef int CHUNK = 64              # records that `iterate` fetches at once, unless the engine has an `iterate` of its own
cdef size_t RECLAIM_BUDGET = 4096
cdef size_t PACK = 1000      # records that one slice of a defragmentation looks at
cdef object END = object()       # behind the last pair of a walk


cdef Record* record_of(bytes key, bytes value) except NULL:
    """Return a record, owned by the caller, with copies of both."""
    cdef Record* rec = rec_new(<const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), PyBytes_GET_SIZE(value))
    if rec == NULL:
        raise MemoryError
    memcpy(rec_value(rec), PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    return rec


cdef inline bytes bytes_of(const uint8_t* p, size_t n):
    return PyBytes_FromStringAndSize(<const char*>p, n)


def downwards(Engine engine not None, bytes end not None):
    """Iterate over the (key, value) pairs below `end`, from the last one down. It may show writes made meanwhile."""
    cdef Py_ssize_t limit = 8
    while True:
        chunk = engine.scan(b"", end, True, limit)
        yield from chunk
        if len(chunk) < limit:
            return
        end, limit = <bytes>chunk[len(chunk) - 1][0], min(CHUNK, 2 * limit)


cdef class EngineCursor:
    """Walks an engine upwards by means of its `iterate`, and downwards by means of its `scan`."""

    def __dealloc__(self):
        if self.held != NULL:
            rec_release(self.held)

    cdef Record* seek(self, const uint8_t* key, size_t n) except? NULL:
        self.pairs = self.engine.iterate(bytes_of(key, n))
        return EngineCursor.next(self)

    cdef Record* next(self) except? NULL:
        cdef object pair
        if self.pairs is None:
            return NULL
        pair = next(self.pairs, END)
        if self.held != NULL:
            rec_release(self.held)
            self.held = NULL
        if pair is END:
            self.pairs = None
            return NULL
        key, value = pair
        self.held = record_of(key, value)
        return self.held

    cdef Record* seek_alive(self, const uint8_t* key, size_t n, bint* knows) except? NULL:
        knows[0] = False
        return NULL

    cdef Record* seek_below(self, const uint8_t* key, size_t n) except? NULL:
        self.pairs = downwards(self.engine, bytes_of(key, n))
        return EngineCursor.next(self)

    cdef Record* prev(self) except? NULL:
        return EngineCursor.next(self)

    cdef Record* alive_below(self, const uint8_t* key, size_t n, bint* knows) except? NULL:
        knows[0] = False
        return NULL


cdef class Engine:
    """Base of all engines. Keys and values are bytes, keys in memcmp order. One thread at a time uses an engine.

    Each class of engines declares `persistent`; this base does not. True says that a start finds again what the engine
    holds in the folder that it was opened with, up to `durable_applied()` at least, whatever ended the process or the
    machine. False says that nothing of it is left. The log is cut behind what is durable, so a wrong answer loses data;
    therefore a start refuses an engine that does not declare it.
    """

    #: The contract that the class was written for; None: it does not say.
    CONTRACT = None
    #: The version of its files.
    FORMAT = 1
    #: None: a class that leaves it so does not say whether it lasts.
    persistent = None
    #: Bytes of the longest key and of the longest value; None for no limit.
    max_key = None
    max_value = None
    #: Whether the engine takes no writes at present, because it found no room on its disk.
    full = False
    #: Bytes that must be free on its disk, or it may find no room; None for an engine that has no files of its own.
    headroom = None
    #: Of an engine that counts its keys after a start: (all are counted, how many are, how often a number was wrong).
    index_state = None

    # -- C level --

    cdef Record* find(self, const uint8_t* key, size_t n) except? NULL:
        cdef bytes whole = bytes_of(key, n)
        value = self.get(whole)
        if value is None:
            return NULL
        return record_of(whole, value)

    cdef Record* find_le(self, const uint8_t* key, size_t n) except? NULL:
        entry = self.seek_le(bytes_of(key, n))
        if entry is None:
            return NULL
        return record_of(entry[0], entry[1])

    def read_once(self, once):
        """Whether what is read from now on belongs to a long walk and is not worth the room of a cache. Never fails."""

    cdef EngineCursor cursor(self):
        cdef EngineCursor walk = EngineCursor()
        walk.engine = self
        return walk

    cdef list find_revisions(self, const Kv* pairs, size_t n):
        cdef uint8_t[REV_KEY_SIZE] at
        cdef list keys = []
        cdef size_t i
        for i in range(n):
            rev_key(at, pairs[i].mod, pairs[i].sub)
            keys.append(bytes_of(at, REV_KEY_SIZE))
        return self.find_many(keys)

    cdef size_t pace(self) noexcept:
        # Measured with RocksDB, ns a unit: 60 to 570 for keys that are walked over, compared, counted or deleted (570:
        # deleted ones), 300 to 380 where values are fetched out of its cache, 880 to 1,140 where their blocks are not
        # in it (100,000 pairs of 1 KB, written in another order than that of their keys; they were in the page cache).
        return 12

    # -- to be overridden --

    cpdef object get(self, bytes key):
        """Return the value of `key`, or None."""
        raise NotImplementedError

    cpdef list scan(self, bytes start, bytes end, bint reverse, Py_ssize_t limit):
        """Return the (key, value) pairs with start <= key < end (None: no bound), at most `limit` pairs (0: all)."""
        raise NotImplementedError

    cpdef object write(self, OrderedMap batch, uint64_t index, uint64_t term):
        """Atomically store every pair of `batch` (value None: delete the key) and the applied log position.

        Raises EngineBusy if it cannot take the batch without waiting; nothing is stored then, and the very same call
        comes again a little later. Raises DiskFailed, OSError (the node stops), DamagedData.
        """
        raise NotImplementedError

    cpdef tuple applied(self):
        """Return (index, term) of the last write, or (0, 0) for a new engine."""
        raise NotImplementedError

    cpdef Engine view(self):
        """Return a read-only engine with the present contents, which later writes do not change."""
        raise NotImplementedError

    cpdef object size(self):
        """Return the bytes that the engine takes, of memory or of files, with everything besides keys and values."""
        raise NotImplementedError

    cpdef object restore(self, object stream):
        """Replace the contents by the (key, value) pairs of an iterable, with the log position (APPLIED_KEY) among
        them.

        An exception of the iterable passes through. The contents are then the old ones, or the first part of the new
        ones, which a restart recognizes by its log position.
        """
        raise NotImplementedError

    # -- defaults --

    def iterate(self, bytes start not None):
        """Iterate over the (key, value) pairs from `start` on, in order. It may or may not show writes made meanwhile.

        An engine that can walk in bounded memory whatever the size of its values overrides this.
        """
        cdef Py_ssize_t limit = 8
        while True:
            chunk = self.scan(start, None, False, limit)
            yield from chunk
            if len(chunk) < limit:
                return
            start = <bytes>chunk[len(chunk) - 1][0] + b"\0"
            limit = min(CHUNK, 2 * limit)

    cpdef object seek_ge(self, bytes key):
        """Return (key, value) of the first key not below `key`, or None."""
        pairs = self.scan(key, None, False, 1)
        return pairs[0] if pairs else None

    cpdef object seek_le(self, bytes key):
        """Return (key, value) of the last key not above `key`, or None."""
        pairs = self.scan(b"", key + b"\0", True, 1)
        return pairs[0] if pairs else None

    cpdef list find_many(self, object keys):
        """Return the value of each of `keys`, or None, in their order."""
        return [self.get(key) for key in keys]

    cpdef object count(self, bytes start, bytes end):
        """Return how many keys of clients are alive whose newest version stands at start <= key < end (None: no bound),
        or None if the engine would have to walk over them."""
        return None

    cpdef bint remove_ranges(self, list ranges):
        """Remove all records with start <= key < end of each (start, end), which are in order and apart, in one write
        that leaves the log position. Raises what `write` raises. Return False, and remove nothing, if the engine has no
        cheap way to do that; a call without ranges asks for this."""
        return False

    cpdef bint reclaim(self):
        """Do a slice (at most a millisecond) of the freeing that is left over. Return True while there is more."""
        return False

    cpdef object defragment(self):
        """Begin, or go on, to give back room that is held and not needed, without blocking (at most a millisecond).
        Return None when it is done, else the seconds after which to call again (float). An engine that works in a
        thread of its own returns seconds as long as that thread is busy."""
        return 0.0 if self.reclaim() else None

    cpdef object durable_applied(self):
        """Return the applied index up to which everything survives a crash of the process and of the machine. An engine
        with `persistent` True overrides this and never returns too much. Nothing of another engine survives, so its
        index is 0."""
        if self.persistent is None or self.persistent:
            raise NotImplementedError
        return 0

    cpdef object flush(self):
        """Move durable_applied() on, as far as the engine can by itself."""
        return None

    cpdef object close(self):
        """Release what the engine holds. It is not used afterwards."""
        return None

    cpdef object size_in_use(self):
        """Return the bytes of size() that do not wait to be reclaimed, as far as the engine knows."""
        return self.size()

    cpdef object data_size(self):
        """Return the bytes of keys and values, which a snapshot of this engine has to walk."""
        return self.size()

    cpdef object begin_flush(self):
        """Flush as `flush` does, but in the background if the engine can. durable_applied() shows the progress."""
        self.flush()

    cpdef object drop(self):
        """Drop the contents if that gives back memory. The next call is `restore`."""
        return None

    cpdef Engine stage(self):
        """Return a new, empty engine beside this one, which `restore` will fill in another thread. None if the engine
        cannot; then `restore` is called on the engine itself, in the node's thread, which stands still meanwhile."""
        return None

    cpdef object seal(self):
        """Make a filled engine from `stage` the one that a restart finds. The thread that filled it calls this."""
        return None

    cpdef object adopt(self, Engine staged):
        """Take over, at once, the contents of an engine from `stage`, which is not used afterwards."""
        raise NotImplementedError


cdef class MemoryCursor(EngineCursor):
    """Walks the tree as it was when the cursor was made."""

    def __dealloc__(self):
        if self.root != NULL:
            node_release(self.root)

    cdef Record* seek(self, const uint8_t* key, size_t n) except? NULL:
        return cursor_ge(&self.cur, self.root, key, n)

    cdef Record* next(self) except? NULL:
        return cursor_next(&self.cur)

    cdef Record* seek_alive(self, const uint8_t* key, size_t n, bint* knows) except? NULL:
        knows[0] = True
        return cursor_alive(&self.cur, self.root, key, n)

    cdef Record* seek_below(self, const uint8_t* key, size_t n) except? NULL:
        return cursor_below(&self.cur, self.root, key, n)

    cdef Record* prev(self) except? NULL:
        return cursor_prev(&self.cur)

    cdef Record* alive_below(self, const uint8_t* key, size_t n, bint* knows) except? NULL:
        knows[0] = True
        return cursor_alive_below(&self.cur, self.root, key, n)


# The engines in memory that are not views. `size` subtracts their contents from the memory of all maps.
cdef object alive = WeakSet()


cdef class MemoryEngine(Engine):
    """Everything in memory. After a crash, the snapshot and the log after it are left."""

    CONTRACT = CONTRACT
    persistent = False

    def __cinit__(self):
        self.tree = OrderedMap(True)
        self.index = 0
        self.term = 0

    def __init__(self, path=None):
        """`path`, the folder that every engine gets, is not used."""
        alive.add(self)

    cdef Record* find(self, const uint8_t* key, size_t n) except? NULL:
        cdef Record* rec = tree_get(self.tree.root, key, n)
        if rec != NULL:
            rec_ref(rec)
        return rec

    cdef Record* find_le(self, const uint8_t* key, size_t n) except? NULL:
        cdef Record* rec = tree_le(self.tree.root, key, n)
        if rec != NULL:
            rec_ref(rec)
        return rec

    cdef EngineCursor cursor(self):
        cdef MemoryCursor walk = MemoryCursor()
        walk.root = self.tree.root
        if walk.root != NULL:
            walk.root.refs += 1
        walk.cur.depth = 0
        return walk

    cdef size_t pace(self) noexcept:
        return 1

    cpdef object get(self, bytes key):
        """Return the value of `key`, or None."""
        return self.tree.get(key)

    cpdef object seek_ge(self, bytes key):
        """Return (key, value) of the first key not below `key`, or None."""
        return self.tree.seek_ge(key)

    cpdef object seek_le(self, bytes key):
        """Return (key, value) of the last key not above `key`, or None."""
        return self.tree.seek_le(key)

    cpdef list scan(self, bytes start, bytes end, bint reverse, Py_ssize_t limit):
        """Return the (key, value) pairs with start <= key < end (None: no bound), at most `limit` pairs (0: all)."""
        return self.tree.scan(start, end, reverse, limit)

    cpdef object count(self, bytes start, bytes end):
        """Return how many keys of clients are alive between two keys of the engine (None: no bound)."""
        return self.tree.alive(start, end)

    cpdef object write(self, OrderedMap batch, uint64_t index, uint64_t term):
        """Take over the batch's records without copying them, and the log position."""
        cdef Cursor cur
        cdef uint8_t position[16]
        cdef Record* rec = cursor_first(&cur, batch.root)
        while rec != NULL:
            if rec_deleted(rec):
                self.tree.remove(rec_key(rec), rec.klen)
            else:
                rec_ref(rec)
                self.tree.put_record(rec)
            rec = cursor_next(&cur)
        put64(position, index)
        put64(position + 8, term)
        self.tree.put_raw(<const uint8_t*>PyBytes_AS_STRING(APPLIED), PyBytes_GET_SIZE(APPLIED), position,
                          sizeof(position))
        self.index = index
        self.term = term

    cpdef tuple applied(self):
        """Return (index, term) of the last write, or (0, 0) for a new engine."""
        return (self.index, self.term)

    cpdef Engine view(self):
        """Return a read-only engine with the present contents, in O(1)."""
        cdef MemoryEngine other = MemoryEngine.__new__(MemoryEngine)
        other.tree = self.tree.view()
        other.index = self.index
        other.term = self.term
        return other

    cpdef object defragment(self):
        """Free what is left over, then move records out of slabs that are mostly empty."""
        if self.reclaim():
            return 0.0
        self.packing = pack_slice(self.tree, self.packing or b"", PACK)
        return None if self.packing is None else 0.0

    cpdef object size(self):
        """Return the bytes of memory that the contents take, plus what only views still see or what waits to be freed.

        The latter is not known for each engine. In a process with several engines, each of them counts all of it.
        """
        cdef size_t total = held_bytes(), known = 0
        cdef MemoryEngine other
        for other in alive:
            known += other.tree.taken
        return self.tree.taken + (total - known if total > known else 0)

    cpdef object size_in_use(self):
        """Return the bytes of memory that the contents take, as slabs and malloc round them, and nodes of the tree."""
        return self.tree.taken

    cpdef object data_size(self):
        """Return the bytes of keys and values."""
        return self.tree.nbytes

    cpdef bint reclaim(self):
        """Free a slice of what was dropped. Return True while there is more."""
        free_garbage(RECLAIM_BUDGET)
        return garbage_left()

    cpdef object close(self):
        """Drop the contents."""
        self.tree = OrderedMap(True)

    cpdef object drop(self):
        """Drop the contents. They are freed while others are put in their place."""
        self.tree = OrderedMap(True)
        self.index = 0
        self.term = 0

    cpdef Engine stage(self):
        """Return an engine in memory."""
        return MemoryEngine()

    cpdef object adopt(self, Engine staged):
        """Take over the tree of another engine in memory."""
        cdef MemoryEngine other = <MemoryEngine?>staged
        self.tree = other.tree
        self.index = other.index
        self.term = other.term
        other.tree = OrderedMap(True)

    cpdef object restore(self, object stream):
        """Replace the contents by the pairs of an iterable. Raises FormatError (nothing is changed then)."""
        cdef OrderedMap fresh = OrderedMap(True)
        cdef const uint8_t* position
        cdef bytes where
        for key, value in stream:
            fresh.set(key, value)
        where = fresh.get(APPLIED, b"")
        if len(where) != 16:
            raise errors.FormatError("restore: the stream has no log position")
        position = <const uint8_t*>PyBytes_AS_STRING(where)
        self.tree = fresh
        self.index = get64(position)
        self.term = get64(position + 8)
