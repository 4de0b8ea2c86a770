from libc.stdint cimport uint8_t

from metastore._core.mvcc cimport Store


cdef object run_puts(Store store, const uint8_t* body, size_t n, bint want, size_t* cost)
