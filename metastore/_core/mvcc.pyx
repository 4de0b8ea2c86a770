"""The revisioned key-value store over an engine. It has Put, Range, DeleteRange and Compact; `mvcc_txn_work.pyx` has
Txn, and `mvcc_sweep.pyx` removes what was compacted.

The semantics are those of etcd's KV service (etcd.io, "API guarantees" and the comments of its rpc.proto). The store
starts at revision 1. An operation that changes something gets the next main revision, and its changes are numbered from
0 below it. Keys may have leases; `mvcc_lease.pyx` revokes those. Everything that an operation writes goes to the
overlay. Reads see the overlay over the engine. `commit` hands the overlay to the engine in one write. Every check comes
before the first change; `undo` drops the changes of an operation that failed after that.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from metastore import errors
from metastore._core.mvcc_keys import COMPACT_KEY, META, REVISION_KEY, SWEPT_KEY
from metastore._core.engine cimport Engine, EngineCursor
from metastore._core.leases cimport Leases, checkpoint_read, grant_read
from metastore._core.mvcc_births cimport Births, PageCounts
from metastore._core.mvcc_keys cimport (REV_KEY_SIZE, REV_SIZE, IndexView, RevView, index_prefix, index_read,
                                       index_record, index_room, rev_key, rev_read, rev_record, rev_record_read,
                                       rev_write, same_prefix)
from metastore._core.kv_messages cimport (KV_COMPACTED, KV_EMPTY_KEY, KV_FUTURE, KV_KEY_NOT_FOUND, KV_LEASE_NOT_FOUND, KV_OK,
                                   CompactReq, DeleteReq, Header, Kv, PutReq, RangeReq, Slice, check_put_req,
                                   check_range_req, decode_compact, decode_delete, decode_put, decode_range,
                                   encode_delete_reply, encode_grant_reply, encode_header_reply, encode_put_reply,
                                   encode_range_reply, kv_raise)
from metastore._core.le cimport get64, put64
from metastore._core.mvcc_merged cimport Merged, SliceWalk
from metastore._core.mvcc_pairs cimport KvList, arrange, kvs_add, kvs_clear, kvs_init, kvs_release
from metastore._core.mvcc_values cimport load_values, take_value
from metastore._core.ordered_map cimport OrderedMap
from metastore._core.ordered_map_walk cimport tree_get, tree_le
from metastore._core.op cimport OP_COMPACT, OP_DELETE_RANGE, OP_LEASE_CHECKPOINT, OP_LEASE_GRANT, OP_PUT
from metastore._core.work cimport COST_BYTES, COST_COUNT, COST_KEY, COST_PAIR, detour_cost
from metastore._core.record cimport Record, key_cmp, rec_key, rec_new, rec_ref, rec_release, rec_value

cdef int64_t LATEST = 0x7FFFFFFFFFFFFFFF
cdef uint32_t LAST_SUB = 0xFFFFFFFFUL
cdef enum:
    META_VERSION = 1
    META_SIZE = 9
    STEPS = 6            # records of one key that a range walks over before it jumps
    UP_TO_LIMIT = 16     # added to what a range wants: it ends with the last pair that the limit lets through


# --- helpers ---------------------------------------------------------------------------------------------

cdef uint8_t* room(Scratch* scratch, size_t n) except NULL:
    """Return a buffer of at least `n` bytes that lives as long as the store."""
    cdef uint8_t* larger
    if scratch.size < n:
        larger = <uint8_t*>realloc(scratch.p, n + 256)
        if larger == NULL:
            raise MemoryError
        scratch.p = larger
        scratch.size = n + 256
    return scratch.p


cdef bytes meta_value(int64_t number):
    """Encode a counter of table 'm': the version byte, then the number as i64."""
    cdef uint8_t data[META_SIZE]
    data[0] = META_VERSION
    put64(data + 1, <uint64_t>number)
    return (<char*>data)[:META_SIZE]


cdef int64_t read_meta(Engine engine, bytes name, int64_t default) except? -2:
    cdef bytes value = engine.get(name)
    if value is None:
        return default
    if len(value) != META_SIZE or value[0] != META_VERSION:
        raise errors.DamagedData(f"engine: record {name!r} has an unknown form")
    return <int64_t>get64(<const uint8_t*>PyBytes_AS_STRING(value) + 1)


cdef int plain_key(Record* index, Kv* out) except -1:
    """Point `out.key` at the plain key of a 'k' record. The pair then owns a reference to the record or to a copy of
    the key."""
    cdef uint8_t* p = rec_key(index) + 1
    cdef size_t n = index.klen - 3 - REV_SIZE
    cdef size_t i = 0, at = 0
    cdef Record* copy
    while i < n and p[i] != 0:
        i += 1
    if i == n:
        rec_ref(index)
        out.hold = index
        out.key.p = p
        out.key.n = n
        return 0
    copy = rec_new(p, n, 0)
    if copy == NULL:
        raise MemoryError
    i = 0
    while i < n:
        rec_key(copy)[at] = p[i]
        i += 2 if p[i] == 0 else 1
        at += 1
    out.hold = copy
    out.key.p = rec_key(copy)
    out.key.n = at
    return 0


cdef bytes first_key(const Slice* key):
    """Return the engine key before the first version of a key, at which a walk over a range begins."""
    cdef bytes prefix = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>index_room(key.n))
    return prefix[:index_prefix(<uint8_t*>PyBytes_AS_STRING(prefix), key.p, key.n)]


cdef bint from_key_on(const Slice* end) noexcept:
    return end.n == 1 and end.p[0] == 0


# --- the store -------------------------------------------------------------------------------------------

cdef class Store:
    """Keys and their history. One thread at a time uses a store.

    `cluster_id`, `member_id` and `raft_term` appear in the headers of replies. `revision` is the current main revision.
    """

    def __cinit__(self):
        self.low.p = NULL
        self.high.p = NULL
        self.write_key.p = NULL
        self.low.size = self.high.size = self.write_key.size = 0

    def __init__(self, Engine engine not None, uint64_t cluster_id=0, uint64_t member_id=0):
        self.engine = engine
        self.cluster_id = cluster_id
        self.member_id = member_id
        self.raft_term = 0
        self.leases = Leases()
        self.reload()

    def __dealloc__(self):
        free(self.low.p)
        free(self.high.p)
        free(self.write_key.p)

    def get_meta(self, bytes name not None):
        """Return the meta record `name` (bytes) as operations see it, or None."""
        value = self.overlay.get(META + name)
        return value if value is not None else self.engine.get(META + name)

    def put_meta(self, bytes name not None, bytes value not None) -> None:
        """Set the meta record `name`. The next commit writes it to the engine."""
        self.overlay.set(META + name, value)

    def reload(self) -> None:
        """Read the counters again after the engine's contents were replaced. Raises DamagedData."""
        self.overlay = OrderedMap()
        self.reloads += 1
        self.sub = 0
        self.rev = self.saved_rev = read_meta(self.engine, REVISION_KEY, 1)
        self.compacted = read_meta(self.engine, COMPACT_KEY, -1)
        self.swept = read_meta(self.engine, SWEPT_KEY, -1)
        self.sweep = None
        # These tell about one history, and another one may have come.
        self.births = Births(self.rev)
        self.pages = PageCounts()
        self.spilled = False
        self.stale = self.find_stale()
        self.leases.reload(self.engine, self.overlay)

    cdef bint find_stale(self) except -1:
        cdef uint8_t[REV_KEY_SIZE] first
        cdef EngineCursor cursor = self.engine.cursor()
        cdef Record* rec
        rev_key(first, self.rev + 1, 0)
        rec = cursor.seek(first, REV_KEY_SIZE)
        return rec != NULL and rec_key(rec)[0] == c'r' and rec.klen == REV_KEY_SIZE

    @property
    def settled(self) -> bool:
        """Whether no operation is half done. What is not read at a revision is whole then, too."""
        return self.sub == 0 and not self.stale

    @property
    def revision(self) -> int:
        """The current main revision."""
        return self.rev

    @property
    def compact_revision(self) -> int:
        """Revisions below this one are gone; -1 while nothing was ever compacted."""
        return self.compacted

    cdef int64_t now(self) noexcept:
        return self.rev + 1 if self.sub else self.rev

    cdef void fill_header(self, Header* header) noexcept:
        header.cluster_id = self.cluster_id
        header.member_id = self.member_id
        header.revision = self.now()
        header.raft_term = self.raft_term

    cdef bint whole(self) noexcept:
        return not (self.sub or self.spilled or self.stale)

    cdef int finish(self) except -1:
        if self.sub:
            self.rev += 1
            self.sub = 0
        return 0

    cpdef undo(self):
        """Drop from the overlay what the operation under way has written."""
        cdef uint8_t at[REV_KEY_SIZE]
        cdef Record* rec
        cdef Record* index
        cdef RevView change
        cdef IndexView view
        cdef Slice key
        cdef uint8_t* p
        cdef size_t n
        while self.sub:
            rev_key(at, self.rev + 1, self.sub - 1)
            rec = tree_get(self.overlay.root, at, REV_KEY_SIZE)
            if rec != NULL:
                rev_record_read(rec, &change)
                p = room(&self.write_key, index_room(change.klen))
                n = index_prefix(p, change.key, change.klen)
                rev_write(p + n, self.rev + 1, self.sub - 1)
                key.p, key.n = change.key, change.klen
                index = tree_get(self.overlay.root, p, n + REV_SIZE)
                if index != NULL:
                    index_read(index, &view)
                    self.take_back(&key, view.lease)
                    self.overlay.remove(p, n + REV_SIZE)
                self.overlay.remove(at, REV_KEY_SIZE)
            elif self.spilled:
                self.stale = True
            self.sub -= 1
        self.births.undo(self.rev)

    cdef Store frozen(self):
        """Return this store as its readers see it now; later writes do not change it. Its engine is a view, which the
        caller closes."""
        cdef Store copy = Store.__new__(Store)
        copy.engine = self.engine.view()
        # The overlay is not empty while the engine is busy, or while an entry is only half applied.
        copy.overlay = self.overlay.view()
        copy.cluster_id, copy.member_id, copy.raft_term = self.cluster_id, self.member_id, self.raft_term
        copy.rev = copy.saved_rev = self.rev
        copy.spilled, copy.stale = self.spilled, self.stale
        copy.compacted = self.compacted
        copy.swept = self.swept
        copy.pages = self.pages
        copy.reloads = self.reloads
        copy.live = self
        return copy

    cdef int64_t count_at(self, const Slice* key, const Slice* end, int64_t at) except? -2:
        """Return how many keys of a range are alive at main revision `at`, or -1 if only a walk can tell: if the engine
        does not know its own count, or if `births` does not reach back so far (mvcc_births.pyx). A frozen store has no
        list, and asks the one that it was made of. `count_cost` has the units that this took."""
        cdef object count
        cdef size_t detours = 0
        cdef int64_t known = self.pages.find(at, key, end) if at < self.rev else -1
        self.count_cost = 0
        if known >= 0 or self.stale:
            return known
        if self.live is not None and self.live.reloads == self.reloads:
            # What the frozen store shows was finished, so the live one knows it for as long as its list reaches back.
            known = self.live.count_at(key, end, at)
            self.count_cost = self.live.count_cost
            if known >= 0:
                return known
        if self.births is None:
            if at < self.rev or self.overlay.count or not self.whole():
                return -1
        elif not self.births.reaches(at):
            return -1
        detour_cost(self.engine.detours, &detours)
        count = self.engine.count(first_key(key), b"l" if from_key_on(end) else first_key(end))
        self.count_cost += detour_cost(self.engine.detours, &detours) + (COST_COUNT if self.engine.pace() > 1 else 0)
        if count is None:
            return -1
        return count if self.births is None else count + self.births.beyond(key, end, at)

    # -- single versions --

    cdef int64_t lease_before(self, const Slice* key) except? 0:
        """Return the lease that a key had before the operation under way, or 0."""
        cdef IndexView old
        return old.lease if self.version_at(key, self.rev, &old) else 0

    cdef int take_back(self, const Slice* key, int64_t lease) except -1:
        """Give a key the lease again that it had before the operation under way, which gave it `lease` (0: none)."""
        cdef int64_t before = self.lease_before(key)
        if lease != 0 and lease != before:
            self.leases.detach(lease, key.p, key.n)
        if before != 0:
            self.leases.attach(before, key.p, key.n)
        return 0

    cdef int version_at(self, const Slice* key, int64_t at, IndexView* out) except -1:
        """Find the newest version of `key` not above main revision `at`; a tombstone counts. Return 1 and fill `out`,
        or 0."""
        cdef uint8_t* p = room(&self.low, index_room(key.n))
        cdef size_t n = index_prefix(p, key.p, key.n)
        cdef Record* rec
        rev_write(p + n, at, LAST_SUB)
        if self.overlay.count:
            rec = tree_le(self.overlay.root, p, n + REV_SIZE)
            if rec != NULL and same_prefix(rec, p, n):
                index_read(rec, out)
                return 1
        rec = self.engine.find_le(p, n + REV_SIZE)
        if rec == NULL:
            return 0
        if not same_prefix(rec, p, n):
            rec_release(rec)
            return 0
        try:
            index_read(rec, out)
        finally:
            rec_release(rec)
        return 1

    cdef Record* fetch(self, int64_t main, uint32_t sub) except NULL:
        """Return the 'r' record of a revision, owned by the caller. Raises DamagedData if it is missing."""
        cdef uint8_t at[REV_KEY_SIZE]
        cdef Record* rec = NULL
        rev_key(at, main, sub)
        if self.overlay.count:
            rec = tree_get(self.overlay.root, at, REV_KEY_SIZE)
        if rec != NULL:
            rec_ref(rec)
            return rec
        rec = self.engine.find(at, REV_KEY_SIZE)
        if rec == NULL:
            raise errors.DamagedData(f"engine: revision {main}/{sub} is missing")
        return rec

    cdef int load(self, const IndexView* view, Kv* out) except -1:
        """Fill a pair with the key and value of a version. The caller releases `out.hold`."""
        cdef RevView change
        cdef Record* rec = self.fetch(view.main, view.sub)
        out.hold = rec
        rev_record_read(rec, &change)
        out.key.p = change.key
        out.key.n = change.klen
        out.value.p = change.value
        out.value.n = change.vlen
        out.create = view.create
        out.mod = view.main
        out.sub = view.sub
        out.version = view.version
        out.lease = view.lease
        return 0

    cdef int load_value(self, Kv* kv) except -1:
        """Fetch the value of a pair that was collected without it."""
        return take_value(kv, self.fetch(kv.mod, kv.sub))

    cdef int write_version(self, const Slice* key, const Slice* value, IndexView* view) except -1:
        """Write a change under the next revision of this operation; it is a tombstone if the view says so."""
        cdef uint8_t* p = room(&self.write_key, index_room(key.n))
        cdef size_t n = index_prefix(p, key.p, key.n)
        cdef Record* rec
        cdef uint32_t sub = self.sub
        view.main = self.rev + 1
        view.sub = sub
        rec = rev_record(view.main, sub, key.p, key.n, value.p, value.n, view.tombstone)
        if rec == NULL:
            raise MemoryError
        self.overlay.put_record(rec)
        self.sub = sub + 1
        rec = index_record(p, n, view)
        if rec == NULL:
            raise MemoryError
        self.overlay.put_record(rec)
        if view.tombstone:
            self.births.add(key, view.main, -1)
        elif view.version == 1:
            self.births.add(key, view.main, 1)
        return 0

    # -- ranges --

    cdef int keep(self, const IndexView* view, Record* group, size_t limit, int want, KvList* out) except -1:
        """Count a live version. Collect it too, unless `limit` pairs are there already."""
        cdef Kv* kv
        out.total += 1
        if want == WANT_COUNT or (limit and out.n >= limit):
            return 0
        kv = kvs_add(out)
        if want == WANT_ALL:
            self.load(view, kv)
        else:
            kv.create = view.create
            kv.mod = view.main
            kv.sub = view.sub
            kv.version = view.version
            kv.lease = view.lease
            if want != WANT_LATER:
                plain_key(group, kv)
        out.cost += COST_PAIR + (kv.key.n + kv.value.n) // COST_BYTES
        out.held += kv.key.n + kv.value.n
        return 0

    cdef int collect(self, const Slice* key, const Slice* end, int64_t at, size_t limit, int want,
                     KvList* out) except -1:
        """Collect the pairs of a range at main revision `at` in key order. The caller clears `out`."""
        cdef IndexView view
        cdef Kv* kv
        if end.n:
            return self.collect_range(key, end, at, limit, want, out)
        if not self.version_at(key, at, &view) or view.tombstone:
            return 0
        out.total = 1
        if want == WANT_COUNT:
            return 0
        kv = kvs_add(out)
        if want == WANT_ALL:
            return self.load(&view, kv)
        kv.key = key[0]
        kv.create = view.create
        kv.mod = view.main
        kv.version = view.version
        kv.lease = view.lease
        return 0

    cdef int collect_range(self, const Slice* key, const Slice* end, int64_t at, size_t limit, int want,
                           KvList* out) except -1:
        cdef size_t n = index_prefix(room(&self.low, index_room(key.n)), key.p, key.n)
        self.collect_slice(self.low.p, n, end, at, limit, want, 0, out)
        return 0

    cdef bytes collect_slice(self, const uint8_t* start, size_t low_n, const Slice* end, int64_t at, size_t limit,
                             int want, size_t budget, KvList* out, SliceWalk kept=None):
        """Collect pairs from the engine key `start` on, up to `end` or until they have cost `budget` units (0: no
        bound). What follows the pair number `limit` is only counted, or nothing follows it (UP_TO_LIMIT in `want`).

        Return the engine key to go on from, or None at the end. The cost is added to `out.cost`. All slices of a range
        in a frozen store may be given the same `kept`; each then goes on with the walk of the one before it.
        """
        cdef SliceWalk here = SliceWalk() if kept is None else kept
        cdef size_t high_n = 1, n
        cdef uint8_t* high = room(&self.high, index_room(end.n))
        cdef Record* rec
        cdef Record* group
        cdef IndexView best
        cdef bint found, full, up_to_limit = (want & UP_TO_LIMIT) != 0
        cdef size_t detours = 0, most = out.cost + budget if budget else <size_t>-1
        cdef size_t known, bare = out.n
        cdef bint together
        want &= ~UP_TO_LIMIT
        together = want == WANT_ALL and self.engine.pace() > 1
        if from_key_on(end):
            high[0] = c'l'
        else:
            high_n = index_prefix(high, end.p, end.n)
        detour_cost(self.engine.detours, &detours)
        if here.walk is None:
            self.enter_slices(here, start, low_n, at)
        rec = here.rec
        while rec != NULL and key_cmp(rec_key(rec), rec.klen, high, high_n) < 0:
            group = rec
            rec_ref(group)
            try:
                n = group.klen - REV_SIZE
                rec = self.versions(here.walk, group, n, at, &here.most_steps, &found, &best)
                if found and not best.tombstone:
                    self.keep(&best, group, limit, WANT_LATER if together else want, out)
                elif here.newest:
                    # A hundred thousand deleted keys may stand before the next one that is alive.
                    rec = here.walk.seek_alive(self.behind(group, n), n + REV_SIZE, &here.newest)
                out.cost += COST_KEY + group.klen // COST_BYTES + detour_cost(self.engine.detours, &detours)
                full = up_to_limit and out.n >= limit
                if together and out.n > bare and (
                        full or out.n - bare >= here.together or out.cost - here.less * (out.n - bare) >= most):
                    known = out.cost
                    here.less = COST_PAIR - 1 if load_values(self.engine, self.overlay, out, bare) else 0
                    here.learn(out.cost - known if out.cost > known else 0, budget)
                    bare = out.n
                if full or (out.cost >= most and not (together and out.n > bare)):
                    here.rec = rec
                    return (<char*>self.behind(group, n))[:n + REV_SIZE]
            finally:
                rec_release(group)
        if together and out.n > bare:
            load_values(self.engine, self.overlay, out, bare)
        return None

    cdef int enter_slices(self, SliceWalk here, const uint8_t* start, size_t n, int64_t at) except -1:
        """Begin the walk of a range at the engine key `start`."""
        here.together = 1
        here.less = 0
        here.most_steps = STEPS
        # Whether the engine can go from one living key to the next. It holds all that is visible at `at`.
        here.newest = at >= self.rev and not self.overlay.count and self.whole()
        here.walk = Merged()
        here.walk.below = self.engine.cursor()
        here.walk.overlay = self.overlay
        if here.newest:
            here.rec = here.walk.seek_alive(start, n, &here.newest)
        if not here.newest:
            here.rec = here.walk.seek(start, n)
        return 0

    cdef Record* versions(self, Merged walk, Record* group, size_t n, int64_t at, int* most_steps, bint* found,
                          IndexView* best) except? NULL:
        """Find the version at main revision `at` of the key whose first version is `group`, on which the walk stands.
        Return the first record of the next key. After `most_steps` versions the walk jumps over the others."""
        cdef Record* rec = group
        cdef IndexView view
        cdef int64_t first = 0
        cdef int steps = 0
        found[0] = False
        while rec != NULL and same_prefix(rec, rec_key(group), n):
            index_read(rec, &view)
            if view.main > at or steps == most_steps[0]:
                rec = self.skip_versions(walk, group, n, at, view.main > at, found, best)
                # Keys next to each other often have about as many versions.
                most_steps[0] = 1 if found[0] and best.version > first + STEPS else STEPS
                break
            if steps == 0:
                first = view.version
            best[0] = view
            found[0] = True
            steps += 1
            rec = walk.next(rec)
        return rec

    cdef uint8_t* behind(self, Record* group, size_t n) except NULL:
        """Return an engine key of n + REV_SIZE bytes behind all versions of the key that `group` is a version of."""
        cdef uint8_t* p = room(&self.low, n + REV_SIZE)
        memcpy(p, rec_key(group), n)
        memset(p + n, 0xFF, REV_SIZE)
        return p

    cdef Record* skip_versions(self, Merged walk, Record* group, size_t n, int64_t at, bint done, bint* found,
                               IndexView* best) except? NULL:
        """Skip the other versions of a key that has many: look up the wanted one unless `done`, and go to the next
        key's first record."""
        cdef uint8_t* p = room(&self.low, n + REV_SIZE)
        cdef Record* rec
        memcpy(p, rec_key(group), n)
        if not done:
            rev_write(p + n, at, LAST_SUB)
            rec = tree_le(self.overlay.root, p, n + REV_SIZE)
            if rec != NULL and same_prefix(rec, p, n):
                index_read(rec, best)
            else:
                rec = self.engine.find_le(p, n + REV_SIZE)
                if rec == NULL:
                    raise errors.DamagedData("engine: index records changed while they were read")
                try:
                    index_read(rec, best)
                finally:
                    rec_release(rec)
            found[0] = True
        return walk.seek(self.behind(group, n), n + REV_SIZE)

    cdef int select(self, const RangeReq* req, int64_t now, KvList* out, bint* more) except -1:
        """Do all that a RangeRequest asks for, except encoding. Raises FutureRevision, Compacted, DamagedData.

        Limit, filters and sorting work as in etcd. With a filter or an explicit order, all pairs are fetched and then
        filtered, sorted and cut. A sort target without an order sorts what the limit let through.
        """
        cdef int64_t at = now
        cdef size_t limit = 0
        cdef int want = WANT_ALL
        cdef bint filtered = req.max_mod != 0 or req.min_mod != 0 or req.max_create != 0 or req.min_create != 0
        if req.revision > at:
            kv_raise(KV_FUTURE, "")
        if req.revision > 0:
            at = req.revision
        if at < self.compacted:
            kv_raise(KV_COMPACTED, "")
        if req.limit > 0 and req.sort_order == 0 and not filtered and req.limit < LATEST:
            limit = <size_t>req.limit + 1
        if req.count_only:
            want = WANT_COUNT
        elif req.keys_only and req.sort_target != 4:
            want = WANT_KEYS
        self.collect(&req.key, &req.end, at, limit, want, out)
        more[0] = arrange(req, out)
        return 0

    # -- operations; each needs finish() or undo() after it --

    cdef bytes do_range(self, const RangeReq* req, int64_t now, Header* header):
        """Return a RangeResponse for a reader whose newest revision is `now`. Raises FutureRevision, Compacted,
        DamagedData."""
        cdef KvList kvs
        cdef bint more = False
        cdef size_t i
        kvs_init(&kvs)
        try:
            self.select(req, now, &kvs, &more)
            if req.keys_only:
                for i in range(kvs.n):
                    kvs.items[i].value.n = 0
            header.revision = now
            return encode_range_reply(header, kvs.items, kvs.n, more, kvs.total)
        finally:
            kvs_clear(&kvs)

    cdef bytes do_put(self, const PutReq* req, Header* header, bint want):
        """Return a PutResponse (None unless `want`). Raises LeaseNotFound and KeyNotFound before any change."""
        cdef IndexView old, new
        cdef Slice value = req.value
        cdef Kv prev
        cdef bint exists
        cdef int64_t before = 0
        if req.lease != 0 and not self.leases.known(req.lease):
            kv_raise(KV_LEASE_NOT_FOUND, "")
        exists = self.version_at(&req.key, LATEST, &old) and not old.tombstone
        if not exists and (req.ignore_value or req.ignore_lease):
            kv_raise(KV_KEY_NOT_FOUND, "")
        if exists:
            new.create, new.version, before = old.create, old.version + 1, old.lease
        else:
            new.create, new.version = self.rev + 1, 1
        new.lease = before if req.ignore_lease else req.lease
        new.tombstone = False
        prev.hold = NULL
        try:
            if exists and (req.ignore_value or (req.prev_kv and want)):
                self.load(&old, &prev)
                if req.ignore_value:
                    value = prev.value
            self.write_version(&req.key, &value, &new)
            if new.lease != before:
                if before != 0:
                    self.leases.detach(before, req.key.p, req.key.n)
                if new.lease != 0:
                    self.leases.attach(new.lease, req.key.p, req.key.n)
            if not want:
                return None
            header.revision = self.now()
            return encode_put_reply(header, &prev if exists and req.prev_kv else NULL)
        finally:
            if prev.hold != NULL:
                rec_release(<Record*>prev.hold)

    cdef bytes do_delete(self, const DeleteReq* req, Header* header, bint want):
        """Return a DeleteRangeResponse (None unless `want`)."""
        cdef KvList kvs
        cdef IndexView deletion
        cdef Slice nothing
        cdef size_t i
        nothing.p = NULL
        nothing.n = 0
        memset(&deletion, 0, sizeof(deletion))
        deletion.tombstone = True
        kvs_init(&kvs)
        try:
            self.collect(&req.key, &req.end, LATEST, 0, WANT_ALL if req.prev_kv and want else WANT_KEYS, &kvs)
            for i in range(kvs.n):
                self.write_version(&kvs.items[i].key, &nothing, &deletion)
                if kvs.items[i].lease != 0:
                    self.leases.detach(kvs.items[i].lease, kvs.items[i].key.p, kvs.items[i].key.n)
            if not want:
                return None
            header.revision = self.now()
            return encode_delete_reply(header, kvs.total, kvs.items, kvs.n if req.prev_kv else 0)
        finally:
            kvs_clear(&kvs)

    cdef bytes do_compact(self, const CompactReq* req, Header* header, bint want):
        """Return a CompactionResponse (None unless `want`). Raises Compacted and FutureRevision before any change.

        History below the revision is gone at once for every reader. The sweep frees the room later.
        """
        if req.revision <= self.compacted:
            kv_raise(KV_COMPACTED, "")
        if req.revision > self.rev:
            kv_raise(KV_FUTURE, "")
        self.overlay.set(COMPACT_KEY, meta_value(req.revision))
        self.compacted = req.revision
        self.births.compacted(req.revision)
        return encode_header_reply(header) if want else None

    cdef bytes do_lease(self, int kind, const uint8_t* body, size_t n, Header* header, bint want):
        """Grant or checkpoint leases. Return the encoded response (None unless `want`). Raises FormatError and
        LeaseExist before any change."""
        cdef int64_t lease = 0, ttl = 0
        cdef int i
        if kind == OP_LEASE_GRANT:
            grant_read(body, n, &lease, &ttl)
            self.leases.grant(lease, ttl)
            return encode_grant_reply(header, lease, ttl) if want else None
        for i in range(checkpoint_read(body, n)):
            self.leases.checkpoint(<int64_t>get64(body + 8 + 16 * i), <int64_t>get64(body + 16 + 16 * i))
        return encode_header_reply(header) if want else None

    # -- entrances --

    cdef bytes execute_view(self, int kind, const uint8_t* body, size_t n, bint want):
        """Apply one committed operation. Raises ApiError (nothing is changed then); MemoryError and engine errors pass
        through."""
        cdef PutReq put
        cdef DeleteReq delete
        cdef CompactReq compact
        cdef Header header
        cdef bytes reply
        self.fill_header(&header)
        if kind == OP_PUT:
            kv_raise(decode_put(body, n, &put), "PutRequest")
            kv_raise(check_put_req(&put), "")
            reply = self.do_put(&put, &header, want)
        elif kind == OP_DELETE_RANGE:
            kv_raise(decode_delete(body, n, &delete), "DeleteRangeRequest")
            if delete.key.n == 0:
                kv_raise(KV_EMPTY_KEY, "")
            reply = self.do_delete(&delete, &header, want)
        elif kind == OP_COMPACT:
            kv_raise(decode_compact(body, n, &compact), "CompactionRequest")
            reply = self.do_compact(&compact, &header, want)
        elif kind == OP_LEASE_GRANT or kind == OP_LEASE_CHECKPOINT:
            reply = self.do_lease(kind, body, n, &header, want)
        else:
            raise errors.FormatError(f"operation of unknown kind {kind}")
        self.finish()
        return reply

    def execute(self, int kind, bytes body not None, bint want=True):
        """Apply one operation that is no transaction (kinds: op.pxd). Return the encoded reply, or None unless `want`.
        Raises ApiError, FormatError."""
        try:
            return self.execute_view(kind, <const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), want)
        except BaseException:
            self.undo()
            raise

    def put(self, bytes body not None) -> bytes:
        """Apply an encoded PutRequest and return the encoded PutResponse. Raises ApiError."""
        return self.execute(OP_PUT, body)

    def delete_range(self, bytes body not None) -> bytes:
        """Apply an encoded DeleteRangeRequest and return the encoded DeleteRangeResponse. Raises ApiError."""
        return self.execute(OP_DELETE_RANGE, body)

    def compact(self, bytes body not None) -> bytes:
        """Apply an encoded CompactionRequest and return the encoded CompactionResponse. Raises ApiError."""
        return self.execute(OP_COMPACT, body)

    cdef bytes range_view(self, const uint8_t* body, size_t n, uint64_t term):
        cdef RangeReq req
        cdef Header header
        kv_raise(decode_range(body, n, &req), "RangeRequest")
        kv_raise(check_range_req(&req), "")
        self.fill_header(&header)
        header.raft_term = term
        # A reader sees nothing of an operation that has not ended.
        return self.do_range(&req, self.rev, &header)

    cpdef bytes range_reply(self, bytes body, object term=None):
        """Answer an encoded RangeRequest with an encoded RangeResponse. `term` goes into its header; the default is
        raft_term. Raises ApiError."""
        return self.range_view(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body),
                               self.raft_term if term is None else <uint64_t>term)

    cpdef commit(self, uint64_t index, uint64_t term):
        """Hand everything written since the last commit to the engine, in one write with the log position. Then the
        listener of the leases hears of what has become of them."""
        if self.rev != self.saved_rev:
            self.overlay.set(REVISION_KEY, meta_value(self.rev))
        self.engine.write(self.overlay, index, term)
        self.births.wrote()
        self.saved_rev = self.rev
        self.overlay.clear()
        self.spilled = False
        if self.leases.news:
            self.leases.tell()
