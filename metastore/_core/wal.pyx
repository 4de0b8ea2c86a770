"""The write-ahead log as bytes: encode, scan, decide about repair. Layout and rules: FORMATS.md, "WAL".

Pure: no files, threads, clocks or randomness; `storage/wal.py` puts it on a disk, the simulator on bytes in memory.

Life of a log: `recover` reads the segments and says what is there and what must be cut. `reopen` encodes the fresh
segment that carries the unproven tail over and gives a `Writer` that goes on behind it. `create` does that for a new log.
The `Writer` turns appends into groups; who owns the disk takes them one by one with `take`, writes and syncs
them, and hands their buffers back with `recycle`.
"""

from collections import deque

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

from metastore._core.crc cimport crc32
from metastore._core.entry cimport ENTRY_HEADER, ENTRY_OK, EntryView, entry_raise, entry_read

from metastore.errors import DamagedData, FormatError

cdef uint32_t VERSION = 1
cdef bytes MAGIC = b"MSWAL\r\n\x1a"
# A segment's place is kept as a 32-bit offset in units of 8 bytes.
MAX_SEGMENT = 8 * (2**32 - 1)
# Files of less than this are written anew at open instead of leaving one more small segment behind at each restart.
DEFAULT_REWRITE = 1 << 20
HEADER_SIZE = SEGMENT_HEADER
RECORD_TYPES = {REC_START: "START", REC_ENTRY: "ENTRY", REC_HARD_STATE: "HARD_STATE",
                REC_SNAPSHOT: "SNAPSHOT", REC_MARKER: "MARKER"}


cdef inline uint32_t get32(const uint8_t* p) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, p, 4)
    return value


cdef inline uint64_t get64(const uint8_t* p) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, p, 8)
    return value


cdef inline void put32(uint8_t* p, uint32_t value) noexcept nogil:
    memcpy(p, &value, 4)


cdef inline void put64(uint8_t* p, uint64_t value) noexcept nogil:
    memcpy(p, &value, 8)


cdef inline size_t align8(size_t n) noexcept nogil:
    return (n + 7) & ~<size_t>7


def make_generation(uint64_t number, uint64_t nonce):
    """The generation of segment `number` (1 to 2**32-1) with 32 random bits `nonce`."""
    if not 0 < number < (1 << 32):
        raise ValueError(f"segment number {number} is out of range")
    return (number << 32) | (nonce & 0xFFFFFFFF)


def encode_header(uint64_t generation):
    """The 64 bytes at the start of a segment file."""
    cdef bytearray out = bytearray(SEGMENT_HEADER)
    cdef uint8_t* p = out
    memcpy(p, <const uint8_t*>MAGIC, 8)
    put32(p + 8, VERSION)
    put64(p + 16, generation)
    put32(p + 60, crc32(0, p, 60))
    return bytes(out)


def check_header(const uint8_t[::1] buf not None, uint64_t generation):
    """What is wrong with the segment header at the start of `buf` for this generation, or None."""
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
    # Part of a header at the very end of the file can claim nothing.
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
    """What the log says: hard state, snapshot position, ConfState, metadata, and where each entry stands.

    `first` is the index of the first entry held; `missing`, when not 0, is the highest index that a segment
    which is not there must have held.
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
        """Index of the last entry; the snapshot's where there is none."""
        return self.last()

    cdef Place* place(self, uint64_t index) except NULL:
        if index < self.first or index - self.first >= self.count:
            raise IndexError(f"entry {index} is not in the log [{self.first}, {self.last()}]")
        return &self.places[self.head + (index - self.first)]

    def term(self, uint64_t index):
        """Term of entry `index`, also at the snapshot position. IndexError where the log does not reach."""
        if index == self.snapshot_index:
            return self.snapshot_term
        return self.place(index).term

    def where(self, uint64_t index):
        """(segment number, offset of the record, size of the image in bytes) of entry `index`."""
        cdef Place* place = self.place(index)
        return place.segment, <uint64_t>place.at * 8, place.size

    cdef int add(self, uint64_t term, uint64_t index, uint32_t segment, uint64_t offset, uint32_t size) except -1:
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
        self.count += 1
        return 0

    cpdef compact(self, uint64_t index, uint64_t term, bytes conf_state):
        """Let the log begin after (index, term). Where it does not hold that entry, all its entries go."""
        cdef bint held
        if index < self.snapshot_index:
            raise FormatError(f"snapshot position {index} is below the one before, {self.snapshot_index}")
        if index + 1 < self.first:
            held = True     # inside what a released segment held: its term cannot be asked any more
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
            self.add(get64(p + 8), get64(p + 16), segment, offset, <uint32_t>rec.length)
        elif rec.type == REC_HARD_STATE:
            self.hard_term = get64(p)
            self.hard_vote = get64(p + 8)
            self.hard_commit = get64(p + 16)
        elif rec.type == REC_SNAPSHOT:
            self.compact(get64(p), get64(p + 8), <bytes>(p + 20)[:get32(p + 16)])
        return 0

    cdef int begin(self, const uint8_t* p) except -1:
        """Take over the state of the first segment's START record."""
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

    def runs(self, uint64_t lo, uint64_t hi, size_t max_size):
        """How to read entries lo to hi-1: list of (segment number, offset, length, first, end), first entry of each
        run to the one after its last. Stops before max_size bytes of images are passed, but gives at least one."""
        cdef Place* place
        cdef size_t total = 0
        cdef uint64_t index = lo, run = lo
        cdef uint64_t start = 0, end = 0
        cdef uint32_t segment = 0
        out = []
        while index < hi:
            place = self.place(index)
            if index > lo and total + place.size > max_size:
                break
            total += place.size
            # A gap of other records is read through; a far jump starts a read of its own.
            if index > run and (place.segment != segment or <uint64_t>place.at * 8 > end + 65536):
                out.append((segment, start, end - start, run, index))
                run = index
            if index == run:
                segment = place.segment
                start = <uint64_t>place.at * 8
            end = <uint64_t>place.at * 8 + RECORD_HEADER + place.size
            index += 1
        if index > run:
            out.append((segment, start, end - start, run, index))
        return out

    def pick(self, const uint8_t[::1] buf not None, uint64_t offset, uint64_t lo, uint64_t hi):
        """The images of entries lo to hi-1, joined, out of `buf`, which was read at `offset`. FormatError on damage."""
        cdef size_t total = 0, at
        cdef uint64_t index
        cdef Place* place
        cdef EntryView view
        cdef bytes out
        cdef uint8_t* dst
        for index in range(lo, hi):
            total += self.place(index).size
        out = b"\0" * total
        dst = out
        for index in range(lo, hi):
            place = self.place(index)
            at = <size_t>(<uint64_t>place.at * 8 + RECORD_HEADER - offset)
            if at + place.size > <size_t>buf.shape[0]:
                raise FormatError(f"entry {index} is cut off at offset {<uint64_t>place.at * 8}")
            if (entry_read(&buf[at], place.size, &view, True) != ENTRY_OK or view.index != index
                    or view.size != place.size):
                raise FormatError(f"entry {index} is damaged at offset {<uint64_t>place.at * 8}")
            memcpy(dst, &buf[at], place.size)
            dst += place.size
        return out


cdef class Group:
    """Bytes that go to disk with one write at `offset` of segment `generation`, and one sync.

    `number` is the highest append number that is durable with it (0: none ends in it), `before` the highest number
    appended before the first one in it that must be synced. `content` tells that something in it was waited for, so that it
    is worth to be proven by a marker.
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
        """Bytes to write."""
        return self.size

    @property
    def end(self):
        """Offset in the segment after the last byte."""
        return self.offset + self.size

    def tobytes(self):
        """A copy of the bytes (tests, simulator)."""
        return <bytes>self.data[:self.size]


cdef class Writer:
    """Turns appends into groups.

    plan: called as plan(need) when the next segment must be begun; gives (generation, capacity in bytes), where
    the capacity must be at least `need`. group_commit: everything that waits goes into one group, of at most max_group
    bytes (one append may pass it); else each append is a group of its own.
    """

    def __init__(self, LogState state not None, plan, *, bint group_commit=True, size_t max_group=16 << 20):
        self.state = state
        self.plan = plan
        self.group_commit = group_commit
        self.max_group = max_group
        self.pending = deque()
        self.spare = []
        self.open = None

    cdef Group new_group(self):
        cdef Group made
        if self.spare:
            made = self.spare.pop()
        else:
            made = Group.__new__(Group)
        self.group += 1
        made.size = 0
        made.generation = self.generation
        made.offset = self.position
        made.group = self.group
        made.number = 0
        made.before = self.number
        made.must_sync = False
        made.content = False
        self.pending.append(made)
        self.open = made
        return made

    cdef Group target(self):
        if self.open is None:
            return self.new_group()
        return self.open

    cdef int put(self, uint8_t type, const uint8_t* payload, size_t n) except -1:
        """Encode one record into the open group; its place was made sure of by `fit`."""
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
        # A group is only written when the one before it is synced; that it is on disk at all is the proof.
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
        """Begin the next segment if a record with n bytes of payload does not fit into this one; close a full group."""
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

    cdef int put_entry(self, const uint8_t* image, size_t n, uint64_t term, uint64_t index) except -1:
        self.fit(n)
        self.state.add(term, index, <uint32_t>(self.generation >> 32), self.position, <uint32_t>n)
        return self.put(REC_ENTRY, image, n)

    cdef int append_images(self, const uint8_t* data, size_t n) except -1:
        cdef EntryView view
        cdef size_t pos = 0
        cdef int answer
        while pos < n:
            # The payload was summed when the image was made or came in; only the header is read here.
            answer = entry_read(data + pos, n - pos, &view, False)
            if answer != ENTRY_OK:
                entry_raise(answer, pos)
            self.put_entry(data + pos, view.size, view.term, view.index)
            pos += view.size
        return 0

    def append(self, uint64_t number, images, hard_state, bint must_sync=True):
        """Queue an append: `images` (entry images one after the other, or None) and `hard_state` (anything with term,
        vote, commit, or None). `number` must not fall. An entry index at or below the last overwrites the suffix.
        FormatError if an image is malformed or leaves a gap, ValueError if one cannot fit into a segment."""
        cdef uint8_t[24] hard
        cdef const uint8_t[::1] view
        cdef bint some = images is not None and len(images) > 0
        if number < self.number:
            raise ValueError(f"append {number} after append {self.number}")
        if hard_state is not None:
            self.state.hard_term = hard_state.term
            self.state.hard_vote = hard_state.vote
            self.state.hard_commit = hard_state.commit
            put64(hard, self.state.hard_term)
            put64(hard + 8, self.state.hard_vote)
            put64(hard + 16, self.state.hard_commit)
            self.fit(24)
            self.put(REC_HARD_STATE, hard, 24)
        if some:
            view = images
            self.append_images(&view[0], <size_t>view.shape[0])
        # An append of nothing is durable as soon as all before it is; there are no empty groups.
        self.finish(number, must_sync and (some or hard_state is not None), True)

    cdef int finish(self, uint64_t number, bint must_sync, bint content) except -1:
        cdef Group group
        if must_sync:
            group = self.target()
            if not group.must_sync:
                group.must_sync = True
                group.before = self.number
                self.pending_sync += 1
            group.number = number
            # What rides along unsynced is not waited for, so its group needs no proof.
            group.content = group.content or content
            if not self.group_commit:
                self.open = None
        self.number = number
        return 0

    def snapshot_position(self, uint64_t number, uint64_t index, uint64_t term, bytes conf_state not None):
        """Queue a SNAPSHOT record: the log begins after (index, term), see FORMATS. Counts as append `number`."""
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
        self.finish(number, True, True)

    def mark(self):
        """Queue a MARKER in a group of its own, or force out what waits without need to be synced: each proves the
        group before. Does nothing while something waits that will be synced anyway."""
        if self.pending_sync:
            return
        if self.open is None:
            self.fit(0)
            self.put(REC_MARKER, NULL, 0)
        self.finish(self.number, True, False)
        self.open = None

    def take(self):
        """The next group to write, or None while nothing waits that must be synced. Keep to the order."""
        cdef Group group
        if self.pending_sync == 0:
            return None
        group = self.pending.popleft()
        if group is self.open:
            self.open = None
        if group.must_sync:
            self.pending_sync -= 1
        self.pending_bytes -= group.size
        return group

    def peek(self):
        """The group that `take` would give, left where it is."""
        return self.pending[0] if self.pending_sync else None

    def recycle(self, Group group not None):
        """Give the buffer of a written group back."""
        if len(self.spare) < 2 and group.capacity <= self.max_group:
            self.spare.append(group)

    def next_before(self):
        """The highest number that needs nothing of what waits to be synced."""
        cdef Group group
        for group in self.pending:
            if group.must_sync:
                return group.before
        return self.number


cdef class Cut:
    """What a repair cuts off: bytes [offset, end) of a segment are copied aside; `reason` is for people."""
    cdef readonly uint64_t generation
    cdef readonly uint64_t offset
    cdef readonly uint64_t end
    cdef readonly str name
    cdef readonly str reason

    def __init__(self, generation, name, offset, end, reason):
        self.generation, self.name, self.offset, self.end, self.reason = generation, name, offset, end, reason


cdef class Scan:
    """One pass over a segment's records from its start: where the good ones end, and what stands behind."""
    cdef readonly size_t end        # offset after the last good record
    cdef readonly size_t proven     # bytes before this offset are proven synced by a record of this segment
    cdef readonly uint64_t group
    cdef readonly uint32_t chain
    cdef readonly size_t claimed    # end of the last bytes behind `end` that are of this generation; 0 if there are none
    cdef readonly size_t behind     # highest `proven` of the valid records behind `end`


cdef Scan scan(const uint8_t* buf, size_t size, size_t limit, uint64_t generation):
    """Read records up to `limit`, or to the first bad one; then, unless `limit` was reached, ask what stands behind."""
    cdef Scan out = Scan.__new__(Scan)
    cdef RecordView rec
    cdef size_t pos = SEGMENT_HEADER, probe
    cdef bint first = True
    cdef int answer
    out.end = pos
    while pos < limit:
        if record_read(buf, pos, limit, generation, &rec) != READ_OK:
            break
        if first != (rec.type == REC_START):
            break
        if not first and (rec.prev != out.chain or rec.group < out.group or rec.group > out.group + 1):
            break
        first = False
        out.chain = rec.crc
        out.group = rec.group
        out.proven = max(out.proven, rec.proven)
        pos += rec.size
        out.end = pos
    if pos >= limit and limit < size:
        return out
    probe = out.end
    with nogil:
        while probe + 24 <= size:
            if get64(buf + probe + 16) != generation:
                probe += 8
                continue
            answer = record_read(buf, probe, size, generation, &rec)
            # Of a record with a wrong sum the length may be wrong too: rather too much than too little is kept.
            out.claimed = max(out.claimed, min(size, probe + align8(RECORD_HEADER + <size_t>get32(buf + probe + 4))))
            if answer == READ_OK:
                out.behind = max(out.behind, rec.proven)
                probe += rec.size
            else:
                probe += 8
    return out


cdef class Segment:
    """A segment as `recover` sees it."""
    cdef readonly str name
    cdef readonly uint64_t generation
    cdef object view
    cdef const uint8_t* data
    cdef const uint8_t[::1] keep
    cdef readonly size_t size
    cdef readonly uint64_t previous, previous_end
    cdef uint32_t prev_chain
    cdef readonly bint started

    def __init__(self, name, generation, buffer):
        self.name = name
        self.generation = generation
        self.keep = buffer
        self.size = <size_t>self.keep.shape[0]
        self.data = &self.keep[0] if self.size else NULL

    def refuse(self, offset, reason):
        """DamagedData with file, offset and reason."""
        return DamagedData(f"{self.name}: offset {offset}: {reason}")

    cdef int open(self) except -1:
        """Check the header, read START if it is there."""
        cdef RecordView rec
        wrong = check_header(self.keep, self.generation)
        if wrong is not None:
            raise self.refuse(0, wrong)
        if record_read(self.data, SEGMENT_HEADER, self.size, self.generation, &rec) == READ_OK and rec.type == REC_START:
            self.started = True
            self.previous = get64(rec.payload)
            self.previous_end = get64(rec.payload + 8)
            self.prev_chain = rec.prev
        return 0


cdef class Recovered:
    """What `recover` found. Nothing on disk was changed.

    state: the log up to where the tail begins (without it). report: sentences for the operator. cuts: what to copy aside.
    used: generations that make up the log, oldest first; superseded: the last of them is to be replaced by the
    fresh segment; last_end: where its records end. spare: prepared and unused; stale: to be removed.
    """
    cdef readonly LogState state
    cdef readonly list report, cuts, used, spare, stale
    cdef readonly bint superseded
    cdef readonly uint64_t last_end
    cdef readonly uint64_t max_number
    cdef Segment last
    cdef size_t tail_from
    cdef size_t proven
    cdef uint64_t group
    cdef uint32_t chain
    cdef uint64_t start_number, start_end
    cdef uint32_t start_chain

    @property
    def last_generation(self):
        """The generation of the last segment."""
        return self.last.generation

    @property
    def cut_at(self):
        """Where the last segment, if it is not superseded, ends for its successor; the tail behind it is carried over."""
        return self.tail_from


cdef int replay(Segment seg, LogState state, size_t pos, size_t end) except -1:
    cdef RecordView rec
    while pos < end:
        if record_read(seg.data, pos, end, seg.generation, &rec) != READ_OK:
            raise seg.refuse(pos, "record changed while it was read")
        try:
            state.apply(&rec, <uint32_t>(seg.generation >> 32), pos)
        except FormatError as error:
            raise seg.refuse(pos, error.text) from None
        pos += rec.size
    return 0


def recover(segments, *, size_t rewrite=DEFAULT_REWRITE):
    """Read a log: `segments` is a list of (name for people, generation, buffer), in any order.

    Gives a Recovered, or None if there is no segment at all. Raises DamagedData (name, offset and reason) where proven
    bytes are wrong. `rewrite`: a last segment with less than so many bytes is written anew as a whole."""
    cdef Segment seg, after, last
    cdef Recovered out
    cdef list found = sorted([Segment(*item) for item in segments], key=_by_generation)
    if not found:
        return None
    for seg in found:
        seg.open()
    out = Recovered.__new__(Recovered)
    out.report, out.cuts, out.used, out.spare, out.stale = [], [], [], [], []
    out.max_number = (<Segment>found[len(found) - 1]).generation >> 32
    last = _find_last(found, out)
    chain = _find_chain(found, last, out)
    _scan_last(last, out, rewrite)
    state = LogState()
    state.begin((<Segment>chain[0]).data + SEGMENT_HEADER + RECORD_HEADER)
    for seg, after in zip(chain, chain[1:]):
        _scan_inner(seg, after)
        replay(seg, state, SEGMENT_HEADER, after.previous_end)
    replay(last, state, SEGMENT_HEADER, out.tail_from)
    out.state = state
    _check_whole(chain[0], out)
    return out


def _by_generation(Segment seg):
    return seg.generation


cdef Segment _find_last(list found, Recovered out):
    """The newest segment with a START. Those behind it are prepared and unused, or were cut off in their first group."""
    cdef Segment seg, last = None
    cdef Scan seen
    for seg in reversed(found):
        if seg.started:
            last = seg
            break
        seen = scan(seg.data, seg.size, seg.size, seg.generation)
        if seen.behind > SEGMENT_HEADER:
            raise seg.refuse(SEGMENT_HEADER, "first record is damaged; later records prove that it was synced")
        if seen.claimed:
            out.cuts.append(Cut(seg.generation, seg.name, SEGMENT_HEADER, seen.claimed,
                                "first group of the segment was not finished"))
            out.stale.append(seg.generation)
        else:
            out.spare.append(seg.generation)
    if last is None:
        # Every log begins with a START that was synced before the file had its name.
        seg = found[0]
        raise seg.refuse(SEGMENT_HEADER, "first record of the log is damaged")
    return last


cdef list _find_chain(list found, Segment last, Recovered out):
    """The segments that make the log, oldest first, following the predecessors that each START names."""
    cdef Segment seg
    by_number = {(<Segment>s).generation >> 32: s for s in found}
    if len(by_number) != len(found):
        raise last.refuse(0, "two segments have the same number; one of them is not of this log")
    chain = [last]
    seg = last
    while seg.previous and seg.previous in by_number:
        before = by_number[seg.previous]
        if not (<Segment>before).started:
            raise (<Segment>before).refuse(SEGMENT_HEADER, f"first record is damaged; {seg.name} proves it was synced")
        if (<Segment>before).generation >= seg.generation:
            raise seg.refuse(SEGMENT_HEADER, "names a later segment as the one before it")
        seg = before
        chain.append(seg)
    chain.reverse()
    out.used = [(<Segment>s).generation for s in chain]
    listed = set(out.used) | set(out.spare) | set(out.stale)
    out.stale.extend([(<Segment>s).generation for s in found if (<Segment>s).generation not in listed])
    return chain


cdef int _scan_inner(Segment seg, Segment after) except -1:
    """A segment with a successor: all of it up to the stated end is proven."""
    cdef Scan seen
    if after.previous_end > seg.size:
        raise seg.refuse(seg.size, f"file is cut off; {after.name} states {after.previous_end} bytes")
    seen = scan(seg.data, seg.size, after.previous_end, seg.generation)
    if seen.end != after.previous_end:
        raise seg.refuse(seen.end, f"record is damaged; {after.name} proves that it was synced")
    if seen.chain != after.prev_chain:
        raise seg.refuse(seen.end, f"last record is not the one that {after.name} follows on")
    return 0


cdef int _scan_last(Segment seg, Recovered out, size_t rewrite) except -1:
    cdef Scan seen = scan(seg.data, seg.size, seg.size, seg.generation)
    cdef RecordView rec
    if seen.behind > seen.end:
        raise seg.refuse(seen.end, "record is damaged; later records prove that it was synced")
    if seen.claimed:
        out.cuts.append(Cut(seg.generation, seg.name, seen.end, seen.claimed,
                            "last group was not finished or is damaged, and nothing proves that it was synced"))
    out.last = seg
    out.group = seen.group
    out.proven = max(seen.proven, <size_t>SEGMENT_HEADER)
    out.tail_from = out.proven
    record_read(seg.data, SEGMENT_HEADER, seg.size, seg.generation, &rec)
    # START is not carried over: the fresh segment gets one of its own.
    if seen.end <= rewrite or out.tail_from < SEGMENT_HEADER + rec.size:
        out.tail_from = SEGMENT_HEADER + rec.size
        out.superseded = True
        out.start_number, out.start_end, out.start_chain = seg.previous, seg.previous_end, seg.prev_chain
        out.last_end = seen.end
    else:
        out.start_number, out.start_end = seg.generation >> 32, out.tail_from
        out.start_chain = chain_at(seg, out.tail_from)
        out.last_end = seen.end
    return 0


cdef uint32_t chain_at(Segment seg, size_t end) except? 0:
    cdef RecordView rec
    cdef size_t pos = SEGMENT_HEADER
    while pos < end:
        if record_read(seg.data, pos, seg.size, seg.generation, &rec) != READ_OK:
            raise seg.refuse(pos, "record changed while it was read")
        pos += rec.size
    if pos != end:
        raise seg.refuse(end, "a record states a proven end that is not the end of a record")
    return rec.crc


cdef int _check_whole(Segment first, Recovered out) except -1:
    """After the tail: is every entry after the snapshot position there, is the commit index believable?"""
    cdef LogState state = out.state
    cdef Segment last = out.last
    cdef uint64_t commit = state.hard_commit
    cdef RecordView rec
    cdef size_t pos = out.tail_from
    cdef uint64_t missing = state.missing, snapshot = state.snapshot_index, tip = state.last()
    # The tail is short; what it does to these three can be told without a copy of the table.
    while pos < out.last_end:
        if record_read(last.data, pos, out.last_end, last.generation, &rec) != READ_OK:
            raise last.refuse(pos, "record changed while it was read")
        if rec.type == REC_ENTRY:
            tip = get64(rec.payload + 16)
            missing = min(missing, tip - 1)
        elif rec.type == REC_SNAPSHOT:
            snapshot = get64(rec.payload)
            tip = max(tip, snapshot)
        elif rec.type == REC_HARD_STATE and pos < out.proven:
            commit = get64(rec.payload + 16)
        pos += rec.size
    if missing > snapshot:
        raise first.refuse(SEGMENT_HEADER, f"the segment before this one is missing, with entries up to {missing}; "
                                           f"the log must begin after {snapshot}")
    if commit > tip:
        raise last.refuse(out.last_end, f"entry {commit} was committed, but the log ends with entry {tip}")
    return 0


def create(uint64_t generation, uint64_t capacity, metadata, plan, **options):
    """A new log: (bytes of its first segment, Writer behind them). The metadata is kept for ever."""
    state = LogState(bytes(metadata))
    return _fresh(state, generation, capacity, plan, options, None)


def reopen(Recovered found not None, uint64_t generation, uint64_t capacity, plan, **options):
    """The fresh segment after `found`: (its bytes, Writer behind them). The state in `found` goes on in the Writer.

    Its groups are proven by the marker at its end, if the bytes are synced before the file has its name."""
    return _fresh(found.state, generation, capacity, plan, options, found)


cdef tuple _fresh(LogState state, uint64_t generation, uint64_t capacity, plan, dict options, Recovered found):
    cdef Writer writer = Writer(state, plan, group_commit=True, max_group=<size_t>-1)
    cdef RecordView rec
    cdef Group group
    cdef size_t pos
    cdef bytes out
    writer.generation = generation
    writer.position = SEGMENT_HEADER
    # What is carried over may be larger than the segment was made for: it goes into one file in any case.
    writer.capacity = <uint64_t>-1
    if found is not None:
        writer.group = found.group
        writer.chain = found.start_chain
        writer.start_number, writer.start_end = found.start_number, found.start_end
    writer.write_start()
    pos = found.tail_from if found is not None else 0
    while found is not None and pos < found.last_end:
        if record_read(found.last.data, pos, found.last_end, found.last.generation, &rec) != READ_OK:
            raise found.last.refuse(pos, "record changed while it was read")
        if rec.type != REC_MARKER:
            try:
                state.apply(&rec, <uint32_t>(generation >> 32), writer.position)
            except FormatError as error:
                raise found.last.refuse(pos, error.text) from None
            writer.put(rec.type, rec.payload, rec.length)
        pos += rec.size
    if state.hard_commit > state.last():
        found.report.append(f"{found.last.name}: commit index lowered from {state.hard_commit} to {state.last()}: "
                            "the last group was not finished")
        writer.append(0, None, _Hard(state.hard_term, state.hard_vote, state.last()))
    group = writer.open
    writer.open = None
    writer.put(REC_MARKER, NULL, 0)
    out = encode_header(generation) + group.tobytes() + (<Group>writer.open).tobytes()
    writer.pending.clear()
    writer.pending_bytes = 0
    writer.pending_sync = 0
    writer.open = None
    writer.number = 0
    writer.capacity = max(capacity, writer.position)
    writer.group_commit = options.get("group_commit", True)
    writer.max_group = options.get("max_group", 16 << 20)
    return out, writer


class _Hard:
    __slots__ = ("commit", "term", "vote")

    def __init__(self, term, vote, commit):
        self.term, self.vote, self.commit = term, vote, commit


def records(const uint8_t[::1] buf not None, uint64_t generation):
    """The good records of a segment from its start: list of (offset, type name, group, synced, size of the record).

    For tools and tests; stops at the first bad one, does not look behind it."""
    cdef RecordView rec
    cdef size_t pos = SEGMENT_HEADER
    out = []
    while pos < <size_t>buf.shape[0]:
        if record_read(&buf[0], pos, <size_t>buf.shape[0], generation, &rec) != READ_OK:
            break
        out.append((pos, RECORD_TYPES[rec.type], rec.group, rec.synced, rec.size))
        pos += rec.size
    return out
