"""Waiters: objects that get the outcome of an operation. An HTTP/2 request or a caller in this process is a Waiter."""


cdef class Waiter:
    """Base class of everything that is answered once.

    The apply path calls exactly one of the two methods, exactly once; it calls `complete` at C level. Both methods must
    work for a waiter whose connection is already closed, and must not raise.
    """

    cpdef complete(self, object reply):
        """Answer with `reply`: the encoded response message (bytes, protobuf, without gRPC prefix)."""
        raise NotImplementedError

    cpdef fail(self, object error):
        """Answer with `error`: an instance of `metastore.errors.MetaStoreError`."""
        raise NotImplementedError


cdef class RevisionWaiter(Waiter):
    """Base class of what waits for a put and wants no reply: the apply path sets `revision`, that of the store after
    the put, and calls `complete(None)`."""
