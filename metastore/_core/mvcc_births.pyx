"""What turns a count of the engine into the count of another revision.

**Births and deaths.** A put of version 1 is the birth of a key, and a tombstone is its death. Nothing else changes how
many keys are alive, and most writes are neither. `Births` keeps the last of them: at most PARTS * PART_CHANGES changes
(16,384) with PARTS * PART_BYTES bytes of keys (2 MiB). Changes go in whole parts, the oldest first, and `since` says how
far back the list reaches. The engine's count belongs to the changes that were written to it, so the list also knows
which of the last ones were not: they are in the overlay, because an operation is under way or the engine is busy. The
count at a revision is the engine's, less what it has of later revisions, plus what it lacks of earlier ones.

A list without a part that it needs says so (`reaches`), and the caller walks over the keys. That is so

* below `since`,
* while unwritten changes are missing (`lost`), because one operation made more of them than the list holds. The
  engine's next write ends that.

Summing up over a full list takes about 0.1 ms.

**Pages.** A client that reads page after page at one revision asks each time for what follows the last page's last key.
The count of that is the last page's count less its keys. `PageCounts` keeps the last 2,048 to 4,096 of these, with keys
of 512 KiB to 1 MiB. A finished revision never changes, so what it holds is true until another history takes the place
of this one; then the store makes a new list of each kind.
"""

from cpython.bytes cimport PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from metastore._core.kv_messages cimport Slice
from metastore._core.record cimport key_cmp

cdef enum:
    PAGES = 2048             # counts of the younger half
    PAGE_BYTES = 524288      # bytes of their keys
    PAGE_KEY = 16384         # bytes of the longest pair of keys that is kept

CHANGES, KEY_BYTES, PAGE_COUNTS = PARTS * PART_CHANGES, PART_BYTES, PAGES


cdef bint in_range(const uint8_t* key, size_t n, const Slice* first, const Slice* end) noexcept:
    """Whether a key is in a range. The end "\\0" stands for all that follows."""
    if key_cmp(key, n, first.p, first.n) < 0:
        return False
    return (end.n == 1 and end.p[0] == 0) or key_cmp(key, n, end.p, end.n) < 0


cdef class Births:
    """See `mvcc_births.pxd`. `since` is the revision of the store when the list is made."""

    def __init__(self, int64_t since):
        self.since = since

    def __dealloc__(self):
        cdef int i
        for i in range(self.n_parts):
            free(self.parts[i])

    def __len__(self):
        return self.n

    cdef void drop_first(self) noexcept:
        """Drop the oldest part."""
        cdef Part* part = self.parts[0]
        cdef int i
        self.n -= part.n
        if part.n:
            self.since = max(self.since, part.changes[part.n - 1].rev)
        if self.unwritten > self.n:
            self.unwritten = self.n
            self.lost = True
        free(part)
        self.n_parts -= 1
        for i in range(self.n_parts):
            self.parts[i] = self.parts[i + 1]

    cdef Part* room(self, size_t bytes) noexcept:
        """Return a part with room for one more change with a key of so many bytes; NULL if there can be none."""
        cdef Part* part = self.parts[self.n_parts - 1] if self.n_parts else NULL
        if part != NULL and part.n < PART_CHANGES and part.used + bytes <= PART_BYTES:
            return part
        if bytes > PART_BYTES:
            return NULL
        if self.n_parts == PARTS:
            self.drop_first()
        part = <Part*>malloc(sizeof(Part))
        if part != NULL:
            part.n = part.used = 0
            self.parts[self.n_parts] = part
            self.n_parts += 1
        return part

    cdef void add(self, const Slice* key, int64_t rev, int by) noexcept:
        """Note a birth (by 1) or a death (by -1). `rev` is never below that of the last one."""
        cdef Part* part = self.room(key.n)
        cdef Change* change
        if part == NULL:
            # Without this change, those before it are of no use.
            while self.n_parts:
                self.drop_first()
            self.since = max(self.since, rev)
            self.lost = True
            return
        change = &part.changes[part.n]
        change.rev = rev
        change.at = <uint32_t>part.used
        change.klen = <uint32_t>key.n
        change.by = by
        memcpy(part.keys + part.used, key.p, key.n)
        part.used += key.n
        part.n += 1
        self.n += 1
        self.unwritten += 1

    cdef void undo(self, int64_t rev) noexcept:
        cdef Part* part
        while self.n_parts:
            part = self.parts[self.n_parts - 1]
            while part.n and part.changes[part.n - 1].rev > rev:
                part.n -= 1
                part.used = part.changes[part.n].at
                self.n -= 1
                if self.unwritten:
                    self.unwritten -= 1
            if part.n:
                break
            free(part)
            self.n_parts -= 1
        # What was dropped of these revisions is undone as well.
        self.since = min(self.since, rev)

    cdef void wrote(self) noexcept:
        self.unwritten = 0
        self.lost = False

    cdef void compacted(self, int64_t rev) noexcept:
        cdef Part* part
        while self.n_parts:
            part = self.parts[0]
            if part.n == 0 or part.changes[part.n - 1].rev > rev or self.unwritten + part.n > self.n:
                break
            self.drop_first()

    cdef bint reaches(self, int64_t at) noexcept:
        return at >= self.since and not self.lost

    cdef int64_t beyond(self, const Slice* key, const Slice* end, int64_t at) noexcept:
        """Return what must be added to the engine's count of a range to have the count at revision `at`."""
        cdef Part* part
        cdef Change* change
        cdef int64_t total = 0
        cdef size_t missing = self.unwritten
        cdef int number = self.n_parts
        while number:
            number -= 1
            part = self.parts[number]
            change = part.changes + part.n
            while change != part.changes:
                change -= 1
                if missing:
                    missing -= 1
                    if change.rev <= at and in_range(part.keys + change.at, change.klen, key, end):
                        total += change.by
                elif change.rev <= at:
                    return total
                elif in_range(part.keys + change.at, change.klen, key, end):
                    total -= change.by
        return total


cdef class PageCounts:
    """See `mvcc_births.pxd`."""

    def __cinit__(self):
        self.young = {}
        self.old = {}

    def __len__(self):
        return len(self.young) + len(self.old)

    cdef int64_t find(self, int64_t rev, const Slice* key, const Slice* end) except? -2:
        cdef tuple place
        cdef object count
        if not self.young and not self.old:
            return -1
        place = (rev, <bytes>key.p[:key.n], <bytes>end.p[:end.n])
        count = self.young.get(place)
        if count is None:
            count = self.old.get(place)
        return -1 if count is None else count

    cdef int note(self, int64_t rev, bytes key, const Slice* end, int64_t count) except -1:
        """Note that `count` keys are alive at the finished revision `rev` from `key` on up to `end`."""
        cdef size_t size = <size_t>PyBytes_GET_SIZE(key) + end.n
        if size > PAGE_KEY:
            return 0
        if len(self.young) >= PAGES or self.nbytes + size > PAGE_BYTES:
            self.old = self.young
            self.young = {}
            self.nbytes = 0
        self.young[(rev, key, <bytes>end.p[:end.n])] = count
        self.nbytes += size
        return 0
