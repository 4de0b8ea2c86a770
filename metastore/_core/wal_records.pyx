"""The write-ahead log as bytes: records, groups and the table of entries. Layout and rules: FORMATS.md, "WAL".

This module is pure: it has no files, threads, clocks or randomness. `storage/wal.py` writes its bytes to a disk, and
the simulator keeps them in memory.

A `LogState` is the state that a log describes. A `Writer` turns appends into groups. The owner of the disk takes the
groups one by one with `take`, writes and syncs them, and returns their buffers with `recycle`. `wal_scan.pyx` reads a
log back and creates the writers.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

from metastore._core.crc cimport crc32
from metastore._core.entry cimport (ENTRY_HEADER, ENTRY_NORMAL, ENTRY_OK, EntryView, HardState, entry_raise,
                                    entry_read)
from metastore._core.le cimport get32, get64, put32, put64

from metastore.errors import FormatError

cdef uint32_t VERSION = 1
cdef bytes MAGIC = b"MSWAL\r\n\x1a"
# The table of entries keeps an offset in a segment as 32 bits, in units of 8 bytes.
MAX_SEGMENT = 8 * (2**32 - 1)
HEADER_SIZE = SEGMENT_HEADER
RECORD_TYPES = {REC_START: "START", REC_ENTRY: "ENTRY", REC_HARD_STATE: "HARD_STATE",
                REC_SNAPSHOT: "SNAPSHOT", REC_MARKER: "MARKER"}


def make_generation(uint64_t number, uint64_t nonce):
    """The generation of segment `number` (1 to 2**32-1) with 32 random bits `nonce`."""
    if not 0 < number < (1 << 32):
        raise ValueError(f"segment number {number} is out of range")
    return (number << 32) | (nonce & 0xFFFFFFFF)


def encode_header(uint64_t generation, uint64_t size):
    """Encode the 64-byte header of a segment file of `size` bytes. The file never gets shorter while it is in use."""
    cdef bytearray out = bytearray(SEGMENT_HEADER)
    cdef uint8_t* p = out
    memcpy(p, <const uint8_t*>MAGIC, 8)
    put32(p + 8, VERSION)
    put64(p + 16, generation)
    put64(p + 24, size)
    put32(p + 60, crc32(0, p, 60))
    return bytes(out)


def check_header(const uint8_t[::1] buf not None, uint64_t generation):
    """Check the segment header at the start of `buf` for this generation. Returns what is wrong as text, or None."""
    if buf.shape[0] < SEGMENT_HEADER:
        return f"segment header is cut off after {buf.shape[0]} bytes"
    cdef const uint8_t* p = &buf[0]
    if memcmp(p, <const uint8_t*>MAGIC, 8) != 0:
        return "segment header has not the magic bytes of a log"
    if get32(p + 60) != crc32(0, p, 60):
        return "segment header has a wrong CRC"
    if get32(p + 8) != VERSION:
        return f"segment header has version {get32(p + 8)}, known is {VERSION}"
    if get64(p + 16) != generation:
        return f"segment header is of generation {get64(p + 16):016x}, the file name says {generation:016x}"
    return None


cdef bint payload_ok(const uint8_t* header, const uint8_t* payload, size_t length) noexcept nogil:
    cdef EntryView view
    cdef uint32_t crc = crc32(0, header + 4, RECORD_HEADER - 4)
    if header[12] == REC_ENTRY:
        if length < ENTRY_HEADER or crc32(crc, payload, 4) != get32(header):
            return False
        return entry_read(payload, length, &view, True) == ENTRY_OK and view.size == length
    if crc32(crc, payload, length) != get32(header):
        return False
    if header[12] == REC_START:
        return (length >= START_FIXED
                and length == START_FIXED + <size_t>get32(payload + 72) + <size_t>get32(payload + 76))
    if header[12] == REC_HARD_STATE:
        return length == 24
    if header[12] == REC_SNAPSHOT:
        return length >= 20 and length == 20 + <size_t>get32(payload + 16)
    return header[12] == REC_MARKER and length == 0


cdef int record_read(const uint8_t* buf, size_t pos, size_t end, uint64_t generation,
                     RecordView* out) noexcept nogil:
    cdef const uint8_t* p = buf + pos
    cdef size_t size, pad
    # A partial header at the very end of the file proves nothing.
    if pos > end or end - pos < RECORD_HEADER or get64(p + 16) != generation:
        return READ_NONE
    out.length = get32(p + 4)
    size = align8(RECORD_HEADER + out.length)
    if size > end - pos or p[13] != 0 or p[14] != 0 or p[15] != 0 or get32(p + 44) != 0:
        return READ_BAD
    out.crc = get32(p)
    out.prev = get32(p + 8)
    out.type = p[12]
    out.group = get64(p + 24)
    out.synced = get64(p + 32)
    out.proven = <uint64_t>get32(p + 40) * 8
    out.payload = p + RECORD_HEADER
    out.size = size
    if out.synced >= out.group or out.proven > pos or not payload_ok(p, out.payload, out.length):
        return READ_BAD
    for pad in range(RECORD_HEADER + out.length, size):
        if p[pad] != 0:
            return READ_BAD
    return READ_OK


cdef class LogState:
    """The state that the log describes: hard state, snapshot position, ConfState, metadata and the place of each entry.

    `first` is the index of the first entry held. `missing` is 0, or the highest index that a missing segment must have
    held.
    """

    def __cinit__(self):
        self.places = NULL
        self.first = 1

    def __init__(self, bytes metadata=b""):
        self.metadata = metadata
        self.conf_state = b""

    def __dealloc__(self):
        free(self.places)

    cdef uint64_t last(self) noexcept:
        return self.first + self.count - 1

    cdef uint64_t last_term_known(self) noexcept:
        return self.places[self.head + self.count - 1].term if self.count else self.base_term

    @property
    def first_index(self):
        """Index of the first entry of the log: the one after the snapshot position."""
        return self.snapshot_index + 1

    @property
    def last_index(self):
        """Index of the last entry, or of the snapshot position if there is no entry."""
        return self.last()

    cdef Place* place(self, uint64_t index) except NULL:
        if index < self.first or index - self.first >= self.count:
            raise IndexError(f"entry {index} is not in the log [{self.first}, {self.last()}]")
        return &self.places[self.head + (index - self.first)]

    def term(self, uint64_t index):
        """Term of entry `index` or of the snapshot position. Raises IndexError outside the log."""
        if index == self.snapshot_index:
            return self.snapshot_term
        return self.place(index).term

    def where(self, uint64_t index):
        """(segment number, offset of the record, size of the image in bytes) of entry `index`."""
        cdef Place* place = self.place(index)
        return place.segment, <uint64_t>place.at * 8, place.size

    cdef int add(self, const uint8_t* image, uint32_t segment, uint64_t offset, uint32_t size) except -1:
        cdef uint64_t term = get64(image + 8), index = get64(image + 16)
        cdef Place* place
        cdef void* grown
        if index <= self.snapshot_index or index > self.last() + 1:
            raise FormatError(f"entry {index} does not follow on [{self.snapshot_index + 1}, {self.last()}]")
        if index < self.first:
            self.count = 0
            self.first = index
            self.base_term = 0
            self.missing = min(self.missing, index - 1)
        else:
            self.count = index - self.first
        if self.count and self.places[self.head + self.count - 1].term > term:
            raise FormatError(f"entry {index} has term {term}, the one before it a higher one")
        if self.head + self.count == self.capacity:
            if self.head > self.capacity // 2:
                memmove(self.places, self.places + self.head, self.count * sizeof(Place))
                self.head = 0
            else:
                grown = realloc(self.places, max(<size_t>256, self.capacity * 2) * sizeof(Place))
                if grown == NULL:
                    raise MemoryError
                self.places = <Place*>grown
                self.capacity = max(<size_t>256, self.capacity * 2)
        place = &self.places[self.head + self.count]
        place.term = term
        place.segment = segment
        place.at = <uint32_t>(offset // 8)
        place.size = size
        place.type = image[24]
        self.count += 1
        return 0

    cpdef compact(self, uint64_t index, uint64_t term, bytes conf_state):
        """Let the log begin after (index, term). If it does not hold that entry, drop all entries."""
        cdef bint held
        if index < self.snapshot_index:
            raise FormatError(f"snapshot position {index} is below the one before, {self.snapshot_index}")
        if index + 1 < self.first:
            held = True     # the entry was in a segment that is released, so its term is no longer known
        elif index + 1 == self.first:
            held = self.base_term == term or self.count == 0 or self.base_term == 0
            if held:
                self.base_term = term
        else:
            held = index <= self.last() and self.place(index).term == term
            if held:
                self.head += index + 1 - self.first
                self.count -= index + 1 - self.first
                self.first = index + 1
                self.base_term = term
        if not held:
            self.head = self.count = 0
            self.first = index + 1
            self.base_term = term
        if not held or self.missing <= index:
            self.missing = 0
        self.snapshot_index = index
        self.snapshot_term = term
        self.conf_state = conf_state

    cdef int apply(self, const RecordView* rec, uint32_t segment, uint64_t offset) except -1:
        cdef const uint8_t* p = rec.payload
        if rec.type == REC_ENTRY:
            self.add(p, segment, offset, <uint32_t>rec.length)
        elif rec.type == REC_HARD_STATE:
            self.hard_term = get64(p)
            self.hard_vote = get64(p + 8)
            self.hard_commit = get64(p + 16)
        elif rec.type == REC_SNAPSHOT:
            self.compact(get64(p), get64(p + 8), <bytes>(p + 20)[:get32(p + 16)])
        return 0

    cdef int begin(self, const uint8_t* p) except -1:
        """Take over the state in the first segment's START record."""
        cdef size_t meta = get32(p + 72)
        self.snapshot_index = get64(p + 16)
        self.snapshot_term = get64(p + 24)
        self.first = get64(p + 32) + 1
        self.base_term = get64(p + 40)
        self.hard_term = get64(p + 48)
        self.hard_vote = get64(p + 56)
        self.hard_commit = get64(p + 64)
        self.metadata = <bytes>(p + START_FIXED)[:meta]
        self.conf_state = <bytes>(p + START_FIXED + meta)[:get32(p + 76)]
        self.missing = self.first - 1 if self.first - 1 > self.snapshot_index else 0
        return 0

    def has_conf_change(self, uint64_t lo, uint64_t hi):
        """Whether any of the entries lo to hi-1 that the log holds changes the membership."""
        cdef uint64_t index
        for index in range(max(lo, self.first), min(hi, self.last() + 1)):
            if self.place(index).type != ENTRY_NORMAL:
                return True
        return False


cdef class Group:
    """Bytes that one write puts at `offset` of segment `generation` and one sync makes durable.

    `number` is the highest append number that is durable with this group, or 0 if no append ends in it. `before` is
    the highest append number before the first append of the group that must be synced. `content` is true if a caller
    waits for something in the group, so a marker should prove it. `firm` is true if the group holds more than entries
    and a commit index; a log that reports entries before they are synced must sync such a group first.
    """

    def __cinit__(self):
        self.data = NULL

    def __dealloc__(self):
        free(self.data)

    cdef int reserve(self, size_t more) except -1:
        cdef size_t capacity
        cdef void* grown
        if self.size + more > self.capacity:
            capacity = max(self.capacity * 2, self.size + more, <size_t>16384)
            grown = realloc(self.data, capacity)
            if grown == NULL:
                raise MemoryError
            self.data = <uint8_t*>grown
            self.capacity = capacity
        return 0

    @property
    def nbytes(self):
        """Number of bytes to write."""
        return self.size

    @property
    def end(self):
        """Offset in the segment behind the last byte."""
        return self.offset + self.size

    def tobytes(self):
        """Return a copy of the bytes, for tests and the simulator."""
        return <bytes>self.data[:self.size]


cdef class Writer:
    """Turns appends into groups.

    plan: a function that is called as plan(need) when the next segment must begin. It returns (generation, capacity in
    bytes), where the capacity is at least `need`. group_commit: if true, everything that waits goes into one group of
    at most max_group bytes, which only a single append may exceed; if false, each append is a group of its own. A
    writer that was created with `lagging` does not assume that the earlier groups are synced when it encodes a group;
    the owner reports syncs with `synced`.
    """

    def __init__(self, LogState state not None, plan, *, bint group_commit=True, size_t max_group=16 << 20):
        self.state = state
        self.plan = plan
        self.group_commit = group_commit
        self.max_group = max_group
        self.pending = []
        self.spare = []
        self.open = None

    cdef Group new_group(self):
        cdef Group fresh
        if self.spare:
            fresh = self.spare.pop()
        else:
            fresh = Group.__new__(Group)
        self.group += 1
        fresh.size = 0
        fresh.generation = self.generation
        fresh.offset = self.position
        fresh.group = self.group
        fresh.number = 0
        fresh.before = self.number
        fresh.must_sync = False
        fresh.content = False
        fresh.firm = False
        self.pending.append(fresh)
        self.open = fresh
        return fresh

    cdef Group target(self):
        if self.open is None:
            return self.new_group()
        return self.open

    cdef int put(self, uint8_t type, const uint8_t* payload, size_t n) except -1:
        """Encode one record into the open group. The caller has called `fit`, so there is space for it."""
        cdef Group group = self.target()
        cdef size_t size = align8(RECORD_HEADER + n)
        cdef uint8_t* p
        group.reserve(size)
        p = group.data + group.size
        memset(p, 0, RECORD_HEADER)
        put32(p + 4, <uint32_t>n)
        put32(p + 8, self.chain)
        p[12] = type
        put64(p + 16, self.generation)
        put64(p + 24, group.group)
        if self.lagging:
            put64(p + 32, self.known_group)
            put32(p + 40, <uint32_t>(self.known_end // 8))
        else:
            # A group is written only after the one before is synced, so its presence on disk proves the earlier one.
            put64(p + 32, group.group - 1)
            put32(p + 40, <uint32_t>(group.offset // 8))
        if n:
            memcpy(p + RECORD_HEADER, payload, n)
        memset(p + RECORD_HEADER + n, 0, size - RECORD_HEADER - n)
        self.chain = crc32(crc32(0, p + 4, RECORD_HEADER - 4), p + RECORD_HEADER, 4 if type == REC_ENTRY else n)
        put32(p, self.chain)
        group.size += size
        self.position += size
        self.pending_bytes += size
        return 0

    cdef int fit(self, size_t n) except -1:
        """Begin the next segment if a record with n payload bytes does not fit into this one; close a full group."""
        cdef size_t size = align8(RECORD_HEADER + n)
        cdef size_t start
        if self.position + size > self.capacity:
            start = align8(RECORD_HEADER + START_FIXED + len(self.state.metadata) + len(self.state.conf_state))
            self.start_number = self.generation >> 32
            self.start_end = self.position
            self.open = None
            self.generation, self.capacity = self.plan(SEGMENT_HEADER + start + size)
            if self.capacity < SEGMENT_HEADER + start + size:
                raise ValueError(f"a segment of {self.capacity} bytes cannot hold a record of {size}")
            self.position = SEGMENT_HEADER
            # Even a lagging writer writes nothing of this segment before the segment before it is synced.
            self.known_group, self.known_end = self.group, SEGMENT_HEADER
            self.write_start()
        elif self.open is not None and self.open.size >= self.max_group:
            self.open = None
        return 0

    cdef int write_start(self) except -1:
        cdef LogState state = self.state
        cdef bytearray out = bytearray(START_FIXED) + state.metadata + state.conf_state
        cdef uint8_t* p = out
        put64(p, self.start_number)
        put64(p + 8, self.start_end)
        put64(p + 16, state.snapshot_index)
        put64(p + 24, state.snapshot_term)
        put64(p + 32, state.last())
        put64(p + 40, state.last_term_known())
        put64(p + 48, state.hard_term)
        put64(p + 56, state.hard_vote)
        put64(p + 64, state.hard_commit)
        put32(p + 72, <uint32_t>len(state.metadata))
        put32(p + 76, <uint32_t>len(state.conf_state))
        return self.put(REC_START, p, <size_t>len(out))

    cdef int put_entry(self, const uint8_t* image, size_t n) except -1:
        self.fit(n)
        self.state.add(image, <uint32_t>(self.generation >> 32), self.position, <uint32_t>n)
        return self.put(REC_ENTRY, image, n)

    cdef int put_hard_state(self) except -1:
        cdef uint8_t[24] hard
        put64(hard, self.state.hard_term)
        put64(hard + 8, self.state.hard_vote)
        put64(hard + 16, self.state.hard_commit)
        self.fit(24)
        return self.put(REC_HARD_STATE, hard, 24)

    cdef int append_images(self, const uint8_t* data, size_t n) except -1:
        cdef EntryView view
        cdef size_t pos = 0
        cdef int answer
        while pos < n:
            # The CRC was checked or computed when the image was created or received; this reads only the header.
            answer = entry_read(data + pos, n - pos, &view, False)
            if answer != ENTRY_OK:
                entry_raise(answer, pos)
            self.put_entry(data + pos, view.size)
            if view.type != ENTRY_NORMAL:
                self.firm = True
            pos += view.size
            if not self.group_commit and pos < n:
                # Each entry waits for a sync of its own. The append counts as durable with its last entry.
                self.finish(self.number, True, True, False)
        return 0

    cpdef append(self, uint64_t number, images, HardState hard_state, bint must_sync=True, bint firm=False):
        """Queue an append.

        images: concatenated entry images, or None. An index at or below the last one overwrites that entry and all
        after it. number: must not fall. firm: a lagging log also reports this append only when it is synced. Raises
        FormatError if an image is malformed or leaves a gap, and ValueError if an image cannot fit into a segment."""
        cdef Py_buffer view
        if number < self.number:
            raise ValueError(f"append {number} after append {self.number}")
        if firm:
            self.firm = True
        if images is None:
            self.add(number, NULL, 0, hard_state, must_sync)
            return
        PyObject_GetBuffer(images, &view, PyBUF_SIMPLE)
        try:
            self.add(number, <const uint8_t*>view.buf, <size_t>view.len, hard_state, must_sync)
        finally:
            PyBuffer_Release(&view)

    cdef int add(self, uint64_t number, const uint8_t* images, size_t n, HardState hard_state,
                 bint must_sync) except -1:
        cdef LogState state = self.state
        cdef EntryView first
        cdef uint64_t known = state.last()
        if n and entry_read(images, n, &first, False) == ENTRY_OK:
            known = min(known, first.index - 1)
        if hard_state is not None:
            # If a segment or a group ends between this record and the entries, two syncs cover them. The record must
            # not call entries committed that are not there yet.
            if state.hard_term != hard_state.term or state.hard_vote != hard_state.vote:
                self.firm = True
            state.hard_term = hard_state.term
            state.hard_vote = hard_state.vote
            state.hard_commit = min(hard_state.commit, known) if n else hard_state.commit
            self.put_hard_state()
        if n:
            self.append_images(images, n)
        if hard_state is not None and state.hard_commit != hard_state.commit:
            state.hard_commit = hard_state.commit
            self.put_hard_state()
        # An empty append is durable as soon as everything before it is; there are no empty groups.
        return self.finish(number, must_sync and (n != 0 or hard_state is not None), True, self.firm)

    cdef int finish(self, uint64_t number, bint must_sync, bint content, bint firm) except -1:
        cdef Group group
        if must_sync:
            group = self.target()
            if not group.must_sync:
                group.must_sync = True
                group.before = self.number
                self.pending_sync += 1
            group.number = number
            # No caller waits for what needs no sync, so that alone is no reason to prove its group.
            group.content = group.content or content
            if firm:
                group.firm = True
                self.firm = False
            if not self.group_commit:
                self.open = None
        self.number = number
        return 0

    def snapshot_position(self, uint64_t number, uint64_t index, uint64_t term, bytes conf_state not None):
        """Queue a SNAPSHOT record: the log begins after (index, term). Counts as append `number`. See FORMATS.md."""
        cdef bytearray out = bytearray(20) + conf_state
        cdef uint8_t* p = out
        if number < self.number:
            raise ValueError(f"append {number} after append {self.number}")
        put64(p, index)
        put64(p + 8, term)
        put32(p + 16, <uint32_t>len(conf_state))
        self.fit(<size_t>len(out))
        self.state.compact(index, term, conf_state)
        self.put(REC_SNAPSHOT, p, <size_t>len(out))
        self.finish(number, True, True, True)

    def shrink(self, uint64_t capacity) -> None:
        """Reduce the capacity: the segment in use is smaller than planned. It never falls below the end in use."""
        self.capacity = max(capacity, self.position)

    def synced(self, uint64_t generation, uint64_t group, uint64_t end):
        """Report that everything up to `group`, which ends at offset `end` of segment `generation`, is synced. Later
        records say so. Only a writer that does not wait for syncs between groups needs this."""
        if generation == self.generation and group > self.known_group:
            self.known_group, self.known_end = group, end

    def mark(self):
        """Queue a MARKER in a group of its own, or close an open group that needed no sync. Either proves the group
        before. Does nothing while something waits that will be synced anyway."""
        if self.pending_sync:
            return
        if self.open is None:
            self.fit(0)
            self.put(REC_MARKER, NULL, 0)
        self.finish(self.number, True, False, True)
        self.open = None

    cpdef Group take(self):
        """Return the next group to write, or None if nothing waits that must be synced. Write groups in this order."""
        cdef Group group
        if self.pending_sync == 0:
            return None
        group = self.pending.pop(0)
        if group is self.open:
            self.open = None
        if group.must_sync:
            self.pending_sync -= 1
        self.pending_bytes -= group.size
        return group

    cpdef Group peek(self):
        """Return the group that `take` would return, and leave it in the queue."""
        return self.pending[0] if self.pending_sync else None

    cpdef recycle(self, Group group):
        """Return the buffer of a written group for reuse."""
        if len(self.spare) < 2 and group.capacity <= self.max_group:
            self.spare.append(group)

    cpdef uint64_t next_before(self):
        """The highest append number that depends on no waiting sync."""
        cdef Group group
        for group in self.pending:
            if group.must_sync:
                return group.before
        return self.number


def records(const uint8_t[::1] buf not None, uint64_t generation):
    """List the valid records at the start of a segment: (offset, type name, group, synced, size of the record).

    For tools and tests. It stops at the first bad record and does not look behind it."""
    cdef RecordView rec
    cdef size_t pos = SEGMENT_HEADER
    out = []
    while pos < <size_t>buf.shape[0]:
        if record_read(&buf[0], pos, <size_t>buf.shape[0], generation, &rec) != READ_OK:
            break
        out.append((pos, RECORD_TYPES[rec.type], rec.group, rec.synced, rec.size))
        pos += rec.size
    return out
