"""Lists of pairs that a range has collected: filtering, sorting and cutting them as a request wants it.

A pair points into a record, or into a bytes object that an engine has returned, and owns a reference to it until it is
released. The lowest bit of `Kv.hold` tells them apart.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint8_t, uintptr_t
from libc.stdlib cimport free, qsort, realloc
from libc.string cimport memset

from metastore._core.kv_messages cimport Kv, RangeReq
from metastore._core.record cimport Record, key_cmp, rec_release


cdef enum:
    HELD_BYTES = 1


cdef void kvs_init(KvList* kvs) noexcept:
    kvs.items = &kvs.one
    kvs.n = 0
    kvs.room = 1
    kvs.total = 0
    kvs.cost = kvs.held = 0


cdef void kvs_release(Kv* kv) noexcept:
    """Release what a pair points into. The pair stays in its list."""
    if <uintptr_t>kv.hold & HELD_BYTES:
        Py_DECREF(<object><PyObject*>(<uintptr_t>kv.hold - HELD_BYTES))
    elif kv.hold != NULL:
        rec_release(<Record*>kv.hold)
    kv.hold = NULL


cdef const uint8_t* kvs_hold(Kv* kv, bytes data) noexcept:
    """Let a pair own a reference to `data`, into which it is going to point. Return where that begins."""
    kvs_release(kv)
    Py_INCREF(data)
    kv.hold = <void*>(<uintptr_t><PyObject*>data + HELD_BYTES)
    return <const uint8_t*>PyBytes_AS_STRING(data)


cdef void kvs_cut(KvList* kvs, size_t n) noexcept:
    """Keep only the first `n` pairs."""
    while kvs.n > n:
        kvs.n -= 1
        kvs_release(&kvs.items[kvs.n])
    if n == 0:
        kvs.held = 0


cdef void kvs_clear(KvList* kvs) noexcept:
    kvs_cut(kvs, 0)
    if kvs.items != &kvs.one:
        free(kvs.items)
        kvs.items = &kvs.one


cdef Kv* kvs_add(KvList* kvs) except NULL:
    """Return the place for one more pair, zeroed."""
    cdef Kv* larger
    if kvs.n == kvs.room:
        # A large piece is moved by its pages: nothing is copied, so growing is not what holds the loop.
        larger = <Kv*>realloc(NULL if kvs.items == &kvs.one else kvs.items,
                              (2 * kvs.room if kvs.room > 1 else 16) * sizeof(Kv))
        if larger == NULL:
            raise MemoryError
        if kvs.items == &kvs.one:
            larger[0] = kvs.one
        kvs.items = larger
        kvs.room = 2 * kvs.room if kvs.room > 1 else 16
    kvs.held += sizeof(Kv)
    memset(&kvs.items[kvs.n], 0, sizeof(Kv))
    kvs.n += 1
    return &kvs.items[kvs.n - 1]


cdef void kvs_filter(KvList* kvs, const RangeReq* req, size_t first) noexcept:
    """Drop those pairs from number `first` on that the request's revision bounds exclude. A bound of 0 excludes
    nothing."""
    cdef size_t i, end = first
    cdef Kv* kv
    for i in range(first, kvs.n):
        kv = &kvs.items[i]
        if ((req.max_mod != 0 and kv.mod > req.max_mod) or (req.min_mod != 0 and kv.mod < req.min_mod)
                or (req.max_create != 0 and kv.create > req.max_create)
                or (req.min_create != 0 and kv.create < req.min_create)):
            kvs.held -= sizeof(Kv) + kv.key.n + kv.value.n
            kvs_release(kv)
            continue
        kvs.items[end] = kv[0]
        end += 1
    kvs.n = end


# What qsort's comparison compares; set under the GIL right before sorting.
cdef int sort_target = 0
cdef bint sort_down = False


cdef int compare_kv(const void* left, const void* right) noexcept nogil:
    """Order by sort_target. Pairs that are equal in it stay in key order in both directions."""
    cdef const Kv* a = <const Kv*>left
    cdef const Kv* b = <const Kv*>right
    cdef int64_t x = 0, y = 0
    cdef int order
    if sort_target == 1:
        x, y = a.version, b.version
    elif sort_target == 2:
        x, y = a.create, b.create
    elif sort_target == 3:
        x, y = a.mod, b.mod
    elif sort_target == 4:
        x = key_cmp(a.value.p, a.value.n, b.value.p, b.value.n)
    else:
        x = key_cmp(a.key.p, a.key.n, b.key.p, b.key.n)
    if x != y:
        order = -1 if x < y else 1
        return -order if sort_down else order
    return key_cmp(a.key.p, a.key.n, b.key.p, b.key.n)


cdef void kvs_sort(KvList* kvs, int target, bint down) noexcept:
    global sort_target, sort_down
    sort_target = target
    sort_down = down
    qsort(kvs.items, kvs.n, sizeof(Kv), compare_kv)


cdef bint arrange(const RangeReq* req, KvList* out) noexcept:
    """Filter, sort and cut the collected pairs as the request wants it. Return whether pairs were cut off."""
    cdef bint more
    if req.max_mod != 0 or req.min_mod != 0 or req.max_create != 0 or req.min_create != 0:
        kvs_filter(out, req, 0)
    if out.n > 1 and (req.sort_target != 0 or req.sort_order == 2):
        kvs_sort(out, req.sort_target, req.sort_order == 2)
    more = req.limit > 0 and out.n > <size_t>req.limit
    if more:
        kvs_cut(out, <size_t>req.limit)
    return more
