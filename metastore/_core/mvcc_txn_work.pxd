from libc.stdint cimport int64_t, uint8_t

from metastore._core.kv_messages cimport Header, Slice
from metastore._core.mvcc_range cimport DeleteWork, RangeWork
from metastore._core.mvcc cimport Store
from metastore._core.mvcc_pairs cimport KvList
from metastore._core.mvcc_txn cimport CompareReq, OpNode, TxnNode
from metastore._core.work cimport Parts, Work


cdef class WalkWork(Work):
    """Counts the keys that a transaction may look at, up to a few more than `most`."""
    cdef Store store
    cdef dict times           # (key, range_end) -> what a key of this span counts
    cdef list spans           # the items of `times`
    cdef Py_ssize_t at_span   # number of the span under way
    cdef bytes at             # engine key at which it goes on; None: at its beginning
    cdef KvList kvs
    cdef readonly size_t walked
    cdef readonly size_t most

    cdef int gather(self, TxnNode node) except -1
    cdef int note(self, const Slice* key, const Slice* end, bint values) except -1
    cdef bint known(self, const Slice* key, const Slice* end) except -1


cdef class Frame:
    """A transaction of which some operations have run."""
    cdef TxnNode node
    cdef list ops             # the operations of the branch that runs
    cdef Py_ssize_t at        # number of the next operation
    cdef Parts replies        # ResponseOps


cdef class TxnWork(Work):
    """A transaction of a reader over one state, or of an entry that is being applied."""
    cdef object owner         # keeps the bytes that the tree points into; None: the caller keeps them
    cdef Store store
    cdef bint own_view
    cdef bint writing         # it runs in the live store
    cdef bint want
    cdef int64_t rev          # revision before it
    cdef Header header        # header of a reader's reply
    cdef int phase
    cdef list undecided       # nodes whose branch is still to be chosen
    cdef TxnNode node         # the node under way, and the number of its compare
    cdef Py_ssize_t compare_at
    cdef bytes at             # engine key at which a compare over a range goes on; None: at its beginning
    cdef bint met             # whether that compare has met a pair
    cdef KvList kvs
    cdef list frames
    cdef Work part            # the range or the deletion under way
    cdef int part_kind
    cdef Work dropped         # a range whose reply nobody gets: its memory is given back in pieces

    cdef int begin(self, Store store, TxnNode root, object owner, bint writing, bint want) except -1
    cdef int decide(self, size_t budget) except -1
    cdef bint compare(self, const CompareReq* req, size_t budget, bint* result) except -1
    cdef int check(self, TxnNode node) except -1
    cdef int check_puts(self, TxnNode node) except -1
    cdef int check_ranges(self, TxnNode node) except -1
    cdef int lose_reply(self) except -1
    cdef bint go_on(self, size_t budget) except -1
    cdef bint run(self, size_t budget) except -1
    cdef bint start(self, Frame frame, OpNode op) except -1
    cdef int answer(self, int kind, Parts body) except -1
    cdef bint leave(self) except -1
    cdef int64_t now(self) noexcept


cdef WalkWork start_walk(Store store, TxnNode root, size_t most)
cdef TxnWork start_readonly(Store store, TxnNode root, bytes body)
cdef TxnWork start_txn(Store store, const uint8_t* body, size_t n, bint want)
