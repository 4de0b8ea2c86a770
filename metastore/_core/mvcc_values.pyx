"""The values of pairs that a range has collected without them.

The keys of a range lie beside each other in table 'k', their values in table 'r' in the order in which they were put.
An engine in memory fetches each value with its key. RocksDB takes 1.0 to 1.4 us for a look-up next to the last one, 9
us for one anywhere else, and 0.3 us for the next record of a run (measured with rocksdict 0.3.29). Such an engine is
asked for many values at once (`find_revisions`), so it can choose. A range over 100,000 keys of 256 bytes took 9.6 us of CPU
a key with single look-ups, and 4.6 with this alone (busy machine, medians of runs in turn).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t

from metastore import errors
from metastore._core.engine cimport Engine
from metastore._core.kv_messages cimport Kv
from metastore._core.mvcc_keys cimport REV_KEY_SIZE, RevView, rev_key, rev_record_read, rev_value_read
from metastore._core.mvcc_pairs cimport KvList, kvs_hold, kvs_release
from metastore._core.ordered_map cimport OrderedMap
from metastore._core.ordered_map_walk cimport tree_get
from metastore._core.record cimport Record, rec_ref
from metastore._core.work cimport COST_BYTES, COST_PAIR


cdef void point(Kv* kv, const RevView* change) noexcept:
    kv.key.p = change.key
    kv.key.n = change.klen
    kv.value.p = change.value
    kv.value.n = change.vlen


cdef int take_value(Kv* kv, Record* rec) except -1:
    """Give a pair the 'r' record of its version. The pair takes over the caller's reference. Raises DamagedData."""
    cdef RevView change
    kvs_release(kv)
    kv.hold = rec
    rev_record_read(rec, &change)
    point(kv, &change)
    return 0


cdef Record* overlay_record(OrderedMap overlay, const Kv* kv) noexcept:
    """Return the 'r' record of a pair's version, borrowed from the overlay, or NULL if that has none."""
    cdef uint8_t[REV_KEY_SIZE] at
    rev_key(at, kv.mod, kv.sub)
    return tree_get(overlay.root, at, REV_KEY_SIZE)


cdef int fetch_values(Engine engine, Kv* pairs, size_t n) except -1:
    """Give `n` pairs the values that the engine has for their versions."""
    cdef list values
    cdef bytes data
    cdef RevView change
    cdef size_t i
    if n == 0:
        return 0
    values = engine.find_revisions(pairs, n)
    for i in range(n):
        if values[i] is None:
            raise errors.DamagedData(f"engine: revision {pairs[i].mod}/{pairs[i].sub} is missing")
        # The pair points into the object that the engine has returned, so nothing is copied.
        data = <bytes?>values[i]
        rev_value_read(kvs_hold(&pairs[i], data), PyBytes_GET_SIZE(data), &change)
        point(&pairs[i], &change)
    return 0


cdef bint load_values(Engine engine, OrderedMap overlay, KvList* out, size_t first) except -1:
    """Fetch the values of the pairs from number `first` on, and add to `out` what they cost and hold. Raises
    DamagedData, and what the engine raises.

    Where the engine has found values one behind the other, their pairs cost no more than their bytes. Return whether it
    has found most of them so.
    """
    cdef Record* rec = NULL
    cdef Kv* kv
    cdef size_t i, begin = first, paid = 0, nbytes = 0, count = out.n - first
    cdef size_t runs = engine.detours.runs if engine.detours is not None else 0
    for i in range(first, out.n):
        rec = overlay_record(overlay, &out.items[i]) if overlay.count else NULL
        if rec != NULL:
            fetch_values(engine, &out.items[begin], i - begin)
            rec_ref(rec)
            take_value(&out.items[i], rec)
            begin = i + 1
    fetch_values(engine, &out.items[begin], out.n - begin)
    if engine.detours is not None:
        runs = engine.detours.runs - runs
    for i in range(first, out.n):
        kv = &out.items[i]
        out.cost += (kv.key.n + kv.value.n) // COST_BYTES
        out.held += kv.key.n + kv.value.n
        paid += COST_PAIR + (kv.key.n + kv.value.n) // COST_BYTES
        nbytes += kv.key.n + kv.value.n
    out.cost -= (paid - nbytes // COST_BYTES - 1) * min(runs, count) // count
    return 2 * runs > count
