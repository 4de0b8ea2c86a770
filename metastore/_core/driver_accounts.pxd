from libc.stdint cimport uint64_t

from metastore._core.batch cimport BatchProposer
from metastore._core.kv_server cimport KVServer
from metastore._core.op cimport OpView

cdef struct Account:
    uint64_t limit        # the batch is settled when this is reached
    size_t count          # its operations
    size_t nbytes         # its framed bytes

# Batches that a proposer counts as in flight, the oldest first.
cdef class Accounts:
    cdef BatchProposer proposer
    cdef Account* accounts
    cdef size_t room
    cdef size_t head
    cdef readonly size_t count

    # Adds the batch that was taken last. The limits rise.
    cpdef add(self, uint64_t limit)
    # Releases the batches up to this limit.
    cpdef release(self, uint64_t limit)


cdef class PendingBatches:
    cdef readonly KVServer _kv
    cdef readonly BatchProposer _proposer
    cdef readonly Accounts _proposed     # our own proposals; the limit is the index of the entry
    cdef readonly Accounts _forwarded    # batches sent to a leader; all their request ids are below the limit

    cdef int take_forwarded(self, uint64_t sender, bytes data, const OpView* op, double now) except -1
    cpdef proposed(self, uint64_t index)
    cpdef passed(self, uint64_t applied)
    cpdef _settle_forwarded(self)
