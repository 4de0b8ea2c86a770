"""Puts of this process that are handed over together: a `Piece`. It has their encoded requests and what became of each.

A put of a piece is an operation like any other, with a request id and a revision of its own. What it does not have is
an object that Python's collector looks at: a request in one buffer, and a waiter of 48 bytes. With objects for each put
(a tuple, a message, a Future) `put_many` took 12 us of processor time a put.

The caller's thread fills a piece, the loop's thread takes its puts one by one and answers them, the caller's thread may
take back the others, and a third one may refuse them at the end of the node. The methods keep the GIL and call no
Python between the look at a state and its change, so each put has one outcome: the first one. The handler of a signal
may stop the node between any two calls.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from metastore import errors
from metastore._core.kv_columns cimport Column
from metastore._core.varint cimport varint_size, varint_write
from metastore._core.waiter cimport RevisionWaiter

cdef enum:
    WRITTEN_STATE = 1
    REFUSED_STATE = 2
    OPEN_STATE = 3
    FIRST_ROOM = 32768

WRITTEN, NOT_WRITTEN, OPEN = WRITTEN_STATE, REFUSED_STATE, OPEN_STATE
PUTS, NBYTES = PIECE_PUTS, PIECE_BYTES

# What a write may get that is done all the same, or will be. Any other error of the API refuses the write for good.
cdef tuple UNDECIDED = (
    errors.Timeout, errors.LeaderChanged, errors.Stopped, errors.Canceled, errors.DeadlineExceeded,
)


cdef int state_of(error) except -1:
    """What an error says about a put."""
    if isinstance(error, errors.ReplyTooLarge):
        return WRITTEN_STATE
    if isinstance(error, errors.ApiError) and (error.not_done or not isinstance(error, UNDECIDED)):
        return REFUSED_STATE
    return OPEN_STATE


cdef class Piece:
    """At most PUTS puts with NBYTES bytes of keys and values, from position `begin` on."""

    def __init__(self, Py_ssize_t begin):
        self.begin = begin
        self._error_at = self._first_at = self._last_at = -1
        memset(self._puts, 0, sizeof(self._puts))

    def __dealloc__(self):
        free(self._data)

    def __len__(self):
        return self.size

    @property
    def full(self):
        """Whether it takes no further put."""
        return self.size == PIECE_PUTS or self.nbytes >= PIECE_BYTES

    # ---- in the caller's thread, before it is handed over

    def fill(self, pairs, check) -> bool:
        """Take pairs out of an iterator until the piece is full; whether it is. `check(pair, position)` gives the key
        and the value of what is no tuple of two bytes, or raises."""
        cdef object pair, key, value
        if self.size == PIECE_PUTS or self.nbytes >= PIECE_BYTES:
            return True
        for pair in pairs:
            if not (type(pair) is tuple and len(<tuple>pair) == 2
                    and type((<tuple>pair)[0]) is bytes and type((<tuple>pair)[1]) is bytes):
                pair = check(pair, self.begin + self.size)
            key, value = (<tuple?>pair)[0], (<tuple>pair)[1]
            self.put(<const uint8_t*>PyBytes_AS_STRING(<bytes?>key), PyBytes_GET_SIZE(key),
                     <const uint8_t*>PyBytes_AS_STRING(<bytes?>value), PyBytes_GET_SIZE(value))
            if self.size == PIECE_PUTS or self.nbytes >= PIECE_BYTES:
                return True
        return False

    def fill_columns(self, Column keys not None, Column values not None) -> bool:
        """Take pairs out of two columns of the same size, from the piece's own position on, until the piece is full;
        whether it is. Raises ValueError."""
        cdef const uint8_t* key
        cdef const uint8_t* value
        cdef size_t klen, vlen
        cdef Py_ssize_t place = self.begin + self.size
        while place < keys.size and place < values.size:
            if self.size == PIECE_PUTS or self.nbytes >= PIECE_BYTES:
                return True
            keys.at(place, &key, &klen)
            values.at(place, &value, &vlen)
            self.put(key, klen, value, vlen)
            place += 1
        return self.size == PIECE_PUTS or self.nbytes >= PIECE_BYTES

    cdef int put(self, const uint8_t* key, size_t klen, const uint8_t* value, size_t vlen) except -1:
        """Encode one more PutRequest. Nothing is changed if there is no memory for it."""
        cdef PutPlace* place = &self._puts[self.size]
        cdef size_t at = self._puts[self.size - 1].end if self.size else 0
        cdef size_t room = at + 2 + varint_size(klen) + klen + varint_size(vlen) + vlen
        cdef uint8_t* p
        if room > self._room:
            room = max(2 * room, <size_t>FIRST_ROOM) if room < PIECE_BYTES else room
            p = <uint8_t*>realloc(self._data, room)
            if p == NULL:
                raise MemoryError
            self._data = p
            self._room = room
        p = self._data + at
        if klen:
            p[0] = 0x0A
            p = varint_write(p + 1, klen)
            memcpy(p, key, klen)
            p += klen
        if vlen:
            p[0] = 0x12
            p = varint_write(p + 1, vlen)
            memcpy(p, value, vlen)
            p += vlen
        place.end = p - self._data
        place.klen = klen
        self.nbytes += klen + vlen
        self.size += 1
        return 0

    cdef const uint8_t* body(self, Py_ssize_t place, size_t* n) noexcept:
        """The encoded request of a put."""
        cdef size_t begin = self._puts[place - 1].end if place else 0
        n[0] = self._puts[place].end - begin
        return self._data + begin

    # ---- outcomes; from any thread

    cdef int written(self, Py_ssize_t place, int64_t revision) except -1:
        if self._puts[place].state:
            return 0
        if self._first_at < 0 or place < self._first_at:
            self._first_at, self.first_revision = place, revision
        if place > self._last_at:
            self._last_at, self.last_revision = place, revision
        return self.settle(place, WRITTEN_STATE, False)

    cdef int refused(self, Py_ssize_t place, error) except -1:
        cdef int state = state_of(error)
        if self._puts[place].state:
            return 0
        if self._error_at < 0 or place < self._error_at:
            self._error_at, self.error = place, error
        return self.settle(place, state, True)

    cdef int settle(self, Py_ssize_t place, int state, bint failed) except -1:
        """Note the outcome of a put that has none."""
        cdef bint news = failed and not self.failed
        self._puts[place].state = <uint8_t>state
        self.failed = self.failed or failed    # before it can be done: nobody must take it for a success
        self._known += 1
        if self._known == self.size:
            self.done = news = True
        if news:
            self.news()
        return 0

    def withdraw(self) -> None:
        """Take back the puts that the member has not got yet. They are surely not done."""
        cdef Py_ssize_t place, begin = self.next
        self.next = self.size
        for place in range(begin, self.size):
            if not self._puts[place].state:
                self.settle(place, REFUSED_STATE, False)

    def refuse(self, error) -> None:
        """The puts that the member has not got yet get this error. They are surely not done."""
        cdef Py_ssize_t place, begin = self.next
        error.not_done = True
        self.next = self.size
        for place in range(begin, self.size):
            self.refused(place, error)

    def spans(self) -> list:
        """What became of the puts: (WRITTEN, NOT_WRITTEN or OPEN, first position, position behind the last), ascending.
        A put without an outcome is open."""
        cdef list found = []
        cdef Py_ssize_t place = 0, begin
        cdef int state
        while place < self.size:
            begin, state = place, self._puts[place].state
            while place < self.size and self._puts[place].state == state:
                place += 1
            found.append((state or OPEN_STATE, self.begin + begin, self.begin + place))
        return found


@cython.final
@cython.no_gc
cdef class PiecePut(RevisionWaiter):
    """Waits for one put of a piece. The collector does not track it, and the piece does not refer to it."""

    cpdef complete(self, object reply):
        self.piece.written(self.place, self.revision)

    cpdef fail(self, object error):
        self.piece.refused(self.place, error)
