from libc.stdint cimport int64_t, uint32_t, uint64_t

from metastore._core.watch_wire cimport WatchRequest

cdef enum:
    WAITING = 0      # for a revision that is not there yet
    BEHIND = 1       # history is to be read for it
    LIVE = 2         # it gets changes as they are applied
    GONE = 3         # cancelled, or its stream ended


cdef class Sink:
    cpdef bint full(self)
    cpdef send(self, bytes message)


cdef class Stream:
    cdef readonly Sink sink
    cdef readonly dict watchers          # id -> Watcher
    cdef int64_t next_id
    cdef size_t units                    # of its watchers, see Watcher.units
    cdef readonly size_t behind          # watchers that are BEHIND
    cdef readonly size_t waiting         # watchers that are WAITING
    cdef bint wants_progress
    cdef bint closed


cdef class Watcher:
    cdef readonly Stream stream
    cdef readonly int64_t id
    cdef readonly bytes key
    cdef readonly bytes end
    cdef readonly bint prev_kv, no_put, no_delete, fragment, progress
    cdef readonly int state
    cdef readonly int64_t next_rev       # changes before it do not concern this watcher, or were sent
    cdef readonly uint64_t serial
    cdef readonly Group group            # None while it is in no index
    cdef Index home                      # the index of that group
    cdef bint heard                      # something was sent since the last look at the time
    cdef bint alone                      # its events of one revision are many: it is fed without others
    cdef readonly size_t units


cdef class Group:
    cdef readonly bytes key, end
    cdef readonly bint prev_kv, no_put, no_delete
    cdef readonly int64_t since          # changes before it do not concern this group
    cdef dict watchers                   # Watcher -> None, in the order in which they came
    cdef list events                     # of the changes that are not delivered yet, encoded; some in one piece
    cdef size_t pieces                   # of `events` that stay as they are
    cdef size_t loose                    # bytes of the events behind these
    cdef size_t number                   # events
    cdef size_t size                     # bytes of them, with what a list of them takes
    cdef int64_t first, last             # revisions of the first and the last of them
    cdef bint touched
    cdef object name                     # its key in the index's table
    # A node of the treap of ranges.
    cdef Group left, right
    cdef bytes top                       # the highest end in this subtree
    cdef bint endless                    # a range in this subtree has no end
    cdef uint32_t priority
    cdef uint64_t serial

    cdef void clear(self) noexcept
    cdef int append(self, bytes event, size_t piece) except -1


cdef class Index:
    cdef dict single                     # key -> list of groups
    cdef dict open                       # name -> the group that takes further watchers
    cdef dict groups                     # Group -> None
    cdef Group root
    cdef uint64_t serial
    cdef readonly size_t count           # watchers

    cdef int add(self, Watcher watcher, int64_t since) except -1
    cdef int remove(self, Watcher watcher) except -1
    cdef int drop(self, Group group) except -1
    cdef int find(self, bytes key, list out) except -1


cpdef size_t units_of(bytes key, bytes end)
