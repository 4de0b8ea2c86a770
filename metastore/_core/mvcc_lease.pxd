from libc.stdint cimport int64_t, uint8_t

from metastore._core.mvcc cimport Store
from metastore._core.record cimport Record
from metastore._core.work cimport Work


cdef class RevokeWork(Work):
    """The end of a lease, with the deletion of its keys, in the live store."""
    cdef Store store
    cdef int64_t lease        # 0: there is nothing to do
    cdef bytes at             # engine key in table 'a' at which the next piece begins
    cdef bint want

    cdef int take(self, Record** found, size_t most, size_t* n) except -1
    cdef int finish(self) except -1


# Carries out an operation at once, in steps of `budget` units. Gives the encoded reply, if one is wanted.
cdef object carry_out(Store store, Work work, size_t budget)
cdef RevokeWork start_revoke(Store store, const uint8_t* body, size_t n, bint want)
