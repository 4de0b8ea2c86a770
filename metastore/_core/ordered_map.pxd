from libc.stdint cimport uint8_t

from metastore._core.ordered_map_node cimport Node
from metastore._core.record cimport Record

cdef void node_release(Node* node) noexcept nogil
cdef size_t free_garbage(size_t budget) noexcept nogil
cdef bint garbage_left() noexcept nogil


cdef bytes key_bytes(Record* rec)
cdef object pair(Record* rec)


cdef class OrderedMap:
    cdef Node* root
    cdef Record* top              # greatest known record (borrowed), NULL when not known
    cdef bint frozen
    cdef readonly bint weighs
    cdef readonly size_t count
    cdef readonly size_t nbytes
    cdef readonly size_t taken

    cdef int make_room(self, bint at_right_edge) except -1
    cdef void shrink(self, Node* parent, int index) noexcept
    cdef void lower_root(self) noexcept
    cdef int weigh(self, Node* leaf, int at) noexcept
    cdef int supersede(self, Record* rec) except -1
    cdef Record* heir(self, Node* leaf, int at) noexcept
    cdef int mark(self, Record* rec, bint alive) except -1
    cdef Node* own_path(self, const uint8_t* key, size_t n, Node** path, int* ways, int* level) except NULL
    cdef size_t between(self, const uint8_t* low, size_t low_n, const uint8_t* high, size_t high_n) noexcept
    cdef int put_record(self, Record* rec) except -1
    cdef int put_raw(self, const uint8_t* key, size_t kn, const uint8_t* value, size_t vn) except -1
    cdef bint remove(self, const uint8_t* key, size_t n) except -1
    cpdef clear(self)
    cpdef OrderedMap view(self)
