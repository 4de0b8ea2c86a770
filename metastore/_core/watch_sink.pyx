"""The stream of a remote watcher: responses go into an HTTP/2 stream as far as its client takes them."""

from metastore._core.grpc cimport Limits
from metastore._core.h2_request cimport Request
from metastore._core.watch_index cimport Sink

cdef enum:
    FULL = 128 << 10         # unread bytes of one stream beyond which nothing more is sent


cdef class RequestSink(Sink):
    """Sends to one call of the method Watch. What its client has not taken is at most FULL bytes and one response more."""

    def __init__(self, Request request not None):
        self.request = request

    cpdef bint full(self):
        cdef Request request = self.request
        cdef Limits limits
        if request.closed:
            return False
        limits = request.session.limits
        # The last quarter is for the replies of others. A stream with nothing unread may go on longer than the others.
        if limits.total_output >= limits.max_total_output // 4 * (2 if request.queued else 3):
            return True
        return request.queued >= FULL

    cpdef send(self, bytes message):
        self.request.send(message)
