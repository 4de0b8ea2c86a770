"""The one who waits for the outcome of an operation: an HTTP/2 request or a caller in this process."""


cdef class Waiter:
    """Base of everything that can be answered once.

    `complete` is called at C level from the apply path; exactly one of the two methods is called,
    exactly once. Both must accept a waiter whose connection is long gone, and must not raise.
    """

    cpdef complete(self, object reply):
        """Answer with `reply`: the encoded response message (bytes, protobuf, without gRPC prefix)."""
        raise NotImplementedError

    cpdef fail(self, object error):
        """Answer with `error`: an instance of `metastore.errors.MetaStoreError`."""
        raise NotImplementedError
