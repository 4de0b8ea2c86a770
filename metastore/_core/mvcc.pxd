from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from metastore._core.engine cimport Engine
from metastore._core.leases cimport Leases
from metastore._core.mvcc_births cimport Births, PageCounts
from metastore._core.mvcc_keys cimport IndexView
from metastore._core.kv_messages cimport CompactReq, DeleteReq, Header, Kv, PutReq, RangeReq, Slice
from metastore._core.mvcc_merged cimport Merged, SliceWalk
from metastore._core.mvcc_pairs cimport KvList
from metastore._core.ordered_map cimport OrderedMap
from metastore._core.record cimport Record

cdef enum:
    WANT_COUNT = 0       # only the number of pairs
    WANT_KEYS = 1        # keys and what the index knows, no values
    WANT_ALL = 2
    WANT_LATER = 3       # what the index knows; `load_values` brings keys and values


cdef struct Scratch:
    uint8_t* p
    size_t size


cdef bytes meta_value(int64_t number)
cdef bytes first_key(const Slice* key)
cdef bint from_key_on(const Slice* end) noexcept
cdef int64_t read_meta(Engine engine, bytes name, int64_t default) except? -2


cdef class Store:
    cdef readonly Engine engine
    cdef readonly OrderedMap overlay      # what operations wrote since the last commit
    cdef readonly Leases leases           # None in a frozen store
    cdef readonly Births births           # None in a frozen store
    cdef readonly PageCounts pages        # of this history; a frozen store shares its store's
    cdef size_t count_cost                # units that the last `count_at` took
    cdef public uint64_t cluster_id
    cdef public uint64_t member_id
    cdef public uint64_t raft_term
    cdef int64_t rev                      # revision of the last operation that changed something
    cdef uint32_t sub                     # changes made so far by the operation under way
    cdef int64_t saved_rev                # revision that the engine holds
    cdef uint64_t reloads                 # how often the engine's contents were replaced
    cdef Store live                       # of a frozen store: the one that it was made of; None in that
    cdef readonly bint spilled            # the engine holds a part of an unfinished entry
    cdef public bint stale                # the engine holds a part of an entry that will be applied again
    cdef int64_t compacted                # revisions below are gone; -1: never compacted (etcd's convention)
    cdef int64_t swept                    # compact revision up to which the records are gone too
    cdef object sweep                     # the Sweep under way (mvcc_sweep.pxd), or None
    cdef Scratch low
    cdef Scratch high
    cdef Scratch write_key

    cdef int64_t now(self) noexcept       # revision that reads of the operation under way see
    cdef bint find_stale(self) except -1  # whether the engine holds records above its counter of revisions
    cdef void fill_header(self, Header* header) noexcept
    cdef bint whole(self) noexcept        # whether no operation or entry is unfinished, in overlay or engine
    cdef int finish(self) except -1       # end the operation under way
    cpdef undo(self)                      # drop what the operation under way has written

    cdef int64_t lease_before(self, const Slice* key) except? 0
    cdef int take_back(self, const Slice* key, int64_t lease) except -1
    cdef int version_at(self, const Slice* key, int64_t at, IndexView* out) except -1
    cdef Record* fetch(self, int64_t main, uint32_t sub) except NULL
    cdef int load(self, const IndexView* view, Kv* out) except -1
    cdef int load_value(self, Kv* kv) except -1
    cdef int64_t count_at(self, const Slice* key, const Slice* end, int64_t at) except? -2
    cdef Store frozen(self)
    cdef int write_version(self, const Slice* key, const Slice* value, IndexView* view) except -1
    cdef int collect(self, const Slice* key, const Slice* end, int64_t at, size_t limit, int want,
                     KvList* out) except -1
    cdef int collect_range(self, const Slice* key, const Slice* end, int64_t at, size_t limit, int want,
                           KvList* out) except -1
    cdef bytes collect_slice(self, const uint8_t* start, size_t low_n, const Slice* end, int64_t at, size_t limit,
                             int want, size_t budget, KvList* out, SliceWalk kept=*)
    cdef int enter_slices(self, SliceWalk here, const uint8_t* start, size_t n, int64_t at) except -1
    cdef int keep(self, const IndexView* view, Record* group, size_t limit, int want, KvList* out) except -1
    cdef Record* versions(self, Merged walk, Record* group, size_t n, int64_t at, int* most_steps, bint* found,
                          IndexView* best) except? NULL
    cdef uint8_t* behind(self, Record* group, size_t n) except NULL
    cdef Record* skip_versions(self, Merged walk, Record* group, size_t n, int64_t at, bint done, bint* found,
                               IndexView* best) except? NULL
    cdef int select(self, const RangeReq* req, int64_t now, KvList* out, bint* more) except -1

    cdef bytes do_put(self, const PutReq* req, Header* header, bint want)
    cdef bytes do_range(self, const RangeReq* req, int64_t now, Header* header)
    cdef bytes do_delete(self, const DeleteReq* req, Header* header, bint want)
    cdef bytes do_compact(self, const CompactReq* req, Header* header, bint want)
    cdef bytes do_lease(self, int kind, const uint8_t* body, size_t n, Header* header, bint want)
    cdef bytes range_view(self, const uint8_t* body, size_t n, uint64_t term)
    cdef bytes execute_view(self, int kind, const uint8_t* body, size_t n, bint want)
    cpdef bytes range_reply(self, bytes body, object term=*)
    cpdef commit(self, uint64_t index, uint64_t term)
