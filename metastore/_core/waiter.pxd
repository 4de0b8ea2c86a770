cdef class Waiter:
    cpdef complete(self, object reply)
    cpdef fail(self, object error)
