"""The ordinary way of a client's bytes: from its socket to its session, and from there back.

It is compiled because each put takes it twice. In the interpreter it was six calls of functions and eight of builtins,
each on other cache lines. The socket module also lets go of the GIL for each call, and another thread that computes then
keeps it for up to five milliseconds. Here short calls keep it, because a socket that does not block returns at once.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t

from metastore._core.h2 cimport Session

cdef extern from *:
    """
    #include <sys/epoll.h>
    #include <sys/socket.h>
    """
    int EPOLLIN
    int EPOLLOUT
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    Py_ssize_t recv(int fd, void* data, size_t size, int flags) noexcept nogil
    Py_ssize_t send(int fd, const void* data, size_t size, int flags) noexcept nogil

cdef enum:
    # Bytes that are taken from a session at a time; the second number where a client may leave them unread.
    TAKE = 256 * 1024
    PATIENT_TAKE = 128 * 1024
    # More bytes than these are sent without the GIL. The system copies them in some 3 us.
    SHORT = 16 * 1024


cdef class Channel:
    def __init__(self, int fd, loop, bytearray room not None, handle, int mask, Py_ssize_t send_size):
        self.fd = fd
        self._loop = loop
        self.opened = True
        self._room = room
        self._handle = handle
        self._mask = mask
        self._send_size = send_size

    @property
    def unsent(self):
        return 0 if self._piece is None else PyBytes_GET_SIZE(self._piece) - self._at

    def shut(self):
        self.opened = False
        self._piece = None

    # ---- from the socket

    def on_event(self, int events):
        if events != EPOLLIN:
            self.other_event(events)
        else:
            self.on_readable()

    cpdef on_readable(self):
        cdef Py_ssize_t got
        cdef list requests
        if self.session is None:
            self.read_first()
            return
        got = recv(self.fd, PyByteArray_AS_STRING(self._room), PyByteArray_GET_SIZE(self._room), MSG_DONTWAIT)
        if got > 0:
            requests = self.session.receive(<uint8_t*>PyByteArray_AS_STRING(self._room), got, self._loop.now())
            if not requests:
                return
            if self.settled:
                self._handle(requests)
            else:
                self.handle_first(requests)
        elif got == 0 or not (errno == EAGAIN or errno == EINTR):
            self.close()

    # ---- to the socket

    cpdef flush(self):
        cdef Py_ssize_t left = self._send_size, before
        cdef bytes piece
        while not self._blocked and self.opened:
            if self._piece is None:
                if self.session is not None:
                    # What is taken may stay here for as long as the client of a watch does not read.
                    piece = self.session.take_output(PATIENT_TAKE if self.session.patient_streams else TAKE)
                else:
                    piece = self.take_page()
                if not piece:
                    break
                self._piece, self._at = piece, 0
                self._all_taken = self.session is not None and PyBytes_GET_SIZE(piece) < PATIENT_TAKE
            before = self._at
            if not self.send_piece():
                self.close()
                return
            if self._piece is None and self._all_taken:
                break  # the session had no more; what comes up meanwhile makes it dirty again
            left -= self._at - before
            if left <= 0:
                self.flush_later()
                break
        if (self._owed or self._stuck or self._hold or self._mask & EPOLLOUT or self._piece is not None
                or self.session is None or not self.session.rests()):
            # To find out what is to be done then took a third of a flush, and nearly always it is nothing.
            if self.opened:
                self.after_flush()

    cdef bint send_piece(self) except -1:
        """Send what the socket takes of the piece. False: the connection is gone."""
        cdef const char* data = PyBytes_AS_STRING(self._piece) + self._at
        cdef Py_ssize_t size = PyBytes_GET_SIZE(self._piece) - self._at, sent
        if size <= SHORT:
            sent = send(self.fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        else:
            with nogil:
                sent = send(self.fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0:
            if not (errno == EAGAIN or errno == EINTR):
                return False
            sent = 0
        self._at += sent
        self._blocked = sent == 0
        if sent == size:
            self._piece = None
        return True


cdef class Flusher:
    def __init__(self, loop, Limits limits not None, double seconds):
        self.loop = loop
        self.limits = limits
        self.seconds = seconds
        self.dirty = []

    cpdef flush_dirty(self):
        cdef list channels
        cdef Session session
        if self.limits.packed:
            self._unpack()
        while self.dirty:
            # Flushing may make other sessions dirty (a parked request that is answered at once).
            channels = []
            for session in self.dirty:
                if session.owner is not None:
                    channels.append(session.owner)
            self.dirty.clear()
            for channel in flush_all(channels, self.loop.now, self.seconds):
                channel.flush_later()
        if self._expirer is None and self.limits.timed:
            self._expire_later()


def flush_all(list channels not None, now, double seconds):
    cdef double until = now() + seconds
    cdef Py_ssize_t at
    for at in range(len(channels)):
        channels[at].flush()
        if now() >= until:
            return channels[at + 1:]
    return []
