"""A put of this process whose answer is a Future."""

from metastore._core.waiter cimport RevisionWaiter


cdef class FuturePut(RevisionWaiter):
    """Waits for one put, and resolves a Future with its result."""
    cdef readonly object future
    cdef object _kind
