"""The form of keys and revisions in the engine (layout: FORMATS.md, "Engine records").

Table 'k' maps an escaped key and a revision to what is known of that version of the key. It is in key order with
ascending revisions, so one look-up finds a key's newest record not above a revision. Table 'r' maps a revision to the
key and the value.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy

from metastore._core.le cimport get32, get64, put32, put64
from metastore._core.record cimport Record, rec_key, rec_new, rec_value
from metastore._core.varint cimport varint_read, varint_write
from metastore import errors

#: The first byte of the engine's keys of meta records, and the meta records that the store keeps for itself.
META = b"m"
REVISION_KEY = META + b"revision"
COMPACT_KEY = META + b"compact"
SWEPT_KEY = META + b"swept"

cdef extern from *:
    uint32_t __builtin_bswap32(uint32_t) nogil
    uint64_t __builtin_bswap64(uint64_t) nogil

cdef enum:
    RECORD_VERSION = 1
    REV_VALUE_HEADER = 6     # version, flags, key length u32


cdef size_t index_prefix(uint8_t* dst, const uint8_t* key, size_t n) noexcept nogil:
    """Write 'k' and the key with 00 escaped as 00 FF and 00 01 as its end. The order of keys is kept. Return the
    length."""
    cdef size_t i, at = 1
    dst[0] = c'k'
    if n == 0 or memchr(key, 0, n) == NULL:
        memcpy(dst + 1, key, n)
        at += n
    else:
        for i in range(n):
            dst[at] = key[i]
            at += 1
            if key[i] == 0:
                dst[at] = 0xFF
                at += 1
    dst[at] = 0
    dst[at + 1] = 1
    return at + 2


cdef void rev_write(uint8_t* dst, int64_t main, uint32_t sub) noexcept nogil:
    """Write a revision in order-preserving form: REV_SIZE bytes."""
    put64(dst, __builtin_bswap64(<uint64_t>main))
    put32(dst + 8, __builtin_bswap32(sub))


cdef void rev_read(const uint8_t* src, int64_t* main, uint32_t* sub) noexcept nogil:
    main[0] = <int64_t>__builtin_bswap64(get64(src))
    sub[0] = __builtin_bswap32(get32(src + 8))


cdef void rev_key(uint8_t* dst, int64_t main, uint32_t sub) noexcept nogil:
    """Write the key of a revision in table 'r': REV_KEY_SIZE bytes."""
    dst[0] = c'r'
    rev_write(dst + 1, main, sub)


cdef Record* index_record(const uint8_t* prefix, size_t n, const IndexView* view) noexcept nogil:
    """Make the 'k' record of a version. `prefix` comes from index_prefix, in a buffer with room for the revision too.

    Returns NULL without memory.
    """
    cdef uint8_t value[32]
    cdef uint8_t* end = value + 2
    cdef Record* rec
    value[0] = RECORD_VERSION
    value[1] = FLAG_TOMBSTONE if view.tombstone else 0
    if not view.tombstone:
        end = varint_write(varint_write(end, <uint64_t>view.create), <uint64_t>view.version)
        if view.lease:
            value[1] |= FLAG_LEASE
            end = varint_write(end, <uint64_t>view.lease)
    rec = rec_new(prefix, n + REV_SIZE, end - value)
    if rec != NULL:
        rev_write(rec_key(rec) + n, view.main, view.sub)
        memcpy(rec_value(rec), value, end - value)
    return rec


cdef Record* rev_record(int64_t main, uint32_t sub, const uint8_t* key, size_t klen,
                        const uint8_t* value, size_t vlen, bint tombstone) noexcept nogil:
    """Make the 'r' record of a change. Returns NULL without memory."""
    cdef uint8_t at[REV_KEY_SIZE]
    cdef uint8_t* p
    cdef Record* rec
    rev_key(at, main, sub)
    rec = rec_new(at, REV_KEY_SIZE, REV_VALUE_HEADER + klen + vlen)
    if rec == NULL:
        return NULL
    p = rec_value(rec)
    p[0] = RECORD_VERSION
    p[1] = FLAG_TOMBSTONE if tombstone else 0
    put32(p + 2, <uint32_t>klen)
    memcpy(p + REV_VALUE_HEADER, key, klen)
    if vlen:
        memcpy(p + REV_VALUE_HEADER + klen, value, vlen)
    return rec


cdef int index_read(Record* rec, IndexView* out) except -1:
    """Decode a 'k' record. Raises DamagedData."""
    cdef const uint8_t* p = rec_value(rec)
    cdef const uint8_t* end = p + rec.vlen
    cdef uint64_t create = 0, version = 0, lease = 0
    if rec.klen < 3 + REV_SIZE or rec.vlen < 2 or p[0] != RECORD_VERSION or p[1] > (FLAG_TOMBSTONE | FLAG_LEASE):
        raise errors.DamagedData("engine: an index record has an unknown form")
    rev_read(rec_key(rec) + rec.klen - REV_SIZE, &out.main, &out.sub)
    out.tombstone = p[1] & FLAG_TOMBSTONE
    if out.tombstone:
        p += 2
    else:
        lease = p[1] & FLAG_LEASE
        p = varint_read(varint_read(p + 2, end, &create), end, &version)
        if lease:
            p = varint_read(p, end, &lease)
    if p != end:
        raise errors.DamagedData("engine: an index record is cut or too long")
    out.create = <int64_t>create
    out.version = <int64_t>version
    out.lease = <int64_t>lease
    return 0


cdef int rev_record_read(Record* rec, RevView* out) except -1:
    """Decode an 'r' record; the pointers point into the record. Raises DamagedData."""
    return rev_value_read(rec_value(rec), rec.vlen if rec.klen == REV_KEY_SIZE else 0, out)


cdef int rev_value_read(const uint8_t* p, size_t n, RevView* out) except -1:
    """Decode the value of an 'r' record; the pointers point into it. Raises DamagedData."""
    cdef uint32_t size = 0
    if n >= REV_VALUE_HEADER:
        size = get32(p + 2)
    if (n < REV_VALUE_HEADER or p[0] != RECORD_VERSION or p[1] > FLAG_TOMBSTONE or size > n - REV_VALUE_HEADER):
        raise errors.DamagedData("engine: a revision record has an unknown form")
    out.tombstone = p[1] & FLAG_TOMBSTONE
    out.key = p + REV_VALUE_HEADER
    out.klen = size
    out.value = out.key + size
    out.vlen = n - REV_VALUE_HEADER - size
    return 0


cdef bint same_prefix(Record* rec, const uint8_t* prefix, size_t n) noexcept nogil:
    """Whether a record of table 'k' belongs to the key that `prefix` (from index_prefix) stands for."""
    return rec.klen == n + REV_SIZE and memcmp(rec_key(rec), prefix, n) == 0


# --- for tools and tests ---------------------------------------------------------------------------------

def encode_index_key(bytes key not None, int64_t main, uint32_t sub=0) -> bytes:
    """Return the engine key of version (main, sub) of `key`."""
    cdef bytes room = PyBytes_FromStringAndSize(NULL, index_room(len(key)))
    cdef uint8_t* p = <uint8_t*>PyBytes_AS_STRING(room)
    cdef size_t n = index_prefix(p, <const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
    rev_write(p + n, main, sub)
    return room[:n + REV_SIZE]


def decode_index_key(bytes data not None) -> tuple:
    """Return (key, main, sub) of an engine key of table 'k'. Raises FormatError."""
    cdef int64_t main
    cdef uint32_t sub
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(data)
    cdef Py_ssize_t n = len(data) - REV_SIZE
    if n < 3 or data[0] != c'k' or data[n - 2:n] != b"\0\1":
        raise errors.FormatError("not an index key")
    rev_read(p + n, &main, &sub)
    key = data[1:n - 2]
    plain = key.replace(b"\0\xff", b"\0")
    if plain.count(b"\0") != key.count(b"\0\xff") or key.count(b"\0") != plain.count(b"\0"):
        raise errors.FormatError("not an index key: wrong escape")
    return (plain, main, sub)
