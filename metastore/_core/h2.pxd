from libc.stdint cimport uint8_t

from metastore._core.h2_link cimport Link


cdef class Session(Link):
    cdef bint rests(self) noexcept
    cpdef list feed(self, object data, Py_ssize_t n=*, double now=*)
    cdef list receive(self, const uint8_t* data, Py_ssize_t n, double now)
    cpdef bytes take_output(self, size_t limit=*)
    cpdef list unpark(self)
    cpdef retire(self)
    cpdef shutdown(self)
    cpdef quit(self)
    cpdef bint let_go(self, Py_ssize_t count) except *
    cpdef close(self)
    cdef int run_events(self) except -1
    cdef int cut_input(self) except -1
    cdef int drain(self, uint8_t** out, size_t* cap, size_t* size, size_t limit) except -1
