"""Work in pieces: the one way in which anything that can take long is done in the loop's thread.

A `Work` is one request that is done piece by piece. `step(budget)` goes on for about `budget` units (work.pxd says what
a unit is) and tells whether the work is done; the reply then stands in `reply`. The contract, for all kinds of work:

* **Same result.** Where the pieces end changes neither the reply nor the state. What a work reads is one state: a
  reader's is the state at its first piece (it calls `freeze`, which takes a view of the engine, before the store may
  change); the work of an entry that is being applied reads the live store, which nothing else changes meanwhile.
* **Bounded pieces.** A step takes more than its budget by at most one key, one value or one copy of 64 KiB. Bytes count,
  not only keys. Collecting, filtering, sorting, encoding, joining the encoded parts and giving the memory back are all
  done in pieces.
* **Told memory.** `held` is what the work holds for its reply, in bytes. Who runs works bounds their number and the sum.
* **An end.** A work that is done, or whose step has raised, or that nobody waits for any more is discarded: `discard`
  gives back its memory in pieces and its view.

Raised by `step`: errors.ApiError (the request's fault), errors.DamagedData and whatever the engine raises.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from metastore import errors
from metastore._core.kv_messages cimport Kv
from metastore._core.record cimport key_cmp


# What works may hold for their replies: one of them, and all that are begun together. Less where the process may use
# little memory, for what one holds is there up to three times when it is joined and handed to a connection.
cdef size_t one_most = 512 << 20
cdef size_t together_most = 256 << 20


cdef size_t held_most() noexcept:
    return one_most


cdef size_t held_together() noexcept:
    return together_most


cdef object reply_too_large():
    """The error for a reply that takes more than one may."""
    return errors.ReplyTooLarge(
        f"etcdserver: the reply takes more than {one_most} bytes of memory; a write that asked for it was done"
    )


def set_held_most(size_t one, size_t together) -> None:
    """Bytes that one work may hold for its reply, and all that are begun together."""
    global one_most, together_most
    one_most = one
    together_most = together


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
    """Base of all works; a subclass has `advance`, and `freeze` and `discard` where they mean something."""

    def __cinit__(self):
        self.out = Parts()

    cpdef bint step(self, size_t budget) except -1:
        """Go on for about `budget` units; whether the work is done, and `reply` there."""
        self.cost = 0
        while True:
            if not self.done:
                self.done = self.advance(budget - self.cost)
            elif self.join(budget - self.cost):
                return True
            if self.cost >= budget and not (self.done and self.out is None):
                return False

    cdef bint advance(self, size_t budget) except -1:
        """One piece, at least a little; adds to `cost` and `out`. Whether `out` is complete now (None: no reply)."""
        raise NotImplementedError

    cdef bint join(self, size_t budget) except -1:
        """Copy some of the parts into the reply; whether that was the last."""
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
                # Given back at once: the copy needs its room.
                self.out.items[self.next_part] = None
                self.next_part += 1
                self.part_at = 0
            if most == 0:
                break
        return self.next_part == len(self.out.items)

    cdef int freeze(self) except -1:
        """From now on the store may change: what is still to be read comes out of a view."""
        return 0

    cpdef bint discard(self, size_t budget) except -1:
        """Give back what is held, about `budget` units of it; whether that is all."""
        return True


# --- sorting ---------------------------------------------------------------------------------------------

cdef inline size_t compared(size_t a, size_t b) noexcept nogil:
    return (a if a < b else b) // COST_BYTES


cdef class Sorter:
    """See work.pxd. `begin`, then `step` until it says True: `here` then points to the pairs in order."""

    def __dealloc__(self):
        free(self.here)
        free(self.there)

    cdef int begin(self, size_t n, int target, bint down) except -1:
        """For `n` pairs in the order of their keys; `target` is a RangeRequest's sort_target."""
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
        """Go on for about `budget` units; whether all is in order. `items` are the pairs, the same at every call."""
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
