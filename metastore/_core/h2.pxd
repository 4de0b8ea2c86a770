from libc.stdint cimport int32_t, uint8_t

from metastore._core.h2link cimport Link
from metastore._core.h2request cimport Request


cdef class Session(Link):
    cdef bint retiring                      # the client was asked to go elsewhere
    cdef int32_t last_told                  # the client was told that this stream is the last one; -1: it was not

    cpdef list feed(self, object data, Py_ssize_t n=*, double now=*)
    cpdef bytes take_output(self, size_t limit=*)
    cpdef list unpark(self)
    cpdef retire(self)
    cpdef retire(self)
    cpdef shutdown(self)
    cpdef close(self)
    cdef int broken(self, Request req) except -1
    cdef int run_events(self) except -1
    cdef int cut_input(self) except -1
    cdef int drain(self, uint8_t** out, size_t* cap, size_t* size, size_t limit) except -1
