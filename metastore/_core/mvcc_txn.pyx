"""Transactions: counting, decoding and the checks at admission (`mvcc_txn_work.pyx` runs them).

A request is counted on its bytes before any object is made from it. Its nesting is bounded, so no request can exhaust
the stack, and so are its compares, operations and fields over all levels and branches together. These bounds hold at
admission alone. The log may hold transactions that an older version admitted, and they must do what they did then; so
applying bounds only the nesting, as it always has.
"""

from bisect import bisect_right

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from metastore._core.mvcc_keys cimport IndexView
from metastore._core.kv_messages cimport (KV_COMPACTED, KV_DUPLICATE_KEY, KV_EMPTY_KEY, KV_FUTURE, KV_KEY_NOT_FOUND,
                                   KV_LEASE_NOT_FOUND, KV_MALFORMED, KV_OK, KV_TOO_MANY_OPS, WIRE_BYTES, WIRE_VARINT,
                                   DeleteReq, Field, Header, Kv, PutReq, RangeReq, Slice, Wire, check_put_req,
                                   check_range_req, decode_delete, decode_put, decode_range, encode_txn_reply,
                                   kv_raise, take_fields, wire_next, wire_of)
from metastore._core.mvcc cimport WANT_ALL, WANT_KEYS, Store
from metastore._core.mvcc_pairs cimport KvList, kvs_clear, kvs_init
from metastore._core.record cimport key_cmp

cdef enum:
    TOTAL_OPS = 8            # compares and operations of all levels and branches, in units of max_ops
    OP_FIELDS = 32           # protobuf fields for each operation; no message that we know has more than 13
    OVERLAP_STEPS = 50000    # keys looked at in search of overlaps: some 15 ms


# --- counting -------------------------------------------------------------------------------------------

cdef int count_op(const uint8_t* body, size_t n, int depth, Count* left) noexcept nogil:
    """Count a RequestOp: one operation, and one for each further request in it. The last request is the one that is
    used."""
    cdef Wire wire = wire_of(body, n)
    cdef Field field
    cdef int code
    cdef bint first = True
    while wire_next(&wire, &field):
        if left.fields == 0 or (not first and left.ops == 0):
            return KV_TOO_MANY_OPS
        left.fields -= 1
        if not first:
            left.ops -= 1
        first = False
        if field.type != WIRE_BYTES or field.number > 4:
            continue
        if field.number == 4:
            code = count_txn(field.bytes.p, field.bytes.n, depth + 1, left)
        else:
            code = take_fields(field.bytes.p, field.bytes.n, &left.fields)
        if code != KV_OK:
            return code
    return wire.code


cdef int count_txn(const uint8_t* body, size_t n, int depth, Count* left) noexcept nogil:
    """Subtract what a TxnRequest holds from `left`. Return KV_OK, KV_MALFORMED, or KV_TOO_MANY_OPS if `left` is too
    small."""
    cdef Wire wire = wire_of(body, n)
    cdef Field field
    cdef int code
    if depth > TXN_MAX_DEPTH:
        return KV_TOO_MANY_OPS
    while wire_next(&wire, &field):
        if left.fields == 0:
            return KV_TOO_MANY_OPS
        left.fields -= 1
        if field.type != WIRE_BYTES or field.number > 3:
            continue
        if left.ops == 0:
            return KV_TOO_MANY_OPS
        left.ops -= 1
        if field.number == 1:
            code = take_fields(field.bytes.p, field.bytes.n, &left.fields)
        else:
            code = count_op(field.bytes.p, field.bytes.n, depth, left)
        if code != KV_OK:
            return code
    return wire.code


# --- decoding --------------------------------------------------------------------------------------------

cdef int decode_compare(const uint8_t* body, size_t n, CompareReq* out) noexcept nogil:
    """Decode a Compare. Return KV_OK or KV_MALFORMED. The last of several values to compare with is used."""
    cdef Wire wire = wire_of(body, n)
    cdef Field field
    cdef bint is_bytes, is_number
    memset(out, 0, sizeof(CompareReq))
    while wire_next(&wire, &field):
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
    return wire.code


cdef int verify_op_body(int kind, Slice body) noexcept nogil:
    """Check whether the request inside a RequestOp can be decoded."""
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
    """Decode a RequestOp. Every member in it must be well formed; the last one is used."""
    cdef OpNode node = OpNode.__new__(OpNode)
    cdef Wire wire = wire_of(body.p, body.n)
    cdef Field field
    while wire_next(&wire, &field):
        if field.number > 4:
            continue
        if field.type != WIRE_BYTES:
            kv_raise(KV_MALFORMED, "TxnRequest")
        node.kind = field.number
        node.body = field.bytes
        node.txn = None
        if field.number == 4:
            node.txn = decode_txn(field.bytes.p, field.bytes.n, depth + 1)
        elif verify_op_body(node.kind, node.body) != KV_OK:
            kv_raise(KV_MALFORMED, "TxnRequest")
    kv_raise(wire.code, "TxnRequest")
    return node


cdef TxnNode decode_txn(const uint8_t* body, size_t n, int depth):
    """Decode a TxnRequest into a tree over `body`, which must outlive it. Raises MalformedRequest."""
    cdef TxnNode node = TxnNode.__new__(TxnNode)
    cdef CompareNode compare
    cdef Wire wire = wire_of(body, n)
    cdef Field field
    node.compares = []
    node.success = []
    node.failure = []
    node.too_deep = depth > TXN_MAX_DEPTH
    if node.too_deep:
        return node
    while wire_next(&wire, &field):
        if field.number <= 3 and field.type != WIRE_BYTES:
            kv_raise(KV_MALFORMED, "TxnRequest")
        if field.number == 1:
            compare = CompareNode.__new__(CompareNode)
            if decode_compare(field.bytes.p, field.bytes.n, &compare.req) != KV_OK:
                kv_raise(KV_MALFORMED, "TxnRequest")
            node.compares.append(compare)
        elif field.number == 2:
            node.success.append(decode_op(field.bytes, depth))
        elif field.number == 3:
            node.failure.append(decode_op(field.bytes, depth))
    kv_raise(wire.code, "TxnRequest")
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
    """Do the checks that need no state, in etcd's order: number of operations, compares, then each operation.

    The operations that a level has are not available to the levels below it.
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
    """A set of key intervals. It is kept as disjoint sorted spans, which are merged when it is asked after
    additions."""
    cdef list fresh
    cdef list begins
    cdef list ends

    def __cinit__(self):
        self.fresh = []
        self.begins = []
        self.ends = []

    cdef add(self, bytes begin, bytes end):
        if begin < end:
            self.fresh.append((begin, end))

    cdef unite(self, Spans other):
        self.fresh.extend(zip(other.begins, other.ends))
        self.fresh.extend(other.fresh)

    cdef merge(self):
        cdef list spans = list(zip(self.begins, self.ends))
        spans.extend(self.fresh)
        spans.sort()
        self.fresh = []
        self.begins = []
        self.ends = []
        for begin, end in spans:
            if self.ends and begin <= self.ends[len(self.ends) - 1]:
                if end > self.ends[len(self.ends) - 1]:
                    self.ends[len(self.ends) - 1] = end
                continue
            self.begins.append(begin)
            self.ends.append(end)

    cdef size_t count(self):
        return len(self.begins) + len(self.fresh)

    cdef bint holds(self, bytes key):
        cdef Py_ssize_t at
        if self.fresh:
            self.merge()
        at = bisect_right(self.begins, key)
        return at > 0 and key < <bytes>self.ends[at - 1]


cdef bytes slice_bytes(const Slice* data):
    return PyBytes_FromStringAndSize(<const char*>data.p, data.n) if data.n else b""


cdef class Overlaps:
    """Looks for keys that a transaction would change twice.

    Keys of a nested transaction are looked at again on each level above it, so this check costs more than all others.
    It is counted, and ends with TooManyOps at OVERLAP_STEPS.
    """
    cdef size_t steps

    cdef int count(self, size_t n) except -1:
        self.steps += n
        if self.steps > OVERLAP_STEPS:
            kv_raise(KV_TOO_MANY_OPS, "")
        return 0

    cdef tuple look(self, list ops):
        """Return (keys put, spans deleted) of a branch. Raises DuplicateKey where a put meets another put or a
        deletion.

        The two branches of one nested transaction exclude each other, so both may put the same key. As in etcd, a
        deletion "from key on" (range_end "\\0") is not seen as an overlap.
        """
        cdef Spans deleted = Spans()
        cdef set puts = set()
        cdef set then_puts, else_puts
        cdef Spans then_deleted, else_deleted
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
            then_puts, then_deleted = self.look(op.txn.success)
            else_puts, else_deleted = self.look(op.txn.failure)
            self.count(len(then_puts) + len(else_puts) + then_deleted.count() + else_deleted.count())
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


cdef TxnNode verify_txn(const uint8_t* body, size_t n, int max_ops):
    """Check a TxnRequest at admission. Return its tree over `body`. Raises as check_txn does."""
    cdef Count left
    cdef TxnNode node
    cdef Overlaps overlaps
    left.ops = TOTAL_OPS * <size_t>max_ops
    left.fields = OP_FIELDS * left.ops
    kv_raise(count_txn(body, n, 1, &left), "TxnRequest")
    node = decode_txn(body, n, 1)
    node.counted = TOTAL_OPS * <size_t>max_ops - left.ops
    kv_raise(check_node(node, max_ops), "TxnRequest")
    overlaps = Overlaps()
    overlaps.look(node.success)
    overlaps.look(node.failure)
    return node


cdef size_t count_txn_ops(bytes body) noexcept:
    """Return the number of compares and operations on all levels of an encoded TxnRequest that was admitted."""
    cdef Count left
    left.ops = left.fields = <size_t>1 << 40
    count_txn(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), 1, &left)
    return (<size_t>1 << 40) - left.ops


cpdef check_txn(bytes body, int max_ops=128):
    """Check a TxnRequest at admission. It may have `max_ops` operations along any path, and TOTAL_OPS times as many
    compares and operations in all.

    Raises MalformedRequest, TooManyOps, EmptyKey, ValueProvided, LeaseProvided, InvalidSortOption, KeyNotFound (an
    empty operation), DuplicateKey.
    """
    verify_txn(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), max_ops)


cdef bint node_is_readonly(TxnNode node):
    """Whether both branches hold nothing but ranges, also in nested transactions."""
    cdef OpNode op
    for ops in (node.success, node.failure):
        for op in ops:
            if op.kind == 4:
                if not node_is_readonly(op.txn):
                    return False
            elif op.kind != 1:
                return False
    return True


cdef bint node_is_serializable(TxnNode node):
    """Whether every operation is a serializable range (etcd: one in a nested transaction does not count)."""
    cdef OpNode op
    cdef RangeReq req
    for ops in (node.success, node.failure):
        for op in ops:
            if op.kind != 1:
                return False
            decode_range(op.body.p, op.body.n, &req)
            if not req.serializable:
                return False
    return True


cpdef bint txn_is_readonly(bytes body):
    """Whether both branches of an encoded TxnRequest hold nothing but ranges. Raises MalformedRequest."""
    return node_is_readonly(decode_txn(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), 1))


cdef bint node_puts(TxnNode node):
    cdef OpNode op
    for ops in (node.success, node.failure):
        for op in ops:
            if op.kind == 2 or (op.kind == 4 and node_puts(op.txn)):
                return True
    return False


cdef bint txn_puts(const uint8_t* body, size_t n) except -1:
    """Whether any branch holds a put, also in nested transactions. Raises MalformedRequest."""
    return node_puts(decode_txn(body, n, 1))


def txn_is_serializable(bytes body not None) -> bool:
    """Whether every operation of an encoded TxnRequest is a serializable range. Raises MalformedRequest."""
    return node_is_serializable(decode_txn(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), 1))
