"""The values of pairs that a range has collected without them.

The keys of a range lie beside each other in table 'k', their values in table 'r' in the order in which they were put.
An engine in memory fetches each value with its key. RocksDB takes 1.0 to 1.4 us for a look-up next to the last one, 9
us for one anywhere else, and 0.3 to 0.5 us for the next record of a walk (measured with rocksdict 0.3.29). Such an
engine is asked for many values at once (`find_many`), so it can choose. A range over 100,000 keys of 256 bytes took 9.6
us of CPU a key with single look-ups, and 4.6 with this alone (busy machine, medians of runs in turn).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from metastore import errors
from metastore._core.engine cimport Engine
from metastore._core.kv_messages cimport Kv
from metastore._core.mvcc_keys cimport REV_KEY_SIZE, RevView, rev_key, rev_record_read
from metastore._core.mvcc_pairs cimport KvList, kvs_release
from metastore._core.ordered_map cimport OrderedMap
from metastore._core.ordered_map_walk cimport tree_get
from metastore._core.record cimport Record, rec_new, rec_ref, rec_value
from metastore._core.work cimport COST_BYTES


cdef int take_value(Kv* kv, Record* rec) except -1:
    """Give a pair the 'r' record of its version. The pair takes over the caller's reference. Raises DamagedData."""
    cdef RevView change
    kvs_release(kv)
    kv.hold = rec
    rev_record_read(rec, &change)
    kv.key.p = change.key
    kv.key.n = change.klen
    kv.value.p = change.value
    kv.value.n = change.vlen
    return 0


cdef Record* record_at(const uint8_t* key, object value) except NULL:
    """Return an 'r' record with a copy of `value`, owned by the caller."""
    cdef bytes data = <bytes?>value
    cdef Record* rec = rec_new(key, REV_KEY_SIZE, PyBytes_GET_SIZE(data))
    if rec == NULL:
        raise MemoryError
    memcpy(rec_value(rec), PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    return rec


cdef int load_values(Engine engine, OrderedMap overlay, KvList* out, size_t first) except -1:
    """Fetch the values of the pairs from number `first` on, and add to `out` what they cost and hold. Raises
    DamagedData, and what the engine raises."""
    cdef uint8_t[REV_KEY_SIZE] at
    cdef list keys = [], places = [], values
    cdef Record* rec
    cdef Kv* kv
    cdef size_t i, n
    for i in range(first, out.n):
        kv = &out.items[i]
        rev_key(at, kv.mod, kv.sub)
        rec = tree_get(overlay.root, at, REV_KEY_SIZE) if overlay.count else NULL
        if rec != NULL:
            rec_ref(rec)
            take_value(kv, rec)
        else:
            keys.append((<char*>at)[:REV_KEY_SIZE])
            places.append(i)
    values = engine.find_many(keys)
    for n in range(len(places)):
        kv = &out.items[<size_t>places[n]]
        if values[n] is None:
            raise errors.DamagedData(f"engine: revision {kv.mod}/{kv.sub} is missing")
        take_value(kv, record_at(<const uint8_t*>PyBytes_AS_STRING(<bytes>keys[n]), values[n]))
    for i in range(first, out.n):
        out.cost += out.items[i].value.n // COST_BYTES
        out.held += out.items[i].value.n
    return 0
