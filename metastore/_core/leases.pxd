from libc.stdint cimport int64_t, uint8_t, uint64_t

from metastore._core.engine cimport Engine
from metastore._core.mvcc_merged cimport Merged
from metastore._core.ordered_map cimport OrderedMap
from metastore._core.record cimport Record

cdef enum:
    LEASE_ID_SIZE = 9        # table byte and id
    PARTS = 256
    REVOKE_BY_EXPIRY = 1


cdef struct Lease:
    int64_t id               # 0: a free place
    int64_t ttl
    int64_t remaining
    Record* only             # its only key, in table 'a'; NULL: it has none; see `Leases.only_key`


cdef struct Part:
    Lease* places
    size_t room              # places, a power of two; 0 before the first lease
    size_t used


cdef class Leases:
    cdef Part[PARTS] parts
    cdef Part[PARTS] old                  # those of the contents before, of which so many are still to be freed
    cdef int old_left
    cdef size_t used                      # leases in all parts
    cdef readonly size_t nbytes           # of memory that the parts take
    cdef Engine engine
    cdef OrderedMap overlay
    cdef bytes load_at                    # engine key at which loading goes on; None: all leases are loaded
    cdef public object listener           # a Listener (see the .pyi), or None
    cdef list news                        # what the listener is to be told, in order

    cdef Lease* find(self, int64_t lease) noexcept
    # The record in table 'a' of the only key of a lease, NULL for no key. `sure` is False where only a walk can tell.
    cdef Record* only_key(self, int64_t lease, bint* sure) noexcept
    cdef void unsure(self, int64_t lease) noexcept
    cdef int insert(self, int64_t lease, int64_t ttl, int64_t remaining, Record* only) except -1
    cdef int drop(self, int64_t lease) except -1
    cdef bint known(self, int64_t lease) except -1
    cdef int write(self, const Lease* lease) except -1
    cdef int resize(self, Part* part, size_t room) except -1
    cdef int reload(self, Engine engine, OrderedMap overlay) except -1
    cdef int load(self, size_t budget) except -1
    cdef int settle(self) except -1
    cdef Merged walk(self)
    cdef Merged walk_keys(self, int64_t lease)
    cdef int grant(self, int64_t lease, int64_t ttl) except -1
    cdef int checkpoint(self, int64_t lease, int64_t remaining) except -1
    cdef int forget(self, int64_t lease) except -1
    cdef int attach(self, int64_t lease, const uint8_t* key, size_t n) except -1
    cdef int detach(self, int64_t lease, const uint8_t* key, size_t n) except -1
    cdef int tell(self) except -1


cdef void lease_key(uint8_t* dst, uint8_t table, int64_t lease) noexcept nogil
# Marks or clears the record of an attached key in a batch. `Leases.only_key` does not hear of it.
cdef int attachment(OrderedMap batch, int64_t lease, const uint8_t* key, size_t n, bint attached) except -1
cdef int attachment_check(Record* rec) except -1

# They raise FormatError.
cdef int grant_read(const uint8_t* body, size_t n, int64_t* lease, int64_t* ttl) except -1
cdef int revoke_read(const uint8_t* body, size_t n, int64_t* lease, bint* by_expiry) except -1
cdef int checkpoint_read(const uint8_t* body, size_t n) except -1
