"""The ordinary way of a message between members: from the socket to the node, and from there to the sockets.

It is compiled because each put takes it several times in each member. In the interpreter a message that came made 9
calls of functions, and each of them lies on other cache lines. The socket module also lets go of the GIL for each call,
and another thread that computes then keeps it for up to five milliseconds. Here a short call keeps it, because a socket
that does not block returns at once.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from metastore._core.raft_types cimport MSG_APP, MSG_SNAP, Message
from metastore._core.raft_wire cimport Blob, Forward, Outbox

cdef extern from *:
    """
    #include <sys/epoll.h>
    #include <sys/socket.h>
    #include <sys/uio.h>
    """
    int EPOLLIN
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    Py_ssize_t recv(int fd, void* data, size_t size, int flags) noexcept nogil
    Py_ssize_t send(int fd, const void* data, size_t size, int flags) noexcept nogil
    Py_ssize_t sendmsg(int fd, const msghdr* message, int flags) noexcept nogil

cdef enum:
    # More bytes than these are sent without the GIL. The system copies them in some 3 us.
    SHORT = 16 * 1024
    # Pieces of one write. Images of 2 KiB and more are pieces of their own, so a write of many pieces has 64 KiB.
    MOST_PIECES = 64

WAITING, CONNECTING, GREETING = STREAM_WAITING, STREAM_CONNECTING, STREAM_GREETING
OPEN, CLOSED = STREAM_OPEN, STREAM_CLOSED


cdef class PeerPath:
    def __init__(self, dict peers not None, handler, failpoints, Py_ssize_t recv_size, Py_ssize_t send_size):
        self._peers = peers
        self.handler = handler
        self.failpoints = failpoints
        self.dirty = []
        self._unreachable = set()
        self._room = bytearray(recv_size)
        self._send_size = <size_t>send_size

    def send(self, list messages not None):
        cdef Message message
        cdef PeerChannel channel
        for message in messages:
            peer = self._peers.get(message.to)
            if peer is None:
                self.strays += 1
                continue
            if message.type == MSG_SNAP:
                self.handler.on_snapshot(message)
                continue
            channel = peer.bulk if message.type == MSG_APP else peer.control
            self.note(peer, channel, channel.is_taking() and channel.outbox.add(message))

    def forward(self, uint64_t to, bytes frame not None):
        cdef PeerChannel channel
        peer = self._peers.get(to)
        if peer is None:
            self.strays += 1
            return False
        channel = peer.bulk
        return self.note(peer, channel, channel.state == STREAM_OPEN and channel.outbox.add_forward(frame))

    def _queued(self, peer, PeerChannel channel not None, bint taken):
        return self.note(peer, channel, taken)

    cdef bint note(self, object peer, PeerChannel channel, bint taken) except -1:
        if taken:
            channel.mark()
        else:
            peer.dropped += 1
            self._unreachable.add(peer.id)
        return taken

    def flush(self):
        self.flush_dirty()
        if self._unreachable:
            members, self._unreachable = sorted(self._unreachable), set()
            for member in members:
                self.handler.on_unreachable(member)
            self.flush_dirty()

    cdef int flush_dirty(self) except -1:
        cdef list dirty = self.dirty
        cdef PeerChannel channel
        if dirty:
            self.dirty = []
            for channel in dirty:
                channel.queued = False
                channel.send_all()
        return 0


cdef class PeerChannel:
    def __init__(self, PeerPath path not None, int kind, Outbox outbox not None):
        self._path = path
        self.kind = kind
        self.outbox = outbox
        self.state = STREAM_WAITING
        self.fd = -1

    @property
    def is_open(self):
        return self.state == STREAM_OPEN

    @property
    def takes(self):
        return self.is_taking()

    cdef bint is_taking(self):
        return STREAM_CONNECTING <= self.state <= STREAM_OPEN

    def queue(self):
        self.mark()

    cdef int mark(self) except -1:
        if not self.queued:
            self.queued = True
            self._path.dirty.append(self)
        return 0

    # ---- from the socket

    def on_event(self, int events):
        if events == EPOLLIN and self.state != STREAM_CONNECTING:
            self.read_once()
        else:
            self.other_event(events)

    def read(self):
        self.read_once()

    cdef int read_once(self) except -1:
        cdef bytearray room = self._path._room
        cdef Py_ssize_t got = recv(self.fd, PyByteArray_AS_STRING(room), PyByteArray_GET_SIZE(room), MSG_DONTWAIT)
        if got <= 0:
            if got == 0:
                self.fail("closed by the other side")
            elif errno != EAGAIN and errno != EINTR:
                self.broken(errno)
            return 0
        self.received_bytes += got
        try:
            if self.reader is None:
                self.received(PyBytes_FromStringAndSize(PyByteArray_AS_STRING(room), got))
            else:
                self.take_frames(<uint8_t*>PyByteArray_AS_STRING(room), got)
        except Exception as error:
            # Whatever bytes of a peer cause ends their connection, not the node.
            self.spoilt(error)
        return 0

    def take(self, bytes data not None):
        self.take_frames(<uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    cdef int take_frames(self, const uint8_t* data, size_t n) except -1:
        cdef PeerPath path = self._path
        cdef list items = self.reader.take(data, n)
        for item in items:
            if type(item) is Blob:
                items = self.unpacked(items)
                break
        if items and not self.took_part:
            self.took_part = True
            path.first_frame(self)
        for item in items:
            if type(item) is Message:
                path.handler.on_message(item)
            elif type(item) is Forward:
                path.handler.on_forward(self.from_, (<Forward>item).frame)
            else:
                path.other_frame(self, item)
            if self.state == STREAM_CLOSED:
                break
        return 0

    # ---- to the socket

    def flush(self):
        self.send_all()

    cdef int send_all(self) except -1:
        cdef Outbox outbox
        cdef bint began = False
        cdef int answer
        while self.state == STREAM_OPEN and not self._blocked:
            outbox = self.packed_output() if self._packs else self.outbox
            if outbox.size == 0:
                if began and self._tells:
                    self.drained()
                break
            points = self._path.failpoints
            if points is not None and points.active and not self.pass_point():
                break
            began = True
            answer = self.send_some(outbox)
            if answer < 0:
                self.broken(-answer)
            elif answer == 0:
                self._blocked = True
                self.await_room()
        return 0

    cdef int send_some(self, Outbox outbox) except? -1:
        """Send what one write takes. Return 1, or 0 if the socket takes no more at the moment, or else its error as a
        negative number."""
        cdef size_t tried = outbox._used
        cdef Py_ssize_t sent
        cdef int error = 0
        if not outbox._pieces and tried <= SHORT:
            sent = send(self.fd, outbox._buf, tried, MSG_DONTWAIT | MSG_NOSIGNAL)
            error = errno
        else:
            sent = send_pieces(self.fd, outbox, self._path._send_size, &tried, &error)
        if sent < 0:
            return 0 if error == EAGAIN or error == EINTR else -error
        outbox.sent(<size_t>sent)
        return <size_t>sent == tried


cdef Py_ssize_t send_pieces(int fd, Outbox outbox, size_t most, size_t* tried, int* error) except -2:
    """One gathering write of what waits, as `Outbox.pieces` would give it. Return what the system says, and set how many
    bytes it was given, and its error."""
    cdef Py_buffer views[MOST_PIECES]
    cdef iovec parts[MOST_PIECES]
    cdef msghdr message
    cdef Py_ssize_t count = 0, sent
    memset(&message, 0, sizeof(message))
    tried[0] = 0
    outbox._seal()
    try:
        for piece in outbox._pieces:
            if count == MOST_PIECES or (count and tried[0] >= most):
                break
            PyObject_GetBuffer(piece, &views[count], PyBUF_SIMPLE)
            parts[count].iov_base = views[count].buf
            parts[count].iov_len = <size_t>views[count].len
            tried[0] += parts[count].iov_len
            count += 1
        message.msg_iov = parts
        message.msg_iovlen = <size_t>count
        if tried[0] <= SHORT:
            sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
            error[0] = errno
        else:
            with nogil:
                sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
                error[0] = errno
    finally:
        while count:
            count -= 1
            PyBuffer_Release(&views[count])
    return sent
