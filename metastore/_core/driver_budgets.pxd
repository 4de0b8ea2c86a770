# What one turn may cost. driver_budgets.pyx has the contract.
cdef class Budgets:
    cdef public Py_ssize_t apply
    cdef public Py_ssize_t serve
    cdef public Py_ssize_t watch
    cdef public object share
    cdef public int again

    # The part of a budget that a turn may use however long it was already, less what it has spent: at least one unit.
    cdef Py_ssize_t least(self, Py_ssize_t budget, Py_ssize_t spent) noexcept
    # What is left of a budget, of which this turn has spent some: at least one unit.
    cpdef Py_ssize_t part(self, Py_ssize_t budget, Py_ssize_t spent=*) except -1
