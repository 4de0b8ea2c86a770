from libc.stdint cimport uint64_t

cdef class JudgeFields:
    cdef public set silent               # members that have not been reached lately
    cdef public object waiting           # deque of the changes that wait to be judged
    cdef public uint64_t term            # the core's term when this member last judged
    cdef public bint restate             # the roster must be stated
    cdef public double restate_at        # when it must be stated again (s)

cdef class ChangesFields:
    cdef public JudgeFields judging
    cdef public object requests          # deque of the changes that wait for a leader

cdef class CommittedFields:
    cdef public object due               # a ConfState that the core must work with before anything is applied, or None

cdef class ReadsFields:
    cdef public object rounds            # deque of those under way, the oldest first
    cdef public object confirmed_rounds  # deque of those that wait for their index to be applied, the oldest first
