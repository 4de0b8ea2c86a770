from metastore._core.mvcc cimport Store


cdef int spill(Store store) except -1
cdef bint purge(Store store, size_t budget) except -1
