from libc.stdint cimport uint64_t

from metastore._core.engine cimport Engine, EngineCursor
from metastore._core.gaps cimport GapWalk
from metastore._core.record cimport Record


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
