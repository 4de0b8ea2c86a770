"""A cache for log entries that left memory. It reads them from the write-ahead log in the background, ahead of their
use.

The Raft core asks its storage for entries in the loop's thread, where waiting for a cold disk would hold up heartbeats
and writes. `ReadAhead` therefore answers from memory or raises NotYetLoaded. In the second case it also asks a thread
to read the missing entries and those that come after them. When a read has finished, the core is told and asks again.
The cache is bounded in bytes and drops the blocks that were used longest ago.

`ReadAhead` only keeps the books and belongs to the loop's thread. The thread that reads is in `read_thread.py`; the
simulator reads in virtual time instead.

The index and the term of its last entry identify what a block holds: two logs that have the same entry at this place
have the same entries before it (Raft paper, section 5.3). The cache therefore needs no notice when a suffix of the log
is overwritten or a segment is released. It notices this when it looks for a block, or when a block arrives.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from .._core.raft_types import LogCompacted, LogUnavailable, NotYetLoaded
from .reading import Reading

#: A block is one part in PART of the cache, at most MAX_BLOCK bytes: one message to a peer, or one portion to apply.
PART, MAX_BLOCK = 8, 1 << 20
#: So many blocks are read before a sequential reader asks for them: one is being read, and one is ready.
AHEAD = 2
#: The thread has at most so many unfinished reads; half of these may be ahead of the reader.
MAX_READS = 4
#: At most so many indexes wait for their turn to be read. Callers of others ask again when a read has finished.
MAX_WANTED = 64
MAX_BLOCKS = 256
#: A block that a caller waits for is not evicted during the next PATIENCE arrivals. Otherwise two waiting callers, with
#: room for one block, could evict each other's block for ever, before either was told (the simulator found this).
PATIENCE = 2 * MAX_READS


class ReadableLog(Protocol):
    """The cache needs these methods of the log. All except `reading` answer from memory."""

    def first_index(self) -> int:
        """Index of the first entry."""

    def last_index(self) -> int:
        """Index of the last entry; first_index - 1 when there is none."""

    def term(self, index: int) -> int:
        """Term of an entry. Raises LogCompacted, LogUnavailable."""

    def reading(self, low: int, high: int, max_size: int) -> Reading:
        """Returns a `Reading` of the entries [low, high): at least one, then at most max_size bytes in all.

        Raises LogCompacted, LogUnavailable.
        """


class Block:
    """One block of entries that was read.

    `served`: a caller has received entries of it. `waited`: a caller is waiting for it. `arrival`: its sequence number.
    """

    __slots__ = ("arrival", "images", "reading", "served", "waited")

    def __init__(self, reading: Reading, images: bytes, arrival: int) -> None:
        self.arrival = arrival
        self.reading = reading
        self.images = memoryview(images)
        self.waited = reading.wanted
        self.served = False


class ReadAhead:
    """The cache itself.

    `capacity`, in bytes, bounds the cached blocks and the reads under way together. Two things may exceed it: an entry
    that is larger than a block, and up to PATIENCE blocks that a caller is waiting for. `submit` starts a Reading in
    the background; the owner passes its outcome to `loaded`.

    hits: requests answered from memory. misses: requests that had to wait. read_bytes: bytes of images that were read.
    dropped: reads without use, because the log no longer held the entries or because the read failed before any caller
    wanted it.
    """

    def __init__(self, wal: ReadableLog, capacity: int, submit: Callable[[Reading], object]) -> None:
        self.capacity = capacity
        self.block_size = max(1, min(capacity // PART, MAX_BLOCK))
        self.hits = self.misses = self.read_bytes = self.dropped = 0
        self._wal = wal
        self._submit = submit
        self._blocks: OrderedDict[int, Block] = OrderedDict()
        self._reads: dict[int, Reading] = {}
        self._requests: OrderedDict[int, int] = OrderedDict()
        self._arrivals = 0
        self._cached = 0
        self._underway = 0

    # ---- the questions

    def images(self, low: int, high: int, max_size: int) -> memoryview:
        """Images of the entries [low, high), joined: at least one, then at most max_size bytes, perhaps fewer.

        Raises NotYetLoaded when the entries must be read first, and LogCompacted or LogUnavailable.
        """
        wal = self._wal
        if low < wal.first_index():
            raise LogCompacted()
        if low >= high or low > wal.last_index():
            raise LogUnavailable(f"log entries [{low}, {high}) of ..{wal.last_index()}")
        block = self._find(low)
        if block is None:
            self._miss(low, high)
            raise NotYetLoaded()
        if block.waited:
            block.waited = False
        else:
            self.hits += 1
        block.served = True
        self._blocks.move_to_end(block.reading.first)
        self._ahead(block.reading.end, high)
        begin, end = block.reading.span(low, high, max_size)
        return block.images[begin:end]

    def _miss(self, low: int, high: int) -> None:
        reading = self._read_of(low)
        if reading is not None:
            self.misses += not reading.wanted
            reading.wanted = True
        elif low not in self._requests:
            self.misses += 1
            if len(self._reads) < MAX_READS:
                self._begin_wanted(low, high)
                return
            self._requests[low] = high
            if len(self._requests) > MAX_WANTED:
                self._requests.popitem(last=False)

    def _find(self, index: int) -> Block | None:
        for block in self._blocks.values():
            if block.reading.first <= index < block.reading.end:
                if self._holds(block.reading):
                    return block
                self._drop(block)
                return None
        return None

    def _read_of(self, index: int) -> Reading | None:
        for reading in self._reads.values():
            if reading.first <= index < reading.end and self._holds(reading):
                return reading
        return None

    def _holds(self, reading: Reading) -> bool:
        """Whether the log still has these entries, or the last of them if its front was cut meanwhile."""
        wal, last = self._wal, reading.end - 1
        return wal.first_index() <= last <= wal.last_index() and wal.term(last) == reading.term

    # ---- reading

    def _begin_wanted(self, low: int, high: int) -> None:
        reading = self._wal.reading(low, high, self.block_size)
        reading.wanted = True
        self._make_room(reading.cost, spare_unserved=False)
        self._begin(reading)

    def _ahead(self, index: int, high: int) -> None:
        """Makes sure that the blocks from `index` on, where a reader will continue, are cached or being read."""
        for _ in range(AHEAD):
            if index >= high:
                return
            block = self._find(index)
            reading = block.reading if block is not None else self._read_of(index)
            if reading is None:
                if len(self._reads) >= MAX_READS // 2:
                    return
                try:
                    reading = self._wal.reading(index, high, self.block_size)
                except (LogCompacted, LogUnavailable):
                    return
                if not self._make_room(reading.cost, spare_unserved=True):
                    return
                self._begin(reading)
            index = reading.end

    def _begin(self, reading: Reading) -> None:
        # A read from the same index may be under way for entries that were overwritten since. It stays the only one
        # until it has finished; then the waiting callers ask again.
        if reading.first not in self._reads:
            self._reads[reading.first] = reading
            self._underway += reading.cost
            self._submit(reading)

    def loaded(self, reading: Reading, outcome: bytes | Exception) -> None:
        """A read is done: `outcome` has its images, or the reason why there are none. The core must be told in both
        cases.

        If a caller waits for these entries and the log still holds them, a failed outcome is raised: DiskFailed,
        DamagedData.
        """
        del self._reads[reading.first]
        self._underway -= reading.cost
        alive = self._holds(reading)
        if not isinstance(outcome, Exception):
            self.read_bytes += len(outcome)
            if alive:
                self._keep(reading, outcome)
        elif alive and reading.wanted and reading.first >= self._wal.first_index():
            raise outcome
        # In all other cases either no caller has asked for this yet, or the segment was released. A released segment
        # may be gone or hold other entries by now.
        self.dropped += not alive or isinstance(outcome, Exception)
        self._go_on()

    def _go_on(self) -> None:
        """Begins reads for the indexes that wait for their turn."""
        while self._requests and len(self._reads) < MAX_READS:
            low, high = self._requests.popitem(last=False)
            if self._find(low) is None and self._read_of(low) is None:
                # The caller that asked for this may be gone.
                with contextlib.suppress(LogCompacted, LogUnavailable):
                    self._begin_wanted(low, high)

    def _keep(self, reading: Reading, images: bytes) -> None:
        self._arrivals += 1
        self._make_room(reading.cost, spare_unserved=False)
        old = self._blocks.get(reading.first)
        if old is not None:
            self._drop(old)
        self._blocks[reading.first] = Block(reading, images, self._arrivals)
        self._cached += reading.cost

    # ---- room

    def _make_room(self, cost: int, spare_unserved: bool) -> bool:
        """Drops the blocks that were used longest ago until `cost` bytes more fit. Returns whether they fit.

        Blocks that no caller has received yet come last; with `spare_unserved` they are not dropped at all.
        """
        for block in list(self._blocks.values()):
            if not self._holds(block.reading):
                self._drop(block)
        if spare_unserved:
            spared = sum(block.reading.cost for block in self._blocks.values() if not block.served)
            if spared + self._underway + cost > self.capacity:
                return False
        for served in (True,) if spare_unserved else (True, False):
            for block in list(self._blocks.values()):
                if self._fits(cost):
                    return True
                awaited = block.waited and self._arrivals - block.arrival < PATIENCE
                if block.served is served and not awaited:
                    self._drop(block)
        return self._fits(cost)

    def _fits(self, cost: int) -> bool:
        return self._cached + self._underway + cost <= self.capacity and len(self._blocks) < MAX_BLOCKS

    def _drop(self, block: Block) -> None:
        del self._blocks[block.reading.first]
        self._cached -= block.reading.cost

    @property
    def cached_bytes(self) -> int:
        """The bytes in the cache."""
        return self._cached

    def stats(self) -> dict[str, float]:
        """The numbers for /metrics."""
        return {
            "hits_total": self.hits,
            "misses_total": self.misses,
            "read_bytes_total": self.read_bytes,
            "dropped_total": self.dropped,
            "cached_bytes": self._cached,
        }
