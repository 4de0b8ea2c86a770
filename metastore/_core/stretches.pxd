from libc.stdint cimport int32_t, int64_t, uint8_t

from metastore._core.engine cimport Engine
from metastore._core.ordered_map cimport OrderedMap
from metastore._core.record cimport Record
from metastore._core.work cimport Detours


cdef class Walk:
    """Goes from key to key over table 'k' of an engine with files."""
    cdef object walk, step, read_key, read_value
    cdef bytes here           # the record on which it stands; None: behind the table
    cdef bytes prefix         # what `next` has found: a client's key,
    cdef bytes newest         # its newest version,
    cdef bint alive           # and whether that is alive
    cdef bint all_alive       # the caller knows that no key is dead
    cdef int most_steps       # records of one key that it goes over before it jumps
    cdef readonly Py_ssize_t records

    cdef int look(self) except -1
    cdef bint next(self) except -1


cdef class Stretches:
    """How many keys are alive in each stretch of the table of keys."""
    cdef list fences          # the first key of each stretch; the first fence is b"k"
    cdef int32_t* alive
    cdef int32_t* present
    cdef uint8_t* marks       # which are due: they may have too many keys, or none, or are to be compared
    cdef size_t room
    cdef readonly bytes border    # keys below it are counted; None: all are
    cdef bytes top                # no key stands above this one; None while the index is built
    cdef Walk going               # it counts; None: `build` begins one
    cdef list pending             # changes above the border that it does not see; None: there is no walk
    cdef Py_ssize_t writes        # batches since it began
    cdef size_t begun             # stretches that ascending keys have begun
    cdef readonly Py_ssize_t due  # stretches that are marked
    cdef readonly int64_t keys    # keys present that are counted
    cdef readonly int64_t faults  # how often a walk found other numbers

    cpdef restart(self)
    cdef int insert(self, Py_ssize_t at, bytes fence, int32_t alive, int32_t present) except -1
    cdef int grow(self, size_t room) except -1
    cdef int remove(self, Py_ssize_t at) except -1
    cdef void mark(self, Py_ssize_t at, bint due) noexcept
    cpdef release(self)
    cpdef bint build(self, object walker, Py_ssize_t records, Detours detours=*)
    cdef int catch_up(self) except -1
    cdef int take(self, Walk keys) except -1
    cpdef list changes(self, OrderedMap batch, Engine engine)
    cdef int change(self, Engine engine, bytes prefix, Record* put, list removed, list found) except -1
    cpdef list note(self, list changes)
    cdef int wait(self, object change) except -1
    cdef bint rises(self, Py_ssize_t at, bytes prefix, int32_t alive, int32_t present) except -1
    cdef bint checks(self) noexcept
    cdef int join(self, Py_ssize_t at) except -1
    cpdef bint split(self, bytes fence, object walk)
    cpdef bint settle(self, object walk)
    cdef bint divide(self, Py_ssize_t at, object walk, Py_ssize_t parts, bint quick) except -1
    cdef bint fault(self) except -1
    cpdef object count(self, bytes start, bytes end, object walk)
    cdef int64_t between(self, bytes start, bytes end, object walk) except -1
    cdef int64_t part(self, bytes start, bytes end, object walk) except -1
    cdef bytes end_of(self, Py_ssize_t at)
    cdef int64_t walked(self, bytes start, bytes end, object walk, Py_ssize_t most) except -2
