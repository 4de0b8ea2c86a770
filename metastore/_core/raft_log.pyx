"""The Raft log of one node: a tail in memory, over a storage that holds the rest.

An entry stays in memory as its image (see entry.pyx) from the moment it is appended. It may leave memory when it is
persisted and committed and the tail has grown over its limit. If it is not applied by then, it is read back later.
Images lie one after the other in append-only chunks. An array of slots beside them holds term, position and size of
each image. The bytes of a chunk never change once they are written. The WAL, the applier and the peers therefore share
the same memory without a copy, and each view keeps its chunk alive. When a suffix of the log is overwritten (Raft
paper, section 5.3), a fresh chunk takes the new entries and the old bytes stay unchanged.

The log asks the storage only for what lies before the tail. The storage is a `ports.LogStore`.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

from metastore._core.entry cimport (ENTRY_CONF_CHANGE, ENTRY_HEADER, ENTRY_OK, EntryView, entry_raise, entry_read,
                                    entry_size, entry_write)
from metastore._core.raft_types cimport Snapshot

from metastore._core.raft_types import LogCompacted, LogUnavailable, RaftInvariantBroken
from metastore.errors import FormatError

cdef enum:
    MAX_CHUNK_BYTES = 1 << 20
    MIN_CHUNK_BYTES = 64
    MAX_SPARE = 8
    REST_BYTES = 2 << 20
    FIRST_SLOTS = 256
    MAX_BLOCKS = 4


# Memory of chunks that were released, kept for reuse. Fresh memory costs a page fault for each 4 KiB. With entries of
# 15 KB the faults cost as much as the rest of the core's work on them.
cdef (uint8_t*)[MAX_SPARE] SPARE
cdef int spare_count = 0


cdef class Chunk:
    """Read-only buffer over append-only memory."""

    def __cinit__(self, size_t capacity):
        global spare_count
        self.capacity = capacity
        if capacity == MAX_CHUNK_BYTES and spare_count > 0:
            spare_count -= 1
            self.data = SPARE[spare_count]
            return
        self.data = <uint8_t*>malloc(capacity)
        if self.data == NULL:
            raise MemoryError()

    def __dealloc__(self):
        global spare_count
        if self.data != NULL and self.capacity == MAX_CHUNK_BYTES and spare_count < MAX_SPARE:
            SPARE[spare_count] = self.data
            spare_count += 1
        else:
            free(self.data)

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.data, <Py_ssize_t>self.capacity, 1, flags)


cdef class Block:
    """Consecutive entries that were read from the storage, with the offset of each."""

    def __dealloc__(self):
        free(self.offsets)


cdef Block parse_block(object data, uint64_t first):
    """Return a Block of the images in `data`, which must be whole and have the indexes first, first + 1, ..."""
    cdef Block block = Block.__new__(Block)
    cdef Py_buffer buffer
    cdef EntryView view
    cdef size_t pos = 0, total, count = 0, cap = 64
    cdef const uint8_t* base
    cdef uint32_t* grown
    block.view = memoryview(data)
    block.first = first
    PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
    try:
        base = <const uint8_t*>buffer.buf
        total = <size_t>buffer.len
        if total >= (<size_t>1 << 32):
            raise FormatError("raft log: storage gave more than 4 GiB at once")
        block.offsets = <uint32_t*>malloc(cap * sizeof(uint32_t))
        if block.offsets == NULL:
            raise MemoryError()
        while pos < total:
            answer = entry_read(base + pos, total - pos, &view, False)
            if answer != ENTRY_OK:
                entry_raise(answer, pos)
            if view.index != first + count:
                raise FormatError(f"raft log: storage gave entry {view.index} in place of {first + count}")
            if count + 2 >= cap:
                cap *= 2
                grown = <uint32_t*>realloc(block.offsets, cap * sizeof(uint32_t))
                if grown == NULL:
                    raise MemoryError()
                block.offsets = grown
            block.offsets[count] = <uint32_t>pos
            pos += view.size
            count += 1
        block.offsets[count] = <uint32_t>pos
    finally:
        PyBuffer_Release(&buffer)
    if count == 0:
        raise LogUnavailable(f"raft log: storage gave nothing for entry {first}")
    block.last = first + count - 1
    return block


cdef class RaftLog:
    """See the head of this file. Indexes are uint64; sizes are bytes of images."""

    def __cinit__(self, storage, uint64_t max_tail_bytes, uint64_t read_ahead_bytes):
        cdef uint64_t last = storage.last_index()
        self.slots = <Slot*>malloc(FIRST_SLOTS * sizeof(Slot))
        if self.slots == NULL:
            raise MemoryError()
        self.slot_cap = FIRST_SLOTS
        self.storage = storage
        self.max_tail_bytes = max_tail_bytes
        # Memory is released by whole chunks, so a chunk is a small part of the limit.
        self.chunk_size = max(min(max_tail_bytes // 8, <uint64_t>MAX_CHUNK_BYTES), <uint64_t>MIN_CHUNK_BYTES)
        self.read_ahead_bytes = read_ahead_bytes
        self.chunks, self.views, self.blocks = [], [], []
        self.last_index = self.persisted = self.emitted = last
        self.tail_first = last + 1
        self.prev_term = storage.term(last) if last else 0
        self.committed = self.applying = self.applied = <uint64_t>storage.first_index() - 1

    def __dealloc__(self):
        free(self.slots)

    # -- the tail -------------------------------------------------------------------------------------------

    cdef Slot* slot(self, uint64_t index) noexcept:
        """Slot of an entry. The caller ensures tail_first <= index <= last_index."""
        return &self.slots[self.head + <size_t>(index - self.tail_first)]

    cdef uint8_t* room(self, size_t size) except NULL:
        """Address for the next image of `size` bytes. An image never spans two chunks."""
        cdef Chunk chunk
        if self.chunks and not self.sealed:
            chunk = <Chunk>self.chunks[len(self.chunks) - 1]
            if chunk.capacity - chunk.used >= size:
                return chunk.data + chunk.used
        chunk = Chunk(size if size > self.chunk_size else self.chunk_size)
        self.chunks.append(chunk)
        self.views.append(memoryview(chunk))
        self.chunk_bytes += chunk.capacity
        self.sealed = False
        return chunk.data

    cdef int add_slot(self, uint64_t term, uint8_t type, size_t size) except -1:
        """Register an image that was just written to `room()`."""
        cdef size_t count = <size_t>(self.last_index + 1 - self.tail_first)
        cdef Slot* slot
        cdef Slot* grown
        cdef Chunk chunk
        if self.head + count == self.slot_cap:
            if self.head >= self.slot_cap // 2:
                memmove(self.slots, self.slots + self.head, count * sizeof(Slot))
                self.head = 0
            else:
                grown = <Slot*>realloc(self.slots, self.slot_cap * 2 * sizeof(Slot))
                if grown == NULL:
                    raise MemoryError()
                self.slots = grown
                self.slot_cap *= 2
        chunk = <Chunk>self.chunks[len(self.chunks) - 1]
        slot = &self.slots[self.head + count]
        slot.term = term
        slot.type = type
        slot.size = <uint32_t>size
        slot.pos = <uint32_t>chunk.used
        slot.chunk = self.chunk_base + <uint32_t>(len(self.chunks) - 1)
        slot.end = (self.slots[self.head + count - 1].end if count else self.prev_end) + size
        chunk.used += size
        self.last_index += 1
        chunk.last_index = self.last_index
        return 0

    cdef uint64_t append_payload(self, uint64_t term, uint8_t type, const uint8_t* payload, size_t n) except 0:
        """Append an entry that this node proposes, and return its index."""
        cdef size_t size = entry_size(n)
        cdef uint8_t* where = self.room(size)
        entry_write(where, term, self.last_index + 1, type, payload, n)
        self.add_slot(term, type, size)
        return self.last_index

    cdef uint64_t append_images(self, const uint8_t* images, size_t n, uint64_t prev, uint64_t max_term,
                                uint64_t* first_new) except? 0:
        """Append entries of a leader that follow entry `prev`, which is known to match.

        Entries that are already there are skipped, and a conflicting suffix is cut. Everything is checked before
        anything changes: CRCs, consecutive indexes, terms that never fall and are not above max_term. Raises
        FormatError if a check fails. Returns the index of the last entry in `images`. `first_new` receives the first
        index that was appended, or 0 if none was (Raft paper, figure 2, AppendEntries).
        """
        cdef EntryView view
        cdef size_t pos = 0
        cdef size_t new_at = n
        cdef uint64_t index = prev, term = 0
        cdef bint fresh = False
        first_new[0] = 0
        while pos < n:
            answer = entry_read(images + pos, n - pos, &view, True)
            if answer != ENTRY_OK:
                entry_raise(answer, pos)
            index += 1
            if view.index != index or view.term < term or view.term > max_term or view.term == 0:
                raise FormatError(f"raft log: entry {view.term}/{view.index} is out of order in an append")
            term = view.term
            if not fresh and not (index <= self.last_index and self.match_term(index, term)):
                fresh = True
                new_at = pos
                first_new[0] = index
            pos += view.size
        if not fresh:
            return index
        if first_new[0] <= self.committed:
            raise RaftInvariantBroken(
                f"entry {first_new[0]} conflicts with the committed entry (commit index {self.committed})")
        if first_new[0] <= self.last_index:
            self.truncate(first_new[0])
        pos = new_at
        while pos < n:
            entry_read(images + pos, n - pos, &view, False)
            memcpy(self.room(view.size), images + pos, view.size)
            self.add_slot(view.term, view.type, view.size)
            pos += view.size
        return index

    cdef int truncate(self, uint64_t index) except -1:
        """Remove entry `index` and all after it."""
        cdef uint64_t term
        cdef Chunk chunk
        if index <= self.tail_first:
            if index < self.tail_first:
                self.term_at(index - 1, &term)
                self.prev_term = term
                self.tail_first = index
            self.head = 0
        self.last_index = index - 1
        self.persisted = min(self.persisted, index - 1)
        self.emitted = min(self.emitted, index - 1)
        while self.chunks:
            chunk = <Chunk>self.chunks[len(self.chunks) - 1]
            if self.last_index >= self.tail_first and chunk is self.chunks[self.slot(self.last_index).chunk
                                                                           - self.chunk_base]:
                chunk.last_index = self.last_index
                break
            self.chunk_bytes -= chunk.capacity
            self.chunks.pop()
            self.views.pop()
        self.sealed = True
        self.blocks = [block for block in self.blocks if (<Block>block).last < index]
        return 0

    cdef int restore(self, Snapshot snapshot) except -1:
        """Replace the whole log by a snapshot that is not persisted yet."""
        self.chunks, self.views, self.blocks = [], [], []
        self.chunk_bytes = 0
        self.head = 0
        self.tail_first = snapshot.index + 1
        self.last_index = self.committed = self.emitted = self.applying = snapshot.index
        self.prev_term = snapshot.term
        self.persisted = 0
        self.pending_snapshot = snapshot
        return 0

    cdef int trim(self, uint64_t needed) except -1:
        """Release whole chunks from the front whose entries are persisted and committed.

        Entries that are applied, and that no peer waits for (up to `needed`), are released down to a small rest that
        stays in the processor's cache. All others are released down to max_tail_bytes. An engine that cannot keep up
        therefore causes reads of the log, but memory stays bounded."""
        cdef uint64_t done = min(self.committed, self.persisted)
        cdef uint64_t rest = min(self.max_tail_bytes, <uint64_t>REST_BYTES)
        cdef Chunk chunk
        cdef Slot* slot
        while self.chunk_bytes > rest and len(self.chunks) > 1:
            chunk = <Chunk>self.chunks[0]
            if chunk.last_index > done or (chunk.last_index > min(needed, self.applied)
                                           and self.chunk_bytes <= self.max_tail_bytes):
                break
            if chunk.last_index >= self.tail_first:
                slot = self.slot(chunk.last_index)
                self.prev_term = slot.term
                self.prev_end = slot.end
                self.head += <size_t>(chunk.last_index + 1 - self.tail_first)
                self.tail_first = chunk.last_index + 1
            self.chunk_bytes -= chunk.capacity
            del self.chunks[0]
            del self.views[0]
            self.chunk_base += 1
        return 0

    @property
    def settled_bytes(self):
        """Bytes of images in the tail that are persisted and committed: at most max_tail_bytes, or one chunk."""
        return (self.bytes_after(0) - self.bytes_after(min(self.committed, self.persisted))
                if self.last_index >= self.tail_first else 0)

    # -- queries --------------------------------------------------------------------------------------------

    cdef uint64_t first_index(self) except? 0:
        """Index of the first entry that can still be read."""
        if self.pending_snapshot is not None:
            return self.tail_first
        return min(<uint64_t>self.storage.first_index(), self.tail_first)

    cdef uint64_t last_term(self) except? 0:
        """Term of the last entry."""
        return self.slot(self.last_index).term if self.last_index >= self.tail_first else self.prev_term

    cdef int term_at(self, uint64_t index, uint64_t* term) except -1:
        """Find the term of an entry; return TERM_OK or the reason why there is none. The entry before the first one
        still has a term."""
        term[0] = 0
        if index > self.last_index:
            return TERM_UNAVAILABLE
        if index >= self.tail_first:
            term[0] = self.slot(index).term
            return TERM_OK
        if index + 1 == self.tail_first:
            term[0] = self.prev_term
            return TERM_OK
        if index == 0:
            return TERM_OK
        if self.pending_snapshot is not None or index + 1 < <uint64_t>self.storage.first_index():
            return TERM_COMPACTED
        term[0] = self.storage.term(index)
        return TERM_OK

    cdef bint match_term(self, uint64_t index, uint64_t term) except -1:
        """Whether the log has an entry with this index and term."""
        cdef uint64_t own
        return self.term_at(index, &own) == TERM_OK and own == term

    cdef uint64_t find_conflict_by_term(self, uint64_t index, uint64_t term, uint64_t* found) except? 0:
        """Return the greatest index <= `index` whose term is <= `term` or no longer known; `found` gets its term.

        Terms never fall along a log, so this is a binary search. Both sides use it to skip a whole diverging term with
        one rejection (Raft paper, end of section 5.3)."""
        cdef uint64_t low, high, middle, own
        found[0] = 0
        if index > self.last_index:
            return index
        low = self.first_index() - 1
        if index < low:
            return index
        high = index
        while low < high:
            middle = low + (high - low + 1) // 2
            if self.term_at(middle, &own) == TERM_OK and own > term:
                high = middle - 1
            else:
                low = middle
        if self.term_at(low, &own) == TERM_OK and own <= term:
            found[0] = own
        return low

    cdef uint64_t bytes_after(self, uint64_t index) noexcept:
        """Bytes of the images after entry `index` that are in the tail."""
        cdef uint64_t start
        if self.last_index < self.tail_first or index >= self.last_index:
            return 0
        start = self.slot(index).end if index >= self.tail_first else self.prev_end
        return self.slot(self.last_index).end - start

    cdef bint has_conf_change(self, uint64_t low, uint64_t high) except -1:
        """Whether any of the entries low..high changes the membership."""
        cdef uint64_t index = low
        while index <= high:
            if index >= self.tail_first:
                if self.slot(index).type >= ENTRY_CONF_CHANGE:
                    return True
                index += 1
                continue
            if self.storage.has_conf_change(index, min(high + 1, self.tail_first)):
                return True
            index = self.tail_first
        return False

    # -- reading --------------------------------------------------------------------------------------------

    cdef object read(self, uint64_t low, uint64_t high, uint64_t max_size, uint64_t* last):
        """Return the images of the entries low..last, where last <= high: at least one, then at most max_size bytes.

        The result ends early where a contiguous piece of memory ends. Raises LogCompacted, LogUnavailable,
        NotYetLoaded."""
        if low > high or high > self.last_index:
            raise LogUnavailable(f"raft log: {low}..{high} of ..{self.last_index}")
        if low >= self.tail_first:
            return self.read_tail(low, high, max_size, last)
        if low < self.first_index():
            raise LogCompacted()
        return self.read_storage(low, min(high, self.tail_first - 1), max_size, last)

    cdef object read_tail(self, uint64_t low, uint64_t high, uint64_t max_size, uint64_t* last):
        cdef Slot* first = self.slot(low)
        cdef Slot* end = first
        cdef uint64_t limit = first.end - first.size + max_size
        cdef uint64_t index = low
        cdef Py_ssize_t begin = <Py_ssize_t>first.pos
        while index < high:
            if end[1].chunk != first.chunk or end[1].end > limit or end[1].pos != end.pos + end.size:
                break
            end += 1
            index += 1
        last[0] = index
        return self.views[first.chunk - self.chunk_base][begin:<Py_ssize_t>end.pos + <Py_ssize_t>end.size]

    cdef object read_storage(self, uint64_t low, uint64_t high, uint64_t max_size, uint64_t* last):
        """Read from the storage through a few blocks of read-ahead: a lagging peer soon asks for the next piece."""
        cdef Block block = None
        cdef Block found
        cdef uint64_t index
        cdef uint32_t begin
        for found in self.blocks:
            if found.first <= low <= found.last:
                block = found
                break
        if block is None:
            block = parse_block(self.storage.images(low, self.tail_first, max(max_size, self.read_ahead_bytes)), low)
            if len(self.blocks) >= MAX_BLOCKS:
                del self.blocks[0]
            self.blocks.append(block)
        begin = block.offsets[low - block.first]
        index = low
        while index < high and index < block.last:
            if block.offsets[index + 2 - block.first] - begin > max_size:
                break
            index += 1
        last[0] = index
        return block.view[begin:block.offsets[index + 1 - block.first]]

    cdef object take_unpersisted(self):
        """Return all entries not handed out yet as one contiguous buffer; copies only if they span chunks."""
        cdef uint64_t low = self.emitted + 1
        cdef uint64_t last
        cdef object piece = self.read_tail(low, self.last_index, <uint64_t>1 << 62, &last)
        cdef list pieces
        if last < self.last_index:
            pieces = [piece]
            while last < self.last_index:
                pieces.append(self.read_tail(last + 1, self.last_index, <uint64_t>1 << 62, &last))
            piece = b"".join(pieces)
        self.emitted = self.last_index
        return piece
