"""Batches of operations: the framing that puts them into one log entry, and the collector that fills a batch.

Framing: operations are joined by `|BATCH_SEP|`. Inside an operation a `~` follows every `|BATCH_SEP`, so no operation
contains the separator. Decoding is unambiguous. The only string that is both a proper beginning and a proper end of the
separator is "|". A false separator that ends inside a true one would therefore end on the first byte of the true one,
with `|BATCH_SEP` before it, and the `~` rules that out. A true separator is found before any that begins inside it,
because decoding splits at the leftmost separator.

Collector: the disk sets the pace. While one sync runs the next batch fills, and an idle disk takes what is there. A
single client therefore never waits for a timer, and `max_delay` is only an upper bound.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memmove, memset

from metastore._core.codec cimport PayloadCodec
from metastore._core.op cimport OP_HEADER, OP_SHORT, OpView, op_raise, op_read, op_write_header

from metastore.errors import FormatError, RequestTooLarge, TooManyRequests

cdef extern from "<string.h>" nogil:
    void* memmem(const void* haystack, size_t size, const void* needle, size_t length)

cdef const char* SEP = b"|BATCH_SEP|"
SEPARATOR = b"|BATCH_SEP|"
ESCAPE = b"~"

cdef enum:
    SEP_LEN = 11
    MARK_LEN = 10                 # length of the mark: the separator without its last byte, which an escape follows
    BAR = 0x7C
    TILDE = 0x7E
    TRIES = 16
    FIRST_ROOM = 64 * 1024
    KEPT_ROOM = 8 * 1024 * 1024   # an empty collector releases a buffer above this size
    KEPT_OWN = 1024 * 1024        # the same for a reader's buffer
    # A batch of more than max_count operations is no larger: the log is cut by the number of its entries.
    MORE_BYTES = 64 * 1024

cdef enum Reason:
    FULL_COUNT
    FULL_BYTES
    DELAY
    DISK_IDLE
    FLUSH
    SINGLE

cdef size_t NO_LIMIT = <size_t>-1

REASONS = ("full_count", "full_bytes", "delay", "disk_idle", "flush", "single")


cdef const uint8_t* find_mark(const uint8_t* at, const uint8_t* end) noexcept nogil:
    """Return the first `|BATCH_SEP` in [at, end), or NULL.

    Bars are rare, so memchr for the bar is fast: 3 to 7 ns for 300 bytes, where memmem takes 60 to 70 (glibc 2.36,
    measured). Bytes full of bars would make it slow. After a few false hits memmem takes over, because it is linear.
    With this, add_parts() of a 300-byte operation costs 25 to 40 ns and FrameReader.next() 13 to 15 ns.
    """
    cdef int tries
    for tries in range(TRIES):
        if end - at < MARK_LEN:
            return NULL
        at = <const uint8_t*>memchr(at, BAR, end - at - (MARK_LEN - 1))
        if at == NULL:
            return NULL
        if memcmp(at + 1, SEP + 1, MARK_LEN - 1) == 0:
            return at
        at += 1
    return <const uint8_t*>memmem(at, end - at, SEP, MARK_LEN)


cdef size_t count_marks(const uint8_t* at, size_t n) noexcept nogil:
    cdef const uint8_t* end = at + n
    cdef size_t count = 0
    while True:
        at = find_mark(at, end)
        if at == NULL:
            return count
        count += 1
        at += MARK_LEN


cdef void escape_in_place(uint8_t* at, size_t n, size_t marks) noexcept nogil:
    """Spread n bytes to n + marks bytes with a `~` after each mark. This is rare, so it simply moves once per mark."""
    cdef uint8_t* end = at + n
    while marks > 0:
        at = <uint8_t*>find_mark(at, end) + MARK_LEN
        memmove(at + 1, at, end - at)
        at[0] = TILDE
        at += 1
        end += 1
        marks -= 1


cdef size_t escape_copy(uint8_t* dst, const uint8_t* src, size_t n) noexcept nogil:
    """Copy an operation with its escapes to dst and return the number of bytes written."""
    cdef const uint8_t* end = src + n
    cdef const uint8_t* mark
    cdef uint8_t* start = dst
    cdef size_t run
    while True:
        mark = find_mark(src, end)
        run = (end - src) if mark == NULL else <size_t>(mark - src) + MARK_LEN
        memcpy(dst, src, run)
        dst += run
        src += run
        if mark == NULL:
            return dst - start
        dst[0] = TILDE
        dst += 1


def frame(ops not None):
    """Return the framed batch of a sequence of operations (bytes). Raises FormatError if there is no operation."""
    cdef list all_ops = list(ops)
    cdef bytes op, out
    cdef size_t total = 0
    cdef uint8_t* at
    cdef bint first = True
    if not all_ops:
        raise FormatError("batch: no operations")
    for op in all_ops:
        total += PyBytes_GET_SIZE(op) + count_marks(<const uint8_t*>PyBytes_AS_STRING(op), PyBytes_GET_SIZE(op))
    out = PyBytes_FromStringAndSize(NULL, total + SEP_LEN * (<size_t>len(all_ops) - 1))
    at = <uint8_t*>PyBytes_AS_STRING(out)
    for op in all_ops:
        if not first:
            memcpy(at, SEP, SEP_LEN)
            at += SEP_LEN
        first = False
        at += escape_copy(at, <const uint8_t*>PyBytes_AS_STRING(op), PyBytes_GET_SIZE(op))
    return out


def unframe(buf, size_t limit=NO_LIMIT):
    """Return the operations (list of bytes, never empty) of a framed batch in a bytes-like object.

    Raises FormatError for more than `limit` operations, and for bytes that frame() cannot have written: a `|BATCH_SEP`
    that neither ends in a bar nor is escaped.
    """
    cdef Py_buffer view
    cdef FrameReader reader = FrameReader.__new__(FrameReader)
    cdef const uint8_t* at
    cdef size_t n
    cdef list ops = []
    PyObject_GetBuffer(buf, &view, PyBUF_SIMPLE)
    try:
        reader.reset(<const uint8_t*>view.buf, view.len)
        while reader.next(&at, &n):
            if <size_t>len(ops) >= limit:
                raise FormatError(f"batch: more than {limit} operations")
            ops.append(PyBytes_FromStringAndSize(<const char*>at, n))
        return ops
    finally:
        PyBuffer_Release(&view)


def request_ids(buf):
    """Return the request ids (list of int) of a framed batch in order, to answer its requests if it was not proposed.

    Raises FormatError if an operation is too short to hold an id.
    """
    cdef Py_buffer view
    cdef FrameReader reader = FrameReader.__new__(FrameReader)
    cdef const uint8_t* at
    cdef size_t n
    cdef OpView op
    cdef list ids = []
    PyObject_GetBuffer(buf, &view, PyBUF_SIMPLE)
    try:
        reader.reset(<const uint8_t*>view.buf, view.len)
        while reader.next(&at, &n):
            # Kind and flags do not matter here, because the id has a fixed place.
            op_read(at, n, &op)
            if n < OP_HEADER:
                op_raise(OP_SHORT)
            ids.append(op.request_id)
        return ids
    finally:
        PyBuffer_Release(&view)


cdef class FrameReader:
    def __dealloc__(self):
        free(self._own)

    cdef void reset(self, const uint8_t* data, size_t n) noexcept:
        self._at = data
        self._end = data + n
        self._more = True
        if self._own_size > KEPT_OWN:
            free(self._own)
            self._own = NULL
            self._own_size = 0

    cdef int next(self, const uint8_t** p, size_t* n) except -1:
        cdef const uint8_t* mark
        if not self._more:
            return 0
        mark = find_mark(self._at, self._end)
        p[0] = self._at
        if mark == NULL:
            n[0] = self._end - self._at
            self._more = False
            return 1
        if mark + MARK_LEN < self._end and mark[MARK_LEN] == BAR:
            n[0] = mark - self._at
            self._at = mark + SEP_LEN
            return 1
        return self._next_escaped(mark, p, n)

    cdef int _next_escaped(self, const uint8_t* mark, const uint8_t** p, size_t* n) except -1:
        """next() for an operation whose first mark is not a separator: copy it without its escapes."""
        cdef const uint8_t* stop = mark
        cdef const uint8_t* src = self._at
        cdef uint8_t* dst
        # Find the end first, so the buffer gets exactly the size of the operation.
        while stop != NULL:
            if stop + MARK_LEN >= self._end:
                raise FormatError("batch: ends in an unescaped mark")
            if stop[MARK_LEN] == BAR:
                break
            if stop[MARK_LEN] != TILDE:
                raise FormatError("batch: a mark that is neither a separator nor escaped")
            stop = find_mark(stop + MARK_LEN + 1, self._end)
        if stop == NULL:
            self._more = False
            stop = self._end
            self._at = stop
        else:
            self._at = stop + SEP_LEN
        if self._own_size < <size_t>(stop - src):
            dst = <uint8_t*>realloc(self._own, stop - src)
            if dst == NULL:
                raise MemoryError
            self._own = dst
            self._own_size = stop - src
        dst = self._own
        while mark != NULL and mark < stop:
            memcpy(dst, src, mark + MARK_LEN - src)
            dst += mark + MARK_LEN - src
            src = mark + MARK_LEN + 1
            mark = find_mark(src, stop)
        memcpy(dst, src, stop - src)
        dst += stop - src
        p[0] = self._own
        n[0] = dst - self._own
        return 1


cdef class BatchProposer:
    """Collects operations into batches. Pure: time is an argument (seconds, monotonic).

    Args: max_count (operations per batch), max_bytes (framed bytes per batch, including separators and escapes),
    max_delay (seconds that the first operation of a batch waits at most), limit_count and limit_bytes (operations and
    framed bytes that are queued and in flight together: the back pressure), enabled (False: each operation is a batch
    of its own and due at once). Raises ValueError for limits that could never hold a batch.

    The owner calls add() or add_parts() for each operation. It calls take() whenever the disk may be idle, a deadline
    has passed or a batch may be full. It calls untake() if the batch could not be proposed, and otherwise release()
    once its operations were answered. take() returns every accepted operation exactly once and in order, except those that
    drop() removes.
    """

    def __cinit__(self, size_t max_count, size_t max_bytes, double max_delay, size_t limit_count, size_t limit_bytes,
                  bint enabled=True):
        if max_count < 1 or max_bytes < 1 or not 0 <= max_delay < 1e9:
            raise ValueError("a batch needs max_count >= 1, max_bytes >= 1 and max_delay >= 0")
        if limit_count < max_count or limit_bytes < max_bytes:
            raise ValueError("the limits must hold at least one full batch")
        self.max_count = self.most_now = max_count
        self.max_bytes = max_bytes
        self.max_delay = max_delay
        self.limit_count = limit_count
        self.limit_bytes = limit_bytes
        self.enabled = enabled
        self._slots = 16
        self._batches = <Batch*>malloc(self._slots * sizeof(Batch))
        self._buf = <uint8_t*>malloc(FIRST_ROOM)
        if self._batches == NULL or self._buf == NULL:
            raise MemoryError
        self._cap = FIRST_ROOM
        self.removed = []
        memset(self._reasons, 0, sizeof(self._reasons))

    def __dealloc__(self):
        free(self._batches)
        free(self._buf)

    cpdef add(self, bytes op, double now):
        """Queue an encoded operation at time `now`.

        Raises TooManyRequests above limit_count or limit_bytes, and RequestTooLarge if the operation alone is above
        max_bytes. Nothing is queued then.
        """
        cdef size_t n = PyBytes_GET_SIZE(op)
        self._refuse(n)
        cdef uint8_t* at = self._room(SEP_LEN + n, 0) + SEP_LEN
        memcpy(at, PyBytes_AS_STRING(op), n)
        self._put(at, n, now)

    cdef int add_parts(self, uint8_t kind, uint64_t request_id, const uint8_t* body, size_t n, double now) except -1:
        self._refuse(OP_HEADER + n)
        cdef uint8_t* at = self._room(SEP_LEN + OP_HEADER + n, 0) + SEP_LEN
        memcpy(at + op_write_header(at, kind, request_id), body, n)
        return self._put(at, OP_HEADER + n, now)

    cdef int _refuse(self, size_t n) except -1:
        """Raise the errors of add() for an operation of n bytes."""
        if n > self.max_bytes:
            self._refused += 1
            raise RequestTooLarge()
        if (self.queued + self.inflight >= self.limit_count
                or self.queued_bytes + self.inflight_bytes + n > self.limit_bytes):
            self._refused += 1
            raise TooManyRequests()
        return 0

    cdef uint8_t* _room(self, size_t n, size_t keep) except NULL:
        """Return the address of n free bytes at the end of the queue. `keep` bytes that stand there already stay."""
        cdef size_t start, used, cap
        cdef uint8_t* grown
        cdef size_t i
        self._undo = False
        if self._count == 0:
            self._tail = 0
        if self._tail + n <= self._cap:
            return self._buf + self._tail
        start = self._batches[self._head].offset if self._count else 0
        used = self._tail - start
        if start > 0:
            memmove(self._buf, self._buf + start, used + keep)
            for i in range(self._count):
                self._batches[(self._head + i) & (self._slots - 1)].offset -= start
            self._tail = used
        # Half of the buffer stays free, so moving down costs at most one more copy for each queued byte.
        if 2 * used + n > self._cap:
            cap = self._cap
            while cap < 2 * used + n:
                cap *= 2
            grown = <uint8_t*>realloc(self._buf, cap)
            if grown == NULL:
                raise MemoryError
            self._buf = grown
            self._cap = cap
        return self._buf + self._tail

    cdef int _put(self, uint8_t* at, size_t n, double now) except -1:
        """Add the n bytes at `at`, SEP_LEN after the tail, to a batch, and escape them."""
        cdef size_t marks = count_marks(at, n)
        cdef Batch* batch = NULL
        cdef size_t slot
        if marks:
            self._refuse(n + marks)
            at = self._room(SEP_LEN + n + marks, SEP_LEN + n) + SEP_LEN
            escape_in_place(at, n, marks)
            n += marks
        if self._count:
            batch = &self._batches[(self._head + self._count - 1) & (self._slots - 1)]
            if not batch.closed and batch.size + SEP_LEN + n > self.max_bytes:
                batch.closed = True
                batch.reason = FULL_BYTES
        if batch != NULL and not batch.closed:
            memcpy(at - SEP_LEN, SEP, SEP_LEN)
            batch.size += SEP_LEN + n
            batch.count += 1
            self.queued_bytes += SEP_LEN
        else:
            # The space for a separator before a batch's first operation stays unused; moving the operation costs more.
            if self._count == self._slots:
                self._more_slots()
            slot = (self._head + self._count) & (self._slots - 1)
            batch = &self._batches[slot]
            batch.offset = at - self._buf
            batch.size = n
            batch.count = 1
            batch.first = now
            batch.closed = not self.enabled
            batch.reason = SINGLE
            self._count += 1
        self._tail = at + n - self._buf
        self.queued += 1
        self.queued_bytes += n
        if not batch.closed and (batch.count >= self.most_now or batch.size >= self.max_bytes
                                 or (batch.count >= self.max_count and batch.size >= MORE_BYTES)):
            batch.closed = True
            batch.reason = FULL_COUNT if batch.count >= self.max_count else FULL_BYTES
        return 0

    cdef int _more_slots(self) except -1:
        cdef Batch* grown = <Batch*>malloc(2 * self._slots * sizeof(Batch))
        cdef size_t i
        if grown == NULL:
            raise MemoryError
        for i in range(self._count):
            grown[i] = self._batches[(self._head + i) & (self._slots - 1)]
        free(self._batches)
        self._batches = grown
        self._slots *= 2
        self._head = 0
        return 0

    cdef bint _due(self, double now, bint disk_idle, bint flush_all, uint8_t* reason) noexcept:
        cdef Batch* batch
        if self._count == 0:
            return False
        batch = &self._batches[self._head]
        if batch.closed:
            reason[0] = batch.reason
        elif flush_all:
            reason[0] = FLUSH
        elif disk_idle:
            reason[0] = DISK_IDLE
        elif now >= batch.first + self.max_delay:
            # This is the same sum as in next_deadline(): a caller that sleeps until then must find the batch due.
            reason[0] = DELAY
        else:
            return False
        return True

    cpdef object take(self, double now, bint disk_idle, bint flush_all, PayloadCodec codec=None):
        """Return the framed bytes of the next batch that is due at time `now`, or None. One batch per call.

        A batch is due if it is full or its first operation has waited max_delay. Any batch is due if the disk is idle
        or flush_all is true. With a codec the result is the payload that codec.encode() would return. The batch is in
        flight then, and release() needs its taken_count and taken_bytes.
        """
        cdef uint8_t reason = 0
        cdef Batch* batch
        cdef bytes out
        while True:
            if not self._due(now, disk_idle, flush_all, &reason):
                return None
            batch = &self._batches[self._head]
            if self._dropped is None or self._weed(batch):
                break
        if codec is None:
            out = PyBytes_FromStringAndSize(<const char*>self._buf + batch.offset, batch.size)
        else:
            out = codec.encode_view(self._buf + batch.offset, batch.size)
        self.taken_count = batch.count
        self.taken_bytes = batch.size
        self.queued -= batch.count
        self.queued_bytes -= batch.size
        self.inflight += batch.count
        self.inflight_bytes += batch.size
        self._batches_out += 1
        self.ops_out += batch.count
        self._bytes_out += batch.size
        self._reasons[reason] += 1
        self._head = (self._head + 1) & (self._slots - 1)
        self._count -= 1
        self._undo = True
        self._undo_reason = reason
        return out

    cpdef drop(self, ids, dict waiters, uint64_t member=0):
        """Remove the operations with these request ids if they are still queued. `waiters` (by request id) loses the
        removed ones. The work is done when the batch with them is taken. `member` is the other member that the operations
        came from, or 0; `removed` then gets (member, id) of each operation that was removed.

        Ids that are not queued do no harm. At most 2 * limit_count ids are kept, twice as many as may be queued, so
        that a peer which names others can use up no memory; beyond that they are ignored.
        """
        cdef uint64_t last = self._batches_out + self._count
        if not self.queued:
            return
        if self._dropped is None:
            self._dropped = {}
        for one in ids:
            if <size_t>len(self._dropped) >= 2 * self.limit_count:
                break
            self._dropped.setdefault(one, (last, member))
        self._waiters = waiters

    @property
    def dropped(self):
        """How many ids of operations are kept that must not be handed out."""
        return 0 if self._dropped is None else len(self._dropped)

    cdef int _weed(self, Batch* batch) except -1:
        """Remove dropped operations from the first batch. Returns False if nothing is left and the batch is gone."""
        cdef bytes framed = PyBytes_FromStringAndSize(<const char*>self._buf + batch.offset, batch.size)
        cdef list ops = unframe(framed), kept = []
        cdef OpView op
        for one in ops:
            op_read(<const uint8_t*>PyBytes_AS_STRING(<bytes>one), PyBytes_GET_SIZE(<bytes>one), &op)
            dropped = self._dropped.pop(op.request_id, None)
            if dropped is None:
                kept.append(one)
                continue
            self._waiters.pop(op.request_id, None)
            if dropped[1]:
                self.removed.append((dropped[1], op.request_id))
        if len(kept) < len(ops):
            framed = frame(kept) if kept else b""
            memcpy(self._buf + batch.offset, PyBytes_AS_STRING(framed), PyBytes_GET_SIZE(framed))
            self.queued -= batch.count - <size_t>len(kept)
            self.queued_bytes -= batch.size - <size_t>PyBytes_GET_SIZE(framed)
            batch.count = len(kept)
            batch.size = PyBytes_GET_SIZE(framed)
            batch.closed = True         # the next operation would not stand directly behind it
        if not kept:
            self._head = (self._head + 1) & (self._slots - 1)
            self._count -= 1
        self._forget(self._batches_out + 1)
        if not self._dropped or self._count <= (1 if kept else 0):
            # Nothing more is queued, so the remaining ids belong to operations that were handed out before.
            self._dropped = None
        return len(kept) > 0

    cdef int _forget(self, uint64_t number) except -1:
        """Forget the ids that were dropped before any batch behind this one was begun: they had been handed out."""
        cdef list over = []
        for one, (last, _) in self._dropped.items():
            if <uint64_t>last > number:
                break
            over.append(one)
        for one in over:
            del self._dropped[one]
        return 0

    cpdef untake(self):
        """Queue the batch that take() returned last again, as the first one, because it could not be proposed.

        Call it directly after that take(). Raises ValueError after an add(), a release() or another untake().
        """
        cdef Batch* batch
        if not self._undo:
            raise ValueError("the batch taken last is not there any more")
        # Its bytes are still in the buffer, because only add() writes there.
        self._undo = False
        self._head = (self._head - 1) & (self._slots - 1)
        self._count += 1
        batch = &self._batches[self._head]
        self.queued += batch.count
        self.queued_bytes += batch.size
        self.inflight -= batch.count
        self.inflight_bytes -= batch.size
        self._batches_out -= 1
        self.ops_out -= batch.count
        self._bytes_out -= batch.size
        self._reasons[self._undo_reason] -= 1

    cdef int _shrink(self) except -1:
        cdef uint8_t* small = <uint8_t*>realloc(self._buf, FIRST_ROOM)
        if small == NULL:
            raise MemoryError
        self._buf = small
        self._cap = FIRST_ROOM
        return 0

    cpdef release(self, size_t count, size_t nbytes):
        """Report that `count` operations of `nbytes` framed bytes were answered. ValueError if fewer are in flight."""
        if count > self.inflight or nbytes > self.inflight_bytes:
            raise ValueError(f"released {count} operations of {nbytes} bytes; in flight are {self.inflight} of "
                             f"{self.inflight_bytes}")
        self.inflight -= count
        self.inflight_bytes -= nbytes
        self._undo = False
        if self._count == 0 and self._cap > KEPT_ROOM:
            self._shrink()

    cpdef object next_deadline(self):
        """Time (seconds) at which the oldest batch is due even if the disk is busy; None if nothing is queued."""
        cdef Batch* batch
        if self._count == 0:
            return None
        batch = &self._batches[self._head]
        return batch.first if batch.closed else batch.first + self.max_delay

    def stats(self):
        """Counters since the start (dict of int): batches, ops, bytes, refused, and batches by flush reason."""
        cdef dict found = {"batches": self._batches_out, "ops": self.ops_out, "bytes": self._bytes_out,
                           "refused": self._refused}
        for at, name in enumerate(REASONS):
            found[name] = self._reasons[at]
        return found
