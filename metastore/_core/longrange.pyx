"""Ranges over many keys, piece by piece.

The loop must not stand still for long: counting three million keys at once took half a second, sixteen clients that
count one million each took leadership from their node (2.5 s, election timeout 1 s). So a range gets a budget; what it
leaves is done in later turns, out of a view of the engine, so that the reply is that of one revision all the same. Not
cut into pieces are sorting and filtering, and ranges inside of transactions.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t

from metastore._core.keyindex cimport index_prefix, index_room
from metastore._core.kvpb cimport (KV_COMPACTED, KV_FUTURE, KV_OK, RangeReq, check_range_req, decode_range, encode_pairs,
                                   encode_range_reply, kv_raise)
from metastore._core.mvcc cimport (WANT_ALL, WANT_COUNT, WANT_KEYS, Store, arrange, kvs_clear, kvs_cut, kvs_init)

cdef int64_t LATEST = 0x7FFFFFFFFFFFFFFF
cdef enum:
    PAIR_COST = 4        # what a key costs of which more than the number is wanted; one that is counted costs 1


cdef class LongRange:
    """See longrange.pxd. Made by `start_range`; `step` until it gives the reply, or `close`."""

    def __cinit__(self):
        kvs_init(&self.kvs)
        self.parts = []

    def __dealloc__(self):
        kvs_clear(&self.kvs)

    cdef int begin(self, Store store, bytes body) except -1:
        """Check the request. Raises ApiError."""
        cdef RangeReq* req = &self.req
        cdef bytes prefix
        cdef bint filtered
        self.body = body
        kv_raise(decode_range(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), req), "RangeRequest")
        kv_raise(check_range_req(req), "")
        self.store = store
        store.fill_header(&self.header)
        self.rev = store.now()
        if req.revision > self.rev:
            kv_raise(KV_FUTURE, "")
        if req.revision > 0:
            self.rev = req.revision
        if self.rev < store.compacted:
            kv_raise(KV_COMPACTED, "")
        self.want = WANT_ALL
        if req.count_only:
            self.want = WANT_COUNT
        elif req.keys_only and req.sort_target != 4:
            self.want = WANT_KEYS
        filtered = req.max_mod != 0 or req.min_mod != 0 or req.max_create != 0 or req.min_create != 0
        self.encoding = not filtered and req.sort_target == 0 and req.sort_order != 2
        # As etcd does it, see Store.select: a sort target without an order sorts what the limit let through.
        self.limited = req.limit > 0 and req.limit < LATEST and req.sort_order == 0 and not filtered
        prefix = bytes(index_room(req.key.n))
        self.at = prefix[:index_prefix(<uint8_t*>PyBytes_AS_STRING(prefix), req.key.p, req.key.n)]
        return 0

    cpdef bytes step(self, size_t budget):
        """One piece; the encoded RangeResponse when it was the last, else None. Raises DamagedData."""
        cdef size_t keys, limit = 0
        cdef int64_t before = self.kvs.total
        cdef int want = self.want
        cdef size_t i
        if self.encoding and self.req.limit > 0:
            if self.taken >= <size_t>self.req.limit:
                want = WANT_COUNT
            else:
                limit = <size_t>self.req.limit - self.taken
        elif self.limited:
            limit = <size_t>self.req.limit + 1
        keys = max(1, budget if want == WANT_COUNT else budget // PAIR_COST)
        self.at = self.store.collect_slice(<const uint8_t*>PyBytes_AS_STRING(self.at), PyBytes_GET_SIZE(self.at),
                                           &self.req.end, self.rev, limit, want, keys, &self.kvs)
        if self.at is None:
            # What was there to be counted; tombstones are not worth the bookkeeping.
            keys = <size_t>(self.kvs.total - before)
            self.cost = keys if want == WANT_COUNT else keys * PAIR_COST
        else:
            self.cost = budget
        if self.encoding and self.kvs.n:
            if self.req.keys_only:
                for i in range(self.kvs.n):
                    self.kvs.items[i].value.n = 0
            self.parts.append(encode_pairs(self.kvs.items, self.kvs.n))
            self.taken += self.kvs.n
            kvs_cut(&self.kvs, 0)
        return None if self.at is not None else self.finish()

    cdef int freeze(self) except -1:
        """From now on the engine may change."""
        cdef Store store = Store(self.store.engine.view())
        # Not empty while the engine is busy.
        store.overlay = self.store.overlay.view()
        self.store = store
        self.own_view = True
        return 0

    cdef bytes finish(self):
        cdef bint more
        cdef size_t i
        cdef bytes head, whole
        self.close()
        if self.encoding:
            # Of pairs that are only counted none is cut off.
            more = self.req.limit > 0 and self.kvs.total > self.req.limit and self.want != WANT_COUNT
            head = encode_range_reply(&self.header, NULL, 0, False, 0)
            whole = encode_range_reply(&self.header, NULL, 0, more, self.kvs.total)
            return b"".join([head, *self.parts, whole[len(head):]])
        more = arrange(&self.req, &self.kvs)
        if self.req.keys_only:
            for i in range(self.kvs.n):
                self.kvs.items[i].value.n = 0
        return encode_range_reply(&self.header, self.kvs.items, self.kvs.n, more, self.kvs.total)

    cpdef close(self):
        """Give the view back; idempotent."""
        if self.own_view:
            self.own_view = False
            self.store.engine.close()
        self.store = None


cdef LongRange start_range(Store store, bytes body):
    """A LongRange for an encoded RangeRequest; None if it is about a single key. Raises ApiError."""
    cdef RangeReq req
    cdef LongRange made
    if decode_range(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), &req) != KV_OK or req.end.n == 0:
        return None
    made = LongRange.__new__(LongRange)
    made.begin(store, body)
    return made


# --- for tests -------------------------------------------------------------------------------------------

def sliced_reply(Store store not None, bytes body not None, size_t budget, object between=lambda: None) -> bytes:
    """The reply to a range that is done in pieces of `budget` units; `between` is called between two of them."""
    cdef LongRange made = start_range(store, body)
    if made is None:
        return store.range_reply(body)
    reply = made.step(budget)
    if reply is None:
        made.freeze()
    while reply is None:
        between()
        reply = made.step(budget)
    return reply
