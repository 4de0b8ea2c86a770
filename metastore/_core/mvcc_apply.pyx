"""The only place that turns a committed entry into a change and a result.

An entry may be applied in pieces (contract: work.pyx), because a deletion of a million keys must not hold the loop. The
result is the same wherever the pieces end. Meanwhile readers see the state before the operation under way,
`applied_index` is the index of the entry before, and the engine's log position stays before the entry. The position
moves in the engine write that ends the entry; so after a crash the entry is there as a whole or not at all
(mvcc_unfinished.pyx).

Applying is deterministic: what an entry does depends on its bytes and on the state alone. An operation in the log
cannot stop the node: whatever is wrong with it is an ApiError or FormatError, which becomes the result of the
operation, and nothing is changed. All other exceptions pass to the caller and stop the node, because they are trouble
of this node that the other members do not have: lack of memory, a failing engine, or a payload whose codec is not
installed here (skipping it would lose acknowledged writes).
"""

from libc.stdint cimport uint8_t, uint64_t

from metastore import errors
from metastore._core.batch cimport FrameReader
from metastore._core.codec cimport PayloadCodec
from metastore._core.entry cimport ENTRY_NORMAL, ENTRY_OK, EntryView, entry_raise, entry_read
from metastore._core.mvcc cimport Store
from metastore._core.op cimport (OP_ALARM, OP_COMPACT, OP_DELETE_RANGE, OP_HEADER, OP_LEASE_GRANT, OP_LEASE_REVOKE,
                                 OP_MEMBER, OP_OK, OP_PUT, OP_TXN, OpView, op_raise, op_read)
from metastore._core.kv_messages cimport KV_EMPTY_KEY, KV_OK, DeleteReq, decode_delete, kv_raise
from metastore._core.mvcc_lease cimport start_revoke
from metastore._core.mvcc_range cimport DeleteWork
from metastore._core.mvcc_txn cimport txn_puts
from metastore._core.mvcc_txn_puts cimport run_puts
from metastore._core.mvcc_txn_work cimport start_txn
from metastore._core.mvcc_unfinished cimport purge, spill
from metastore._core.waiter cimport RevisionWaiter, Waiter
from metastore._core.work cimport COST_BYTES, Work

from metastore.replica.alarms import CORRUPT, NOSPACE, Alarms

# An operation can be refused with these. All else is a failure of this node, and the other members carry it out.
cdef tuple OF_OPERATION = (errors.ApiError, errors.FormatError)


cdef enum:
    COST_OPERATION = 10      # units of a put, with its way into the engine
    SPILL_AT = 2048          # records: a millisecond in memory,
    SPILL_SLOWLY_AT = 128    # half a millisecond in RocksDB, and five for deletions on a busy machine (256: up to ten)
    PURGE_AT_ONCE = 512      # changes
    LOAD_AT_ONCE = 4096      # leases

cdef int ALARM_NOSPACE = NOSPACE, ALARM_CORRUPT = CORRUPT

cdef int check_alarms(int kinds, int kind, const uint8_t* body, size_t n) except -1:
    if kind > OP_COMPACT and kind != OP_LEASE_GRANT and kind != OP_LEASE_REVOKE:
        return 0
    if kinds & ALARM_CORRUPT:
        raise errors.Corrupt()
    if kinds & ALARM_NOSPACE and (
            kind == OP_PUT or kind == OP_LEASE_GRANT or (kind == OP_TXN and txn_puts(body, n))):
        raise errors.NoSpace()
    return 0


def no_members(request):
    """The `on_member` of a program that keeps no roster."""
    raise errors.DamagedData("the log changes the membership, and nobody here carries that out")


cdef class Applier:
    """Applies committed entries to a store and keeps the results until they are written.

    `waiters` maps request ids to Waiters; the applier removes those that it answers. `on_member` carries out an operation
    of kind MEMBER: it gets the encoded change, returns the reply, and raises ApiError to refuse. For each Ready the
    caller calls apply_images() until it has reached the end of the images, then commit(), then release().
    """

    def __init__(self, Store store not None, PayloadCodec codec not None, dict waiters not None, on_member=no_members):
        self.store = store
        self.codec = codec
        self.waiters = waiters
        self.on_member = on_member
        self.alarms = Alarms(store)
        self.barred = self.alarms.kinds
        self.frames = FrameReader()
        self.pace = store.engine.pace()
        self.spill_at = SPILL_AT if self.pace == 1 else SPILL_SLOWLY_AT
        self.targets = []
        self.results = []
        self.applied_index, self.applied_term = store.engine.applied()

    cpdef Py_ssize_t apply_images(self, object images, Py_ssize_t at=0, size_t budget=0) except -1:
        """Apply concatenated entry images (any buffer) from the byte offset `at` on. Return the offset where it
        stopped.

        It stops in front of an entry that changes the membership. The caller carries that change out, calls `passed`,
        and goes on behind the entry, so everything takes effect in the order of the log. It also stops behind an entry
        that has set `pause`. With a `budget` (units: work.pxd; 0: none) it sets `halted` and stops when that is used
        up, in front of an entry or `inside` one. The caller then calls `relieve`, and passes the same images and the
        returned offset to the next call. Entries up to `applied_index` are skipped. Raises FormatError (an image or a
        payload cannot be read), MemoryError and engine errors.
        """
        cdef const uint8_t[::1] data = images
        cdef const uint8_t* p
        cdef Py_ssize_t size = data.shape[0]
        cdef EntryView view
        cdef int answer
        cdef size_t before, entry_cost = 0
        self.cost = 0
        self.halted = False
        self.budget = budget if budget else <size_t>-1
        if size == 0:
            return 0
        p = &data[0]
        if not self.inside:
            self.pause = False
            self.images = images
        while at < size and not self.pause:
            answer = entry_read(p + at, size - at, &view, False)
            if answer != ENTRY_OK:
                entry_raise(answer, at)
            if view.index > self.applied_index:
                if view.type != ENTRY_NORMAL:
                    break
                before = self.cost
                if self.spent(entry_cost) or not self.clean() or (view.n and not self.apply_payload(&view)):
                    self.halted = True
                    break
                entry_cost = self.cost - before
                self.applied_index = view.index
                self.applied_term = view.term
            at += view.size
        if not self.inside:
            self.images = None
        return at

    cdef bint spent(self, size_t entry_cost) noexcept:
        """Return whether the budget has no room for one more entry that costs as much as the one before it. An engine in
        files gets each part of an entry that is not done at once in a write of its own."""
        return self.cost >= self.budget or (not self.inside and entry_cost > self.budget - self.cost)

    cdef bint clean(self) except -1:
        """Return whether the engine is free of records that an unfinished entry left there, and all leases are loaded.
        Without a budget, see to that."""
        while self.store.stale and self.budget == <size_t>-1:
            purge(self.store, PURGE_AT_ONCE)
        return not self.store.stale and (self.store.leases.load_at is None or self.budget == <size_t>-1)

    cpdef relieve(self):
        """Hand a large part of an unfinished entry to the engine, or go on with what comes before an entry. The caller
        calls this whenever `apply_images` has halted. Raises EngineBusy (call again later) and what the engine raises."""
        if self.store.stale:
            purge(self.store, max(1, PURGE_AT_ONCE // self.pace))
        elif self.store.leases.load_at is not None:
            self.store.leases.load(max(1, LOAD_AT_ONCE // self.pace))
        elif self.inside and self.store.overlay.count >= self.spill_at:
            spill(self.store)

    @property
    def halfway(self):
        """Whether something must come to its end before `commit`: an entry is half applied, a crash left a part of one
        in the engine, or leases are still to be loaded."""
        return self.is_halfway()

    cdef bint is_halfway(self) noexcept:
        return self.inside or self.store.stale or self.store.leases.load_at is not None

    @property
    def lengthy(self):
        """Whether an operation is under way that takes several pieces by itself."""
        return self.work is not None

    @property
    def whole(self):
        """Whether neither the engine nor the overlay holds a part of an entry."""
        return not self.inside and self.store.whole()

    cpdef passed(self, uint64_t index, uint64_t term):
        """Note that the caller has carried out entry `index`, in front of which `apply_images` stopped."""
        self.applied_index = index
        self.applied_term = term

    cpdef answer(self, uint64_t request_id, object result):
        """Keep the reply (bytes) or the error of an operation that the caller has carried out until `release`."""
        cdef object waiter = self.waiters.pop(request_id, None)
        if waiter is not None:
            self.targets.append(waiter)
            self.results.append(result)

    cdef bint apply_payload(self, const EntryView* view) except -1:
        """Go on with an entry. Return whether it has ended."""
        cdef const uint8_t* p
        cdef const uint8_t* op
        cdef size_t n
        if not self.inside:
            try:
                self.owner = self.codec.decode_view(view.data, view.n, &p, &n)
            except errors.CodecMissing as error:
                raise errors.CodecMissing(
                    f"entry {view.index} needs the codec with flag {error.flag} (not installed)", error.flag) from None
            except errors.CodecFailed as error:
                raise errors.CodecFailed(f"entry {view.index}: {error.text}") from error
            self.nbytes += n
            self.frames.reset(p, n)
            self.inside = True
        try:
            while True:
                if self.work is not None and not self.go_on():
                    return False
                if not self.frames._more:
                    break
                if self.cost >= self.budget or (self.store.stale and not self.clean()):
                    return False
                if not self.frames.next(&op, &n):
                    break
                self.apply_operation(op, n)
        except errors.FormatError:
            # The framing itself is broken. The operations before the break are applied, on every node alike.
            self.undecodable += 1
            self.frames._more = False
        if self.store.stale and not self.clean():
            # The last operation failed when the engine already had a part of it. The entry ends when that part is
            # removed.
            return False
        self.inside = False
        self.owner = None
        return True

    cdef int apply_operation(self, const uint8_t* p, size_t n) except -1:
        """Run one operation, or begin it. The waiter, if there is one, gets its result or error."""
        cdef OpView op
        cdef object waiter = None
        cdef object result
        cdef int answer = op_read(p, n, &op)
        self.operations += 1
        self.cost += self.pace * COST_OPERATION + n // COST_BYTES
        if answer == OP_OK and (op.kind == OP_TXN or op.kind == OP_DELETE_RANGE or op.kind == OP_LEASE_REVOKE):
            return self.begin(&op)
        if self.waiters and n >= OP_HEADER:
            waiter = self.waiters.pop(op.request_id, None)
        try:
            if answer != OP_OK:
                self.undecodable += 1
                op_raise(answer)
            if isinstance(waiter, RevisionWaiter):
                result = self.execute(&op, False)
                (<RevisionWaiter>waiter).revision = self.store.rev
            else:
                result = self.execute(&op, waiter is not None)
        except OF_OPERATION as error:
            result = error
            self.reject(error)
        except BaseException:
            if waiter is not None:
                # The code that ends the node answers the waiter. The request was not at fault, and the other members
                # carry it out.
                self.waiters[op.request_id] = waiter
            raise
        return self.keep(waiter, result)

    cdef int keep(self, object waiter, object result) except -1:
        """Keep a result until `release`."""
        if waiter is not None:
            self.targets.append(waiter)
            self.results.append(result)
        return 0

    cdef int reject(self, error) except -1:
        self.store.undo()
        self.rejected += 1
        return 0

    cdef bytes execute(self, const OpView* op, bint want):
        cdef bytes reply
        if op.kind == OP_MEMBER:
            return self.on_member(<bytes>op.body[:op.n])
        if op.kind == OP_ALARM:
            reply = self.alarms.apply(<bytes>op.body[:op.n])
            self.barred = self.alarms.kinds
            return reply
        if self.barred:
            check_alarms(self.barred, op.kind, op.body, op.n)
        return self.store.execute_view(op.kind, op.body, op.n, want)

    # ---- operations that may be about many keys; their waiters stay in `waiters`, and keep their deadlines

    cdef Work long_work(self, const OpView* op, bint want):
        """Return the work to be done in pieces, or None for the deletion of a single key."""
        cdef DeleteReq delete
        cdef DeleteWork work
        if op.kind == OP_TXN:
            return start_txn(self.store, op.body, op.n, want)
        if op.kind == OP_LEASE_REVOKE:
            return start_revoke(self.store, op.body, op.n, want)
        kv_raise(decode_delete(op.body, op.n, &delete), "DeleteRangeRequest")
        kv_raise(KV_EMPTY_KEY if delete.key.n == 0 else KV_OK, "")
        if delete.end.n == 0:
            return None
        work = DeleteWork.__new__(DeleteWork)
        work.begin(self.store, &delete, want, True)
        return work

    cdef int begin(self, const OpView* op) except -1:
        cdef bint want = op.request_id in self.waiters
        cdef size_t cost = 0
        cdef object result = False
        try:
            if self.barred:
                check_alarms(self.barred, op.kind, op.body, op.n)
            if op.kind == OP_TXN:
                result = run_puts(self.store, op.body, op.n, want, &cost)
                self.cost += cost * self.pace
            if result is False:
                self.work = self.long_work(op, want)
            if result is False and self.work is None:
                result = self.store.execute_view(op.kind, op.body, op.n, want)
        except OF_OPERATION as error:
            self.reject(error)
            return self.keep(self.waiters.pop(op.request_id, None), error)
        if self.work is None:
            return self.keep(self.waiters.pop(op.request_id, None), result)
        self.work_id = op.request_id
        return 0

    cdef bint go_on(self) except -1:
        """Go on with the operation under way. Return whether it is over."""
        cdef bint over
        cdef size_t left = self.budget - self.cost if self.budget > self.cost else 1
        try:
            over = self.work.step(max(<size_t>1, left // self.pace))
            self.cost += self.work.cost * self.pace
            if not over:
                return False
            self.store.finish()
            result = self.work.reply
        except OF_OPERATION as error:
            result = error
            self.reject(error)
        self.work = None
        return self.keep(self.waiters.pop(self.work_id, None), result) == 0

    def reload(self) -> None:
        """Go on from the engine's log position after the engine's contents were replaced."""
        self.inside = self.halted = False
        self.work = self.owner = self.images = None
        self.applied_index, self.applied_term = self.store.engine.applied()
        self.alarms.load()
        self.barred = self.alarms.kinds

    cpdef commit(self):
        """Write what was applied, with its log position, to the engine. Only between two entries."""
        assert not self.inside, "an entry is only half applied"
        self.store.commit(self.applied_index, self.applied_term)

    def unanswered(self) -> list:
        """The waiters of the next release. This is for another thread, while the member's own one stands still."""
        return list(self.targets)

    cpdef Py_ssize_t release(self):
        """Answer the waiters gathered since the last release, in order. Return their number.

        A waiter must not raise. Where one does, those behind it get their answers all the same; then the first such
        exception is raised."""
        cdef list targets = self.targets
        cdef list results = self.results
        cdef Py_ssize_t i, count = len(targets)
        cdef object result, first = None
        self.targets = []
        self.results = []
        for i in range(count):
            result = results[i]
            try:
                if result is None or type(result) is bytes:
                    (<Waiter>targets[i]).complete(result)
                else:
                    (<Waiter>targets[i]).fail(result)
            except BaseException as raised:
                first = raised if first is None else first
        if first is not None:
            raise first
        return count
