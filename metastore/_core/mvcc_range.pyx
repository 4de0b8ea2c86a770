"""Ranges and deletions over many keys, piece by piece (contract: work.pyx).

The loop must not stand still for long. Counting three million keys at once took half a second, and sixteen clients that
counted one million each took leadership from their node (2.5 s; the election timeout is 1 s).

Pairs in the order of their keys, upwards or downwards, are encoded as they are collected. With another order, or with a
filter before the limit, the pairs are collected first. They are collected without their values unless values decide the
order, because most such requests want few pairs. With a limit only as many are kept as it lets through.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memset

from metastore import errors
from metastore._core.mvcc_best cimport start_best
from metastore._core.mvcc_down cimport collect_down
from metastore._core.mvcc_keys cimport IndexView
from metastore._core.kv_messages cimport (KV_COMPACTED, KV_FUTURE, PAIR_TAG, PREV_TAG, DeleteReq, Header, Kv, RangeReq, Slice, check_range_req,
                                   decode_range, encode_delete_reply, encode_pairs, encode_range_reply,
                                   kv_raise)
from metastore._core.mvcc cimport WANT_ALL, WANT_COUNT, WANT_KEYS, Store, first_key, from_key_on
from metastore._core.mvcc_merged cimport SliceWalk
from metastore._core.mvcc_pairs cimport kvs_clear, kvs_cut, kvs_filter, kvs_init, kvs_release
from metastore._core.work cimport COST_BYTES, COST_PAIR, COST_WRITE, Sorter, Work, held_most, reply_too_large

cdef int64_t LATEST = 0x7FFFFFFFFFFFFFFF
cdef enum:
    COLLECT = 0
    SORT = 1
    ENCODE = 2
    CLEAR = 3
    PART = 256           # pairs encoded into one part
    UP_TO_LIMIT = 16     # for `Store.collect_slice`
    FEW = 16384          # pairs: with a limit up to this, an explicit order keeps only those that the limit lets through


cdef class RangeWork(Work):
    """See `mvcc_range.pxd`. Made by `start_range`, and for each range of a transaction."""

    def __cinit__(self):
        kvs_init(&self.kvs)

    def __dealloc__(self):
        kvs_clear(&self.kvs)

    cdef int begin(self, Store store, object owner, const RangeReq* source, int64_t now) except -1:
        """Check a decoded request at revision `now`. Raises ApiError. The header holds the revision only."""
        cdef RangeReq* req = &self.req
        self.owner = owner
        self.req = source[0]
        kv_raise(check_range_req(req), "")
        self.store = store
        self.header.revision = now
        self.rev = req.revision if req.revision > 0 else now
        if self.rev > now:
            kv_raise(KV_FUTURE, "")
        if self.rev < store.compacted:
            kv_raise(KV_COMPACTED, "")
        self.filtered = req.max_mod != 0 or req.min_mod != 0 or req.max_create != 0 or req.min_create != 0
        self.down = req.sort_target == 0 and req.sort_order == 2
        self.encoding = not self.filtered and req.sort_target == 0
        self.want = WANT_ALL
        if req.count_only:
            self.want = WANT_COUNT
        elif (req.keys_only or not self.encoding) and req.sort_target != 4:
            self.want = WANT_KEYS
        # As in etcd (see Store.select), a sort target without an order sorts what the limit let through.
        self.limited = req.limit > 0 and req.limit < LATEST and req.sort_order == 0 and not self.filtered
        self.chosen = req.sort_target != 0 and 0 < req.limit <= FEW and not self.limited
        if self.chosen:
            self.best = start_best(<size_t>req.limit, req.sort_target, req.sort_order == 2)
        if not self.down:
            self.at = first_key(&req.key)
        else:
            self.at = b"l" if from_key_on(&req.end) else first_key(&req.end)
        self.known = -1
        # What an operation has not finished may be undone.
        self.pages = store.pages if self.rev <= store.rev else None
        self.out.add(encode_range_reply(&self.header, NULL, 0, False, 0))
        return 0

    cdef int ask(self) except -1:
        """Take the count of the range, on the live state and not before the first step: a range that only comes, and
        waits for a later turn, costs this one nothing."""
        self.asked = True
        self.known = self.store.count_at(&self.req.key, &self.req.end, self.rev)
        self.cost += self.store.count_cost
        return 0

    cdef bint advance(self, size_t budget) except -1:
        if not self.asked:
            self.ask()
        if self.phase == COLLECT:
            self.collect(budget)
        elif self.phase == SORT:
            self.sort(budget)
        elif self.phase == ENCODE:
            self.emit_some(budget)
        else:
            self.cost += 1 + min(self.kvs.n, budget)
            if self.discard(budget):
                self.finish()
                return True
        self.weigh()
        if self.held > held_most():
            raise reply_too_large()
        return False

    cdef void weigh(self) noexcept:
        self.held = self.out.size + self.kvs.held + (2 * sizeof(Kv*) * self.sorter.n if self.sorter is not None else 0)

    cdef int collect(self, size_t budget) except -1:
        """Walk over some keys, unless the rest would only be counted and the number is known."""
        cdef size_t limit = 0, before = self.kvs.n
        cdef int want = self.want
        if self.chosen and self.best.n < self.kvs.n:
            return self.choose(budget)
        if self.encoding and self.req.limit > 0:
            if self.taken >= <size_t>self.req.limit:
                want = WANT_COUNT
            else:
                limit = <size_t>self.req.limit - self.taken
        elif self.limited:
            limit = <size_t>self.req.limit + 1
        elif self.complete():
            want = WANT_COUNT
        if self.enough():
            self.at = None
            self.cost += 1
            return self.after_collect()
        self.kvs.cost = 0
        budget = max(budget, <size_t>1)
        if limit and self.known >= 0:
            # The keys behind the last pair are counted already.
            want += UP_TO_LIMIT
        if self.down:
            self.at = collect_down(self.store, &self.req.key, self.at, self.rev, limit, want, budget, &self.kvs)
        else:
            self.at = self.store.collect_slice(<const uint8_t*>PyBytes_AS_STRING(self.at), PyBytes_GET_SIZE(self.at),
                                               &self.req.end, self.rev, limit, want, budget, &self.kvs, self.walk)
        self.cost += self.kvs.cost
        if self.encoding and self.kvs.n:
            self.encode(self.kvs.n)
            kvs_cut(&self.kvs, 0)
        elif self.filtered:
            kvs_filter(&self.kvs, &self.req, before)
            if self.complete():
                kvs_cut(&self.kvs, <size_t>self.req.limit + 1)
        if self.chosen:
            return self.choose(budget - self.kvs.cost if budget > self.kvs.cost else 1)
        if self.at is None:
            self.after_collect()
        return 0

    cdef int choose(self, size_t budget) except -1:
        """Look at pairs that were collected, and keep those that come first in the order of the reply."""
        cdef bint over = self.best.take(&self.kvs, budget)
        self.cost += self.best.cost
        if over and self.at is None:
            self.after_collect()
        return 0

    cdef int sort(self, size_t budget) except -1:
        cdef bint over
        if self.chosen:
            over = self.best.sort(&self.kvs, budget)
            self.cost += self.best.cost
        else:
            over = self.sorter.step(self.kvs.items, budget)
            self.cost += self.sorter.cost
        if over:
            self.phase = ENCODE
        return 0

    cdef bint complete(self) noexcept:
        """Whether filtered pairs that come in the order of the reply are one more than it has."""
        return self.filtered and self.req.sort_target == 0 and self.req.limit > 0 and (
            self.kvs.n > <size_t>self.req.limit)

    cdef bint enough(self) noexcept:
        """Whether what is left of the walk could only count."""
        if self.known < 0:
            return False
        if self.want == WANT_COUNT:
            return True
        if self.encoding:
            return self.req.limit > 0 and self.taken >= <size_t>self.req.limit
        return self.complete() or (self.limited and self.kvs.n > <size_t>self.req.limit)

    cdef int after_collect(self) except -1:
        """Decide what follows when all pairs are collected."""
        cdef size_t limit = <size_t>self.req.limit
        if self.known >= 0:
            self.kvs.total = self.known
        self.phase = CLEAR
        if self.encoding:
            # Pairs that are only counted are not cut off.
            self.more = self.req.limit > 0 and self.kvs.total > self.req.limit and self.want != WANT_COUNT
            if self.more and self.pages is not None and self.next_start is not None:
                self.pages.note(self.rev, self.next_start, &self.req.end, self.kvs.total - <int64_t>self.taken)
            return 0
        self.more = self.req.limit > 0 and (self.best.seen if self.chosen else self.kvs.n) > limit
        self.emit = limit if self.more else self.kvs.n
        self.phase = ENCODE
        if self.chosen:
            self.phase = SORT
        elif self.req.sort_target != 0 and self.kvs.n > 1:
            self.sorter = Sorter()
            self.sorter.begin(self.kvs.n, self.req.sort_target, self.req.sort_order == 2)
            self.phase = SORT
        return 0

    cdef int encode(self, size_t n) except -1:
        """Add the first `n` pairs of the list to the reply, in the order of the list."""
        cdef size_t i
        if self.req.keys_only:
            for i in range(n):
                self.kvs.items[i].value.n = 0
        self.out.add(encode_pairs(self.kvs.items, n, PAIR_TAG))
        self.taken += n
        if self.encoding and not self.down and self.req.limit > 0 and self.taken >= <size_t>self.req.limit:
            self.next_start = <bytes>self.kvs.items[n - 1].key.p[:self.kvs.items[n - 1].key.n] + b"\0"
        return 0

    cdef Kv* nth(self, size_t i) noexcept:
        """Return the pair that is number `i` of the reply."""
        if self.sorter is not None:
            return self.sorter.here[i]
        return &self.kvs.items[i]

    cdef int emit_some(self, size_t budget) except -1:
        """Encode some pairs in the order of the reply, and release them."""
        cdef Kv[PART] batch
        cdef Kv* kv
        cdef size_t i, n = 0, cost = 0
        while self.taken + n < self.emit and n < PART and (n == 0 or cost < budget):
            kv = self.nth(self.taken + n)
            if self.req.keys_only:
                kv.value.n = 0
            elif self.want == WANT_KEYS:
                self.store.load_value(kv)
            batch[n] = kv[0]
            cost += COST_PAIR + (kv.key.n + kv.value.n) // COST_BYTES
            n += 1
        if n:
            self.out.add(encode_pairs(batch, n, PAIR_TAG))
        for i in range(n):
            kvs_release(self.nth(self.taken + i))
        self.taken += n
        self.cost += cost
        if self.taken == self.emit:
            self.phase = CLEAR
        return 0

    cdef bint join(self, size_t budget) except -1:
        if not self.apart:
            return Work.join(self, budget)
        self.reply = self.out
        return True

    cdef int freeze(self) except -1:
        if not self.own_view and self.store is not None:
            self.store = self.store.frozen()
            self.own_view = True
            self.walk = SliceWalk()
        return 0

    cdef int finish(self) except -1:
        """Add the end of the reply, which follows the pairs."""
        cdef bytes head = self.out.items[0]
        self.out.add(encode_range_reply(&self.header, NULL, 0, self.more, self.kvs.total)[len(head):])
        return 0

    cpdef bint discard(self, size_t budget) except -1:
        self.walk = None
        if self.own_view:
            self.own_view = False
            self.store.engine.close()
        self.store = None
        self.sorter = None
        kvs_cut(&self.kvs, self.kvs.n - min(self.kvs.n, max(budget, <size_t>1)))
        if self.kvs.n == 0:
            kvs_clear(&self.kvs)
            return True
        return False


cdef size_t cost_delete(Store store) noexcept:
    """Return what it costs to write the deletion of one key. An engine in files looks for the version that it ends:
    there, 128 deletions took 10 ms with their write."""
    return COST_WRITE if store.engine.pace() == 1 else 2 * COST_WRITE


cdef class DeleteWork(Work):
    """See `mvcc_range.pxd`. It reads and writes the live store and looks at each key once, so a piece does not meet
    what an earlier piece deleted."""

    def __cinit__(self):
        kvs_init(&self.kvs)

    def __dealloc__(self):
        kvs_clear(&self.kvs)

    cdef int begin(self, Store store, const DeleteReq* req, bint want, bint alone) except -1:
        self.alone = alone
        self.store = store
        self.req = req[0]
        self.want = want
        self.at = first_key(&req.key)
        if not want:
            self.out = None
        return 0

    cdef bint advance(self, size_t budget) except -1:
        cdef bint previous = self.req.prev_kv and self.want
        cdef IndexView deletion
        cdef Slice nothing
        cdef size_t i, cost = cost_delete(self.store)
        memset(&deletion, 0, sizeof(deletion))
        deletion.tombstone = True
        nothing.p = NULL
        nothing.n = 0
        self.kvs.cost = 0
        self.at = self.store.collect_slice(
            <const uint8_t*>PyBytes_AS_STRING(self.at), PyBytes_GET_SIZE(self.at), &self.req.end, LATEST, 0,
            WANT_ALL if previous else WANT_KEYS, max(budget // (cost // COST_PAIR + 1), <size_t>1), &self.kvs)
        try:
            for i in range(self.kvs.n):
                self.store.write_version(&self.kvs.items[i].key, &nothing, &deletion)
                if self.kvs.items[i].lease != 0:
                    self.store.leases.detach(self.kvs.items[i].lease, self.kvs.items[i].key.p, self.kvs.items[i].key.n)
                    self.cost += COST_WRITE // 2
            self.cost += self.kvs.cost + cost * self.kvs.n
            self.deleted += <int64_t>self.kvs.n
            if previous and self.out is not None:
                self.out.add(encode_pairs(self.kvs.items, self.kvs.n, PREV_TAG))
                self.held = self.out.size
                if self.held > held_most():
                    # The deletion goes on, because what it does must not depend on who waits for it.
                    self.out = None
                    self.reply = reply_too_large()
        finally:
            kvs_cut(&self.kvs, 0)
        if self.at is not None:
            return False
        if self.want:
            self.finish()
        return True

    cdef int finish(self) except -1:
        cdef Header header
        memset(&header, 0, sizeof(header))
        if self.out is not None:
            if self.alone:
                self.store.fill_header(&header)
            header.revision = self.store.now()
            self.out.put_first(encode_delete_reply(&header, self.deleted, NULL, 0))
        return 0


cdef RangeWork start_range(Store store, bytes body, bint apart=False):
    """Return a RangeWork for an encoded RangeRequest, or None if that is about a single key. Raises ApiError.

    With `apart` its reply is Parts. To join 29 MB of them took 0.3 of 1.35 us of CPU a key with the engine in memory and
    1.8 of 4.6 us with RocksDB, mostly for new pages of memory; the peak of memory was 24 MiB higher with RocksDB.
    """
    cdef RangeReq req
    cdef RangeWork work
    kv_raise(decode_range(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), &req), "RangeRequest")
    if req.end.n == 0:
        return None
    work = RangeWork.__new__(RangeWork)
    work.apart = apart
    store.fill_header(&work.header)
    work.begin(store, body, &req, store.rev)
    return work


# --- for tests -------------------------------------------------------------------------------------------

def sliced_reply(Store store not None, bytes body not None, size_t budget, object between=lambda: None) -> bytes:
    """Return the reply to a range that is done in pieces of `budget` units. `between` is called between two pieces."""
    cdef RangeWork work = start_range(store, body)
    if work is None:
        return store.range_reply(body)
    while not work.step(budget):
        work.freeze()
        between()
    return work.reply


def known_count(Store store not None, bytes body not None):
    """Return how many keys an encoded RangeRequest has, or None if the store would have to walk over them. Raises
    ApiError."""
    cdef RangeWork work = start_range(store, body)
    if work is None:
        return None
    work.ask()
    return None if work.known < 0 else work.known


def range_cost(Store store not None, bytes body not None, size_t budget):
    """Return what a range over many keys costs in units, in pieces of `budget` units, and its reply."""
    cdef RangeWork work = start_range(store, body)
    cdef size_t cost = 0
    while not work.step(budget):
        cost += work.cost
    return cost + work.cost, work.reply
