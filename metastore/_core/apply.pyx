"""The only place that turns a committed entry into a change and a result.

Deterministic: what an entry does depends on its bytes and on the state alone. An operation that was accepted
into the log cannot stop the node: whatever is wrong with it is ApiError or FormatError, which become its own error,
with no change made. All else passes to the caller and stops the node, for it is trouble of this node that the others
do not have: no memory, a failing engine, a payload whose codec is not installed here (skipping it would lose
acknowledged writes).
"""

from libc.stdint cimport uint8_t, uint64_t

from metastore import errors
from metastore._core.batch cimport FrameReader
from metastore._core.codec cimport PayloadCodec
from metastore._core.entry cimport ENTRY_NORMAL, ENTRY_OK, EntryView, entry_raise, entry_read
from metastore._core.mvcc cimport Store
from metastore._core.op cimport (OP_ALARM, OP_COMPACT, OP_HEADER, OP_MEMBER, OP_OK, OP_PUT, OP_TXN, OpView, op_raise,
                                 op_read)
from metastore._core.txn cimport txn_puts
from metastore._core.txnwork cimport TxnWork, start_txn
from metastore._core.waiter cimport Waiter

from metastore.alarms import Alarms

# What an operation can be refused with. All else is a failure of this node: the others carry the operation out.
cdef tuple OF_OPERATION = (errors.ApiError, errors.FormatError)


cdef enum:
    ALARM_NOSPACE = 1
    ALARM_CORRUPT = 2


cdef int check_alarms(int kinds, int kind, const uint8_t* body, size_t n) except -1:
    if kind > OP_COMPACT:
        return 0
    if kinds & ALARM_CORRUPT:
        raise errors.Corrupt()
    if kinds & ALARM_NOSPACE and (kind == OP_PUT or (kind == OP_TXN and txn_puts(body, n))):
        raise errors.NoSpace()
    return 0


cdef class Applier:
    """Applies committed entries to a store and keeps the results until the write is done.

    `waiters` maps request ids to those who wait; ids met are popped. Per Ready: apply_images() up to the end of the
    images, commit(), release().
    """

    def __init__(self, Store store not None, PayloadCodec codec not None, dict waiters not None):
        self.store = store
        self.codec = codec
        self.waiters = waiters
        self.alarms = Alarms(store)
        self.barred = self.alarms.kinds
        self.frames = FrameReader()
        self.who = []
        self.what = []
        self.applied_index, self.applied_term = store.engine.applied()

    cpdef Py_ssize_t apply_images(self, object images, Py_ssize_t at=0) except -1:
        """Apply concatenated entry images (any buffer) from offset `at` on; gives the offset where it stopped.

        It stops in front of an entry that changes the membership: the caller carries that out, says `passed`, and goes on
        behind it, so that everything takes effect in the order of the log. It also stops behind an entry that has set
        `pause`. Entries up to `applied_index` are passed over. Raises FormatError (an image or a payload that cannot be
        read), MemoryError, engine errors.
        """
        cdef const uint8_t[::1] data = images
        cdef const uint8_t* p
        cdef Py_ssize_t size = data.shape[0]
        cdef EntryView view
        cdef int answer
        if size == 0:
            return 0
        p = &data[0]
        self.pause = False
        while at < size and not self.pause:
            answer = entry_read(p + at, size - at, &view, False)
            if answer != ENTRY_OK:
                entry_raise(answer, at)
            if view.index > self.applied_index:
                if view.type != ENTRY_NORMAL:
                    break
                if view.n:
                    self.apply_payload(&view)
                self.applied_index = view.index
                self.applied_term = view.term
            at += view.size
        return at

    cpdef passed(self, uint64_t index, uint64_t term):
        """The caller has carried out entry `index`, in front of which `apply_images` stopped."""
        self.applied_index = index
        self.applied_term = term

    cpdef answer(self, uint64_t request_id, object result):
        """Keep the reply (bytes) or the error of an operation that the caller has carried out until `release`."""
        cdef object waiter = self.waiters.pop(request_id, None)
        if waiter is not None:
            self.who.append(waiter)
            self.what.append(result)

    cdef int apply_payload(self, const EntryView* view) except -1:
        cdef const uint8_t* p
        cdef const uint8_t* op
        cdef size_t n
        cdef object owner = self.codec.decode_view(view.data, view.n, &p, &n)
        self.nbytes += n
        try:
            self.frames.reset(p, n)
            while self.frames.next(&op, &n):
                self.apply_operation(op, n)
        except errors.FormatError:
            # The framing itself is broken: what came before the break is applied, on every node alike.
            self.undecodable += 1
        return 0

    cdef int apply_operation(self, const uint8_t* p, size_t n) except -1:
        """Run one operation; its result or error goes to its waiter, if there is one."""
        cdef OpView op
        cdef object waiter = None
        cdef object result
        cdef int answer = op_read(p, n, &op)
        self.operations += 1
        if self.waiters and n >= OP_HEADER:
            waiter = self.waiters.pop(op.request_id, None)
        try:
            if answer != OP_OK:
                self.undecodable += 1
                op_raise(answer)
            result = self.execute(&op, waiter is not None)
        except OF_OPERATION as error:
            self.store.undo()
            self.rejected += 1
            result = error
        except BaseException:
            if waiter is not None:
                # Whoever ends the node answers him: it was not his fault, and the others carry it out.
                self.waiters[op.request_id] = waiter
            raise
        if waiter is not None:
            self.who.append(waiter)
            self.what.append(result)
        return 0

    cdef bytes execute(self, const OpView* op, bint want):
        cdef bytes reply
        cdef TxnWork work
        if op.kind == OP_MEMBER:
            return self.on_member(<bytes>op.body[:op.n])
        if op.kind == OP_ALARM:
            reply = self.alarms.apply(<bytes>op.body[:op.n])
            self.barred = self.alarms.kinds
            return reply
        if self.barred:
            check_alarms(self.barred, op.kind, op.body, op.n)
        if op.kind != OP_TXN:
            return self.store.execute_view(op.kind, op.body, op.n, want)
        work = start_txn(self.store, op.body, op.n, want)
        while not work.step(<size_t>1 << 40):
            pass
        reply = work.reply
        self.store.finish()
        return reply

    def reload(self) -> None:
        """The engine's contents were replaced: go on from its log position. Nothing may be half applied."""
        self.applied_index, self.applied_term = self.store.engine.applied()
        self.alarms.load()
        self.barred = self.alarms.kinds

    cpdef commit(self):
        """Write what was applied, with its log position, to the engine."""
        self.store.commit(self.applied_index, self.applied_term)

    cpdef Py_ssize_t release(self):
        """Answer the waiters met since the last release, in order; returns how many."""
        cdef list who = self.who
        cdef list what = self.what
        cdef Py_ssize_t i, count = len(who)
        cdef object result
        self.who = []
        self.what = []
        for i in range(count):
            result = what[i]
            if type(result) is bytes:
                (<Waiter>who[i]).complete(result)
            else:
                (<Waiter>who[i]).fail(result)
        return count
