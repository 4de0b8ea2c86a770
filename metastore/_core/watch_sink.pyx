"""The stream of a remote watcher: responses go into an HTTP/2 stream as far as its client takes them."""

from metastore._core.grpc cimport Limits
from metastore._core.h2_request cimport Request
from metastore._core.watch_index cimport Sink

cdef enum:
    FULL = 128 << 10         # unread bytes of one stream beyond which nothing more is sent
    CROWDED = 2              # all clients' unread replies may be this part of their limit before every stream with some is full


cdef class RequestSink(Sink):
    """Sends to one call of the method Watch. What its client has not taken is at most FULL bytes and one response more."""

    def __init__(self, Request request not None):
        self.request = request

    cpdef bint full(self):
        cdef Request request = self.request
        if request.closed or not request.queued:
            return False
        cdef Limits limits = request.session.limits
        return request.queued >= FULL or limits.total_output >= limits.max_total_output // CROWDED

    cpdef send(self, bytes message):
        self.request.send(message)
