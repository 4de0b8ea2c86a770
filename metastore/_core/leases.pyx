"""The leases of the applied, replicated state, and the forms of their requests and records.

Layouts: FORMATS.md, "Leases" and "Engine records". Everything about leases is in the engine: table 'l' has the leases,
table 'a' the keys of each. `Leases` keeps table 'l' in memory as well, because every put with a lease asks for it, and
an engine with files takes microseconds to answer. A lease takes 43 to 85 bytes here (a Python dict takes some 300, and
100,000 leases should cost no more than they are worth).

Most leases have one key. `Leases` knows the key of a lease that was granted since it loaded its table and never had two
at a time. The end of such a lease reads nothing: in RocksDB, looking for its keys took 3.3 of 17 us. An engine in memory
has the record of such a key anyway; one with files keeps some 64 bytes more for it.

Nothing in here has a clock. Who keeps time hears of changes as the `listener`.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from metastore import errors
from metastore._core.engine cimport Engine
from metastore._core.le cimport get32, get64, put32, put64
from metastore._core.mvcc_merged cimport BoundedCursor, Merged
from metastore._core.ordered_map cimport OrderedMap
from metastore._core.record cimport (Record, held_alloc, held_free, key_cmp, rec_key, rec_new, rec_new_deleted, rec_ref,
                                     rec_release, rec_value)

cdef enum:
    VERSION = 1              # of all requests and records in here
    LEASE_VALUE = 17         # bytes of a record of table 'l': version, TTL, remaining
    KEY_VALUE = 1
    GRANT_SIZE = 24
    REVOKE_SIZE = 16
    CHECKPOINT_HEAD = 8
    CHECKPOINT_PAIR = 16
    CHECKPOINT_MOST = 1000   # pairs: 0.3 ms
    LEAST_ROOM = 8           # places of a part
    LOAD_AT_ONCE = 8192      # leases: 2 ms in memory, 5 in RocksDB
    LONGEST_ONLY = 256       # bytes of a key that is known as the only one of its lease

MAX_CHECKPOINTS = CHECKPOINT_MOST


# --- records ---------------------------------------------------------------------------------------------

cdef void lease_key(uint8_t* dst, uint8_t table, int64_t lease) noexcept nogil:
    """Write the engine key of a lease in table 'l', or what its keys in table 'a' begin with: LEASE_ID_SIZE bytes."""
    cdef int i
    cdef uint64_t number = <uint64_t>lease
    dst[0] = table
    for i in range(8):
        dst[1 + i] = <uint8_t>(number >> (56 - 8 * i))


cdef int lease_read(Record* rec, Lease* out) except -1:
    """Decode a record of table 'l'. Raises DamagedData."""
    cdef const uint8_t* key = rec_key(rec)
    cdef const uint8_t* p = rec_value(rec)
    cdef uint64_t number = 0
    cdef int i
    if rec.klen != LEASE_ID_SIZE or rec.vlen != LEASE_VALUE or p[0] != VERSION:
        raise errors.DamagedData("engine: the record of a lease has an unknown form")
    for i in range(8):
        number = (number << 8) | key[1 + i]
    out.id = <int64_t>number
    out.ttl = <int64_t>get64(p + 1)
    out.remaining = <int64_t>get64(p + 9)
    if out.id == 0 or out.ttl <= 0 or out.remaining < 0:
        raise errors.DamagedData("engine: the record of a lease holds what cannot be")
    return 0


cdef Record* attachment_record(int64_t lease, const uint8_t* key, size_t n, bint attached) except NULL:
    """Return the record of a key of a lease, or its deletion. The caller owns one reference."""
    cdef uint8_t[LEASE_ID_SIZE] head
    cdef Record* rec = rec_new(key, 0, LEASE_ID_SIZE + n + KEY_VALUE if attached else LEASE_ID_SIZE + n)
    if rec == NULL:
        raise MemoryError
    # The record was made in one piece; its bytes are the key, then the value.
    rec.klen = <uint32_t>(LEASE_ID_SIZE + n)
    rec.vlen = KEY_VALUE if attached else <uint32_t>0xFFFFFFFF
    lease_key(head, c'a', lease)
    memcpy(rec_key(rec), head, LEASE_ID_SIZE)
    if n:
        memcpy(rec_key(rec) + LEASE_ID_SIZE, key, n)
    if attached:
        rec_value(rec)[0] = VERSION
    return rec


cdef int attachment(OrderedMap batch, int64_t lease, const uint8_t* key, size_t n, bint attached) except -1:
    """Put the record of a key of a lease into a batch, or its deletion."""
    return batch.put_record(attachment_record(lease, key, n, attached))


cdef int attachment_check(Record* rec) except -1:
    """Check the form of a record of table 'a'. Raises DamagedData."""
    if rec.klen <= LEASE_ID_SIZE or rec.vlen != KEY_VALUE or rec_value(rec)[0] != VERSION:
        raise errors.DamagedData("engine: the record of a lease's key has an unknown form")
    return 0


def without_checkpoint(bytes value not None) -> bytes:
    """Return the value of a record of table 'l' without the remaining time. Raises DamagedData."""
    if len(value) != LEASE_VALUE or value[0] != VERSION:
        raise errors.DamagedData("engine: the record of a lease has an unknown form")
    return value[:9] + bytes(8)


# --- requests --------------------------------------------------------------------------------------------

cdef int refuse(str what) except -1:
    raise errors.FormatError(f"lease operation: {what}")


cdef bint zeros(const uint8_t* p, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if p[i]:
            return False
    return True


cdef int grant_read(const uint8_t* body, size_t n, int64_t* lease, int64_t* ttl) except -1:
    if n != GRANT_SIZE or body[0] != VERSION or not zeros(body + 1, 7):
        refuse("a grant has an unknown form")
    lease[0] = <int64_t>get64(body + 8)
    ttl[0] = <int64_t>get64(body + 16)
    if lease[0] == 0 or ttl[0] <= 0:
        refuse("a grant without an id or a TTL")
    return 0


cdef int revoke_read(const uint8_t* body, size_t n, int64_t* lease, bint* by_expiry) except -1:
    if n != REVOKE_SIZE or body[0] != VERSION or body[1] > REVOKE_BY_EXPIRY or not zeros(body + 2, 6):
        refuse("a revoke has an unknown form")
    lease[0] = <int64_t>get64(body + 8)
    by_expiry[0] = body[1] & REVOKE_BY_EXPIRY
    if lease[0] == 0:
        refuse("a revoke without an id")
    return 0


cdef int checkpoint_read(const uint8_t* body, size_t n) except -1:
    """Check a checkpoint and return the number of its pairs."""
    cdef size_t i
    cdef const uint8_t* pair
    if (n < CHECKPOINT_HEAD or body[0] != VERSION or not zeros(body + 1, 3) or get32(body + 4) > CHECKPOINT_MOST
            or n != CHECKPOINT_HEAD + CHECKPOINT_PAIR * <size_t>get32(body + 4)):
        refuse("a checkpoint has an unknown form")
    for i in range(get32(body + 4)):
        pair = body + CHECKPOINT_HEAD + CHECKPOINT_PAIR * i
        if get64(pair) == 0 or <int64_t>get64(pair + 8) < 0:
            refuse("a checkpoint without an id, or of less than nothing")
    return <int>get32(body + 4)


def encode_grant(int64_t lease, int64_t ttl) -> bytes:
    """Return the request of an operation LEASE_GRANT. Raises ValueError for id 0 or a TTL below 1."""
    cdef uint8_t data[GRANT_SIZE]
    if lease == 0 or ttl <= 0:
        raise ValueError("a lease has an id and a TTL")
    memset(data, 0, GRANT_SIZE)
    data[0] = VERSION
    put64(data + 8, <uint64_t>lease)
    put64(data + 16, <uint64_t>ttl)
    return PyBytes_FromStringAndSize(<char*>data, GRANT_SIZE)


def encode_revoke(int64_t lease, bint by_expiry=False) -> bytes:
    """Return the request of an operation LEASE_REVOKE. Raises ValueError for id 0."""
    cdef uint8_t data[REVOKE_SIZE]
    if lease == 0:
        raise ValueError("a lease has an id")
    memset(data, 0, REVOKE_SIZE)
    data[0] = VERSION
    data[1] = REVOKE_BY_EXPIRY if by_expiry else 0
    put64(data + 8, <uint64_t>lease)
    return PyBytes_FromStringAndSize(<char*>data, REVOKE_SIZE)


def encode_checkpoint(object pairs) -> bytes:
    """Return the request of an operation LEASE_CHECKPOINT for (id, remaining seconds) pairs. Raises ValueError for more
    than MAX_CHECKPOINTS of them, for id 0 and for a negative time."""
    cdef list all_pairs = list(pairs)
    cdef bytes data
    cdef uint8_t* p
    cdef int64_t lease, remaining
    if len(all_pairs) > CHECKPOINT_MOST:
        raise ValueError(f"{len(all_pairs)} leases in one checkpoint; at most {CHECKPOINT_MOST} fit")
    data = bytes(CHECKPOINT_HEAD + CHECKPOINT_PAIR * len(all_pairs))
    p = <uint8_t*>PyBytes_AS_STRING(data)
    p[0] = VERSION
    put32(p + 4, <uint32_t>len(all_pairs))
    p += CHECKPOINT_HEAD
    for lease, remaining in all_pairs:
        if lease == 0 or remaining < 0:
            raise ValueError("a lease has an id, and its time is not below 0")
        put64(p, <uint64_t>lease)
        put64(p + 8, <uint64_t>remaining)
        p += CHECKPOINT_PAIR
    return data


def decode_grant(bytes request not None) -> tuple:
    """Return (id, TTL). Raises FormatError."""
    cdef int64_t lease = 0, ttl = 0
    grant_read(<const uint8_t*>PyBytes_AS_STRING(request), PyBytes_GET_SIZE(request), &lease, &ttl)
    return (lease, ttl)


def decode_revoke(bytes request not None) -> tuple:
    """Return (id, whether it is by expiry). Raises FormatError."""
    cdef int64_t lease = 0
    cdef bint by_expiry = False
    revoke_read(<const uint8_t*>PyBytes_AS_STRING(request), PyBytes_GET_SIZE(request), &lease, &by_expiry)
    return (lease, bool(by_expiry))


def decode_checkpoint(bytes request not None) -> list:
    """Return (id, remaining seconds) pairs. Raises FormatError."""
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(request)
    cdef int n = checkpoint_read(p, PyBytes_GET_SIZE(request))
    cdef int i
    p += CHECKPOINT_HEAD
    return [(<int64_t>get64(p + CHECKPOINT_PAIR * i), <int64_t>get64(p + CHECKPOINT_PAIR * i + 8)) for i in range(n)]


# --- the leases ------------------------------------------------------------------------------------------

# `Lease.only` of a lease whose keys are not known here.
cdef Record UNSURE


cdef inline void set_only(Lease* lease, Record* only) noexcept:
    """Keep a reference to the only key of a lease in place of the one that is kept so far."""
    if only != NULL and only != &UNSURE:
        rec_ref(only)
    if lease.only != NULL and lease.only != &UNSURE:
        rec_release(lease.only)
    lease.only = only


cdef inline bint same_key(Record* a, Record* b) noexcept nogil:
    return key_cmp(rec_key(a), a.klen, rec_key(b), b.klen) == 0


cdef inline uint64_t mixed(int64_t lease) noexcept nogil:
    return <uint64_t>lease * <uint64_t>0x9E3779B97F4A7C15


cdef inline size_t part_of(int64_t lease) noexcept nogil:
    return mixed(lease) >> 56


cdef Lease* place_of(Part* part, int64_t lease) noexcept nogil:
    """Return the place of a lease, or the free place where it belongs."""
    cdef size_t mask = part.room - 1
    cdef size_t at = <size_t>(mixed(lease) >> 24) & mask
    while part.places[at].id != 0 and part.places[at].id != lease:
        at = (at + 1) & mask
    return &part.places[at]


cdef size_t free_part(Part* part) noexcept:
    """Free a part. Return how many leases it had."""
    cdef size_t at, had = part.used
    for at in range(part.room):
        if part.places[at].id:
            set_only(&part.places[at], NULL)
    if part.room:
        held_free(part.places, part.room * sizeof(Lease))
    part.room = part.used = 0
    return had


cdef class Leases:
    """All leases of a store, in hash tables with open addressing. `Store` owns it and changes it.

    Each of the PARTS tables grows by itself, so no operation waits while all leases move: with 1.5 million of them in
    one table that took 185 ms.

    A change goes to the overlay and to the table at once; the next commit writes it and then tells the `listener`. A
    large table is loaded in slices (`load`) after a snapshot was installed. Whoever asks before the end loads the rest
    at once.
    """

    def __cinit__(self):
        memset(self.parts, 0, sizeof(self.parts))
        memset(self.old, 0, sizeof(self.old))
        self.news = []

    def __dealloc__(self):
        cdef int i
        for i in range(PARTS):
            free_part(&self.parts[i])
            free_part(&self.old[i])

    # -- the table --

    cdef int resize(self, Part* part, size_t room) except -1:
        cdef Lease* old = part.places
        cdef size_t i, before = part.room
        cdef Lease* fresh = <Lease*>held_alloc(room * sizeof(Lease))
        if fresh == NULL:
            raise MemoryError
        memset(fresh, 0, room * sizeof(Lease))
        part.places, part.room = fresh, room
        self.nbytes += (room - before) * sizeof(Lease)
        for i in range(before):
            if old[i].id:
                place_of(part, old[i].id)[0] = old[i]
        if before:
            held_free(old, before * sizeof(Lease))
        return 0

    cdef Lease* find(self, int64_t lease) noexcept:
        """Return a lease that is in the table, or NULL. The pointer is good until the table changes."""
        cdef Part* part = &self.parts[part_of(lease)]
        cdef Lease* found
        if part.used == 0 or lease == 0:
            return NULL
        found = place_of(part, lease)
        return found if found.id else NULL

    cdef int insert(self, int64_t lease, int64_t ttl, int64_t remaining, Record* only) except -1:
        """Add a lease that is not in the table, with its only key: NULL or &UNSURE."""
        cdef Part* part = &self.parts[part_of(lease)]
        cdef Lease* place
        if 4 * (part.used + 1) > 3 * part.room:
            self.resize(part, 2 * part.room if part.room else LEAST_ROOM)
        place = place_of(part, lease)
        part.used += 1
        self.used += 1
        place.id, place.ttl, place.remaining, place.only = lease, ttl, remaining, only
        return 0

    cdef int drop(self, int64_t lease) except -1:
        """Take a lease out of the table. Those behind it that it kept from their places move up."""
        cdef Part* part = &self.parts[part_of(lease)]
        cdef size_t mask = part.room - 1, at
        cdef Lease* found = self.find(lease)
        cdef Lease moved
        if found == NULL:
            return 0
        at = found - part.places
        set_only(found, NULL)
        found.id = 0
        part.used -= 1
        self.used -= 1
        while True:
            at = (at + 1) & mask
            if part.places[at].id == 0:
                break
            moved = part.places[at]
            part.places[at].id = 0
            # It comes to its old place again, or to the gap if the way to its place leads over that.
            place_of(part, moved.id)[0] = moved
        if part.room > LEAST_ROOM and 8 * part.used < part.room:
            self.resize(part, part.room // 2)
        return 0

    # -- loading --

    cdef int reload(self, Engine engine, OrderedMap overlay) except -1:
        """Begin anew with the contents of an engine. Raises DamagedData."""
        cdef int i
        if self.old_left:
            for i in range(PARTS):
                free_part(&self.parts[i])       # loaded in part, so no keys are known
        else:
            memcpy(self.old, self.parts, sizeof(self.parts))
            self.old_left = PARTS
        memset(self.parts, 0, sizeof(self.parts))
        self.used = self.nbytes = 0
        self.news = []
        self.engine, self.overlay = engine, overlay
        self.load_at = b"l"
        return self.load(LOAD_AT_ONCE)

    cdef int load(self, size_t budget) except -1:
        """Free about `budget` leases of the contents before, or load as many more. Nothing may have been changed since
        `reload`. To free 300,000 at once took 30 ms."""
        cdef Lease lease
        cdef Record* rec
        cdef Merged walk
        if self.load_at is None:
            return 0
        while self.old_left and budget:
            self.old_left -= 1
            budget -= min(budget, free_part(&self.old[self.old_left]))
        if not budget:
            return 0
        walk = self.walk()
        rec = walk.seek(<const uint8_t*>PyBytes_AS_STRING(self.load_at), PyBytes_GET_SIZE(self.load_at))
        while rec != NULL and rec_key(rec)[0] == c'l':
            if budget == 0:
                self.load_at = PyBytes_FromStringAndSize(<char*>rec_key(rec), rec.klen)
                return 0
            budget -= 1
            lease_read(rec, &lease)
            self.insert(lease.id, lease.ttl, lease.remaining, &UNSURE)
            rec = walk.next(rec)
        self.load_at = None
        if self.listener is not None:
            self.listener.reloaded()
        return 0

    cdef int settle(self) except -1:
        """Load what is still missing."""
        if self.load_at is not None:
            self.load(<size_t>-1)
        return 0

    cdef Merged walk(self):
        cdef Merged walk = Merged()
        walk.below = self.engine.cursor()
        walk.overlay = self.overlay
        return walk

    cdef Merged walk_keys(self, int64_t lease):
        """A walk that need not go on behind the keys of a lease."""
        cdef Merged walk
        cdef BoundedCursor below
        cdef uint8_t[LEASE_ID_SIZE] head
        if self.engine.pace() == 1:
            return self.walk()          # in memory nothing is left of what was deleted
        lease_key(head, c'a', lease)
        below = BoundedCursor()
        below.engine = self.engine
        below.end = (int.from_bytes(head[:LEASE_ID_SIZE], "big") + 1).to_bytes(LEASE_ID_SIZE, "big")
        walk = Merged()
        walk.below, walk.overlay = below, self.overlay
        return walk

    # -- changes, of an operation that has been checked or checks itself first --

    cdef bint known(self, int64_t lease) except -1:
        self.settle()
        return self.find(lease) != NULL

    cdef int write(self, const Lease* lease) except -1:
        """Put the record of a lease into the overlay."""
        cdef uint8_t[LEASE_ID_SIZE] key
        cdef Record* rec
        lease_key(key, c'l', lease.id)
        rec = rec_new(key, LEASE_ID_SIZE, LEASE_VALUE)
        if rec == NULL:
            raise MemoryError
        rec_value(rec)[0] = VERSION
        put64(rec_value(rec) + 1, <uint64_t>lease.ttl)
        put64(rec_value(rec) + 9, <uint64_t>lease.remaining)
        return self.overlay.put_record(rec)

    cdef int grant(self, int64_t lease, int64_t ttl) except -1:
        """Add a lease. Raises LeaseExist."""
        cdef Lease new
        if self.known(lease):
            raise errors.LeaseExist()
        new.id, new.ttl, new.remaining = lease, ttl, 0
        self.write(&new)
        self.insert(lease, ttl, 0, NULL)
        if self.listener is not None:
            self.news.append(("granted", lease, ttl))
        return 0

    cdef int checkpoint(self, int64_t lease, int64_t remaining) except -1:
        """Note the remaining time of a lease, if it exists."""
        cdef Lease* found
        if not self.known(lease):
            return 0
        found = self.find(lease)
        found.remaining = remaining
        self.write(found)
        if self.listener is not None:
            self.news.append(("checkpointed", lease, remaining))
        return 0

    cdef int forget(self, int64_t lease) except -1:
        """Remove a lease whose keys are deleted."""
        cdef uint8_t[LEASE_ID_SIZE] key
        cdef Record* rec
        self.settle()
        lease_key(key, c'l', lease)
        rec = rec_new_deleted(key, LEASE_ID_SIZE)
        if rec == NULL:
            raise MemoryError
        self.overlay.put_record(rec)
        self.drop(lease)
        if self.listener is not None:
            self.news.append(("revoked", lease, 0))
        return 0

    cdef int attach(self, int64_t lease, const uint8_t* key, size_t n) except -1:
        cdef Record* rec = attachment_record(lease, key, n, True)
        cdef Lease* found = self.find(lease)
        if found != NULL and not (found.only != NULL and found.only != &UNSURE and same_key(found.only, rec)):
            set_only(found, rec if found.only == NULL and n <= LONGEST_ONLY else &UNSURE)
        return self.overlay.put_record(rec)

    cdef int detach(self, int64_t lease, const uint8_t* key, size_t n) except -1:
        cdef Record* rec = attachment_record(lease, key, n, False)
        cdef Lease* found = self.find(lease)
        if found != NULL and found.only != NULL and found.only != &UNSURE and same_key(found.only, rec):
            set_only(found, NULL)
        return self.overlay.put_record(rec)

    cdef Record* only_key(self, int64_t lease, bint* sure) noexcept:
        cdef Lease* found = self.find(lease)
        sure[0] = found != NULL and found.only != &UNSURE
        return found.only if sure[0] else NULL

    cdef void unsure(self, int64_t lease) noexcept:
        """The keys of a lease are changed past this object."""
        cdef Lease* found = self.find(lease)
        if found != NULL:
            set_only(found, &UNSURE)

    cdef int tell(self) except -1:
        """Tell the listener what the engine has now."""
        cdef list news = self.news
        if news:
            self.news = []
            if self.listener is not None:
                self.listener.changed(news)
        return 0

    # -- what others ask --

    @property
    def count(self):
        """The number of leases."""
        self.settle()
        return self.used

    @property
    def loaded(self):
        """Whether all leases of the engine are here."""
        return self.load_at is None

    def ttl(self, int64_t lease) -> int:
        """Return the TTL that was granted, or 0 if there is no such lease."""
        self.settle()
        cdef Lease* found = self.find(lease)
        return found.ttl if found != NULL else 0

    def remaining(self, int64_t lease) -> int:
        """Return the remaining time by the last checkpoint, or 0 if there is none."""
        self.settle()
        cdef Lease* found = self.find(lease)
        return found.remaining if found != NULL else 0

    def ids(self) -> list:
        """Return all ids in ascending order."""
        cdef list found = []
        cdef size_t i
        cdef int n
        self.settle()
        for n in range(PARTS):
            for i in range(self.parts[n].room):
                if self.parts[n].places[i].id:
                    found.append(self.parts[n].places[i].id)
        found.sort()
        return found

    @property
    def part_count(self):
        """The number of parts that `part` tells of."""
        return PARTS

    def part(self, int number) -> list:
        """Return the ids of one part of the leases, in no order. All at once would take 50 ms for 100,000."""
        self.settle()
        return [self.parts[number].places[i].id for i in range(self.parts[number].room)
                if self.parts[number].places[i].id]

    def count_keys(self, int64_t lease, size_t most) -> int:
        """Return how many keys have the lease; `most` + 1 stands for more than `most`."""
        cdef uint8_t[LEASE_ID_SIZE] head
        cdef Merged walk = self.walk_keys(lease)
        cdef Record* rec
        cdef size_t n = 0
        lease_key(head, c'a', lease)
        rec = walk.seek(head, LEASE_ID_SIZE)
        while n <= most and rec != NULL and rec.klen >= LEASE_ID_SIZE and memcmp(rec_key(rec), head, LEASE_ID_SIZE) == 0:
            n += 1
            rec = walk.next(rec)
        return n

    def keys(self, int64_t lease, bytes after not None=b"", size_t limit=0) -> list:
        """Return the keys that have the lease, in order: those above `after`, at most `limit` (0: all). See the .pyi
        for what they are while an operation is applied in pieces. Raises DamagedData."""
        cdef uint8_t[LEASE_ID_SIZE] head
        cdef bytes start
        cdef list found = []
        cdef Merged walk = self.walk_keys(lease)
        cdef Record* rec
        lease_key(head, c'a', lease)
        start = PyBytes_FromStringAndSize(<char*>head, LEASE_ID_SIZE) + (after + b"\0" if after else b"")
        rec = walk.seek(<const uint8_t*>PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start))
        while rec != NULL and rec.klen >= LEASE_ID_SIZE and memcmp(rec_key(rec), head, LEASE_ID_SIZE) == 0:
            attachment_check(rec)
            found.append(PyBytes_FromStringAndSize(<char*>rec_key(rec) + LEASE_ID_SIZE, rec.klen - LEASE_ID_SIZE))
            if limit and <size_t>len(found) == limit:
                break
            rec = walk.next(rec)
        return found
