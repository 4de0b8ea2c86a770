from metastore._core.quiet cimport Quiet

cdef extern from *:
    """
    #include <sys/epoll.h>
    """
    ctypedef union epoll_data_t:
        int fd
    struct epoll_event:
        unsigned int events
        epoll_data_t data

cdef class LoopTurn:
    # What the loop has to do, see `net/loop.py`.
    cdef public dict _callbacks         # descriptor -> callback(events)
    cdef public list _timers            # heap of (when, number, Timer)
    cdef public object _posted          # deque of calls
    cdef public list _behind            # calls that come behind the owner's turn
    cdef public list _left              # (descriptor, events) that the last turn had no time for
    cdef public bint _again             # the next turn comes at once
    cdef public bint _stopping
    cdef public double _nap             # how long the loop looks at nothing after this turn (s)
    cdef public int all_fd, urgent_fd   # the descriptors of the epolls of all descriptors, and of the urgent ones
    cdef public set _urgent             # the urgent descriptors
    cdef readonly int _max_events         # that are looked at in one turn
    cdef public object await_readable   # see `_core/brief_wait`
    # Until when the others are set aside (0.0: they are not), and until when at the latest (s of `now`).
    cdef public double _aside_until, _aside_at_most
    # When descriptors become ready, none of them urgent, others that do so within this time (s) are awaited.
    cdef public double gather
    cdef public object now              # the clock, in seconds: it never goes back
    cdef public object thread_time      # the clock of this thread's work (s)
    cdef public Quiet quiet             # what other threads are told
    cdef epoll_event* room              # for what is ready
    # After how much of a turn no further one of each is called (s).
    cdef public double callbacks_time, timers_time, posted_time
    # The figures.
    cdef public unsigned long long turns
    cdef public double turn_seconds
    cdef public double longest_turn
    cdef public unsigned long long slow_turns
    cdef public double longest_work
    cdef public double _worked          # processor time of this thread when the turn began; up to UNSURE more (s)
    cdef public double _unsure          # how much of that is time on the wall (s)
    cdef public double _began           # when the turn began (s of perf_counter)

    cpdef double patience(self, timeout) except? -1.0
    cpdef set_aside(self, double seconds)
    cpdef list look(self, double wait)
    cdef list look_aside(self, double wait)
    cdef list ready(self, int fd, double wait)
    cdef bint has_urgent(self, list ready) except -1
    cpdef serve(self, list ready, turn)
    cdef int call(self, list ready, double until) except -1
    cdef int slow(self, double worked) except -1
