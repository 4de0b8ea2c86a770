from libc.stdint cimport int64_t, uint32_t, uint64_t

from metastore._core.kv_messages cimport Header, Slice
from metastore._core.mvcc cimport Store
from metastore._core.mvcc_keys cimport RevView
from metastore._core.record cimport Record

cdef enum:
    WATCH_NOTHING = 0        # none that we know: ignored
    WATCH_CREATE = 1
    WATCH_CANCEL = 2
    WATCH_PROGRESS = 3


cdef class WatchRequest:
    cdef readonly int kind
    cdef readonly bytes key
    cdef readonly bytes range_end
    cdef readonly int64_t start_revision
    cdef readonly int64_t watch_id
    cdef readonly bint progress_notify, prev_kv, fragment, no_put, no_delete

    cdef int filter(self, uint64_t which) except -1
    cdef int filters(self, const Slice* packed) except -1
    cdef int create(self, const Slice* body) except -1
    cdef int number(self, uint32_t field, uint64_t value) except -1
    cdef int cancel(self, const Slice* body) except -1


cdef struct Marks:
    bint created
    bint canceled
    bint fragment
    int64_t compact_revision
    int64_t watch_id


cdef class Change:
    cdef Store store
    cdef Record* record
    cdef RevView view
    cdef readonly int64_t main
    cdef readonly uint32_t sub
    cdef readonly bytes key
    cdef bytes plain
    cdef bytes with_prev

    cdef int take(self, Store store, Record* record) except -1
    cdef void drop(self) noexcept
    cdef bytes event(self, bint prev)
    cdef bytes encode(self, bint prev)


cdef class Draft:
    """A long response to one watcher, or the fragments of one, put together piece by piece."""
    cdef Header header
    cdef Marks marks
    cdef list events
    cdef size_t fragment_size    # 0: one response
    cdef size_t next             # the events before this one are in a message
    cdef size_t last             # of the message at hand, exclusive
    cdef size_t at               # bytes of the message at hand
    cdef bytes message
    cdef list messages           # those that are whole

    cdef size_t go_on(self, size_t budget) except? 0
    cdef int begin(self) except -1


cdef bytes encode_response(const Header* header, const Marks* marks, bytes reason, list events, size_t first,
                           size_t last)
