"""The KV service between the protocol and the log: admission, request ids, reads.

Everything that can be refused without the state is refused here, before the operation enters any queue, by the same
decoder that applies it later. This module is pure. It takes requests, each with a waiter. It gives operations to the
BatchProposer and answers to the waiters.
"""

from collections import deque
from functools import partial
from heapq import heapify, heappop, heappush

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint64_t

from metastore import errors
from metastore._core.mvcc_apply cimport check_alarms
from metastore._core.batch cimport BatchProposer
from metastore._core.grpc cimport Limits
from metastore._core.h2_request cimport Request
from metastore._core.kv_keys cimport KEYS_RANGE, check_keys
from metastore._core.kv_kinds cimport deletes_ranges, range_is_long, takes_room
from metastore._core.kv_messages cimport (
    KV_OK, CompactReq, decode_compact, kv_raise, range_is_serializable, take_fields, verify_compact, verify_delete,
    verify_put, verify_range,
)
from metastore._core.mvcc_range cimport RangeWork, start_range
from metastore._core.mvcc_stream cimport Chunk, RangeStream, check_stream, next_chunk, start_stream
from metastore._core.mvcc cimport Store
from metastore._core.leases cimport checkpoint_read, grant_read, revoke_read
from metastore._core.op cimport (OP_COMPACT, OP_DELETE_RANGE, OP_LEASE_CHECKPOINT, OP_LEASE_GRANT, OP_LEASE_REVOKE, OP_LEVEL, OP_PUT, OP_TXN,
                                 op_level)
from metastore._core.mvcc_txn cimport (TxnNode, count_txn_ops, decode_txn, node_is_readonly, node_is_serializable,
                                  verify_txn)
from metastore._core.mvcc_txn_work cimport WalkWork, start_readonly, start_walk
from metastore._core.waiter cimport Waiter
from metastore._core.work cimport COST_BYTES, COST_OP, Parts, Work
from metastore._core.work_queue cimport QUANTUM, Starter, Waiting, WorkQueue

cdef int64_t NO_LIMIT = 0x3FFFFFFFFFFFFFFF
cdef int64_t PUT_COST = 256          # bytes that a put is taken to need besides its own (etcd's figure)
cdef enum:
    # What new requests may cost in one turn of the loop. A unit is 100 ns in memory, so this is 3 ms.
    TURN_BUDGET = 32768
    # What those of earlier turns may cost. After each piece the sockets are looked at, and a turn ends where somebody
    # waits. A turn takes 40 us by itself. With a quarter of this, 1,000 keys from RocksDB took 3.7 turns, and 1.3 ms.
    LATE_BUDGET = 32768
    # Bytes of replies about single keys that are made in one turn. To make a MiB takes 0.5 to 2 ms, as fast as the
    # system gives out new memory: with 8 MiB, 1,000 replies of 60 KB took a turn of 42 ms on a busy machine.
    TURN_BYTES = 2 << 20
    FEW_BYTES = 1024
    FEW_KEYS = 64            # a range of no more keys is answered among the calls of single keys: 0.02 ms in memory
    MOST_FIELDS = 1024       # protobuf fields in a request that is no transaction; none that we know has more than 13
    # These are states of a writing transaction, not calls: it is still to be checked; its keys are being counted; it
    # waits until the transactions under way look at few enough keys; it need not wait.
    METHOD_UNCHECKED = 7
    METHOD_COUNTING = 8
    METHOD_COUNTED = 9
    METHOD_WALK = 10
    CALM = 11                # HTTP/2's ENHANCE_YOUR_CALM, which gRPC shows as RESOURCE_EXHAUSTED

# A stream whose client has taken nothing for STALLED seconds ends when others need the room of its chunk. A sweep waits
# HISTORY_WAIT seconds for the streams that it would overtake.
cdef double STALLED = 10.0
cdef double HISTORY_WAIT = 30.0

SERVE_BUDGET, LATE_UNITS = TURN_BUDGET, LATE_BUDGET

METHODS = {
    "Range": METHOD_RANGE,
    "Put": METHOD_PUT,
    "DeleteRange": METHOD_DELETE_RANGE,
    "Txn": METHOD_TXN,
    "Compaction": METHOD_COMPACT,
    "RangeStream": METHOD_RANGE_STREAM,
}


cpdef int fail_each(list waiters, error) except -1:
    """Give each of the waiters `error()`. Where one raises, which it must not, the others get theirs all the same; then
    the first such exception is raised."""
    cdef object waiter, first = None
    for waiter in waiters:
        try:
            (<Waiter?>waiter).fail(error())
        except BaseException as raised:
            first = raised if first is None else first
    if first is not None:
        raise first
    return 0


cdef class HeldCompaction(Waiter):
    """The waiter of a physical compaction. Its reply stays here until the sweep has given the space back."""
    cdef Waiter inner
    cdef KVServer server
    cdef object reply

    def __cinit__(self, Waiter inner, KVServer server):
        self.inner = inner
        self.server = server

    cpdef complete(self, object reply):
        self.reply = reply
        self.server.held.append(self)
        self.server.swept()

    cpdef fail(self, object error):
        self.inner.fail(error)


cdef class KVServer(Starter):
    """Admits KV calls.

    The Applier shares `waiters` and removes those that it answers. `first_id` is the first request id; ids must be
    unique over restarts. `limits` offers max_request_bytes, max_key_bytes, max_txn_ops, max_txn_walk,
    max_inflight_requests.

    A transaction that writes holds up all writes behind it while it looks at keys. Therefore its keys are counted here,
    on the present state. A transaction that looks at more than max_txn_walk keys is refused. Many small ones must not
    get around that, so a transaction waits if those under way from this member would look at more keys together. This
    holds for admission alone: what stands in the log is carried out, and the member that forwards a transaction has
    counted it.
    """

    def __init__(self, Store store, BatchProposer proposer, dict waiters, uint64_t first_id, limits):
        self.store = store
        self.proposer = proposer
        self.waiters = waiters
        self.cluster_level = OP_LEVEL
        self.reads = []
        self.held = []
        self.streams = {}
        self.parked = {}
        self.overtaken = -1
        self.deferred = {}
        self.queue = WorkQueue()
        self.left = TURN_BUDGET
        self.left_bytes = TURN_BYTES
        self.pace = store.engine.pace()
        self.next_id, self.writer = first_id, 1
        self.room = NO_LIMIT
        self.log_room = self.log_left = NO_LIMIT
        self.max_request_bytes = limits.max_request_bytes
        self.max_txn_ops = limits.max_txn_ops
        self.max_key_bytes = self.max_logged_key = limits.max_key_bytes
        self.max_txn_walk = limits.max_txn_walk
        self.walks = deque()
        self.late_writes = []
        self.max_reads = limits.max_inflight_requests

    cpdef list handle(self, list requests, double now):
        """Admit the KV calls among `requests` (HTTP/2). Return the others in their order. `now` is in seconds."""
        cdef Request request
        cdef list others = []
        self.time = max(self.time, now)
        for request in requests:
            if request.expired(now):
                request.fail(errors.DeadlineExceeded())
            elif 0 <= request.method <= METHOD_KV_LAST:
                self.enter(request.method, request.body, request, now)
            else:
                others.append(request)
        return others

    def call(self, str method, bytes body, Waiter waiter, double now):
        """Admit one call of this process. `method` is a name in METHODS, `now` is in seconds."""
        self.time = max(self.time, now)
        self.enter(METHODS[method], body, waiter, now)

    cdef int enter(self, int method, bytes body, Waiter waiter, double now) except -1:
        self.calls[method] += 1
        return self.attempt(method, body, waiter, now)

    cdef int attempt(self, int method, bytes body, Waiter waiter, double now, size_t walk=0) except -1:
        """Admit a call, or answer it with the error that refuses it."""
        try:
            self.admit(method, body, waiter, now, walk)
        except errors.ApiError as error:
            self.turn_away(waiter, error)
        except BaseException:
            waiter.fail(errors.Stopped())
            raise
        return 0

    cdef int turn_away(self, Waiter waiter, error) except -1:
        self.refused += 1
        if not isinstance(error, errors.NoSpace) or self.quota is None or not self.quota.hold(waiter, error):
            waiter.fail(error)
        return 0

    def propose(self, uint8_t kind, bytes body not None, Waiter waiter, double now) -> int:
        """Admit an operation of leases, whose kind and encoded request are those of op.pyi and leases.pyi. `waiter` gets
        the encoded response. Return the request id, or 0 if the operation was refused; `waiter` then has the error.
        Raises FormatError for what is no such operation."""
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(body)
        cdef size_t size = <size_t>PyBytes_GET_SIZE(body)
        cdef int64_t lease = 0, ttl = 0
        cdef bint by_expiry = False
        if kind == OP_LEASE_GRANT:
            grant_read(data, size, &lease, &ttl)
        elif kind == OP_LEASE_REVOKE:
            revoke_read(data, size, &lease, &by_expiry)
        elif kind == OP_LEASE_CHECKPOINT:
            checkpoint_read(data, size)
        else:
            raise errors.FormatError(f"kind {kind} is no operation of leases")
        ident = self.next_id
        self.time = max(self.time, now)
        try:
            if self.refusal is not None:
                raise self.refusal
            if op_level(kind, 0) > self.cluster_level:
                raise errors.NotCapable()
            self.write(kind, data, size, waiter, now)
        except errors.ApiError as error:
            self.turn_away(waiter, error)
            return 0
        return ident

    cdef int admit(self, int method, bytes body, Waiter waiter, double now, size_t walk) except -1:
        """Check the call and queue it. Raises the ApiError that refuses it."""
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(body)
        cdef size_t size = <size_t>PyBytes_GET_SIZE(body)
        cdef size_t fields = MOST_FIELDS
        cdef CompactReq compact
        cdef int code
        if self.refusal is not None:
            raise self.refusal
        if method == METHOD_RANGE or method == METHOD_RANGE_STREAM:
            check_keys(KEYS_RANGE, data, size, self.max_key_bytes)
        else:
            check_keys(method + 1, data, size, self.max_logged_key)
        if method == METHOD_TXN:
            return self.admit_txn(body, waiter, now)
        if method == METHOD_COUNTED or method == METHOD_WALK:
            if walk > self.max_txn_walk:
                raise errors.TooManyKeys(
                    f"{errors.TooManyKeys.default}: {walk} or more, limits.max_txn_walk is {self.max_txn_walk}")
            if method == METHOD_COUNTED and (self.queue.first is not None or not self.may_walk(walk)):
                return self.later(method, body, waiter, None, now, walk)
            return self.walk(walk, body, waiter, now)
        if size > FEW_BYTES and take_fields(data, size, &fields) != KV_OK:
            raise errors.MalformedRequest(f"{errors.MalformedRequest.default}: over {MOST_FIELDS} fields in one message")
        if method == METHOD_PUT:
            code = verify_put(data, size)
            if code != KV_OK:
                kv_raise(code, "PutRequest")
            return self.write(OP_PUT, data, size, waiter, now)
        if method == METHOD_RANGE or method == METHOD_RANGE_STREAM:
            code = verify_range(data, size)
            if code != KV_OK:
                kv_raise(code, "RangeRequest")
            if method == METHOD_RANGE_STREAM:
                check_stream(body)
                if not isinstance(waiter, Request):
                    raise errors.Unimplemented("metastore: RangeStream is for clients on a connection")
            return self.read(method, body, waiter, range_is_serializable(body), now)
        if method == METHOD_DELETE_RANGE:
            code = verify_delete(data, size)
            if code != KV_OK:
                kv_raise(code, "DeleteRangeRequest")
            return self.write(OP_DELETE_RANGE, data, size, waiter, now)
        code = verify_compact(data, size)
        if code == KV_OK:
            code = decode_compact(data, size, &compact)
        if code != KV_OK:
            kv_raise(code, "CompactionRequest")
        if compact.physical and <size_t>len(self.held) >= self.max_reads:
            raise errors.TooManyRequests()
        return self.write(OP_COMPACT, data, size, HeldCompaction(waiter, self) if compact.physical else waiter, now)

    cdef int admit_txn(self, bytes body, Waiter waiter, double now) except -1:
        """Check and queue a transaction. It waits for a later turn if this turn's budget is used up."""
        cdef TxnNode node
        cdef WalkWork walk
        if self.left <= 0:
            return self.later(METHOD_UNCHECKED, body, waiter, None, now)
        node = verify_txn(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), self.max_txn_ops)
        self.left -= <int64_t>(COST_OP * node.counted)
        if node_is_readonly(node):
            return self.read(METHOD_TXN, body, waiter, node_is_serializable(node), now)
        walk = start_walk(self.store, node, self.max_txn_walk)
        if walk is None:
            return self.write(OP_TXN, <const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), waiter, now)
        return self.measure(walk, body, waiter, now)

    cdef int measure(self, WalkWork walk, bytes body, Waiter waiter, double now) except -1:
        """Count the keys that a transaction looks at, then queue it. A long count goes on in later turns."""
        if self.starting is not None:
            # The transaction came out of the queue, which goes on with it.
            self.starting.method, self.starting.work = METHOD_COUNTING, walk
            return 0
        done = self.go_on(walk, min(self.left, <int64_t>QUANTUM), self.pace)
        self.left -= self.spent
        if done:
            return self.admit(METHOD_COUNTED, body, waiter, now, walk.walked)
        if self.queue.may_begin() and not self.queue.serves(waiter):
            return self.later(METHOD_COUNTING, body, waiter, walk, now)
        return self.later(METHOD_UNCHECKED, body, waiter, None, now)

    cdef bint may_walk(self, size_t walk) except -1:
        """Whether a transaction may look at `walk` keys besides those of the transactions under way."""
        while self.walks and self.walks[0][0] not in self.waiters:
            self.walking -= <size_t>self.walks.popleft()[1]
        return not self.walks or self.walking + walk <= self.max_txn_walk

    cdef int walk(self, size_t walk, bytes body, Waiter waiter, double now) except -1:
        ident = self.next_id
        self.write(OP_TXN, <const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), waiter, now)
        self.walks.append((ident, walk))
        self.walking += walk
        return 0

    cdef int later(self, int method, bytes body, Waiter waiter, Work work, double now, size_t walk=0) except -1:
        """Put a request into the queue, to begin or to go on in later turns. Raises TooManyRequests."""
        cdef Waiting one = Waiting.__new__(Waiting)
        if self.queue.count >= self.max_reads:
            raise errors.TooManyRequests()
        one.waiter, one.method, one.body, one.work, one.now, one.walk = waiter, method, body, work, now, walk
        if work is not None:
            work.freeze()
        return self.queue.push(one)

    cdef int write(self, uint8_t kind, const uint8_t* body, size_t size, Waiter waiter, double now) except -1:
        if size > self.max_request_bytes:
            raise errors.RequestTooLarge()
        if self.log_left < NO_LIMIT:
            self.check_log(kind, body, size)
        if kind == OP_PUT or kind == OP_TXN or kind == OP_LEASE_GRANT:
            self.room -= <int64_t>size + PUT_COST
        if self.room < 0 or self.barred or self.short or (self.careful and kind != OP_PUT):
            self.check_room(kind, body, size)
        self.proposer.add_parts(kind, self.next_id, body, size, now)
        self.waiters[self.next_id] = waiter
        self.owes = True
        if isinstance(waiter, HeldCompaction):
            waiter = (<HeldCompaction>waiter).inner
        if isinstance(waiter, Request):
            (<Request>waiter).ident, self.writer = self.next_id, <size_t><void*>(<Request>waiter).session
        if now < self.time:
            self.keep_time(now)
        self.next_id += 1
        return 0

    cdef int keep_time(self, double now) except -1:
        """Remember when a write came that is admitted in a later turn. Its time began then, not with its request id."""
        if <size_t>len(self.late_writes) >= 2 * self.max_reads:
            self.late_writes = [one for one in self.late_writes if one[1] in self.waiters]
            heapify(self.late_writes)
        heappush(self.late_writes, (now, self.next_id))
        return 0

    def overdue(self, double before) -> list:
        """Return the request ids of the writes that came before a moment (seconds), were admitted later than that, and
        are not answered."""
        cdef list found = []
        while self.late_writes and self.late_writes[0][0] <= before:
            ident = heappop(self.late_writes)[1]
            if ident in self.waiters:
                found.append(ident)
        return found

    cdef int check_log(self, uint8_t kind, const uint8_t* body, size_t size) except -1:
        """Subtract the operation from the room left in the log. Raises the error class that `limit_log` was given."""
        cdef int64_t cost = <int64_t>(size + size // 8) + PUT_COST
        if self.log_left < cost or (
                self.log_room < cost and takes_room(kind, body, size)):
            raise self.log_refusal()
        self.log_room -= cost
        self.log_left -= cost
        return 0

    cdef int check_room(self, uint8_t kind, const uint8_t* body, size_t size) except -1:
        """Check whether alarms, the quota or lack of memory forbid the operation. Raises Corrupt, NoSpace,
        TooManyRequests."""
        try:
            check_alarms(self.barred, kind, body, size)
        except errors.NoSpace:
            # A member that grows over its quota raises the alarm by itself, and then the alarm refuses puts before the
            # quota does.
            self.over_quota += 1
            raise
        if self.short and kind != OP_COMPACT and kind != OP_LEASE_CHECKPOINT:
            self.over_memory += 1
            raise errors.TooManyRequests()
        if self.careful and (kind == OP_LEASE_REVOKE or (
                (kind == OP_TXN or kind == OP_DELETE_RANGE) and deletes_ranges(kind, body, size))):
            self.quota.check_delete(kind, <bytes>body[:size])
        if self.room >= 0 or not takes_room(kind, body, size):
            return 0
        self.room = NO_LIMIT if self.quota is None else <int64_t>self.quota.room() - <int64_t>size - PUT_COST
        if self.room < 0:
            self.over_quota += 1
            raise self.quota.exceeded()
        return 0

    def count_some(self, bytes body not None, size_t most) -> int:
        """Return how many keys the encoded RangeRequest meets; `most` + 1: a walk of so many units does not end."""
        cdef RangeWork work = start_range(self.store, body)
        cdef size_t total
        if work is None:
            return 1
        work.ask()
        work.collect(most + 1)
        total = work.kvs.total if work.at is None else most + 1
        while not work.discard(QUANTUM):
            pass
        return total

    def check_forwarded(self, int kind, bytes body not None):
        """Check an operation that a follower has admitted as `write` would check it against the state. Raises Corrupt,
        NoSpace, TooManyRequests."""
        check_keys(kind + 1, <const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), self.max_logged_key)
        if self.log_left < NO_LIMIT:
            self.check_log(kind, <const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
        if kind == OP_PUT or kind == OP_TXN or kind == OP_LEASE_GRANT:
            self.room -= PyBytes_GET_SIZE(body) + PUT_COST
        if self.room < 0 or self.barred or self.short or (self.careful and kind != OP_PUT):
            self.check_room(kind, <const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))

    cdef int read(self, int method, bytes body, Waiter waiter, bint serializable, double now) except -1:
        # While this member takes part in nothing yet, its contents are nobody's state.
        if serializable and not self.holding:
            self.answer(method, body, waiter, now)
            self.company += 1
            return 0
        if self.reads_waiting >= self.max_reads:
            raise errors.TooManyRequests()
        self.reads.append((waiter, method, body, now))
        self.reads_waiting += 1
        return 0

    def confirm(self, Waiter waiter):
        """Complete `waiter` with b"" when reads of the applied state are linearizable, or fail it."""
        try:
            if self.refusal is not None:
                raise self.refusal
            self.read(METHOD_CONFIRM, b"", waiter, False, self.time)
        except errors.ApiError as error:
            waiter.fail(error)

    cdef bint must_wait(self, Waiter waiter, int method, bytes body):
        """Whether a read must wait because this client, or all clients together, have not taken enough of their
        replies.

        By then the session delivers no new requests to us, but those of one read from the socket are all here already:
        500 ranges of 1 MiB each arrive in 15 KB. The last quarter of the room is for single keys, so a client that asks
        for much and takes nothing does not hold them up.
        """
        cdef Request request
        cdef Limits limits
        if not isinstance(waiter, Request):
            return False
        request = <Request>waiter
        if request.closed:
            return False
        limits = request.session.limits
        if request.session.pending_output >= limits.max_output or limits.total_output >= limits.max_total_output:
            return True
        return (limits.total_output >= limits.max_total_output // 4 * 3
                and (method == METHOD_TXN or method == METHOD_RANGE_STREAM
                     or (method == METHOD_RANGE and range_is_long(body, 0))))

    def serve_deferred(self):
        """Answer reads that waited for their clients to take earlier replies. The caller calls this once a turn."""
        cdef list later
        cdef size_t i, done
        self.shed()
        for session in list(self.deferred):
            later = self.deferred[session]
            done = 0
            for waiter, method, body in later:
                if self.must_wait(waiter, method, body):
                    break
                # What it waited for was its client, so its time begins again.
                self.answer(method, body, waiter, self.time)
                done += 1
            del later[:done]
            if not later:
                del self.deferred[session]

    cdef int answer(self, int method, bytes body, Waiter waiter, double now) except -1:
        """Answer a read that came at `now` from the applied state. A later state than the one it asked for is as good."""
        if self.must_wait(waiter, method, body):
            self.deferred.setdefault((<Request>waiter).session, []).append((waiter, method, body))
            return 0
        if isinstance(waiter, Request) and ((<Request>waiter).closed or (<Request>waiter).answered):
            return 0
        if method == METHOD_CONFIRM:
            waiter.complete(b"")
            return 0
        try:
            reply = self.answer_now(method, body, waiter, now)
        except errors.ApiError as error:
            waiter.fail(error)
        else:
            if reply is not None:
                waiter.complete(reply)
        return 0

    cdef int answer_all(self, list reads) except -1:
        """Answer reads one after the other. If one raises what stops the node, it and those behind it get Stopped."""
        cdef size_t done = 0
        self.company += <size_t>len(reads) - 1
        try:
            for waiter, method, body, now in reads:
                done += 1
                self.answer(method, body, waiter, now)
        except BaseException:
            fail_each([one[0] for one in reads[done - 1:]], errors.Stopped)
            raise
        self.company += 1
        return 0

    # ---- RangeStream

    cdef int stream(self, bytes body, Request request, double now) except -1:
        """Queue the next chunk of a stream, which begins if there is none for this request yet. Raises ApiError."""
        if request not in self.streams:
            if <size_t>len(self.streams) >= self.max_reads:
                raise errors.TooManyRequests()
            self.streams[request] = start_stream(self.store, body, self.max_request_bytes)
            request.start(None, None, partial(self.end_stream, request), None, True)
        return self.later(METHOD_RANGE_STREAM, body, request, None, now)

    cdef int send_chunk(self, Request request, Chunk chunk) except -1:
        """Send a chunk. The next one is made when the client has taken it."""
        cdef RangeStream stream = self.streams[request]
        for part in (<Parts>chunk.reply).items:
            request.send(part, True)
        if chunk.last:
            self.end_stream(request)
            request.finish()
            return 0
        stream.sent = self.time
        self.parked[request] = stream
        request.when_drained(self.resume)
        return 0

    def resume(self, Request request not None):
        """The client of a parked stream has taken its chunk."""
        cdef RangeStream stream = self.parked.pop(request)
        stream.took(self.time - stream.sent)
        self.resumed = True
        try:
            self.later(METHOD_RANGE_STREAM, stream.body, request, None, self.time)
        except errors.ApiError as error:
            request.fail(error)

    def end_stream(self, Request request not None):
        """Forget a stream: all is sent, or its client is gone."""
        self.streams.pop(request, None)
        self.parked.pop(request, None)

    cdef int shed(self) except -1:
        """While replies wait for room, end the stream whose client has let its chunk lie for the longest time."""
        cdef Request request
        cdef RangeStream stream
        cdef Limits limits
        for request, stream in self.parked.items():
            if request.closed or request.answered:
                continue
            limits = request.session.limits
            if self.time - stream.sent >= STALLED and limits.total_output >= limits.max_total_output // 4 * 3:
                request.reset(CALM)
            return 0
        return 0

    def holds_history(self, double now) -> bool:
        """Whether streams read a revision below the compacted one, so that the sweep must wait. `now` is in seconds.
        After HISTORY_WAIT they get the error that the revision is compacted."""
        cdef Request request
        cdef RangeStream stream
        cdef list late = [request for request, stream in self.streams.items()
                          if stream.rev < self.store.compacted and not request.answered and not request.closed]
        if not late:
            self.overtaken = -1
            return False
        if self.overtaken < 0:
            self.overtaken = now
        if now - self.overtaken < HISTORY_WAIT:
            return True
        fail_each(late, errors.Compacted)
        self.overtaken = -1
        return False

    cdef Work work_of(self, int method, bytes body, Waiter waiter):
        """Return the work to be done in pieces for a read, or None for a range of a single key. Raises ApiError."""
        cdef TxnNode node
        if method == METHOD_RANGE:
            return start_range(self.store, body, isinstance(waiter, Request))
        node = decode_txn(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), 1)
        return start_readonly(self.store, node, body)

    cdef object answer_now(self, int method, bytes body, Waiter waiter, double now):
        """Return the reply, or None if a later turn gives it. Raises ApiError."""
        cdef Work work
        cdef bytes reply
        if method == METHOD_RANGE_STREAM:
            self.stream(body, <Request?>waiter, now)
            return None
        if method == METHOD_TXN:
            if self.left <= 0:
                self.later(method, body, waiter, None, now)
                return None
            self.left -= <int64_t>(COST_OP * count_txn_ops(body))
        # Those answered before the queue is served are sent before: a lone put beside two clients that read pages took
        # 0.3 ms longer when its answer left with theirs.
        if (self.owes or self.company) and method == METHOD_RANGE and range_is_long(body, FEW_KEYS):
            self.later(method, body, waiter, None, now)
            return None
        work = self.work_of(method, body, waiter)
        if work is None:
            if self.left_bytes <= 0:
                self.later(method, body, waiter, None, now)
                return None
            reply = self.store.range_reply(body)
            self.left_bytes -= PyBytes_GET_SIZE(reply)
            return reply
        if self.left <= 0:
            self.later(method, body, waiter, None, now)
            return None
        done = self.go_on(work, min(self.left, <int64_t>QUANTUM), self.pace)
        self.left -= self.spent
        if done:
            return work.reply
        # Of each client only one work is begun at a time: its replies are as many as it takes.
        begin = self.queue.may_begin() and not self.queue.serves(waiter)
        self.later(method, body, waiter, work if begin else None, now)
        return None

    cdef bint put_off(self, Waiting one) except -1:
        if one.method >= METHOD_UNCHECKED or not self.must_wait(one.waiter, one.method, one.body):
            return False
        self.deferred.setdefault((<Request>one.waiter).session, []).append((one.waiter, one.method, one.body))
        return True

    cdef bint full(self, Waiting one) except -1:
        cdef Limits limits
        if one.method >= METHOD_UNCHECKED or not isinstance(one.waiter, Request):
            return False
        # Several works may have been begun while there was room for one.
        limits = (<Request>one.waiter).session.limits
        return limits.total_output >= limits.max_total_output // 4 * 3

    cdef int64_t start(self, Waiting one) except -1:
        """Begin a request that waited in the queue. Return its cost in units. Raises ApiError."""
        cdef int64_t before, cost = COST_OP
        if one.method == METHOD_UNCHECKED:
            self.admitted = True
            self.left = before = TURN_BUDGET
            self.starting = one
            try:
                self.attempt(METHOD_TXN, one.body, one.waiter, one.now)
            finally:
                self.starting = None
            return cost + before - self.left
        if one.method == METHOD_RANGE_STREAM:
            one.work = next_chunk(<RangeStream>self.streams[one.waiter])
            return cost
        if one.method == METHOD_TXN:
            cost += COST_OP * <int64_t>count_txn_ops(one.body)
        one.work = self.work_of(one.method, one.body, one.waiter)
        if one.work is None:
            reply = self.store.range_reply(one.body)
            cost += PyBytes_GET_SIZE(reply) // COST_BYTES
            one.waiter.complete(reply)
        return cost

    cdef bint enter_walk(self, Waiting one) except -1:
        if not self.may_walk(one.walk):
            return False
        self.admitted = True
        self.attempt(METHOD_WALK, one.body, one.waiter, one.now, one.walk)
        return True

    cdef int finish(self, Waiting one, Work work) except -1:
        if one.method == METHOD_RANGE_STREAM:
            return self.send_chunk(<Request>one.waiter, <Chunk>work)
        if one.method != METHOD_COUNTING:
            one.waiter.complete(work.reply)
            return 0
        self.admitted = True
        return self.attempt(METHOD_COUNTED, one.body, one.waiter, one.now, (<WalkWork>work).walked)

    def expire(self, double now, double patience) -> None:
        """Fail the requests that have waited in the queue for `patience` and are not begun. `now` and `patience` are in
        seconds. Works that are begun go on, in turn with all others, for as long as their clients wait."""
        self.time = max(self.time, now)
        if self.queue.count:
            fail_each(self.queue.overdue(now - patience), errors.Timeout)

    cpdef bint serve_late(self, int64_t budget=TURN_BUDGET, int64_t late=LATE_BUDGET) except -1:
        """Go on with requests that were too long for earlier turns, for `late` units. The caller calls this at the end
        of every turn. The requests of the next turn may cost `budget` units. Return whether there is more to do."""
        self.admitted = self.resumed = False
        if self.queue.busy():
            self.queue.serve(self, min(budget, late), self.pace)
            if self.queue.stalled:
                self.shed()
        self.left = budget
        self.left_bytes = TURN_BYTES
        self.owes, self.company = bool(self.waiters), 0
        # A stalled queue goes on in the turn in which a client takes replies, or is dropped because it takes none.
        return self.admitted or (self.queue.busy() and not self.queue.stalled)

    @property
    def late(self):
        """The number of requests that wait for later turns."""
        return self.queue.count

    def abandon_late(self, error) -> None:
        """Answer with `error()` all requests that wait for later turns, or for the space that a compaction gives back,
        because the node stops."""
        cdef HeldCompaction one
        held, self.held = self.held, []
        fail_each(self.queue.abandon() + [one.inner for one in held] + list(self.streams), error)

    def unanswered(self) -> list:
        """All callers that wait here. This is for another thread, while the member's own one stands still."""
        cdef Waiting one
        cdef list found = list(self.waiters.values()) + self.held + [waiter for waiter, _, _ in self.reads]
        # The thread of the member may stand in the middle of a change of this dict.
        found += list(self.parked)
        for line in list(self.queue.lines.values()):
            found += [one.waiter for one in list(line)]
        return [(<HeldCompaction>waiter).inner if isinstance(waiter, HeldCompaction) else waiter for waiter in found]

    cpdef serve_reads(self, list reads):
        """Answer reads whose index has been applied."""
        self.reads_waiting -= <size_t>len(reads)
        self.answer_all(reads)

    cpdef fail_reads(self, list reads, error):
        """Answer each of the reads, which could not be served, with `error()`."""
        self.reads_waiting -= <size_t>len(reads)
        fail_each([one[0] for one in reads], error)

    cpdef list take_reads(self):
        """Return the reads gathered since the last call. Each must be passed to `serve_reads` or `fail_reads`; until
        then it counts against the limit."""
        reads, self.reads = self.reads, []
        return reads

    def swept(self):
        """Answer the physical compactions if nothing is left to sweep."""
        cdef HeldCompaction one
        if self.sweep_pending:
            return
        held, self.held = self.held, []
        for one in held:
            one.inner.complete(one.reply)

    @property
    def closed_to_writes(self):
        """The error that writes get now, or None."""
        if self.refusal is None and self.log_left < PUT_COST:
            return self.log_refusal()
        return self.refusal

    def expect(self, Waiter waiter):
        """Keep the waiter of an operation that is not a KV call. Return the request id of the operation."""
        ident = self.next_id
        self.next_id += 1
        self.waiters[ident] = waiter
        return ident

    @property
    def sweep_pending(self):
        """Whether the sweep has still to remove compacted records."""
        return self.store.swept < self.store.compacted

    def refuse(self, error):
        """Answer every call with `error` from now on. None ends that."""
        self.refusal = error

    def limit_log(self, room, left, refusal=errors.NoSpace):
        """Bound what operations may add to the log until the next call: puts `room` bytes, all operations together
        `left` bytes. None means no limit. An operation that finds too little room gets an error of the class
        `refusal`."""
        self.log_room = NO_LIMIT if room is None else <int64_t>room
        self.log_left = NO_LIMIT if left is None else <int64_t>left
        self.log_refusal = refusal

    @property
    def call_counts(self):
        """The number of calls by method name since the start."""
        return {name: self.calls[number] for name, number in METHODS.items()}
