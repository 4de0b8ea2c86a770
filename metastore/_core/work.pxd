from libc.stdint cimport int64_t, uint8_t

from metastore._core.kv_messages cimport Kv

# Costs in units of about 100 ns with the engine in memory. Engine.pace says how much more a unit costs with another
# engine.
cdef enum:
    COST_KEY = 1         # a key that is looked at
    COST_PAIR = 4        # a pair that is collected, compared or encoded
    COST_WRITE = 16      # a key that is written, with its way into the engine
    COST_COUNT = 512     # a count of an engine in files, which walks over a part of two stretches (0.6 ms)
    COST_DETOUR = 16     # a detour of a walk of such an engine around removed records (10 to 20 us)
    COST_OP = 8          # an operation of a transaction, besides what it does
    COST_BYTES = 256     # bytes that are copied or compared for one unit
    LEAST_COPY = 65536   # bytes that one piece of joining copies at least


cdef size_t held_most() noexcept
cdef size_t held_together() noexcept
cdef object reply_too_large()



cdef class Detours:
    """How the walks of an engine in files went."""
    cdef public size_t count      # detours that they have made around removed records
    cdef public size_t runs       # values that `find_many` has found one behind the other, which takes 0.3 us each
    cdef int64_t filled           # the revision where a run has last brought the index of its file into the cache


cdef size_t detour_cost(Detours made, size_t* seen) noexcept


cdef class Parts:
    """An encoded message in pieces."""
    cdef list items           # bytes objects
    cdef readonly size_t size # bytes of all items

    cdef int add(self, bytes part) except -1
    cdef int put_first(self, bytes part) except -1
    cdef int extend(self, Parts other) except -1


cdef class Work:
    """See work.pyx."""
    cdef readonly size_t cost     # units that the last step took
    cdef readonly size_t held     # bytes that it holds for its reply
    cdef readonly object reply    # bytes, when `step` has returned True; None when no reply is wanted
    cdef bint done                # `out` is complete
    cdef Parts out
    cdef Py_ssize_t next_part
    cdef size_t part_at
    cdef size_t whole_at

    cpdef bint step(self, size_t budget) except -1
    cdef bint advance(self, size_t budget) except -1
    cdef bint join(self, size_t budget) except -1
    cdef int freeze(self) except -1
    cpdef bint discard(self, size_t budget) except -1


cdef class Sorter:
    """Sorts pairs piece by piece with a stable merge sort over pointers."""
    cdef Kv** here
    cdef Kv** there
    cdef size_t n
    cdef size_t filled
    cdef size_t width, low, left, right, at
    cdef int target
    cdef bint down
    cdef readonly size_t cost     # units that the last step took

    cdef int begin(self, size_t n, int target, bint down) except -1
    cdef bint second_first(self, const Kv* a, const Kv* b) noexcept
    cdef bint step(self, Kv* items, size_t budget) except -1
