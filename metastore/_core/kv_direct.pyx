"""Reads of single keys by threads of this process, which do not wait for the loop's thread.

The store belongs to the loop's thread. While that waits for its next turn it touches nothing, and then other threads may
read: they hold the GIL, so the loop's thread cannot go on before they have finished.

- **open** is set by the loop's thread at the end of a turn, if the applied state of this member is everything that any
  client was told: it leads, it is the only voter, it has applied an entry of its own term, it is ready, and it neither
  stops nor refuses. The loop clears it when its wait is over, before it does anything else. So all that changes the
  store or these conditions (applying, a membership change, an installed snapshot, a sweep) happens while it is cleared.
- **A reader** does not let go of the GIL between its look at `open` and its last touch of the store: it calls no Python
  and makes no object that the collector tracks. (On Python 3.11 a collection can switch threads.) The bytes of the value
  are no such object. The result is made of copies, behind that.
- **Engines**: MemoryEngine alone is read in this way. Others run Python code or input and output in mid-read, so another
  thread, also the loop's, may have its turn meanwhile. An engine with a `reader` (RocksDB) is read as told below, and any
  other one is not.
- **The loop wants the GIL** when its wait is over, and says so (`_core/quiet`). A thread that gets in a loop looks at that
  behind each get, and lets go of the GIL until the loop's thread has it.
- **Others want the GIL** and cannot say so: other threads of the program, and other nodes. For these such a thread lets go
  of it after every YIELD_EVERY or YIELD_OUTSIDE gets. Now and then it sleeps.

The `reader` of an engine is an iterator over its present state and a function that looks up one key. No other part of
the program uses these two, so they share no position and no buffer with the loop. Such a get has three steps:

1. Overlay and recent records are looked at without letting go of the GIL, as above, and so is `epoch`: how often the loop
   has cleared `open`.
2. The `reader` looks up what these did not have. Whatever happens meanwhile is allowed: other threads, signals, the
   collector. One thread at a time uses an iterator; another thread makes one of its own.
3. If `epoch` is still the same, the loop's thread has done nothing since step 1, so all that was found is of one state.
   Otherwise result, error and iterator are thrown away, and the reader uses the queue.

Nobody waits for anybody here, so a signal handler or a finalizer that gets a key during step 2 cannot lock up. Only the
end of the loop waits for the threads in step 2, for a second at most (`inside`): their iterators keep the folder locked.
An iterator also keeps the files of its state, so the loop drops it when it clears `open`. What RocksDB raises, and a walk
that gave up, are left to the queue, which finds them again.

If `open` is not set the reader uses the queue, as all other calls do. Free-threaded Python has no GIL to hold; our
modules do not declare that they do without one, so importing them turns it on.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject_GenericSetAttr
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from metastore._core.engine cimport MemoryEngine, record_of
from metastore._core.engine_guard cimport GuardedEngine
from metastore._core.kv_messages cimport Kv, Slice
from metastore._core.kv_server cimport METHOD_RANGE, KVServer
from metastore._core.mvcc cimport Store
from metastore._core.mvcc_keys cimport (REV_KEY_SIZE, REV_SIZE, IndexView, RevView, index_prefix, index_read, index_room,
                                        rev_key, rev_record_read, rev_write, same_prefix)
from metastore._core.quiet cimport ms_wanted
from metastore._core.ordered_map_walk cimport tree_get, tree_le
from metastore._core.recent_keys cimport RecentEngine
from metastore._core.record cimport Record, rec_release

cdef extern from *:
    """
    #include <sched.h>
    #include <time.h>

    /* Wait until the loop's thread has the GIL: 40 steps of 50 us and more at most. To sleep leaves it the processor.
     * Where this called sched_yield instead, the system often gave the processor to the caller again, for up to 1.4 ms.
     */
    static void ms_give_way(int *wanted) {
        static const struct timespec step = {0, 20000};
        for (int left = 40; left && __atomic_load_n(wanted, __ATOMIC_SEQ_CST); left--) nanosleep(&step, NULL);
    }

    /* For those who cannot say that they wait: 100 us, or only as long as others want the processor. */
    static void ms_step_back(int sleeps) {
        static const struct timespec pause = {0, 100000};
        if (sleeps) nanosleep(&pause, NULL);
        else sched_yield();
    }
    """
    void ms_give_way(int*) noexcept nogil
    void ms_step_back(bint) noexcept nogil

cdef enum:
    # Every 64 gets (50 us). The loop's thread may also have to wait for the reader's processor: for up to 1.4 ms where
    # the reader never yielded it.
    YIELD_EVERY = 64
    # The same for gets in an engine outside, of 8 us each.
    YIELD_OUTSIDE = 8
    # Who takes the GIL again at once may take it before another thread is awake, which then waits anew: as long as this
    # goes on the interpreter does not ask for the GIL either. So every 16th time, about every ms, is a sleep in which
    # that thread surely wakes. Without it each step of such a thread took 5 ms.
    SLEEP_EVERY = 16

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)

cdef uint32_t LAST_SUB = 0xFFFFFFFFUL


#: What a reader gets that must use the queue.
MISSED = object()


cdef class DirectReads:
    """Single keys of `server`'s store. `made` makes results: a class with slots for the fields of a KeyValue.

    Until `open` is set, and after `close`, every read misses.
    """

    def __init__(self, KVServer server not None, made not None):
        self.server = server
        self.store = server.store
        self.engine = self.store.engine
        if isinstance(self.engine, GuardedEngine):
            self.engine = (<GuardedEngine>self.engine).inner
        self.outside = isinstance(self.engine, RecentEngine) and hasattr(self.engine, "reader")
        self.able = self.outside or isinstance(self.store.engine, MemoryEngine)
        self.made = made

    cdef int shut(self) except -1:
        self.opened = False
        self.epoch += 1
        self.reader = None
        return 0

    def close(self) -> None:
        """Let go of the store; every read misses from now on. From any thread."""
        self.able = False
        self.shut()
        self.server = None
        self.store = None
        self.engine = None

    def get(self, key, bint keys_only=False):
        """Return the newest version of a key (bytes or str) as a KeyValue, None if there is none, or MISSED. Raises
        DamagedData."""
        cdef Slice name
        cdef IndexView view
        cdef Kv kv
        cdef bytes value = b""
        cdef Py_ssize_t n = 0
        if type(key) is bytes:
            name.p, name.n = <const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)
        elif type(key) is str and PyUnicode_IS_COMPACT_ASCII(key):
            name.p = <const uint8_t*>PyUnicode_AsUTF8AndSize(key, &n)
            name.n = <size_t>n
        else:
            return MISSED
        # From this look on to the last touch of the store: no Python, no tracked object, no other thread.
        if not self.opened or not self.able or self.server.refusal is not None or self.server.holding:
            return MISSED
        if name.n == 0 or (self.server.max_key_bytes and 2 * name.n > self.server.max_key_bytes):
            return MISSED    # the queue has the errors for these; zero bytes count twice
        if self.outside:
            found = self.look_up(&name, keys_only, &view)
            if found is MISSED:
                return MISSED
            self.server.calls[METHOD_RANGE] += 1
            if found is None:
                return self.step_back(None)
            return self.step_back(self.result(<bytes>name.p[:name.n] if type(key) is str else key, found, &view))
        self.server.calls[METHOD_RANGE] += 1
        if not self.store.version_at(&name, self.store.rev, &view) or view.tombstone:
            return self.step_back(None)
        if not keys_only:
            kv.hold = NULL
            try:
                self.store.load(&view, &kv)
                value = PyBytes_FromStringAndSize(<const char*>kv.value.p, kv.value.n)
            finally:
                if kv.hold != NULL:
                    rec_release(<Record*>kv.hold)
        # The store is not touched any more.
        return self.step_back(self.result(<bytes>name.p[:name.n] if type(key) is str else key, value, &view))

    cdef object look_up(self, const Slice* name, bint keys_only, IndexView* view):
        """Return the value of a key's newest version and fill `view`, None if there is none, or MISSED. This is for an
        engine with a `reader`."""
        cdef uint64_t epoch = self.epoch
        cdef Store store = self.store
        cdef RecentEngine engine = <RecentEngine>self.engine
        cdef bytes room = PyBytes_FromStringAndSize(NULL, index_room(name.n))
        cdef uint8_t* p = <uint8_t*>PyBytes_AS_STRING(room)
        cdef size_t n = index_prefix(p, name.p, name.n)
        cdef Record* rec = NULL
        cdef bytes value = b""
        cdef bint known = True
        rev_write(p + n, store.rev, LAST_SUB)
        if store.overlay.count:
            rec = tree_le(store.overlay.root, p, n + REV_SIZE)
        if rec == NULL or not same_prefix(rec, p, n):
            rec = engine.kept(p, n + REV_SIZE)
        if rec != NULL:
            index_read(rec, view)
            if view.tombstone or keys_only:
                return None if view.tombstone else value
        # From here on other threads may have their turn.
        self.inside += 1
        reader, self.reader = self.reader, None
        try:
            if reader is None:
                reader = engine.reader()
            if rec == NULL:
                known = self.walk_to(<tuple?>reader, room[:n + REV_SIZE], p, n, view)
            if known and not view.tombstone and not keys_only:
                value = self.value_of(<tuple?>reader, store, view, epoch)
        except Exception:
            return MISSED
        finally:
            self.inside -= 1
        if self.epoch != epoch:
            return MISSED
        self.reader = reader
        if not known or value is None:
            return MISSED
        return None if view.tombstone else value

    cdef bint walk_to(self, tuple reader, bytes wanted, const uint8_t* p, size_t n, IndexView* view) except -1:
        """Find the newest version of a key by the iterator; `p` and `n` are its prefix. No version counts as a
        tombstone. Return False if the iterator does not know."""
        cdef Record* rec
        walk = reader[0]
        walk.seek_for_prev(wanted)
        found = walk.key()
        if found is None:
            return False
        rec = record_of(<bytes?>found, <bytes?>walk.value())
        try:
            view.tombstone = True
            if same_prefix(rec, p, n):
                index_read(rec, view)
        finally:
            rec_release(rec)
        return True

    cdef bytes value_of(self, tuple reader, Store store, const IndexView* view, uint64_t epoch):
        """Return the value of a version, or None if it is not known."""
        cdef uint8_t at[REV_KEY_SIZE]
        cdef RevView change
        cdef Record* rec = NULL
        cdef bytes name
        if self.epoch != epoch:
            return None
        rev_key(at, view.main, view.sub)
        if store.overlay.count:
            rec = tree_get(store.overlay.root, at, REV_KEY_SIZE)
        if rec != NULL:
            rev_record_read(rec, &change)
            return PyBytes_FromStringAndSize(<const char*>change.value, change.vlen)
        name = PyBytes_FromStringAndSize(<const char*>at, REV_KEY_SIZE)
        found = reader[1](name)
        if found is None:
            return None
        rec = record_of(name, <bytes?>found)
        try:
            rev_record_read(rec, &change)
            return PyBytes_FromStringAndSize(<const char*>change.value, change.vlen)
        finally:
            rec_release(rec)

    cdef object result(self, bytes key, bytes value, const IndexView* view):
        """A KeyValue: its fields are set past the class, which is frozen."""
        cdef object found = self.made.__new__(self.made)
        PyObject_GenericSetAttr(found, "key", key)
        PyObject_GenericSetAttr(found, "value", value)
        PyObject_GenericSetAttr(found, "create_revision", view.create)
        PyObject_GenericSetAttr(found, "mod_revision", view.main)
        PyObject_GenericSetAttr(found, "version", view.version)
        PyObject_GenericSetAttr(found, "lease", view.lease)
        return found

    cdef object step_back(self, object found):
        """Let other threads have their turn behind a read: the loop's thread if it wants that, others now and then."""
        cdef uint64_t every = YIELD_OUTSIDE if self.outside else YIELD_EVERY
        self.served += 1
        if ms_wanted(&self.asking):
            with nogil:
                ms_give_way(&self.asking)
        elif self.served % every == 0:
            with nogil:
                ms_step_back(self.served % (every * SLEEP_EVERY) == 0)
        return found
