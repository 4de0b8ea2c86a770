from libc.stdint cimport int64_t


cdef class Waiter:
    cpdef complete(self, object reply)
    cpdef fail(self, object error)


cdef class RevisionWaiter(Waiter):
    cdef int64_t revision
