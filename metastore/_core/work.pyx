"""Work in pieces: everything in the loop's thread that can take long is done in this way.

A `Work` is one request that is done piece by piece. `step(budget)` goes on for about `budget` units (work.pxd defines a
unit) and returns whether the work is done; the reply then stands in `reply`. The contract for all kinds of work:

* **Same result.** The reply and the state do not depend on where the pieces end. A work reads one state. A reader's is
  the state at its first piece: it calls `freeze`, which takes a view of the engine, before the store may change. The
  work of an entry that is being applied reads the live store, which nothing else changes meanwhile.
* **Bounded pieces.** A step exceeds its budget by at most one key, one value or one copy of 64 KiB. Bytes count, not
  only keys. Collecting, filtering, sorting, encoding, joining the encoded parts and giving the memory back are all done
  in pieces.
* **Known memory.** `held` is what the work holds for its reply, in bytes. The owner of works bounds their number and
  the sum.
* **An end.** A work is discarded when it is done, when its step has raised, or when nobody waits for it any more.
  `discard` gives back its memory in pieces and closes its view.

`step` raises errors.ApiError (the request's fault), errors.DamagedData and whatever the engine raises.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from metastore import errors
from metastore._core.kv_messages cimport Kv
from metastore._core.record cimport key_cmp


# The bytes that works may hold for their replies: one work, and all that are begun together. Both are less where the
# process may use little memory, because a reply is in memory up to three times while it is joined and sent.
cdef size_t one_most = 512 << 20
cdef size_t together_most = 256 << 20


cdef size_t held_most() noexcept:
    return one_most


cdef size_t held_together() noexcept:
    return together_most


cdef object reply_too_large():
    """Return the error for a reply that takes more memory than one may."""
    return errors.ReplyTooLarge(
        f"etcdserver: the reply takes more than {one_most} bytes of memory; a write that asked for it was done"
    )


def set_held_most(size_t one, size_t together) -> None:
    """Set the bytes that one work may hold for its reply, and the bytes that all begun works may hold together."""
    global one_most, together_most
    one_most = one
    together_most = together



cdef class Detours:
    """See work.pxd."""

    def __cinit__(self):
        self.filled = -(<int64_t>1 << 62)


cdef size_t detour_cost(Detours made, size_t* seen) noexcept:
    """Return what the detours cost that were made since `seen` of them were; that becomes their number. Walks in other
    threads count, too, because a cost only says where a piece ends."""
    cdef size_t before = seen[0]
    if made is None:
        return 0
    seen[0] = made.count
    return COST_DETOUR * (made.count - before)


cdef class Parts:
    """See work.pxd."""

    def __cinit__(self):
        self.items = []

    cdef int add(self, bytes part) except -1:
        self.items.append(part)
        self.size += <size_t>PyBytes_GET_SIZE(part)
        return 0

    cdef int put_first(self, bytes part) except -1:
        self.items.insert(0, part)
        self.size += <size_t>PyBytes_GET_SIZE(part)
        return 0

    cdef int extend(self, Parts other) except -1:
        self.items.extend(other.items)
        self.size += other.size
        return 0


cdef class Work:
    """Base of all works. A subclass defines `advance`, and `freeze` and `discard` if it needs them."""

    def __cinit__(self):
        self.out = Parts()

    cpdef bint step(self, size_t budget) except -1:
        """Go on for about `budget` units. Return whether the work is done and `reply` is set."""
        self.cost = 0
        while True:
            if not self.done:
                self.done = self.advance(budget - self.cost)
            elif self.join(budget - self.cost):
                return True
            if self.cost >= budget and not (self.done and self.out is None):
                return False

    cdef bint advance(self, size_t budget) except -1:
        """Do one piece, however small the budget is, and add to `cost` and `out`. Return whether `out` is complete
        (None: no reply)."""
        raise NotImplementedError

    cdef bint join(self, size_t budget) except -1:
        """Copy some parts into the reply. Return whether the last part was copied."""
        cdef bytes whole, part
        cdef size_t n, most = max(budget * COST_BYTES, <size_t>LEAST_COPY)
        if self.out is None:
            return True
        if self.reply is None:
            if len(self.out.items) == 1:
                self.reply = self.out.items[0]
                return True
            self.reply = PyBytes_FromStringAndSize(NULL, self.out.size)
        whole = self.reply
        self.held = 2 * self.out.size
        while self.next_part < len(self.out.items):
            part = self.out.items[self.next_part]
            n = min(<size_t>PyBytes_GET_SIZE(part) - self.part_at, most)
            memcpy(PyBytes_AS_STRING(whole) + self.whole_at, PyBytes_AS_STRING(part) + self.part_at, n)
            self.part_at += n
            self.whole_at += n
            most -= n
            self.cost += 1 + n // COST_BYTES
            if self.part_at == <size_t>PyBytes_GET_SIZE(part):
                # The part is released at once, because the copy needs its room.
                self.out.items[self.next_part] = None
                self.next_part += 1
                self.part_at = 0
            if most == 0:
                break
        return self.next_part == len(self.out.items)

    cdef int freeze(self) except -1:
        """Take a view for what is still to be read, because the store may change from now on."""
        return 0

    cpdef bint discard(self, size_t budget) except -1:
        """Give back about `budget` units of what is held. Return whether all is given back."""
        return True


# --- sorting ---------------------------------------------------------------------------------------------

cdef inline size_t compared(size_t a, size_t b) noexcept nogil:
    return (a if a < b else b) // COST_BYTES


cdef class Sorter:
    """See work.pxd. Call `begin`, then `step` until it returns True; then `here` points to the pairs in order."""

    def __dealloc__(self):
        free(self.here)
        free(self.there)

    cdef int begin(self, size_t n, int target, bint down) except -1:
        """Begin with `n` pairs in the order of their keys. `target` is a RangeRequest's sort_target."""
        self.here = <Kv**>malloc(n * sizeof(Kv*))
        self.there = <Kv**>malloc(n * sizeof(Kv*))
        if self.here == NULL or self.there == NULL:
            raise MemoryError
        self.n = n
        self.width = 1
        self.right = 1
        self.target = target
        self.down = down
        return 0

    cdef bint second_first(self, const Kv* a, const Kv* b) noexcept:
        """Whether `b` comes before `a`. Pairs that are equal in the target stay in key order in both directions."""
        cdef int64_t x = 0, y = 0
        if self.target == 1:
            x, y = a.version, b.version
        elif self.target == 2:
            x, y = a.create, b.create
        elif self.target == 3:
            x, y = a.mod, b.mod
        elif self.target == 4:
            x = key_cmp(a.value.p, a.value.n, b.value.p, b.value.n)
            self.cost += compared(a.value.n, b.value.n)
        else:
            x = key_cmp(a.key.p, a.key.n, b.key.p, b.key.n)
            self.cost += compared(a.key.n, b.key.n)
        return y > x if self.down else y < x

    cdef bint step(self, Kv* items, size_t budget) except -1:
        """Go on for about `budget` units. Return whether all is in order. `items` are the pairs, the same at every
        call."""
        cdef size_t middle, end
        self.cost = 0
        while self.filled < self.n:
            if self.cost >= budget:
                return False
            self.here[self.filled] = &items[self.filled]
            self.filled += 1
            self.cost += self.filled & 1
        while self.width < self.n:
            middle = min(self.low + self.width, self.n)
            end = min(middle + self.width, self.n)
            while self.at < end:
                if self.cost >= budget:
                    return False
                self.cost += 1
                if self.left < middle and not (
                        self.right < end and self.second_first(self.here[self.left], self.here[self.right])):
                    self.there[self.at] = self.here[self.left]
                    self.left += 1
                else:
                    self.there[self.at] = self.here[self.right]
                    self.right += 1
                self.at += 1
            self.low = end
            if end == self.n:
                self.here, self.there = self.there, self.here
                self.width *= 2
                self.low = self.at = 0
            self.left = self.low
            self.right = min(self.low + self.width, self.n)
        return True
