"""RangeStream: a range over many keys that is sent in chunks (contract of a chunk's making: work.pyx).

All chunks are read at one revision, which is fixed at the start. Each chunk is a work of its own, which reads what the
live store then holds of that revision: later writes do not change it. Therefore a stream that waits for its client keeps
no view of the engine and no pair, but only the key at which it goes on. A chunk that takes several turns has a view, so
that its walk can go on.

The records of the revision must not be removed meanwhile. The sweep of a compaction waits for the streams that it would
overtake (`KVServer.holds_history`). A snapshot that is installed brings the history of another member, which may have
been swept already. After that a stream goes on only if its revision is not compacted.

The header, the count and `more` are in the last chunk alone, as in etcd 3.7. There the first chunk has ten pairs, and
the number doubles or halves towards the request limit. Here the bytes do that, by the time that the client takes for a
chunk: a client that does not read costs one small chunk.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t

from metastore import errors
from metastore._core.grpc cimport PREFIX, prefix_write
from metastore._core.kv_messages cimport (KV_COMPACTED, KV_FUTURE, PAIR_TAG, Kv, RangeReq, check_range_req, decode_range,
                                   encode_pairs, encode_range_reply, kv_raise, kv_size)
from metastore._core.mvcc cimport WANT_ALL, WANT_COUNT, WANT_KEYS, Store
from metastore._core.mvcc cimport first_key
from metastore._core.mvcc_merged cimport SliceWalk
from metastore._core.mvcc_pairs cimport kvs_clear, kvs_cut, kvs_init
from metastore._core.varint cimport varint_size, varint_write
from metastore._core.work cimport COST_BYTES, Parts, Work

cdef enum:
    FIRST_CHUNK = 65536
    CACHED = 8 << 20     # bytes of one stream that an engine may put into a cache
    REPLY_TAG = 0x0A     # the only field of a RangeStreamResponse

# A client that takes a chunk in less than QUICK seconds gets a larger one next, and after SLOW seconds a smaller one.
# Many clients open their window to 64 KiB only, so a far client needs a round trip for each of these.
cdef double QUICK = 0.25
cdef double SLOW = 2.0

FIRST = FIRST_CHUNK


cdef class RangeStream:
    """See `mvcc_stream.pxd`. Made by `start_stream`."""

    cdef int took(self, double seconds) except -1:
        """The client took so many seconds for the last chunk."""
        if seconds < QUICK:
            self.target = min(2 * self.target, self.most)
        elif seconds > SLOW:
            self.target = max(self.target // 2, min(<size_t>FIRST_CHUNK, self.most))
        return 0


cdef class Chunk(Work):
    """See `mvcc_stream.pxd`."""

    def __cinit__(self):
        kvs_init(&self.kvs)

    def __dealloc__(self):
        kvs_clear(&self.kvs)

    cdef bint advance(self, size_t budget) except -1:
        cdef RangeStream stream = self.stream
        if stream.store.reloads != stream.reloads and stream.rev < stream.store.compacted:
            kv_raise(KV_COMPACTED, "")
        if stream.req.end.n == 0:
            self.last = True
            self.single()
        elif not self.collect(budget):
            return False
        self.close()
        return True

    cdef int single(self) except -1:
        """Read a single key."""
        cdef RangeStream stream = self.stream
        self.out.add(stream.store.do_range(&stream.req, stream.header.revision, &stream.header))
        self.cost += 1 + self.out.size // COST_BYTES
        return 0

    cdef bint collect(self, size_t budget) except -1:
        """Walk over some keys. Return whether the chunk has all its pairs."""
        cdef RangeStream stream = self.stream
        cdef int want = stream.want
        cdef size_t limit = 0
        if not stream.asked:
            stream.asked = True
            stream.known = stream.store.count_at(&stream.req.key, &stream.req.end, stream.rev)
            self.cost += stream.store.count_cost
        if want != WANT_COUNT and stream.req.limit > 0:
            if stream.taken >= stream.req.limit:
                want = WANT_COUNT
            else:
                limit = <size_t>(stream.req.limit - stream.taken)
        if want == WANT_COUNT and stream.known >= 0:
            stream.total = stream.known
            self.cost += 1
            self.last = True
            return True
        if want != WANT_COUNT:
            # The bytes of pairs count, so the pairs of a piece exceed what the chunk may still take by one at most.
            budget = min(budget, (stream.target - self.out.size) // COST_BYTES + 1)
        self.kvs.cost = 0
        self.kvs.total = 0
        self.at_most_once(True)
        try:
            stream.at = self.store.collect_slice(
                <const uint8_t*>PyBytes_AS_STRING(stream.at), PyBytes_GET_SIZE(stream.at), &stream.req.end, stream.rev,
                limit, want, max(budget, <size_t>1), &self.kvs, self.walk)
        finally:
            self.at_most_once(False)
        self.cost += self.kvs.cost
        self.keep()
        self.held = self.out.size
        self.last = stream.at is None
        return self.last or self.full or self.out.size >= stream.target

    cdef int at_most_once(self, bint once) except -1:
        """Tell the engine whether this stream has read so much that its cache is not to keep what follows."""
        if self.stream.nbytes > CACHED:
            # Past the guard, which plug-ins need and which knows nothing of this.
            getattr(self.store.engine, "inner", self.store.engine).read_once(once)
        return 0

    cdef int freeze(self) except -1:
        if self.walk is None and self.stream is not None:
            self.store = self.store.frozen()
            self.walk = SliceWalk()
        return 0

    cdef int keep(self) except -1:
        """Encode the collected pairs. Those that would make the chunk too large are left to the next one."""
        cdef RangeStream stream = self.stream
        cdef size_t n = 0, before = self.out.size, size = before, more
        while n < self.kvs.n:
            more = kv_size(&self.kvs.items[n])
            more += 1 + varint_size(more)
            if size and size + more > stream.most:
                # The next chunk begins at this key, and so does its counting.
                stream.at = first_key(&self.kvs.items[n].key)
                self.kvs.total = <int64_t>n
                self.full = True
                break
            size += more
            n += 1
        if n:
            self.out.add(encode_pairs(self.kvs.items, n, PAIR_TAG))
            stream.nbytes += size - before
        kvs_cut(&self.kvs, 0)
        stream.taken += <int64_t>n
        stream.total += self.kvs.total
        return 0

    cdef int close(self) except -1:
        """Put around the pairs what belongs to the message, and gRPC's prefix in front."""
        cdef RangeStream stream = self.stream
        cdef bytes head, prefix
        cdef bint more
        cdef size_t size
        cdef uint8_t* p
        if self.last and stream.req.end.n:
            more = stream.want != WANT_COUNT and stream.total > stream.taken
            head = encode_range_reply(&stream.header, NULL, 0, False, 0)
            self.out.add(encode_range_reply(&stream.header, NULL, 0, more, stream.total)[len(head):])
            self.out.put_first(head)
        size = 1 + varint_size(self.out.size)
        prefix = PyBytes_FromStringAndSize(NULL, PREFIX + size)
        p = <uint8_t*>PyBytes_AS_STRING(prefix)
        prefix_write(p, size + self.out.size)
        p[PREFIX] = REPLY_TAG
        varint_write(p + PREFIX + 1, self.out.size)
        self.out.put_first(prefix)
        return 0

    cdef bint join(self, size_t budget) except -1:
        """The parts are sent as they are. See `start_range` for what it costs to join them."""
        self.reply = self.out
        return True

    cpdef bint discard(self, size_t budget) except -1:
        kvs_clear(&self.kvs)
        if self.walk is not None:
            self.walk = None
            self.store.engine.close()
        self.stream = self.store = None
        return True


cdef int check_stream(bytes body) except -1:
    """Refuse what a RangeStream does not have. Clients then use Range. Raises Unimplemented, MalformedRequest."""
    cdef RangeReq req
    kv_raise(decode_range(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), &req), "RangeRequest")
    if req.sort_target != 0 or req.sort_order == 2:
        raise errors.Unimplemented("etcdserver: RangeStream has no sort order but ascending keys")
    if req.max_mod != 0 or req.min_mod != 0 or req.max_create != 0 or req.min_create != 0:
        raise errors.Unimplemented("etcdserver: RangeStream has no filters by revision")
    return 0


cdef RangeStream start_stream(Store store, bytes body, size_t most):
    """Begin a stream for an encoded RangeRequest, with chunks of at most `most` bytes. Raises ApiError."""
    cdef RangeStream stream = RangeStream.__new__(RangeStream)
    cdef RangeReq* req = &stream.req
    kv_raise(decode_range(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), req), "RangeRequest")
    kv_raise(check_range_req(req), "")
    stream.body = body
    stream.store = store
    stream.reloads = store.reloads
    store.fill_header(&stream.header)
    # A reader sees nothing of an operation that has not ended.
    stream.header.revision = store.rev
    stream.rev = req.revision if req.revision > 0 else store.rev
    if stream.rev > store.rev:
        kv_raise(KV_FUTURE, "")
    if stream.rev < store.compacted:
        kv_raise(KV_COMPACTED, "")
    stream.want = WANT_COUNT if req.count_only else WANT_KEYS if req.keys_only else WANT_ALL
    stream.at = first_key(&req.key)
    stream.known = -1
    stream.most = most
    stream.target = min(<size_t>FIRST_CHUNK, most)
    return stream


cdef Chunk next_chunk(RangeStream stream):
    """Return the work that makes the next chunk of a stream."""
    cdef Chunk chunk = Chunk.__new__(Chunk)
    chunk.stream = stream
    chunk.store = stream.store
    return chunk


# --- for tests -------------------------------------------------------------------------------------------

def chunks(Store store not None, bytes body not None, size_t most, size_t budget, object between=lambda: None,
           double seconds=0) -> list:
    """Return the chunks of a stream. `between` is called between two pieces, and before each chunk but the first. The
    client takes `seconds` for each chunk."""
    cdef RangeStream stream
    cdef Chunk chunk
    cdef list found = []
    check_stream(body)
    stream = start_stream(store, body, most)
    while True:
        chunk = next_chunk(stream)
        while not chunk.step(budget):
            chunk.freeze()
            between()
        found.append(b"".join((<Parts>chunk.reply).items)[PREFIX:])
        chunk.discard(0)
        if chunk.last:
            return found
        stream.took(seconds)
        between()
