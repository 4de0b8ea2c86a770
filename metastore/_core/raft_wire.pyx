"""Frames between members: an outbox that collects them, and a reader that extracts them from a stream of bytes.

Both have limits and know no sockets. Entry images are never re-encoded. Images of a few KiB or more are not copied
either: the outbox puts the log's own memory between its frame headers, for one gathering write. Damage, and anything
that a member would not send, is a FormatError. It ends the connection, never the node.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from metastore._core.crc cimport crc32
from metastore._core.entry cimport ENTRY_OK, EntryView, entry_raise, entry_read
from metastore._core.le cimport get16, get32, get64, put16, put32, put64
from metastore._core.raft_types cimport (MSG_APP, MSG_BEAT, MSG_CHECK_QUORUM, MSG_HUP, MSG_PRE_VOTE_RESP, MSG_PROP,
                                     MSG_SNAP_STATUS, MSG_UNREACHABLE, Message, Snapshot)

from metastore import errors
from metastore._core.raft_types import ConfState
from metastore.settings import MAX_BATCH_OPS, PEER_FRAME
from metastore.errors import FormatError

HEADER = FRAME_HEADER
MAX_FRAME = PEER_FRAME

#: Reasons why forwarded operations were certainly not logged. The wire has the index in this list: only append to it.
REFUSALS = (
    errors.NotLeader, errors.NoLeader, errors.TooManyRequests, errors.RequestTooLarge, errors.NoSpace, errors.Stopped,
    errors.NotCapable, errors.MalformedRequest, errors.LeaderChanged, errors.Unhealthy, errors.MemberExist,
    errors.PeerURLExist, errors.MemberNotEnoughStarted, errors.MemberNotFound, errors.MemberNotLearner,
    errors.LearnerNotReady, errors.TooManyLearners, errors.Corrupt, errors.MemberBadURLs,
)

#: The code of a refusal that goes the other way: its sender wants these operations of its own not to be logged, because
#: nobody waits for them any more. A leader refuses nothing with this code. Members that do not know of this meaning wait
#: for none of these ids, and ignore it.
WITHDRAWN = REFUSALS.index(errors.NotLeader)

cdef enum:
    MESSAGE_VERSION = 1
    FLAG_REJECT = 1
    FLAG_SNAPSHOT = 2
    COPY_BELOW = 2048         # images below this are copied into the outbox: one more piece would cost as much
    MAX_PIECES = 512          # pieces of one gathering write; the system takes 1024
    FIRST_CAPACITY = 4096
    KEEP_CAPACITY = 1 << 20
    MAX_CONTEXT = 1024        # bytes of a message's context, which is a number or a word

cdef int N_REFUSALS = len(REFUSALS)
cdef size_t MAX_REFUSED = MAX_BATCH_OPS


cdef inline bint travels(int type) noexcept nogil:
    """Whether messages of this type go between members. Proposals do not: operations are forwarded raw."""
    return (0 <= type <= MSG_PRE_VOTE_RESP and type != MSG_HUP and type != MSG_BEAT and type != MSG_PROP
            and type != MSG_UNREACHABLE and type != MSG_SNAP_STATUS and type != MSG_CHECK_QUORUM)


cdef class Forward:
    """Operations for the leader. `frame` is a batch of raw operations (see batch.unframe)."""

    def __init__(self, bytes frame not None):
        self.frame = frame

    def __repr__(self):
        return f"Forward({len(self.frame)} bytes)"


cdef class Refusal:
    """Answer for forwarded operations that were not logged. `code` is an index into REFUSALS, `ids` are request ids."""

    def __init__(self, int code, list ids not None):
        self.code = code
        self.ids = ids

    def __repr__(self):
        return f"Refusal({REFUSALS[self.code].__name__}, {self.ids!r})"


cdef class Blob:
    """Bytes with a `tag` (0 to 255). The tag defines their meaning; see FORMATS.md."""

    def __init__(self, int tag, bytes data not None):
        self.tag = tag
        self.data = data

    def __repr__(self):
        return f"Blob({self.tag}, {len(self.data)} bytes)"


cdef void write_header(uint8_t* at, uint8_t type, size_t n, size_t head) noexcept nogil:
    """Write the header of a frame. The first `head` bytes of its body already follow it in memory."""
    put32(at, crc32(0, at + FRAME_HEADER, head))
    put32(at + 4, <uint32_t>n)
    put32(at + 8, <uint32_t>head)
    put32(at + 12, type)
    put32(at + 16, crc32(0, at, 16))


cdef class Outbox:
    """Frames that wait to be sent on one stream: at most `max_bytes`, but a single frame may have up to `max_frame`.

    Each `add` function returns whether the frame was taken. A refused frame changes only the counter `dropped`.
    `pieces` returns buffers for one gathering write, and `sent` removes the bytes that were written.
    """

    def __cinit__(self, size_t max_bytes=1 << 20, size_t max_frame=MAX_FRAME):
        if max_bytes < 1 or not 1024 <= max_frame <= 1 << 30:
            raise ValueError("limits of an outbox: at least 1 byte, and frames of 1 KiB to 1 GiB")
        self.max_bytes = max_bytes
        self.max_frame = max_frame
        self._pieces = []

    def __dealloc__(self):
        free(self._buf)

    cdef uint8_t* _room(self, size_t n) except NULL:
        """Address of n free bytes behind `_used`."""
        cdef size_t needed = self._used + n
        cdef size_t capacity = max(self._capacity, <size_t>FIRST_CAPACITY)
        cdef uint8_t* grown
        while capacity < needed:
            capacity *= 2
        if capacity != self._capacity:
            grown = <uint8_t*>realloc(self._buf, capacity)
            if grown == NULL:
                raise MemoryError()
            self._buf = grown
            self._capacity = capacity
        return self._buf + self._used

    cdef int _seal(self) except -1:
        if self._used:
            self._pieces.append(PyBytes_FromStringAndSize(<char*>self._buf, <Py_ssize_t>self._used))
            self._shrink()
        return 0

    cdef void _shrink(self) noexcept:
        """The bytes behind the sealed pieces are no longer needed."""
        self._used = 0
        if self._capacity > KEEP_CAPACITY:
            free(self._buf)
            self._buf = NULL
            self._capacity = 0

    cdef bint _fits(self, size_t n) noexcept:
        """Whether a frame with a body of n bytes fits. Counts the frame as taken or refused."""
        if n > self.max_frame or (self.size and self.size + FRAME_HEADER + n > self.max_bytes):
            self.dropped += 1
            return False
        self.frames += 1
        return True

    cpdef bint add(self, Message message) except -1:
        """Add a Raft message. Returns False if it does not fit or is of a type that stays inside a node."""
        cdef object images = message.get_images()
        cdef Snapshot snapshot = message.snapshot
        cdef bytes conf = b"" if snapshot is None else snapshot.conf_state.encode()
        cdef bytes context = message.context
        cdef size_t n_context = <size_t>PyBytes_GET_SIZE(context)
        cdef size_t n_snapshot = 0 if snapshot is None else 16 + <size_t>PyBytes_GET_SIZE(conf)
        cdef size_t head = MESSAGE_HEAD + n_context + n_snapshot
        cdef size_t n_images
        cdef uint8_t* at
        cdef Py_buffer buffer
        PyObject_GetBuffer(images, &buffer, PyBUF_SIMPLE)
        try:
            n_images = <size_t>buffer.len
            if not travels(message.type) or (n_images and message.type != MSG_APP):
                self.dropped += 1
                return False
            if not self._fits(head + n_images):
                return False
            at = self._room(FRAME_HEADER + head + (n_images if n_images < COPY_BELOW else 0))
            write_message(at + FRAME_HEADER, message, n_context, n_snapshot, n_images)
            memcpy(at + FRAME_HEADER + MESSAGE_HEAD, PyBytes_AS_STRING(context), n_context)
            if snapshot is not None:
                put64(at + FRAME_HEADER + MESSAGE_HEAD + n_context, snapshot.index)
                put64(at + FRAME_HEADER + MESSAGE_HEAD + n_context + 8, snapshot.term)
                memcpy(at + FRAME_HEADER + MESSAGE_HEAD + n_context + 16, PyBytes_AS_STRING(conf), n_snapshot - 16)
            write_header(at, FRAME_RAFT, head + n_images, head)
            self._used += FRAME_HEADER + head
            if n_images < COPY_BELOW:
                memcpy(self._buf + self._used, buffer.buf, n_images)
                self._used += n_images
            else:
                self._seal()
                self._pieces.append(images)
            self.size += FRAME_HEADER + head + n_images
        finally:
            PyBuffer_Release(&buffer)
        return True

    cdef bint _add_plain(self, uint8_t type, const uint8_t* first, size_t n_first, const uint8_t* data,
                         size_t n) except -1:
        cdef uint8_t* at
        if n_first + n == 0 or not self._fits(n_first + n):
            return False
        at = self._room(FRAME_HEADER + n_first + n)
        if n_first:
            memcpy(at + FRAME_HEADER, first, n_first)
        memcpy(at + FRAME_HEADER + n_first, data, n)
        write_header(at, type, n_first + n, n_first + n)
        self._used += FRAME_HEADER + n_first + n
        self.size += FRAME_HEADER + n_first + n
        return True

    cpdef bint add_forward(self, bytes frame) except -1:
        """Add a batch of raw operations (the bytes of batch.frame)."""
        return self._add_plain(FRAME_FORWARD, NULL, 0, <const uint8_t*>PyBytes_AS_STRING(frame),
                               <size_t>PyBytes_GET_SIZE(frame))

    cpdef bint add_refusal(self, int code, list ids) except -1:
        """Add the answer that the operations `ids` were not logged because of REFUSALS[code]. Raises ValueError if
        there is no such code or no id."""
        cdef size_t count = <size_t>len(ids)
        cdef uint8_t* at
        cdef size_t n = 4 + 8 * count
        if not 0 <= code < N_REFUSALS or count == 0:
            raise ValueError(f"refusal {code} of {count} operations")
        cdef bytes body = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>n)
        at = <uint8_t*>PyBytes_AS_STRING(body)
        put16(at, <uint16_t>code)
        put16(at + 2, 0)
        at += 4
        for number in ids:
            put64(at, <uint64_t>number)
            at += 8
        return self._add_plain(FRAME_REFUSAL, NULL, 0, <const uint8_t*>PyBytes_AS_STRING(body), n)

    cpdef bint add_blob(self, int tag, object data) except -1:
        """Add a blob. `tag` is 0 to 255; otherwise ValueError."""
        cdef uint8_t first = <uint8_t>(tag & 0xFF)
        cdef Py_buffer buffer
        if first != tag:
            raise ValueError(f"tag {tag} is not a byte")
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
        try:
            return self._add_plain(FRAME_BLOB, &first, 1, <const uint8_t*>buffer.buf, <size_t>buffer.len)
        finally:
            PyBuffer_Release(&buffer)

    cpdef list pieces(self, size_t max_bytes=1 << 20):
        """The first pieces for one gathering write: at least one, then as many as fit into max_bytes; [] if empty."""
        cdef size_t total = 0
        cdef Py_ssize_t count = 0
        self._seal()
        for piece in self._pieces:
            if count == MAX_PIECES or (count and total >= max_bytes):
                break
            total += <size_t>len(piece)
            count += 1
        return self._pieces[:count]

    cpdef int sent(self, size_t n) except -1:
        """Remove the first n bytes, because they were written."""
        cdef Py_ssize_t whole = 0
        cdef size_t length
        cdef size_t left = n
        if n > self.size:
            raise ValueError("more was sent than there is")
        if not self._pieces and n == self._used:
            self._shrink()
            left = 0
        else:
            self._seal()
        for piece in self._pieces:
            length = <size_t>len(piece)
            if length > left:
                break
            left -= length
            whole += 1
        if whole:
            del self._pieces[:whole]
        if left:
            self._pieces[0] = memoryview(self._pieces[0])[<Py_ssize_t>left:]
        self.size -= n
        self.sent_bytes += n
        return 0

    cpdef clear(self):
        """Remove all frames. After a connection is lost, none of its frames may be sent on the next one."""
        self._pieces.clear()
        self._shrink()
        self.size = 0


cdef void write_message(uint8_t* at, Message m, size_t n_context, size_t n_snapshot, size_t n_images) noexcept:
    """Write the fixed part of a message, with the same bytes as Message.encode."""
    at[0] = MESSAGE_VERSION
    at[1] = <uint8_t>m.type
    at[2] = (FLAG_REJECT if m.reject else 0) | (FLAG_SNAPSHOT if n_snapshot else 0)
    at[3] = 0
    put32(at + 4, <uint32_t>n_context)
    put32(at + 8, <uint32_t>n_snapshot)
    put64(at + 12, n_images)
    put64(at + 20, m.to)
    put64(at + 28, m.from_)
    put64(at + 36, m.term)
    put64(at + 44, m.log_term)
    put64(at + 52, m.index)
    put64(at + 60, m.commit)
    put64(at + 68, m.vote)
    put64(at + 76, m.reject_hint)


cdef class FrameReader:
    """Extracts frames from a stream of bytes that is cut at any places.

    Args: max_frame (the largest body in bytes); from_ and to (member ids that every Raft message must have; 0: any).
    Holds at most one unfinished frame. After a FormatError it accepts nothing more.
    """

    def __cinit__(self, size_t max_frame=MAX_FRAME, uint64_t from_=0, uint64_t to=0):
        if not 1024 <= max_frame <= 1 << 30:
            raise ValueError("largest frame: 1 KiB to 1 GiB")
        self.max_frame = max_frame
        self.from_ = from_
        self.to = to

    @property
    def waiting(self):
        """Bytes of memory held for an incomplete frame."""
        return 0 if self._body is None else len(self._body)

    cpdef list feed(self, object buffer, size_t n):
        """Process the first n bytes of a buffer. Returns Message, Forward, Refusal and Blob objects in order; they own
        their bytes. After a FormatError the caller closes the connection; the frames of this call before the bad one
        are lost too."""
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            if n > <size_t>view.len:
                raise ValueError("the buffer is shorter than that")
            return self.take(<const uint8_t*>view.buf, n)
        finally:
            PyBuffer_Release(&view)

    cdef list take(self, const uint8_t* data, size_t n):
        cdef list out = []
        if self._broken:
            raise FormatError("peer stream: after an error")
        self._broken = True
        self._parse(data, n, out)
        self._broken = False
        return out

    cdef int _parse(self, const uint8_t* data, size_t n, list out) except -1:
        cdef size_t pos = 0
        cdef size_t take
        cdef bytes body
        while pos < n:
            if self._body is None:
                take = min(FRAME_HEADER - self._have, n - pos)
                memcpy(self._head + self._have, data + pos, take)
                self._have += take
                pos += take
                if self._have < FRAME_HEADER:
                    return 0
                read_header(self._head, self.max_frame, &self._frame)
                if n - pos >= self._frame.n:
                    self._have = 0
                    out.append(self._decode(&self._frame, data + pos, None))
                    self.frames += 1
                    pos += self._frame.n
                    continue
                # The system gives no memory to pages that nothing was written to: a false length costs only addresses.
                self._body = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>self._frame.n)
                self._filled = 0
            take = min(self._frame.n - self._filled, n - pos)
            memcpy(<uint8_t*>PyBytes_AS_STRING(self._body) + self._filled, data + pos, take)
            self._filled += take
            pos += take
            if self._filled == self._frame.n:
                body, self._body = self._body, None
                self._have = 0
                out.append(self._decode(&self._frame, <const uint8_t*>PyBytes_AS_STRING(body), body))
                self.frames += 1
        return 0

    cdef object _decode(self, const FrameHeader* frame, const uint8_t* body, bytes owner):
        """Decode the content of a whole frame. `owner` is the object that holds `body`, if that memory stays."""
        if crc32(0, body, frame.head) != frame.crc:
            raise FormatError("peer stream: wrong checksum")
        if frame.type == FRAME_RAFT:
            return self._message(frame, body, owner)
        if frame.head != frame.n:
            raise FormatError("peer stream: a frame without entries is summed whole")
        if frame.type == FRAME_FORWARD:
            return Forward(owner if owner is not None else take_bytes(body, frame.n))
        if frame.type == FRAME_REFUSAL:
            return read_refusal(body, frame.n)
        if frame.type == FRAME_BLOB:
            return Blob(body[0], take_bytes(body + 1, frame.n - 1))
        raise FormatError(f"peer stream: unknown type of frame {frame.type}")

    cdef Message _message(self, const FrameHeader* frame, const uint8_t* body, bytes owner):
        cdef Message m
        cdef size_t n_context, n_snapshot, n_images
        if frame.head < MESSAGE_HEAD:
            raise FormatError("raft message: cut short")
        n_context = get32(body + 4)
        n_snapshot = get32(body + 8)
        n_images = get64(body + 12)
        if body[0] != MESSAGE_VERSION or not travels(body[1]) or body[2] > (FLAG_REJECT | FLAG_SNAPSHOT) or body[3]:
            raise FormatError("raft message: unknown version, type or flags")
        if n_context > MAX_CONTEXT:
            raise FormatError(f"raft message: a context of {n_context} bytes; at most {MAX_CONTEXT}")
        if MESSAGE_HEAD + n_context + n_snapshot != frame.head or n_images != frame.n - frame.head:
            raise FormatError("raft message: wrong length")
        m = Message.__new__(Message)
        m.type = body[1]
        m.reject = body[2] & FLAG_REJECT
        m.to = get64(body + 20)
        m.from_ = get64(body + 28)
        m.term = get64(body + 36)
        m.log_term = get64(body + 44)
        m.index = get64(body + 52)
        m.commit = get64(body + 60)
        m.vote = get64(body + 68)
        m.reject_hint = get64(body + 76)
        m.context = b"" if n_context == 0 else take_bytes(body + MESSAGE_HEAD, n_context)
        if (self.from_ and m.from_ != self.from_) or (self.to and m.to != self.to):
            raise FormatError(f"raft message from {m.from_:x} to {m.to:x} on the stream from {self.from_:x}")
        if body[2] & FLAG_SNAPSHOT:
            m.snapshot = read_position(body + MESSAGE_HEAD + n_context, n_snapshot)
        elif n_snapshot:
            raise FormatError("raft message: snapshot without its flag")
        if n_images:
            check_images(m, body + frame.head, n_images)
            m._images = (take_bytes(body + frame.head, n_images) if owner is None
                         else memoryview(owner)[<Py_ssize_t>frame.head:])
        return m


cdef bytes take_bytes(const uint8_t* data, size_t n):
    return PyBytes_FromStringAndSize(<const char*>data, <Py_ssize_t>n)


cdef int read_header(const uint8_t* at, size_t max_frame, FrameHeader* out) except -1:
    out.crc = get32(at)
    out.n = get32(at + 4)
    out.head = get32(at + 8)
    out.type = at[12]
    # Check this at once: with a wrong length the reader would wait for bytes that never come.
    if crc32(0, at, 16) != get32(at + 16):
        raise FormatError("peer stream: wrong checksum of a frame's header")
    if get32(at + 12) >> 8:
        raise FormatError("peer stream: reserved bytes in a frame's header")
    if out.n == 0 or out.n > max_frame or out.head > out.n:
        raise FormatError(f"peer stream: frame of {out.n} bytes, {out.head} of them summed; at most {max_frame}")
    return 0


cdef Refusal read_refusal(const uint8_t* body, size_t n):
    cdef list ids = []
    cdef size_t at
    if n > 4 + 8 * MAX_REFUSED:
        raise FormatError(f"peer stream: a refusal of more than {MAX_REFUSED} operations")
    if n < 12 or (n - 4) % 8 or get16(body) >= N_REFUSALS or get16(body + 2):
        raise FormatError("peer stream: malformed refusal")
    for at in range(4, n, 8):
        ids.append(get64(body + at))
    return Refusal(get16(body), ids)


cdef Snapshot read_position(const uint8_t* at, size_t n):
    if n < 16:
        raise FormatError("raft message: snapshot cut short")
    return Snapshot(get64(at), get64(at + 8), ConfState.decode(take_bytes(at + 16, n - 16)))


cdef int check_images(Message m, const uint8_t* images, size_t n) except -1:
    """Check CRCs, indexes and terms of an append's entries. Entries that the log would refuse do not get in."""
    cdef EntryView view
    cdef size_t pos = 0
    cdef uint64_t index = m.index, term = 0
    cdef int answer
    if m.type != MSG_APP:
        raise FormatError("raft message: entries in a message that has none")
    while pos < n:
        answer = entry_read(images + pos, n - pos, &view, True)
        if answer != ENTRY_OK:
            entry_raise(answer, pos)
        index += 1
        if view.index != index or view.term < term or view.term > m.term or view.term == 0:
            raise FormatError(f"raft message: entry {view.term}/{view.index} is out of order in an append")
        term = view.term
        pos += view.size
    return 0
