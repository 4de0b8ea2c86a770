"""The records of a snapshot: from an engine's view to a byte stream, and from a byte stream into an engine.

A thread of its own builds a snapshot while the node runs. It walks a view of the memory engine and copies its records
without the GIL: the nodes and records that a view can reach never change (see omap.pyx), and the walker changes no
reference count. It delays the node's main thread only while it creates a few Python objects per chunk.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from metastore._core.engine cimport Engine, MemoryEngine
from metastore._core.le cimport get32, put32
from metastore._core.ordered_map cimport OrderedMap
from metastore._core.ordered_map_walk cimport cursor_first, cursor_next
from metastore._core.record cimport Record, held_alloc, key_cmp, rec_free, rec_key, rec_new, rec_ref, rec_release, rec_value

from metastore._core.engine import APPLIED_KEY
from metastore.errors import FormatError

# Records inserted into a map between two checks whether other threads want to run: well under a millisecond.
cdef enum:
    SLICE = 1024
    TURN_RECORDS = 128       # records of a Python engine between two pauses (some 0.15 ms)
    TURN_BYTES = 1 << 18


cdef class Walker:
    """Reads the records of a view (Engine) as a byte stream, piece by piece. No other code may use the view.

    pause: a function without arguments. It is called after each slice of well under a millisecond while an engine that
    is not in memory is walked, to give the GIL to others for a moment.
    """

    def __init__(self, Engine view not None, pause=None):
        self.view = view
        self.pause = pause
        self.in_memory = type(view) is MemoryEngine
        if self.in_memory:
            self.rec = cursor_first(&self.cur, (<MemoryEngine>view).tree.root)
        else:
            self.cursor = view.cursor()
            self.rec = self.cursor.seek(<const uint8_t*>b"", 0)
        self.done = self.rec == NULL
        self.records = 0 if self.done else 1

    cdef size_t copy_some(self, uint8_t* out, size_t room) noexcept nogil:
        """Copy as much of the current record as fits."""
        cdef uint8_t head[RECORD_HEADER]
        cdef size_t part, total = 0
        cdef size_t whole = RECORD_HEADER + <size_t>self.rec.klen + self.rec.vlen
        if self.copied < RECORD_HEADER:
            put32(head, self.rec.klen)
            put32(head + 4, self.rec.vlen)
            part = min(room, RECORD_HEADER - self.copied)
            memcpy(out, head + self.copied, part)
            self.copied += part
            total = part
        if self.copied >= RECORD_HEADER and room > total:
            # The value follows its key in memory.
            part = min(room - total, whole - self.copied)
            memcpy(out + total, rec_key(self.rec) + (self.copied - RECORD_HEADER), part)
            self.copied += part
            total += part
        return total

    cdef size_t fill_nogil(self, uint8_t* out, size_t room) noexcept nogil:
        cdef size_t total = 0
        while self.rec != NULL and total < room:
            total += self.copy_some(out + total, room - total)
            if self.copied == RECORD_HEADER + <size_t>self.rec.klen + self.rec.vlen:
                self.copied = 0
                self.rec = cursor_next(&self.cur)
                if self.rec != NULL:
                    self.records += 1
        return total

    cdef size_t fill_gil(self, uint8_t* out, size_t room) except? 0:
        # Each record needs calls into Python, so others get the GIL after each slice of well under a millisecond.
        cdef size_t total = 0, paused = 0
        cdef uint64_t records = self.records
        while self.rec != NULL and total < room:
            total += self.copy_some(out + total, room - total)
            if self.copied == RECORD_HEADER + <size_t>self.rec.klen + self.rec.vlen:
                self.copied = 0
                self.rec = self.cursor.next()
                if self.rec != NULL:
                    self.records += 1
            if self.records - records >= TURN_RECORDS or total - paused >= TURN_BYTES:
                records = self.records
                paused = total
                if self.pause is not None:
                    self.pause()
        return total

    cpdef bytes take(self, size_t limit):
        """Return the next `limit` bytes of the stream, or fewer at the end. Nothing follows when `done` is true."""
        cdef bytes piece = PyBytes_FromStringAndSize(NULL, limit)
        cdef uint8_t* out = <uint8_t*>PyBytes_AS_STRING(piece)
        cdef size_t n
        if self.in_memory:
            with nogil:
                n = self.fill_nogil(out, limit)
        else:
            n = self.fill_gil(out, limit)
        self.nbytes += n
        self.done = self.rec == NULL
        return piece if n == limit else piece[:n]

    def close(self) -> None:
        """Close the view. Nothing can be read any more. Idempotent."""
        self.rec = NULL
        self.done = True
        self.cursor = None
        if self.view is not None:
            self.view.close()
            self.view = None


cdef class RecordReader:
    """Iterates over the (key, value) pairs of a stream that an iterable gives as byte strings.

    Raises FormatError for an impossible length, keys out of order, and a stream that ends inside a record. It also
    raises whatever the iterable raises.
    """

    def __init__(self, pieces):
        self.pieces = iter(pieces)
        self.piece = b""

    def __dealloc__(self):
        if self.last != NULL:
            rec_release(self.last)

    cdef bint more(self) except -1:
        """Make sure that unread bytes are at hand. Returns False at the end."""
        while self.at == <size_t>PyBytes_GET_SIZE(self.piece):
            # Release the old piece before the next one is created: a piece is a whole chunk.
            self.piece = b""
            self.at = 0
            piece = next(self.pieces, None)
            if piece is None:
                return False
            self.piece = piece
            self.at = 0
        return True

    cdef size_t read(self, uint8_t* out, size_t n) except? 0:
        """Copy the next n bytes; fewer only at the end of the stream."""
        cdef size_t got = 0, part
        while got < n and self.more():
            part = min(n - got, <size_t>PyBytes_GET_SIZE(self.piece) - self.at)
            memcpy(out + got, PyBytes_AS_STRING(self.piece) + self.at, part)
            self.at += part
            got += part
        self.nbytes += got
        return got

    cdef Record* next_record(self) except? NULL:
        """Return the next record, which the caller owns; NULL at the end."""
        cdef uint32_t klen, vlen
        cdef Record* rec
        cdef size_t n = self.read(self.head, RECORD_HEADER)
        if n == 0:
            return NULL
        klen = get32(self.head)
        vlen = get32(self.head + 4)
        if n < RECORD_HEADER or klen > MAX_RECORD or vlen > MAX_RECORD:
            raise FormatError(f"snapshot: record {self.records} cannot be read")
        rec = <Record*>held_alloc(sizeof(Record) + <size_t>klen + vlen)
        if rec == NULL:
            raise MemoryError
        rec.refs = 1
        rec.klen = klen
        rec.vlen = vlen
        try:
            if self.read(rec_key(rec), <size_t>klen + vlen) != <size_t>klen + vlen:
                raise FormatError("snapshot: ends inside a record")
            if self.last != NULL and key_cmp(rec_key(self.last), self.last.klen, rec_key(rec), klen) >= 0:
                raise FormatError(f"snapshot: record {self.records} is out of order")
        except BaseException:
            rec_free(rec)
            raise
        if self.last != NULL:
            rec_release(self.last)
        rec_ref(rec)
        self.last = rec
        self.records += 1
        return rec

    cdef bint scan(self, const uint8_t* data, size_t n, const uint8_t** key, uint32_t* size) noexcept nogil:
        """Pass over the records that lie whole in the n bytes of the piece. `key` is the one of the record before, or NULL,
        and then that of the last one. Returns False if one is impossible."""
        cdef uint32_t klen, vlen
        cdef const uint8_t* after
        while n - self.at >= RECORD_HEADER:
            klen = get32(data + self.at)
            vlen = get32(data + self.at + 4)
            if klen > MAX_RECORD or vlen > MAX_RECORD:
                return False
            if n - self.at - RECORD_HEADER < <size_t>klen + vlen:
                break
            after = data + self.at + RECORD_HEADER
            if key[0] != NULL and key_cmp(key[0], size[0], after, klen) >= 0:
                return False
            key[0] = after
            size[0] = klen
            self.at += RECORD_HEADER + <size_t>klen + vlen
            self.nbytes += RECORD_HEADER + <size_t>klen + vlen
            self.records += 1
        return True

    cdef int scan_piece(self) except -1:
        """Pass over the records that lie whole in the piece, without the GIL. Raises FormatError, MemoryError."""
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(self.piece)
        cdef size_t n = PyBytes_GET_SIZE(self.piece)
        cdef const uint8_t* key = NULL if self.last == NULL else rec_key(self.last)
        cdef uint32_t size = 0 if self.last == NULL else self.last.klen
        cdef uint64_t before = self.records
        cdef Record* kept
        cdef bint good
        with nogil:
            good = self.scan(data, n, &key, &size)
        if not good:
            raise FormatError(f"snapshot: record {self.records} is impossible or out of order")
        if self.records > before:
            kept = rec_new(key, size, 0)
            if kept == NULL:
                raise MemoryError
            if self.last != NULL:
                rec_release(self.last)
            self.last = kept
        return 0

    def __iter__(self):
        return self

    def __next__(self):
        cdef Record* rec = self.next_record()
        if rec == NULL:
            raise StopIteration
        try:
            return (PyBytes_FromStringAndSize(<char*>rec_key(rec), rec.klen),
                    PyBytes_FromStringAndSize(<char*>rec_value(rec), rec.vlen))
        finally:
            rec_release(rec)


def count_records(RecordReader reader not None) -> int:
    """Read and check the stream to its end, and return the number of records. This runs mostly without the GIL.
    Raises what the reader raises."""
    cdef Record* rec
    while reader.more():
        reader.scan_piece()
        # If anything is left, it is a record that goes on in the next piece.
        rec = reader.next_record()
        if rec != NULL:
            rec_release(rec)
    return reader.records


def restore(Engine engine not None, RecordReader reader not None, pause=None) -> None:
    """Replace the contents of the engine by the records of a stream, all or nothing.

    pause: a function without arguments, called after every slice of well under a millisecond so that others can use the
    thread or the GIL. Only engines in memory are restored in slices. Raises FormatError, what the stream raises, and
    the errors of the engine.
    """
    cdef MemoryEngine memory
    cdef OrderedMap fresh
    cdef Record* rec
    cdef bytes where
    cdef uint64_t position[2]
    cdef Py_ssize_t count = 0
    if type(engine) is not MemoryEngine:
        engine.restore(reader)
        return
    memory = <MemoryEngine>engine
    fresh = OrderedMap(True)
    rec = reader.next_record()
    while rec != NULL:
        fresh.put_record(rec)
        count += 1
        if pause is not None and count % SLICE == 0:
            pause()
        rec = reader.next_record()
    where = fresh.get(APPLIED_KEY, b"")
    if len(where) != sizeof(position):
        raise FormatError("snapshot: has no log position")
    memcpy(position, PyBytes_AS_STRING(where), sizeof(position))
    memory.tree = fresh
    memory.index = position[0]
    memory.term = position[1]
