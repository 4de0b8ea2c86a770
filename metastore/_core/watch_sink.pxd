from metastore._core.h2_request cimport Request
from metastore._core.watch_index cimport Sink


cdef class RequestSink(Sink):
    cdef readonly Request request
