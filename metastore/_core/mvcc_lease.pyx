"""Revoking a lease, piece by piece (contract: work.pyx), because a lease may have a million keys.

The keys are deleted in their order and in one revision, like those of a DeleteRange. The lease itself goes with the last
piece, so until then the revoke can be found by its lease; readers see the state before it (mvcc_apply.pyx).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcmp, memset

from metastore import errors
from metastore._core.kv_messages cimport Header, Slice, encode_header_reply
from metastore._core.leases cimport LEASE_ID_SIZE, attachment_check, lease_key, revoke_read
from metastore._core.mvcc cimport Store
from metastore._core.mvcc_keys cimport IndexView
from metastore._core.mvcc_merged cimport Merged
from metastore._core.mvcc_range cimport cost_delete
from metastore._core.record cimport Record, rec_key, rec_ref, rec_release
from metastore._core.work cimport COST_KEY, Work

cdef enum:
    PART = 256           # keys that one piece deletes at most
    COST_DETACH = 8      # units of a key: the end of its record in table 'a'. All of a known key, which nothing looks
                         # for: its lease takes 3 us in RocksDB with its engine write, and 6 with cold caches


cdef class RevokeWork(Work):
    """See `mvcc_lease.pxd`. Made by `start_revoke`. It reads and writes the live store."""

    cdef bint advance(self, size_t budget) except -1:
        cdef Record* found[PART]
        cdef IndexView deletion
        cdef Slice key, nothing
        cdef size_t i, n = 0, cost = COST_DETACH, most = PART
        cdef bint known = False
        cdef Record* only = self.store.leases.only_key(self.lease, &known)
        if not known:
            cost += cost_delete(self.store)
            most = min(<size_t>PART, max(<size_t>1, budget // cost))
        self.cost += COST_KEY
        if self.lease == 0:
            self.finish()
            return True
        memset(&deletion, 0, sizeof(deletion))
        deletion.tombstone = True
        nothing.p, nothing.n = NULL, 0
        try:
            if not known:
                self.take(found, most, &n)
            elif only != NULL:
                rec_ref(only)
                found[0], n = only, 1
            for i in range(n):
                key.p, key.n = rec_key(found[i]) + LEASE_ID_SIZE, found[i].klen - LEASE_ID_SIZE
                self.store.write_version(&key, &nothing, &deletion)
                self.store.leases.detach(self.lease, key.p, key.n)
            if n == most:
                self.at = PyBytes_FromStringAndSize(<char*>rec_key(found[n - 1]), found[n - 1].klen) + b"\0"
        finally:
            for i in range(n):
                rec_release(found[i])
        self.cost += cost * n
        if n == most:
            return False
        self.store.leases.forget(self.lease)
        self.finish()
        return True

    cdef int take(self, Record** found, size_t most, size_t* n) except -1:
        """Take references to the next `most` records in table 'a'. `n` counts them, also where this raises."""
        cdef Merged walk = self.store.leases.walk_keys(self.lease)
        cdef Record* rec = walk.seek(<const uint8_t*>PyBytes_AS_STRING(self.at), PyBytes_GET_SIZE(self.at))
        # Deleting changes what is walked over, so the keys of this piece are taken first.
        while n[0] < most and rec != NULL and rec.klen >= LEASE_ID_SIZE and memcmp(
                rec_key(rec), PyBytes_AS_STRING(self.at), LEASE_ID_SIZE) == 0:
            attachment_check(rec)
            rec_ref(rec)
            found[n[0]] = rec
            n[0] += 1
            rec = walk.next(rec)
        return 0

    cdef int finish(self) except -1:
        cdef Header header
        if self.want:
            self.store.fill_header(&header)
            self.out.add(encode_header_reply(&header))
        else:
            self.out = None
        return 0


cdef RevokeWork start_revoke(Store store, const uint8_t* body, size_t n, bint want):
    """Return the revoke of an entry, which needs store.finish() when it is done. Raises FormatError and LeaseNotFound
    before any change. Where an expired lease is gone already, there is nothing to do."""
    cdef RevokeWork work
    cdef uint8_t[LEASE_ID_SIZE] head
    cdef int64_t lease = 0
    cdef bint by_expiry = False
    revoke_read(body, n, &lease, &by_expiry)
    if not store.leases.known(lease):
        if not by_expiry:
            raise errors.LeaseNotFound()
        lease = 0
    work = RevokeWork.__new__(RevokeWork)
    work.store = store
    work.lease = lease
    work.want = want
    lease_key(head, c'a', lease)
    work.at = PyBytes_FromStringAndSize(<char*>head, LEASE_ID_SIZE)
    return work


cdef object carry_out(Store store, Work work, size_t budget):
    try:
        while not work.step(budget):
            pass
        store.finish()
        return work.reply
    except BaseException:
        store.undo()
        raise


def execute_revoke(Store store not None, bytes body not None, bint want=True, size_t budget=1 << 30):
    """Carry out an encoded revoke on a store, in steps of `budget` units. Return the encoded LeaseRevokeResponse, or
    None unless `want`. Raises LeaseNotFound, FormatError."""
    return carry_out(
        store, start_revoke(store, <const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), want), budget)
