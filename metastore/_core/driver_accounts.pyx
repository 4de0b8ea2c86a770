"""The accounts of batches that are proposed or forwarded and not yet applied: they count for the back pressure."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memmove

from metastore._core.batch cimport BatchProposer
from metastore._core.kv_server cimport KVServer
from metastore._core.op cimport OP_COMPACT, OP_LEVEL, OpView, op_level, op_raise, op_read

from metastore import errors
from metastore._core.batch import unframe
from metastore.settings import MAX_BATCH_OPS

cdef enum:
    FIRST_ROOM = 16  # batches


cdef class Accounts:
    """Batches that a proposer counts as in flight, the oldest first. The proposer's limits bound how many there are."""

    def __cinit__(self, BatchProposer proposer not None):
        self.proposer = proposer
        self.room = FIRST_ROOM
        self.accounts = <Account*>malloc(self.room * sizeof(Account))
        if self.accounts == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.accounts)

    cpdef add(self, uint64_t limit):
        """Add the batch that the proposer has handed out last. It is released at this limit; the limits rise."""
        cdef Account* grown
        if self.head and self.head + self.count == self.room:
            memmove(self.accounts, self.accounts + self.head, self.count * sizeof(Account))
            self.head = 0
        if 2 * self.count >= self.room:
            # Half of the room stays free, so moving down costs at most one copy for each batch.
            grown = <Account*>realloc(self.accounts, 2 * self.room * sizeof(Account))
            if grown == NULL:
                raise MemoryError
            self.accounts = grown
            self.room *= 2
        self.accounts[self.head + self.count] = Account(limit, self.proposer.taken_count, self.proposer.taken_bytes)
        self.count += 1

    cpdef release(self, uint64_t limit):
        """Release the batches with this limit or a lower one."""
        cdef Account account
        while self.count and self.accounts[self.head].limit <= limit:
            account = self.accounts[self.head]
            self.head += 1
            self.count -= 1
            self.proposer.release(account.count, account.nbytes)
        if not self.count:
            self.head = 0


cdef class PendingBatches:
    """The part of `replica.pending.Pending` that every put passes. Pending has the rare part: `_pass_on`, `_takes_itself`
    and `_refuse`."""

    def __init__(self, KVServer kv not None, BatchProposer proposer not None):
        self._kv = kv
        self._proposer = proposer
        self._proposed = Accounts(proposer)
        self._forwarded = Accounts(proposer)

    def receive_forward(self, uint64_t sender, bytes batch not None, double now, bint leads):
        """Take the operations that `sender` wants proposed. `leads`: whether this member is the leader.

        Raises FormatError if the operations cannot be read. MAX_BATCH_OPS small puts take 1.3 ms.
        """
        cdef OpView op
        cdef bytes data
        cdef list refused = []
        for data in unframe(batch, MAX_BATCH_OPS):
            op_raise(op_read(<const uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), &op))
            try:
                if leads:
                    self.take_forwarded(sender, data, &op, now)
                else:
                    self._pass_on(data, op.kind, now)
            except errors.ApiError as error:
                refused.append((error, op.request_id))
        if refused:
            self._refuse(sender, refused)

    cdef int take_forwarded(self, uint64_t sender, bytes data, const OpView* op, double now) except -1:
        cdef KVServer kv = self._kv
        closed = kv.closed_to_writes
        if closed is not None:
            raise closed
        if kv.cluster_level < OP_LEVEL and op_level(op.kind, op.flags) > kv.cluster_level:
            raise errors.NotCapable()
        if op.kind > OP_COMPACT and self._takes_itself(sender, data, now):
            return 0
        kv.check_forwarded(op.kind, PyBytes_FromStringAndSize(<const char*>op.body, op.n))
        self._proposer.add(data, now)
        return 0

    cpdef proposed(self, uint64_t index):
        """The batch that was taken last is entry `index` of our log."""
        self._proposed.add(index)

    cpdef passed(self, uint64_t applied):
        """Entry `applied` has been applied: release the accounts of the operations up to it."""
        self._proposed.release(applied)
        if self._forwarded.count:
            self._settle_forwarded()

    cpdef _settle_forwarded(self):
        """Release the account of each forwarded batch of which no operation has a waiter any more."""
        for oldest in self._kv.waiters:
            self._forwarded.release(oldest)
            return
        self._forwarded.release(self._kv.next_id)
