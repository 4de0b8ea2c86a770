from cpython.buffer cimport Py_buffer
from libc.stdint cimport uint8_t


cdef class Column:
    cdef readonly Py_ssize_t size         # keys or values in it
    cdef readonly str name                # "keys" or "values", for errors
    cdef Py_buffer _data
    cdef Py_buffer _offsets
    cdef bint _has_data, _has_offsets
    cdef bint _padded                     # zero bytes at the end are padding
    cdef bint _unsigned                   # offsets of 32 bits have no sign
    cdef size_t _width                    # bytes of each, where there are no offsets

    # Point at number `place`, which must be below `size`. Raises ValueError for offsets that are none.
    cdef int at(self, Py_ssize_t place, const uint8_t** p, size_t* n) except -1
    cdef int _fixed(self) except -1
    cdef int _varying(self, offsets) except -1
