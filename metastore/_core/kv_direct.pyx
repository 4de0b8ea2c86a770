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
- **Engines**: MemoryEngine alone is read in this way. Every other one runs Python code or input and output in mid-read.
- **Others want the GIL**: a thread that gets in a loop lets go of it after every YIELD_EVERY gets, and steps back.

If `open` is not set the reader uses the queue, as all other calls do. Free-threaded Python has no GIL to hold; our
modules do not declare that they do without one, so importing them turns it on.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject_GenericSetAttr
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport uint8_t

from metastore._core.engine cimport Engine, MemoryEngine
from metastore._core.kv_messages cimport Kv, Slice
from metastore._core.kv_server cimport METHOD_RANGE, KVServer
from metastore._core.mvcc cimport Store
from metastore._core.mvcc_keys cimport IndexView
from metastore._core.record cimport Record, rec_release

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)

cdef enum:
    # With a step back every 64 gets (50 us) a put over the wire beside them takes as long as alone, within noise.
    YIELD_EVERY = 64

#: What a reader gets that must use the queue.
MISSED = object()


cdef class DirectReads:
    """Single keys of `server`'s store. `KeyValue` makes results: a class with slots for the fields of a KeyValue.

    Until `open` is set, and after `close`, every read misses.
    """

    def __init__(self, KVServer server not None, made not None):
        self.server = server
        self.store = server.store
        self.able = isinstance(self.store.engine, MemoryEngine)
        self.made = made

    def close(self) -> None:
        """Let go of the store; every read misses from now on. From any thread."""
        self.able = self.open = False
        self.server = None
        self.store = None

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
        if not self.open or not self.able or self.server.refusal is not None or self.server.holding:
            return MISSED
        if name.n == 0 or (self.server.max_key_bytes and 2 * name.n > self.server.max_key_bytes):
            return MISSED    # the queue has the errors for these; zero bytes count twice
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
        """Let the loop's thread have its turn now and then, behind a read."""
        self.served += 1
        if self.served % YIELD_EVERY == 0:
            with nogil:
                sched_yield()
        return found
