from libc.stdint cimport uint8_t

from metastore._core.grpc cimport Limits
from metastore._core.h2 cimport Session


cdef class Channel:
    cdef readonly int fd
    cdef readonly bint opened       # until `shut`
    cdef public Session session     # None: the client has not spoken HTTP/2 yet, or speaks another protocol
    cdef public bint settled        # its place is sure, so its requests go to the handler at once
    cdef public bint _blocked       # the socket takes no more at the moment
    cdef public bint _hold          # not read: output over the limit, requests that wait, or all reading is paused
    cdef public int _mask           # the events that the loop watches for
    cdef public int _stuck          # not 0: the client has to take what waits for it
    cdef public Py_ssize_t _owed    # unsent bytes that are on the account of all replies
    cdef readonly object _loop
    cdef object _handle             # called with a list of requests
    cdef bytearray _room            # what is read; shared with other connections
    cdef Py_ssize_t _send_size      # bytes that are sent in one turn
    cdef bytes _piece               # output that the socket has not taken whole
    cdef Py_ssize_t _at             # bytes of it that the socket has taken
    cdef bint _all_taken            # the session had no more when the piece was taken

    cpdef on_readable(self)
    cpdef flush(self)
    cdef bint send_piece(self) except -1


cdef class Flusher:
    cdef public list dirty          # sessions with output; they enter themselves
    cdef public object _expirer     # the timer of requests that are incomplete or have a timeout, or None
    cdef readonly object loop
    cdef Limits limits
    cdef double seconds             # of one turn for sending

    cpdef flush_dirty(self)
