from libc.stdint cimport int64_t, uint32_t, uint64_t

from metastore._core.engine cimport Engine, EngineCursor
from metastore._core.gaps cimport GapWalk
from metastore._core.kv_messages cimport Kv
from metastore._core.record cimport Record
from metastore._core.work cimport Detours


cdef class SharedWalk:
    cdef GapWalk walk
    cdef object fault
    cdef uint64_t walks       # walks that have begun or gone on where another one was
    # No reference to the walk: a cycle would keep the iterator, and with it files, until the collector comes.


cdef class WalkCursor(EngineCursor):
    cdef bint begun
    cdef SharedWalk shared    # None: it goes on with `pairs`
    cdef bytes last           # the key at which it stands
    cdef uint64_t number      # `walks` when it last placed the iterator
    cdef Record* place(self, bytes key) except? NULL
    cdef Record* take(self) except? NULL


cdef class WalkedEngine(Engine):
    pass


cdef struct Rev:
    int64_t main
    uint32_t sub


cdef class Finder:
    cdef GapWalk walk
    cdef object items, get
    cdef Detours detours
    cdef object run           # what `items` has returned, or None: the walk is used
    cdef Rev here             # the revision of the record on which the run stands
    cdef object value         # its value, if the run has `items`
    cdef Rev border           # where the next gap begins
    cdef GapWalk filling      # what it reads stays in the cache; None: that of `items` does, or nothing is to
    cdef readonly size_t nbytes

    cpdef list find(self, list keys)
    cdef list find_revisions(self, const Kv* pairs, size_t n)
    cdef list find_each(self, const Kv* pairs, Py_ssize_t count, list keys)
    cdef int find_sorted(self, const Rev* revs, Py_ssize_t count, list keys, list values) except -1
    cdef bint leads_to(self, const Rev* rev) noexcept
    cdef object one(self, bytes key)
    cdef int find_run(self, const Rev* revs, Py_ssize_t first, Py_ssize_t end, list values) except -1
    cdef int place(self, const Rev* rev, bytes key) except -1
    cdef int stand(self) except -1
    cdef int step(self) except -1
    cdef object take(self)
