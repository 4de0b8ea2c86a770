"""Transactions: decoding, the checks at admission, and running them.

Semantics as in etcd's Txn: all compares of the branches that will run are decided on the state before the
transaction; then every operation that will run is checked on that state; then they run in order, each seeing
those before it, under one main revision. Nesting is bounded, so no request can exhaust the stack.
"""

from bisect import bisect_right

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from metastore._core.keyindex cimport IndexView
from metastore._core.kvpb cimport (KV_COMPACTED, KV_DUPLICATE_KEY, KV_EMPTY_KEY, KV_FUTURE, KV_KEY_NOT_FOUND,
                                   KV_LEASE_NOT_FOUND, KV_MALFORMED, KV_OK, KV_TOO_MANY_OPS, WIRE_BYTES, WIRE_VARINT,
                                   DeleteReq, Field, Header, Kv, PutReq, RangeReq, Slice, Wire, check_put_req,
                                   check_range_req, decode_delete, decode_put, decode_range, encode_txn_reply,
                                   kv_raise, wire_next)
from metastore._core.mvcc cimport (WANT_ALL, WANT_KEYS, KvList, Store, kvs_clear, kvs_init)
from metastore._core.record cimport key_cmp

cdef int64_t LATEST = 0x7FFFFFFFFFFFFFFF


# --- decoding --------------------------------------------------------------------------------------------

cdef int decode_compare(const uint8_t* body, size_t n, CompareReq* out) noexcept nogil:
    """Compare; KV_OK or KV_MALFORMED. Of the values to compare with the last one given counts."""
    cdef Wire wire
    cdef Field field
    cdef int more
    cdef bint is_bytes, is_number
    wire.p = body
    wire.end = body + n
    memset(out, 0, sizeof(CompareReq))
    while True:
        more = wire_next(&wire, &field)
        if more <= 0:
            return KV_OK if more == 0 else KV_MALFORMED
        is_bytes = field.number == 3 or field.number == 7 or field.number == 64
        is_number = field.number <= 8 and not is_bytes
        if (is_bytes and field.type != WIRE_BYTES) or (is_number and field.type != WIRE_VARINT):
            return KV_MALFORMED
        if field.number == 1:
            out.result = <int32_t>field.value
        elif field.number == 2:
            out.target = <int32_t>field.value
        elif field.number == 3:
            out.key = field.bytes
        elif field.number == 64:
            out.end = field.bytes
        elif field.number <= 8:
            out.operand = field.number
            if field.number == 7:
                out.value = field.bytes
            else:
                out.number = <int64_t>field.value


cdef int verify_op_body(int kind, Slice body) noexcept nogil:
    """Whether the request inside a RequestOp can be decoded."""
    cdef RangeReq range_req
    cdef PutReq put
    cdef DeleteReq delete
    if kind == 1:
        return decode_range(body.p, body.n, &range_req)
    if kind == 2:
        return decode_put(body.p, body.n, &put)
    if kind == 3:
        return decode_delete(body.p, body.n, &delete)
    return KV_OK


cdef OpNode decode_op(Slice body, int depth):
    """RequestOp. Every member given must be well formed; the last one counts."""
    cdef OpNode node = OpNode.__new__(OpNode)
    cdef Wire wire
    cdef Field field
    cdef int more
    wire.p = body.p
    wire.end = body.p + body.n
    while True:
        more = wire_next(&wire, &field)
        if more < 0 or (more == 1 and field.number <= 4 and field.type != WIRE_BYTES):
            kv_raise(KV_MALFORMED, "TxnRequest")
        if more == 0:
            return node
        if field.number > 4:
            continue
        node.kind = field.number
        node.body = field.bytes
        node.txn = None
        if field.number == 4:
            node.txn = decode_txn(field.bytes.p, field.bytes.n, depth + 1)
        elif verify_op_body(node.kind, node.body) != KV_OK:
            kv_raise(KV_MALFORMED, "TxnRequest")


cdef TxnNode decode_txn(const uint8_t* body, size_t n, int depth):
    """TxnRequest as a tree over `body`, which must outlive it. Raises MalformedRequest."""
    cdef TxnNode node = TxnNode.__new__(TxnNode)
    cdef CompareNode compare
    cdef Wire wire
    cdef Field field
    cdef int more
    node.compares = []
    node.success = []
    node.failure = []
    node.too_deep = depth > TXN_MAX_DEPTH
    wire.p = body
    wire.end = body + n
    while not node.too_deep:
        more = wire_next(&wire, &field)
        if more < 0 or (more == 1 and field.number <= 3 and field.type != WIRE_BYTES):
            kv_raise(KV_MALFORMED, "TxnRequest")
        if more == 0:
            break
        if field.number == 1:
            compare = CompareNode.__new__(CompareNode)
            if decode_compare(field.bytes.p, field.bytes.n, &compare.req) != KV_OK:
                kv_raise(KV_MALFORMED, "TxnRequest")
            node.compares.append(compare)
        elif field.number == 2:
            node.success.append(decode_op(field.bytes, depth))
        elif field.number == 3:
            node.failure.append(decode_op(field.bytes, depth))
    return node


# --- admission -------------------------------------------------------------------------------------------

cdef int check_op(OpNode op, int max_ops) except -1:
    cdef RangeReq range_req
    cdef PutReq put
    cdef DeleteReq delete
    if op.kind == 1:
        decode_range(op.body.p, op.body.n, &range_req)
        return check_range_req(&range_req)
    if op.kind == 2:
        decode_put(op.body.p, op.body.n, &put)
        return check_put_req(&put)
    if op.kind == 3:
        decode_delete(op.body.p, op.body.n, &delete)
        return KV_EMPTY_KEY if delete.key.n == 0 else KV_OK
    if op.kind == 4:
        return check_node(op.txn, max_ops)
    return KV_KEY_NOT_FOUND


cdef int check_node(TxnNode node, int max_ops) except -1:
    """The checks that need no state, in etcd's order: number of operations, compares, then each operation.

    What a level uses up is not there for the levels below it.
    """
    cdef int used = max(len(node.compares), len(node.success), len(node.failure))
    cdef CompareNode compare
    cdef OpNode op
    cdef int code
    if used > max_ops or node.too_deep:
        return KV_TOO_MANY_OPS
    for compare in node.compares:
        if compare.req.key.n == 0:
            return KV_EMPTY_KEY
    for ops in (node.success, node.failure):
        for op in ops:
            code = check_op(op, max_ops - used)
            if code != KV_OK:
                return code
    return KV_OK


cdef class Spans:
    """A set of key intervals; kept as disjoint sorted spans, merged when it is asked after additions."""
    cdef list added
    cdef list begins
    cdef list ends

    def __cinit__(self):
        self.added = []
        self.begins = []
        self.ends = []

    cdef add(self, bytes begin, bytes end):
        if begin < end:
            self.added.append((begin, end))

    cdef unite(self, Spans other):
        self.added.extend(zip(other.begins, other.ends))
        self.added.extend(other.added)

    cdef merge(self):
        cdef list spans = list(zip(self.begins, self.ends))
        spans.extend(self.added)
        spans.sort()
        self.added = []
        self.begins = []
        self.ends = []
        for begin, end in spans:
            if self.ends and begin <= self.ends[len(self.ends) - 1]:
                if end > self.ends[len(self.ends) - 1]:
                    self.ends[len(self.ends) - 1] = end
                continue
            self.begins.append(begin)
            self.ends.append(end)

    cdef bint holds(self, bytes key):
        cdef Py_ssize_t at
        if self.added:
            self.merge()
        at = bisect_right(self.begins, key)
        return at > 0 and key < <bytes>self.ends[at - 1]


cdef bytes slice_bytes(const Slice* data):
    return PyBytes_FromStringAndSize(<const char*>data.p, data.n) if data.n else b""


cdef tuple overlaps(list ops):
    """(keys put, spans deleted) of a branch; raises DuplicateKey where a put meets another put or a deletion.

    The two branches of one nested transaction exclude each other, so the same key may be put in both. As in
    etcd, a deletion "from key on" (range_end "\\0") is not seen as an overlap.
    """
    cdef Spans deleted = Spans()
    cdef set puts = set()
    cdef set then_puts, else_puts
    cdef OpNode op
    cdef DeleteReq delete
    cdef PutReq put
    cdef bytes key
    for op in ops:
        if op.kind == 3:
            decode_delete(op.body.p, op.body.n, &delete)
            key = slice_bytes(&delete.key)
            deleted.add(key, slice_bytes(&delete.end) if delete.end.n else key + b"\0")
    for op in ops:
        if op.kind != 4:
            continue
        then_puts, then_deleted = overlaps(op.txn.success)
        else_puts, else_deleted = overlaps(op.txn.failure)
        then_puts |= else_puts
        for key in then_puts:
            if key in puts or deleted.holds(key):
                kv_raise(KV_DUPLICATE_KEY, "")
        puts |= then_puts
        deleted.unite(then_deleted)
        deleted.unite(else_deleted)
    for op in ops:
        if op.kind == 2:
            decode_put(op.body.p, op.body.n, &put)
            key = slice_bytes(&put.key)
            if key in puts or deleted.holds(key):
                kv_raise(KV_DUPLICATE_KEY, "")
            puts.add(key)
    return puts, deleted


cdef int verify_txn(const uint8_t* body, size_t n, int max_ops) except -1:
    """Admission of a TxnRequest; raises as check_txn does."""
    cdef TxnNode node = decode_txn(body, n, 1)
    kv_raise(check_node(node, max_ops), "TxnRequest")
    overlaps(node.success)
    overlaps(node.failure)
    return 0


cpdef check_txn(bytes body, int max_ops=128):
    """Admission of a TxnRequest with at most `max_ops` operations along any path.

    Raises MalformedRequest, TooManyOps, EmptyKey, ValueProvided, LeaseProvided, InvalidSortOption, KeyNotFound (an
    empty operation), DuplicateKey.
    """
    verify_txn(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), max_ops)


cpdef bint txn_is_readonly(bytes body):
    """Whether both branches hold nothing but ranges. Raises MalformedRequest."""
    cdef TxnNode node = decode_txn(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), 1)
    cdef OpNode op
    for op in node.success + node.failure:
        if op.kind != 1:
            return False
    return True


cdef bint node_puts(TxnNode node):
    cdef OpNode op
    for ops in (node.success, node.failure):
        for op in ops:
            if op.kind == 2 or (op.kind == 4 and node_puts(op.txn)):
                return True
    return False


cdef bint txn_puts(const uint8_t* body, size_t n) except -1:
    """Whether any branch, of nested transactions too, holds a put. Raises MalformedRequest."""
    return node_puts(decode_txn(body, n, 1))


def txn_is_serializable(bytes body not None) -> bool:
    """Whether every operation is a serializable range. Raises MalformedRequest."""
    cdef TxnNode node = decode_txn(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), 1)
    cdef OpNode op
    cdef RangeReq req
    for op in node.success + node.failure:
        if op.kind != 1:
            return False
        decode_range(op.body.p, op.body.n, &req)
        if not req.serializable:
            return False
    return True


# --- running ---------------------------------------------------------------------------------------------

cdef bint compare_pair(const CompareReq* req, const Kv* kv) noexcept:
    """One compare with one pair; a value of another kind than the target counts as zero."""
    cdef int64_t mine = 0, given = 0
    cdef size_t n
    cdef int order
    if req.target == 3:
        n = req.value.n if req.operand == 7 else 0
        order = key_cmp(kv.value.p, kv.value.n, req.value.p, n)
    else:
        if req.target == 0:
            mine = kv.version
            given = req.number if req.operand == 4 else 0
        elif req.target == 1:
            mine = kv.create
            given = req.number if req.operand == 5 else 0
        elif req.target == 2:
            mine = kv.mod
            given = req.number if req.operand == 6 else 0
        elif req.target == 4:
            mine = kv.lease
            given = req.number if req.operand == 8 else 0
        order = (mine > given) - (mine < given)
    if req.result == 0:
        return order == 0
    if req.result == 1:
        return order > 0
    if req.result == 2:
        return order < 0
    if req.result == 3:
        return order != 0
    return True


cdef bint compare_holds(Store store, const CompareReq* req) except -1:
    """A compare over a range holds when it holds for every pair; without pairs, when it holds for zeros (VALUE: never)."""
    cdef KvList kvs
    cdef Kv nothing
    cdef size_t i
    kvs_init(&kvs)
    try:
        store.collect(&req.key, &req.end, LATEST, 0, WANT_ALL if req.target == 3 else WANT_KEYS, &kvs)
        if kvs.n == 0:
            memset(&nothing, 0, sizeof(nothing))
            return req.target != 3 and compare_pair(req, &nothing)
        for i in range(kvs.n):
            if not compare_pair(req, &kvs.items[i]):
                return False
        return True
    finally:
        kvs_clear(&kvs)


cdef int decide(Store store, TxnNode node) except -1:
    """Choose the branches that run, all on the state before the transaction."""
    cdef CompareNode compare
    cdef OpNode op
    if node.too_deep:
        kv_raise(KV_TOO_MANY_OPS, "")
    node.succeeded = True
    for compare in node.compares:
        if not compare_holds(store, &compare.req):
            node.succeeded = False
            break
    for op in node.success if node.succeeded else node.failure:
        if op.kind == 4:
            decide(store, op.txn)
    return 0


cdef int check_puts(Store store, TxnNode node) except -1:
    """What can fail about the puts that will run, on the state before the transaction."""
    cdef OpNode op
    cdef PutReq put
    cdef IndexView old
    for op in node.success if node.succeeded else node.failure:
        if op.kind == 4:
            check_puts(store, op.txn)
        elif op.kind == 2:
            decode_put(op.body.p, op.body.n, &put)
            if put.ignore_value or put.ignore_lease:
                if not store.version_at(&put.key, LATEST, &old) or old.tombstone:
                    kv_raise(KV_KEY_NOT_FOUND, "")
            if put.lease != 0 and not store.lease_known(put.lease):
                kv_raise(KV_LEASE_NOT_FOUND, "")
    return 0


cdef int check_ranges(Store store, TxnNode node) except -1:
    """What can fail about the ranges that will run, on the state before the transaction."""
    cdef OpNode op
    cdef RangeReq req
    for op in node.success if node.succeeded else node.failure:
        if op.kind == 4:
            check_ranges(store, op.txn)
        elif op.kind == 1:
            decode_range(op.body.p, op.body.n, &req)
            if req.revision > store.rev:
                kv_raise(KV_FUTURE, "")
            if req.revision != 0 and req.revision < store.compacted:
                kv_raise(KV_COMPACTED, "")
            kv_raise(check_range_req(&req), "")
    return 0


cdef bytes run_op(Store store, OpNode op, bint want):
    """Run one operation; its encoded response, whose header holds the revision only."""
    cdef RangeReq range_req
    cdef PutReq put
    cdef DeleteReq delete
    cdef Header header
    memset(&header, 0, sizeof(header))
    if op.kind == 1:
        if not want:
            return None
        decode_range(op.body.p, op.body.n, &range_req)
        return store.do_range(&range_req, &header)
    if op.kind == 2:
        decode_put(op.body.p, op.body.n, &put)
        return store.do_put(&put, &header, want)
    if op.kind == 3:
        decode_delete(op.body.p, op.body.n, &delete)
        return store.do_delete(&delete, &header, want)
    if op.kind == 4:
        return run_node(store, op.txn, &header, want)
    return b"" if want else None


cdef bytes run_node(Store store, TxnNode node, Header* header, bint want):
    cdef list responses = []
    cdef OpNode op
    cdef bytes reply
    for op in node.success if node.succeeded else node.failure:
        reply = run_op(store, op, want)
        if want:
            responses.append((op.kind, reply))
    return encode_txn_reply(header, node.succeeded, responses) if want else None


cdef bytes run_txn(Store store, const uint8_t* body, size_t n, bint want):
    """TxnResponse (None unless wanted). Needs store.finish() after it, or store.undo() when it raised.

    Raises MalformedRequest, TooManyOps, FutureRevision, Compacted, KeyNotFound, LeaseNotFound, InvalidSortOption.
    """
    cdef TxnNode node = decode_txn(body, n, 1)
    cdef list responses = []
    cdef Header header
    cdef OpNode op
    cdef bytes reply
    decide(store, node)
    # Puts first, as etcd 3.5 does it; 3.6 goes through once. All that differs is which of two errors is told.
    check_puts(store, node)
    check_ranges(store, node)
    for op in node.success if node.succeeded else node.failure:
        reply = run_op(store, op, want)
        if want:
            responses.append((op.kind, reply))
    if not want:
        return None
    store.fill_header(&header)
    return encode_txn_reply(&header, node.succeeded, responses)


def execute_txn(Store store not None, bytes body not None, bint want=True):
    """Run a TxnRequest on a store; the encoded TxnResponse, or None unless wanted. Raises ApiError."""
    try:
        reply = run_txn(store, <const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), want)
        store.finish()
        return reply
    except BaseException:
        store.undo()
        raise
