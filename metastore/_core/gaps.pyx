"""Where an engine in files has nothing but removed records, so that no look-up walks over them.

RocksDB notes a removal as one more record, and drops both when it next rewrites their files. Until then each iterator
walks over them: 0.1 to 0.4 us a record in one call, with the GIL held; 230 ms for a million (measured). A sweep, the end
of a lease with many keys, or a lease after another make such runs of removed records, in any table.

A gap (left, right) says that no record is between these two keys, which are records themselves; b"" stands for the
beginning, or for the end. `Gaps` has the gaps of the present state in order, and follows each write:

- Where an end of a gap is removed, the gap grows to the next record (`plan`, before the write). So both ends always
  exist, and a walk that stands on a record never goes into a gap by itself.
- A record that was put into a gap splits it (`wrote`, after the write).
- Of other removals one in SAMPLE is looked at. If many removed records are around it, that becomes a gap. A run of
  removed records grows one by one, so it is found while it is short.

A walk (`GapWalk`) gives up after LIMIT removed records, and then leaps over the gap that it stands at. If it knows none
there (after a start, for removed records of the time before), it walks over all of them once, and notes the gap.

A gap is a matter of what lives, and not of files, so it stays right whatever RocksDB rewrites. `prune` drops gaps with
few removed records in them. The bounds of RocksDB's iterators would make some of this simpler, but those of rocksdict
cannot be set to any key in raw mode (0.3.29).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from metastore._core.ordered_map cimport OrderedMap
from metastore._core.ordered_map_walk cimport (Cursor, cursor_below, cursor_first, cursor_ge, cursor_next, tree_get,
                                               tree_le)
from metastore._core.record cimport Record, key_cmp, rec_deleted, rec_key, rec_value
from metastore._core.work cimport Detours

cdef enum:
    LIMIT_ = 128             # RocksDB's own records that a walk steps over before it looks for a gap
    DENSE = 64               # of these that a gap has at least
    SAMPLE = 32              # of so many removals one is looked at,
    SAMPLES = 16             # and so many at most in one write (10 to 20 us each)
    FAR = 4                  # detours as which a walk over unknown removed records counts
    MOST = 20_000            # gaps, and bytes of their ends. Beyond that only the first and the last part of one that
    MOST_BYTES = 16 << 20    # is split are kept, and `prune` looks at all

LIMIT, FEW = LIMIT_, DENSE
cdef bytes NONE = b""        # no record there: the beginning, or the end


cdef bytes key_of(Record* rec):
    return PyBytes_FromStringAndSize(<const char*>rec_key(rec), rec.klen)


cdef bytes value_of(Record* rec):
    return PyBytes_FromStringAndSize(<const char*>rec_value(rec), rec.vlen)


cdef bint too_many(object walk) except -1:
    """Whether an iterator has given up because of removed records. Raises what else is the matter with it."""
    try:
        walk.status()
    except Exception as error:
        if "Too many internal keys" in str(error):
            return True
        raise
    return False


cdef Record* around(OrderedMap ends, const unsigned char* key, size_t n) noexcept:
    """Return the gap (left, right) that a key is in, or NULL. The beginning itself is in the first one."""
    cdef Record* rec = tree_le(ends.root, key, n)
    # If the left end is the key itself, and not the beginning, the key is a record.
    if rec == NULL or (n > 0 and key_cmp(rec_key(rec), rec.klen, key, n) == 0):
        return NULL
    if rec.vlen and key_cmp(rec_value(rec), rec.vlen, key, n) <= 0:
        return NULL
    return rec


cdef bint removes(OrderedMap batch, const unsigned char* key, size_t n) noexcept:
    """Whether a batch removes a record. No record has the key b""."""
    cdef Record* change = tree_get(batch.root, key, n)
    return change != NULL and rec_deleted(change)


cdef class Gaps:
    """See above. `leaps` counts the walks that leapt, `learned` the gaps that a walk has found, `faults` the gaps that
    were wrong."""

    def __init__(self, Detours detours=None):
        """`detours`: who counts them already."""
        self.ends = OrderedMap()
        self.detours = Detours() if detours is None else detours
        self.pruned = NONE

    def __len__(self):
        return self.ends.count

    def items(self) -> list:
        """Return all gaps as (left, right)."""
        return self.ends.scan(b"", None, False, 0)

    cpdef OrderedMap view(self):
        """Return the gaps of the present state, which do not follow later writes."""
        return self.ends.view()

    cpdef tuple ahead(self, bytes start):
        """Return (where a walk from `start` on begins, the first gap at which it arrives: its left end or None, its
        right end)."""
        cdef Cursor cur
        cdef Record* rec
        if not self.ends.count:
            return (start, None, None)
        rec = around(self.ends, <const unsigned char*>PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start))
        if rec != NULL and rec.vlen:
            start = value_of(rec)
        rec = cursor_ge(&cur, self.ends.root, <const unsigned char*>PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start))
        return (start, None, None) if rec == NULL else (start, key_of(rec), value_of(rec))

    cpdef clear(self):
        """Forget all gaps."""
        self.ends = OrderedMap()
        self.unsure = 0

    cdef bint dense(self, object few, bytes left, bytes right) except -1:
        """Whether many removed records are between two keys; `few` gives up after DENSE. If the gap is wrong, all are
        forgotten."""
        few.seek(left + b"\0" if left else left)
        here = few.key()
        if here is None and too_many(few):
            return True
        if (here or NONE) != right:
            self.faults += 1
            self.clear()
        return False

    cdef int add(self, bytes left, bytes right) except -1:
        """Note a gap, in place of those in it."""
        cdef list inner = self.ends.scan(left, right or None, False, 0)
        cdef bytes key
        for key, _ in inner:
            self.ends.delete(key)
        if inner or not self.is_full():
            self.ends.set(left, right)
        else:
            self.unsure = self.ends.count
        return 0

    cdef bint is_full(self) noexcept:
        return self.ends.count >= MOST or self.ends.nbytes >= MOST_BYTES

    cpdef learn(self, bytes left, bytes right):
        """Note a gap that a walk has found."""
        self.learned += 1
        self.add(left, right)

    # -- following writes

    cpdef list plan(self, OrderedMap batch, object walker):
        """Return the gaps that grow by a batch that is about to be written, because ends of gaps are removed.
        `walker()` is a GapWalk over the present state."""
        cdef Cursor cur
        cdef Record* rec
        cdef list found = []
        cdef bytes key, left, right = None
        if not self.ends.count:
            return found
        rec = cursor_first(&cur, batch.root)
        while rec != NULL:
            if rec_deleted(rec) and self.ends_at(rec) and (
                    right is None or (right and key_cmp(<const unsigned char*>PyBytes_AS_STRING(right),
                                                        PyBytes_GET_SIZE(right), rec_key(rec), rec.klen) < 0)):
                key = key_of(rec)
                left, right = self.left_of(batch, key), self.right_of(batch, key)
                if left is None:
                    left = self.beside(batch, walker(), key, False)
                if right is None:
                    right = self.beside(batch, walker(), key, True)
                found.append((left, right))
            rec = cursor_next(&cur)
        return found

    cdef bint ends_at(self, Record* rec) noexcept:
        """Whether a key is the end of a gap."""
        cdef Cursor cur
        cdef Record* gap
        if tree_get(self.ends.root, rec_key(rec), rec.klen) != NULL:
            return True
        gap = cursor_below(&cur, self.ends.root, rec_key(rec), rec.klen)
        return gap != NULL and gap.vlen and key_cmp(rec_value(gap), gap.vlen, rec_key(rec), rec.klen) == 0

    cdef bytes left_of(self, OrderedMap batch, bytes key):
        """Return the left end of the gap of which `key` is the right end, unless the batch removes it; else None."""
        cdef Cursor cur
        cdef Record* gap = cursor_below(&cur, self.ends.root, <const unsigned char*>PyBytes_AS_STRING(key),
                                        PyBytes_GET_SIZE(key))
        if gap == NULL or value_of(gap) != key or removes(batch, rec_key(gap), gap.klen):
            return None
        return key_of(gap)

    cdef bytes right_of(self, OrderedMap batch, bytes key):
        """Return the right end of the gap of which `key` is the left end, unless the batch removes it; else None."""
        cdef Record* gap = tree_get(self.ends.root, <const unsigned char*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        if gap == NULL or removes(batch, rec_value(gap), gap.vlen):
            return None
        return value_of(gap)

    cdef bytes beside(self, OrderedMap batch, object walk, bytes key, bint up):
        """Return the next record above, or below, that the batch does not remove."""
        cdef Record* change
        cdef bytes here
        if up:
            walk.seek(key)
        else:
            walk.seek_for_prev(key)
        step = walk.next if up else walk.prev
        while True:
            here = walk.key()
            if here is None:
                walk.status()
                return NONE
            change = tree_get(batch.root, <const unsigned char*>PyBytes_AS_STRING(here), PyBytes_GET_SIZE(here))
            if change == NULL or not rec_deleted(change):
                return here
            step()

    cpdef wrote(self, OrderedMap batch, list planned, object walker, object few):
        """Follow a write. `planned` comes from `plan`; `few()` is an iterator over the new state that gives up after
        DENSE removed records. Raises what the iterators raise."""
        cdef Cursor cur
        cdef Record* rec = cursor_first(&cur, batch.root)
        cdef list born = [], samples = []
        cdef bytes left, right
        self.writes += 1
        for left, right in planned:
            self.add(left, right)
        while rec != NULL:
            if self.ends.count and around(self.ends, rec_key(rec), rec.klen) != NULL:
                if not rec_deleted(rec):
                    born.append(key_of(rec))
            elif rec_deleted(rec):
                self.removals += 1
                if self.removals % SAMPLE == 0 and len(samples) < SAMPLES:
                    samples.append(key_of(rec))
            rec = cursor_next(&cur)
        if born:
            self.split(born)
        if samples:
            self.sample(samples, walker(), few())

    cpdef wiped(self, list ranges, object walk):
        """Follow a write that has removed all records of some ranges, each of which becomes a gap. `walk` is a GapWalk
        over the new state. Raises what it raises.

        Gaps that end in a range have lost that end. Nothing lives in them all the same, so the walk may use them, and
        the new gap takes the place of those that begin in the range.
        """
        cdef bytes start, end, left, right
        self.writes += 1
        for start, end in ranges:
            walk.seek_for_prev(start)
            left = walk.key() or NONE
            walk.status()
            walk.seek(end)
            right = walk.key() or NONE
            walk.status()
            self.add(left, right)

    cdef int split(self, list born) except -1:
        """Cut the gaps that records were put into, at these."""
        cdef Py_ssize_t i = 0, first, n = len(born)
        cdef Record* rec
        cdef bytes left, right, key
        while i < n:
            key = born[i]
            rec = around(self.ends, <const unsigned char*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
            if rec == NULL:
                i += 1
                continue
            left, right = key_of(rec), value_of(rec)
            self.ends.delete(left)
            first = i
            while i < n and (not right or <bytes>born[i] < right):
                if i == first or not self.is_full():
                    if left or born[i]:
                        self.ends.set(left, born[i])
                left = born[i]
                i += 1
            self.ends.set(left, right)
        self.unsure = self.ends.count
        return 0

    cdef int sample(self, list removed, object walk, object few) except -1:
        """Look for gaps around records that were removed."""
        cdef bytes key, left, right
        for key in removed:
            if around(self.ends, <const unsigned char*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)) == NULL:
                walk.seek_for_prev(key)
                left = walk.key() or NONE
                walk.status()
                if left != key:
                    walk.seek(key)
                    right = walk.key() or NONE
                    walk.status()
                    if self.dense(few, left, right):
                        self.add(left, right)
        return 0

    cpdef prune(self, object few, Py_ssize_t most):
        """Look at so many gaps, and drop those with few removed records in them. Return whether there is more to do."""
        cdef list some
        cdef bytes left, right
        cdef object walk
        if self.unsure <= 0:
            return False
        walk = few()
        some = self.ends.scan(self.pruned, None, False, most)
        self.unsure -= most
        self.pruned = NONE if len(some) < most else <bytes>some[len(some) - 1][0] + b"\0"
        for left, right in some:
            if not self.dense(walk, left, right):
                self.ends.delete(left)
        return self.unsure > 0

    def check(self, walk not None) -> None:
        """For tests: look whether no record is in a gap, and whether the ends of each are records. `walk` never gives
        up. Raises AssertionError."""
        cdef bytes left, right, last = NONE
        for left, right in self.items():
            assert left >= last and (not right or left < right), f"{left!r}: gaps overlap"
            walk.seek(left)
            if left:
                assert walk.key() == left, f"{left!r}: no record, but {walk.key()!r}"
                walk.next()
            assert walk.key() == (right or None), f"{left!r} to {right!r}: {walk.key()!r} is in the gap"
            last = right


cdef class GapWalk:
    """An iterator over the state at its beginning, which leaps over gaps. It has the methods of rocksdict's iterators.

    `walk` is an iterator that gives up after LIMIT removed records, `gaps` has the gaps of its state, and `plain()` is
    an iterator over the same state that never gives up. A walk that `learns` notes the gaps that only this one finds,
    unless there was a write meanwhile; it is used in the thread that writes.
    """

    def __init__(self, walk not None, Gaps gaps not None, plain not None, bint learns=True):
        self.walk, self.plain, self.gaps, self.learns = walk, plain, gaps, learns
        self.ends, self.writes, self.detours = gaps.view(), gaps.writes, gaps.detours
        self.step, self.back, self.read_key, self.read_value = walk.next, walk.prev, walk.key, walk.value

    def valid(self) -> bool:
        """Whether it stands on a record."""
        return self.here is not None

    cpdef bytes key(self):
        """Return the record's key, or None."""
        return self.here

    cpdef object value(self):
        """Return the record's value, or None."""
        return None if self.here is None else self.read_value()

    cpdef status(self):
        """Raise what ended the walk, if it was a fault."""
        if self.here is None:
            too_many(self.walk)

    cpdef seek(self, bytes key):
        """Go to the first record not below `key`."""
        cdef Record* rec = around(self.ends, <const unsigned char*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        if rec != NULL:
            self.leaps += 1
            self.detours.count += 1
            key = value_of(rec)
            if not key:
                self.here = None
                return
        self.walk.seek(key)
        self.here, self.stop = self.read_key(), None
        if self.here is None and too_many(self.walk):
            self.seek_far(key, None)

    cpdef next(self):
        """Go to the next record."""
        cdef bytes left = self.here
        if left is None:
            return
        if self.ends.count and self.leap():
            return
        self.step()
        self.here = self.read_key()
        if self.here is None and too_many(self.walk):
            self.seek_far(left + b"\0", left)

    cdef bytes border(self, bytes key):
        """Return the left end of the first gap that is not before `key`, or `key` itself where that is in a gap. None: no
        such gap is known."""
        cdef Cursor cur
        cdef Record* rec
        if not self.ends.count:
            return None
        if around(self.ends, <const unsigned char*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)) != NULL:
            return key
        rec = cursor_ge(&cur, self.ends.root, <const unsigned char*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        return None if rec == NULL else key_of(rec)

    cdef bint leap(self) except -1:
        """Leap, if it stands at the left end of a gap. Return whether it did."""
        cdef Cursor cur
        cdef Record* rec
        if self.stop is None or <bytes>self.stop < self.here:
            rec = cursor_ge(&cur, self.ends.root, <const unsigned char*>PyBytes_AS_STRING(self.here),
                            PyBytes_GET_SIZE(self.here))
            self.stop = b"\xff" + self.here if rec == NULL else key_of(rec)
        if <bytes>self.stop != self.here:
            return False
        rec = tree_get(self.ends.root, <const unsigned char*>PyBytes_AS_STRING(self.here), PyBytes_GET_SIZE(self.here))
        if rec == NULL:
            return False
        self.leaps += 1
        self.detours.count += 1
        if rec.vlen:
            self.seek(value_of(rec))
        else:
            self.here = None
        return True

    cdef int seek_far(self, bytes key, bytes left) except -1:
        """Go to the first record not below `key`, over whatever was removed there. `left`: the record before it."""
        cdef object plain = self.plain()
        self.far += 1
        self.detours.count += FAR
        plain.seek(key)
        self.here = plain.key()
        plain.status()
        if self.here is not None:
            self.walk.seek(self.here)
        if self.learns and self.gaps.writes == self.writes:
            if left is None:
                plain.seek_for_prev(key)
                left = plain.key() or NONE
                plain.status()
            self.learn(left, self.here or NONE)
        return 0

    cdef int learn(self, bytes left, bytes right) except -1:
        self.gaps.learn(left, right)
        self.ends, self.stop = self.gaps.view(), None
        return 0

    def seek_for_prev(self, bytes key not None) -> None:
        """Go to the last record not above `key`."""
        cdef Record* rec = around(self.ends, <const unsigned char*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        if rec != NULL:
            self.leaps += 1
            self.detours.count += 1
            key = key_of(rec)
            if not key:
                self.here = None
                return
        self.walk.seek_for_prev(key)
        self.here, self.stop = self.read_key(), None
        if self.here is None and too_many(self.walk):
            self.prev_far(key, None)

    def seek_to_last(self) -> None:
        """Go to the last record."""
        cdef list last = self.ends.scan(b"", None, True, 1)
        if last and not last[0][1]:
            self.seek_for_prev(last[0][0])
            return
        self.walk.seek_to_last()
        self.here, self.stop = self.read_key(), None
        if self.here is None and too_many(self.walk):
            self.prev_far(None, NONE)

    def prev(self) -> None:
        """Go to the record before."""
        cdef bytes right = self.here
        cdef Cursor cur
        cdef Record* rec
        if right is None:
            return
        self.stop = None
        if self.ends.count:
            rec = cursor_below(&cur, self.ends.root, <const unsigned char*>PyBytes_AS_STRING(right),
                               PyBytes_GET_SIZE(right))
            if rec != NULL and rec.vlen and value_of(rec) == right:
                self.leaps += 1
                self.detours.count += 1
                self.here = None
                if rec.klen:
                    self.seek_for_prev(key_of(rec))
                return
        self.back()
        self.here = self.read_key()
        if self.here is None and too_many(self.walk):
            self.prev_far(None, right)

    cdef int prev_far(self, bytes key, bytes right) except -1:
        """Go to the last record not above `key` or, without a key, to the one before the record `right` (NONE: the
        last of all)."""
        cdef object plain = self.plain()
        self.far += 1
        self.detours.count += FAR
        if key is not None:
            plain.seek_for_prev(key)
        elif right:
            plain.seek(right)
            plain.prev()
        else:
            plain.seek_to_last()
        self.here = plain.key()
        plain.status()
        if self.here is not None:
            self.walk.seek_for_prev(self.here)
        if self.learns and self.gaps.writes == self.writes:
            if right is None:
                plain.seek(key)
                right = plain.key() or NONE
                plain.status()
            self.learn(self.here or NONE, right)
        return 0
