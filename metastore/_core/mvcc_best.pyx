"""The first pairs of a range in an explicit order, for a range with a limit.

Only as many pairs as the limit lets through are kept while the others are walked over: in a heap, which at the end is
sorted in place. The caller adds pairs to the list and calls `take` until it returns True, again and again, and then
`sort` until it returns True. Both go on for about a budget of units (work.pxd).
"""

from libc.stdint cimport int64_t

from metastore._core.kv_messages cimport Kv
from metastore._core.mvcc_pairs cimport KvList, kvs_release
from metastore._core.record cimport key_cmp
from metastore._core.work cimport COST_BYTES


cdef class Best:
    """See `mvcc_best.pxd`. Made by `start_best`."""

    cdef bint first(self, const Kv* a, const Kv* b) noexcept:
        """Whether `a` comes before `b`. Pairs that are equal in the target are in key order in both directions."""
        cdef int64_t x = 0, y = 0
        self.cost += 1
        if self.target == 1:
            x, y = a.version, b.version
        elif self.target == 2:
            x, y = a.create, b.create
        elif self.target == 3:
            x, y = a.mod, b.mod
        elif self.target == 4:
            x = key_cmp(a.value.p, a.value.n, b.value.p, b.value.n)
            self.cost += min(a.value.n, b.value.n) // COST_BYTES
        if x != y:
            return x > y if self.down else x < y
        return key_cmp(a.key.p, a.key.n, b.key.p, b.key.n) < 0

    cdef void up(self, Kv* items, size_t at) noexcept:
        """Move the pair at `at` towards the top, as far as it comes behind the pairs there."""
        cdef Kv moved = items[at]
        cdef size_t above
        while at:
            above = (at - 1) // 2
            if not self.first(&items[above], &moved):
                break
            items[at] = items[above]
            at = above
        items[at] = moved

    cdef void sink(self, Kv* items, size_t n) noexcept:
        """Move the pair on top of a heap of `n` pairs down, as far as it comes before the pairs there."""
        cdef Kv moved = items[0]
        cdef size_t at = 0, below = 1
        while below < n:
            if below + 1 < n and self.first(&items[below], &items[below + 1]):
                below += 1
            if not self.first(&moved, &items[below]):
                break
            items[at] = items[below]
            at = below
            below = 2 * at + 1
        items[at] = moved

    cdef bint take(self, KvList* kvs, size_t budget) noexcept:
        """Look at pairs that were added to the list. Return whether all were looked at; the list then has the heap
        only."""
        cdef Kv* items = kvs.items
        cdef Kv* one
        self.cost = 0
        self.at = max(self.at, self.n)
        while self.at < kvs.n:
            if self.cost >= budget:
                return False
            one = &items[self.at]
            self.at += 1
            self.seen += 1
            if self.n == self.most and not self.first(one, &items[0]):
                kvs.held -= sizeof(Kv) + one.key.n + one.value.n
                kvs_release(one)
                continue
            if self.n == self.most:
                kvs.held -= sizeof(Kv) + items[0].key.n + items[0].value.n
                kvs_release(&items[0])
                items[0] = one[0]
                one.hold = NULL
                self.sink(items, self.n)
                continue
            # While there is room, every pair is kept, so this one stands right behind the heap.
            self.n += 1
            self.up(items, self.n - 1)
        kvs.n = self.at = self.n
        return True

    cdef bint sort(self, KvList* kvs, size_t budget) noexcept:
        """Put the pairs into their order. Return whether all are in order."""
        cdef Kv moved
        cdef size_t last
        self.cost = 0
        while self.sorted + 1 < self.n:
            if self.cost >= budget:
                return False
            self.sorted += 1
            last = self.n - self.sorted
            moved = kvs.items[last]
            kvs.items[last] = kvs.items[0]
            kvs.items[0] = moved
            self.sink(kvs.items, last)
        return True


cdef Best start_best(size_t most, int target, bint down):
    """Return a Best that keeps `most` pairs, at least one."""
    cdef Best best = Best.__new__(Best)
    best.most = most
    best.target = target
    best.down = down
    return best
