"""The budgets of one turn, in units (_core/work)."""

from metastore._core.kv_server import SERVE_BUDGET

APPLY_BUDGET = 32768  # units (_core/work) that applying may cost in one turn: 3 ms
WATCH_BUDGET = 2000  # changes that are read for watchers, and responses to them: 2.5 ms

cdef enum:
    LEAST_SHARE = 8  # a turn in which little time is left does this part of its budgets, so that everything goes on


def whole():
    """The share of a turn in which time does not count."""
    return 1.0


cdef class Budgets:
    """What one turn may cost, in units (_core/work). Whoever made the object may change it between two turns.

    apply: the entries that are applied from one `pump` to the next. serve: the requests of this turn; those of earlier
    turns may cost as much once more. watch: what watchers are sent of new changes, and the same once more of history.
    share: how much is left of the turn, from 1.0 down to 0.0; the parts that come late in a turn that
    was long already do less. again: how many further budgets of applying a turn may spend while most of it is left.
    Where pieces end does not change what they do.
    """

    def __init__(self, *, Py_ssize_t apply=APPLY_BUDGET, Py_ssize_t serve=SERVE_BUDGET, Py_ssize_t watch=WATCH_BUDGET,
                 share=whole, int again=0):
        self.apply = apply
        self.serve = serve
        self.watch = watch
        self.share = share
        self.again = again

    cdef Py_ssize_t least(self, Py_ssize_t budget, Py_ssize_t spent) noexcept:
        return max(<Py_ssize_t>1, budget // LEAST_SHARE - spent)

    cpdef Py_ssize_t part(self, Py_ssize_t budget, Py_ssize_t spent=0) except -1:
        """What is left of a budget, of which this turn has spent some: at least one unit."""
        cdef Py_ssize_t left = <Py_ssize_t>(budget * <double>self.share())
        return max(self.least(budget, spent), min(left, budget - spent))
