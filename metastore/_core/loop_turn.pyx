"""The compiled part of a turn of the loop: it waits, calls whoever is ready, and keeps the time.

`net/loop.py` has the whole loop. This part is compiled because each put of a member that is not busy takes a turn, on
cold caches, and a put in a cluster takes three of its leader's turns and two of each follower's. It waits by itself
because the thread must say that it wants the GIL before it waits for that (`quiet`). What is rare stays in the methods
of the subclass: `_in_order(ready)`, `_run_timers(until)`, `_run_posted(until)`, `_run_behind()`, `_drop_cancelled()`
and `_take_nap()`.

Its clock is that of `time.perf_counter`, CLOCK_MONOTONIC.
"""

from cpython.dict cimport PyDict_GetItem
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.errno cimport EINTR, errno
from libc.math cimport ceil

from metastore._core.quiet cimport Quiet, ms_have, ms_want

cdef extern from *:
    """
    #include <sys/epoll.h>
    #include <time.h>
    static inline double ms_wall(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
    }
    """
    double ms_wall() noexcept nogil
    int epoll_wait(int fd, epoll_event* events, int most, int milliseconds) noexcept nogil

cdef double WAIT = 60.0, SLOW = 0.02, TURN = 0.01, DOUBT = 0.001, ASIDE = 0.0006

#: The longest wait of one turn, in seconds. It bounds the delay that a clock jump or a lost wake-up can cause.
LONGEST_WAIT = WAIT
#: Turns that work for longer than this (seconds) are counted. No request may cause such a turn.
SLOW_TURN = SLOW
#: What the parts of a turn share (seconds).
TURN_TIME = TURN
#: The loop knows no better than this how long its thread has worked (seconds). The clock of a thread is a system call,
#: of which a put of three members made 3.6 on the leader. The clock on the wall costs none and is never behind it.
UNSURE = DOUBT

#: The longest for which descriptors may be set aside (seconds). Who waits for them adds it to each answer.
LONGEST_ASIDE = ASIDE


cdef class LoopTurn:
    """The base of `net.loop.Loop`, which makes its fields. `max_events` are looked at in one turn."""

    def __init__(self, int max_events):
        self._max_events = max_events
        self.room = <epoll_event*>PyMem_Malloc(max_events * sizeof(epoll_event))
        if self.room is NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.room)

    # ---- waiting

    cpdef set_aside(self, double seconds):
        """Until `seconds` from now (0: not any more), only urgent descriptors, other threads and signals wake the loop.
        After LONGEST_ASIDE the loop looks at the others in any case, however often this is said, and while some of them
        are left over from the turn before, it is ignored."""
        cdef double now
        if seconds == 0.0:
            self._aside_until = 0.0
            return
        now = self.now()
        if self._aside_until == 0.0:
            self._aside_at_most = now + ASIDE
        self._aside_until = min(now + seconds, self._aside_at_most)

    cpdef double patience(self, timeout) except? -1.0:
        """How long this turn may wait for descriptors, in seconds; `timeout` bounds it (None: LONGEST_WAIT)."""
        cdef double wait = WAIT if timeout is None else timeout, left
        if self._nap:
            self._take_nap()
        if self._posted or self._stopping or self._left or self._again:
            return 0.0
        if self._timers:
            if self._timers[0][2].call is None:
                self._drop_cancelled()
            left = <double>self._timers[0][0] - <double>self.now()
            if left < wait:
                wait = left if left > 0.0 else 0.0
        return wait

    cpdef list look(self, double wait):
        """Wait for `wait` seconds at most, and return the descriptors that are to be looked at."""
        cdef list ready
        if self._aside_until != 0.0:
            return self.look_aside(wait)
        ready = self.ready(self.all_fd, wait)
        if self.gather == 0.0 or not ready or self._left or self.has_urgent(ready):
            return ready
        self.set_aside(self.gather)
        return self.look_aside(self.gather)

    cdef list look_aside(self, double wait):
        """Wait while descriptors are set aside, `wait` seconds at most, and return those that are to be looked at."""
        cdef double left = self._aside_until - <double>self.now()
        cdef list ready
        # It still tells of eventfds that were looked at in earlier turns. What is new among them comes next.
        self.ready(self.urgent_fd, 0.0)
        ready = self.ready(self.all_fd, 0.0)
        if wait > 0.0 and left > 0.0 and not self.has_urgent(ready):
            self.await_readable(self.urgent_fd, min(wait, left), self.quiet)
            left = self._aside_until - <double>self.now()
            ready = self.ready(self.all_fd, 0.0)
        if left <= 0.0 or self._left:
            self._aside_until = 0.0
            return ready
        return [one for one in ready if (<tuple>one)[0] in self._urgent]

    cdef list ready(self, int fd, double wait):
        """What an epoll tells within `wait` seconds: (descriptor, events) of each. A signal's handler runs in here, and
        ends the wait."""
        cdef int count, at, milliseconds = <int>ceil(wait * 1000.0), failed = 0
        cdef Quiet quiet = self.quiet
        cdef list found = []
        with nogil:
            count = epoll_wait(fd, self.room, self._max_events, milliseconds)
            if count < 0:
                failed = errno
            ms_want(&quiet.asking)
        ms_have(&quiet.asking)
        if failed == EINTR:
            PyErr_CheckSignals()
        elif failed:
            raise OSError(failed, "epoll_wait failed")
        for at in range(count):
            found.append((self.room[at].data.fd, self.room[at].events))
        return found

    cdef bint has_urgent(self, list ready) except -1:
        for one in ready:
            if (<tuple>one)[0] in self._urgent:
                return True
        return False

    # ---- serving

    cpdef serve(self, list ready, turn):
        """Call whoever is ready, then what is due, then `turn` (None: nothing), and note how long that took."""
        cdef double began, took
        self.quiet.shut()  # before anything else
        began = self._began = ms_wall()
        if self._unsure > DOUBT:
            self._worked, self._unsure = <double>self.thread_time(), 0.0
        if self._left:
            ready = self._in_order(ready)
        self.call(ready, began + self.callbacks_time)
        if self._timers and <double>self._timers[0][0] <= <double>self.now():
            self._run_timers(began + self.timers_time)
        if self._posted:
            self._run_posted(began + self.posted_time)
        if turn is not None:
            turn()
        self._again = len(self._behind) > 0
        if self._again:
            self._run_behind()
        took = ms_wall() - began
        self.turns += 1
        self.turn_seconds += took
        if took > self.longest_turn:
            self.longest_turn = took
        if took > SLOW:
            self.slow(<double>self.thread_time() - self._worked)
        self._worked += took
        self._unsure += took

    cdef int call(self, list ready, double until) except -1:
        """Call the callbacks of descriptors. What is not reached before `until` is left."""
        cdef Py_ssize_t at
        cdef PyObject* callback
        for at in range(len(ready)):
            fd, events = <tuple>ready[at]
            # A callback earlier in this turn may have removed this one.
            callback = PyDict_GetItem(self._callbacks, fd)
            if callback is not NULL:
                (<object>callback)(events)
            if ms_wall() >= until:
                self._left = ready[at + 1:]
                break
        return 0

    cdef int slow(self, double worked) except -1:
        """A turn took long by the clock; `worked` is the processor time of this thread in it (seconds)."""
        self.longest_work = max(self.longest_work, worked)
        self.slow_turns += worked > SLOW
        return 0

    def share(self):
        """How much of TURN_TIME this thread has not used up in this turn: from 1.0 down to 0.0."""
        cdef double took = ms_wall() - self._began, left
        if took > DOUBT:
            took = <double>self.thread_time() - self._worked
        left = 1.0 - took / TURN
        return left if left > 0.0 else 0.0
