"""The values of pairs that a range has collected without them.

The keys of a range lie beside each other in table 'k', their values in table 'r' in the order in which they were put.
An engine in memory fetches each value with its key. RocksDB takes 1.0 to 1.4 us for a look-up next to the last one, 9
us for one anywhere else, and 0.3 us for the next record of a run (measured with rocksdict 0.3.29). Such an engine is
asked for many values at once (`find_many`), so it can choose. A range over 100,000 keys of 256 bytes took 9.6 us of CPU
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


cdef bint load_values(Engine engine, OrderedMap overlay, KvList* out, size_t first) except -1:
    """Fetch the values of the pairs from number `first` on, and add to `out` what they cost and hold. Raises
    DamagedData, and what the engine raises.

    Where the engine has found values one behind the other, their pairs cost no more than their bytes. Return whether it
    has found most of them so.
    """
    cdef uint8_t[REV_KEY_SIZE] at
    cdef list keys = [], places = [], values
    cdef bytes data
    cdef RevView change
    cdef Record* rec
    cdef Kv* kv
    cdef size_t i, n, paid = 0, nbytes = 0, count = out.n - first
    cdef size_t runs = engine.detours.runs if engine.detours is not None else 0
    for i in range(first, out.n):
        kv = &out.items[i]
        rev_key(at, kv.mod, kv.sub)
        rec = tree_get(overlay.root, at, REV_KEY_SIZE) if overlay.count else NULL
        if rec != NULL:
            rec_ref(rec)
            take_value(kv, rec)
        else:
            keys.append((<char*>at)[:REV_KEY_SIZE])
            if overlay.count:
                places.append(i)
    values = engine.find_many(keys)
    for n in range(<size_t>len(values)):
        kv = &out.items[<size_t>places[n] if overlay.count else first + n]
        if values[n] is None:
            raise errors.DamagedData(f"engine: revision {kv.mod}/{kv.sub} is missing")
        # The pair points into the object that the engine has returned, so nothing is copied.
        data = <bytes?>values[n]
        rev_value_read(kvs_hold(kv, data), PyBytes_GET_SIZE(data), &change)
        point(kv, &change)
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
