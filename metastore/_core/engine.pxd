from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from metastore._core.kv_messages cimport Kv
from metastore._core.ordered_map cimport OrderedMap
from metastore._core.ordered_map_node cimport Node
from metastore._core.ordered_map_walk cimport Cursor
from metastore._core.record cimport Record
from metastore._core.work cimport Detours


# A record, owned by the caller, with copies of both.
cdef Record* record_of(bytes key, bytes value) except NULL


cdef class EngineCursor:
    # Records returned are borrowed: good until the next call or until the engine changes.
    cdef Engine engine
    cdef object pairs                     # an iterator over pairs of the engine, upwards or downwards
    cdef Record* held
    cdef Record* seek(self, const uint8_t* key, size_t n) except? NULL    # first record not below key
    cdef Record* next(self) except? NULL
    # First record not below key that is the living version of a client's key. knows: False where only a walk can tell.
    cdef Record* seek_alive(self, const uint8_t* key, size_t n, bint* knows) except? NULL
    cdef Record* seek_below(self, const uint8_t* key, size_t n) except? NULL    # last record below key; then `prev`
    cdef Record* prev(self) except? NULL
    # Last record below key that is the living version of a client's key. knows: as above.
    cdef Record* alive_below(self, const uint8_t* key, size_t n, bint* knows) except? NULL


cdef class Engine:
    cdef public Detours detours           # of its walks; None: they make none

    # The C-level methods; the defaults call the Python methods. The caller owns the records returned.
    cdef Record* find(self, const uint8_t* key, size_t n) except? NULL
    cdef Record* find_le(self, const uint8_t* key, size_t n) except? NULL
    cdef EngineCursor cursor(self)
    # The value of the 'r' record of each pair's version, or None, in their order.
    cdef list find_revisions(self, const Kv* pairs, size_t n)
    cdef size_t pace(self) noexcept       # what a unit of work costs here, in units (work.pxd)

    cpdef object get(self, bytes key)
    cpdef object seek_ge(self, bytes key)
    cpdef object seek_le(self, bytes key)
    cpdef list scan(self, bytes start, bytes end, bint reverse, Py_ssize_t limit)
    cpdef list find_many(self, object keys)
    cpdef object count(self, bytes start, bytes end)
    cpdef object write(self, OrderedMap batch, uint64_t index, uint64_t term)
    cpdef bint remove_ranges(self, list ranges)
    cpdef tuple applied(self)
    cpdef Engine view(self)
    cpdef object size(self)
    cpdef bint reclaim(self)
    cpdef object defragment(self)
    cpdef object durable_applied(self)
    cpdef object flush(self)
    cpdef object close(self)
    cpdef object restore(self, object stream)
    cpdef object size_in_use(self)
    cpdef object data_size(self)
    cpdef object begin_flush(self)
    cpdef object drop(self)
    cpdef Engine stage(self)
    cpdef object seal(self)
    cpdef object adopt(self, Engine staged)


cdef class MemoryCursor(EngineCursor):
    cdef Node* root
    cdef Cursor cur


cdef class MemoryEngine(Engine):
    cdef OrderedMap tree
    cdef uint64_t index
    cdef uint64_t term
    cdef bytes packing           # the key at which a defragmentation goes on
    cdef object __weakref__
