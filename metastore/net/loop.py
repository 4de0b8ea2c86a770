"""A thin event loop over epoll: it handles ready file descriptors, timers, and calls from other threads.

One turn (`run_once`) has four steps. The loop waits, runs the callbacks of the descriptors that are ready, and runs the
timers and posted calls that are due. Then it calls the `turn` of its owner once. There the owner starts the next group
of the disk and flushes the connections that have output. What can wait for all of that comes behind it (`call_behind`).
What each turn passes is compiled (`_core/loop_turn`).

All steps share TURN_TIME, because each may take long, and their sum is the length of the turn. Callbacks, timers and
posted calls each have a moment of the turn after which no further one begins, but one of each that is due always runs.
What was left comes first in the next turn: descriptors right after the urgent ones (the disk and the peers). Many busy
clients therefore hold up neither the disk nor each other. The owner asks `share` how much of the turn is left, and
does less when that is little.

The owner may set aside all descriptors but the urgent ones for a moment, or let the first that is ready wait for others
(`gather`). Whatever they have to say is then looked at together. A descriptor waits for LONGEST_ASIDE at most.

An exception from any callback is fatal: `run` ends and raises it. Code that serves a single client must catch the
errors of that client itself.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import math
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from .._core.brief_wait import await_readable, readable
from .._core.loop_turn import LoopTurn
from .._core.quiet import Quiet
from ..errors import UnsupportedPlatform

# These are numbers of Linux. A program may have taken the names away.
READ: Final = getattr(select, "EPOLLIN", 0x001)
WRITE: Final = getattr(select, "EPOLLOUT", 0x004)
HANGUP: Final = getattr(select, "EPOLLHUP", 0x010) | getattr(select, "EPOLLERR", 0x008)
#: The other side will send nothing more. Watch for this event where READ is not watched.
GONE: Final = getattr(select, "EPOLLRDHUP", 0x2000)
EDGE: Final = getattr(select, "EPOLLET", 1 << 31)

#: After so many seconds a turn leaves the descriptors that are still ready to the next turn,
CALLBACKS_TIME: Final = 0.005
#: and after these the timers that are due, and the posted calls.
TIMERS_TIME, POSTED_TIME = 0.006, 0.007
#: Cancelled timers are thrown out of the heap when there are more than this many, and more than live ones.
MANY_CANCELLED: Final = 256


class Timer:
    """The loop calls a timer's function at time `when` (in seconds of `Loop.now`)."""

    __slots__ = ("_loop", "call", "when")

    def __init__(self, loop: Loop, when: float, call: Callable[[], object]) -> None:
        self.when = when
        self.call: Callable[[], object] | None = call
        self._loop = loop

    def cancel(self) -> None:
        """Cancels the call; harmless when it has already happened."""
        if self.call is not None:
            self.call = None
            self._loop._timer_cancelled()


def _epoll() -> select.epoll:
    """Raises UnsupportedPlatform where the program has taken it away, or has replaced the threads."""
    green = "gevent.monkey" in sys.modules and sys.modules["gevent.monkey"].is_module_patched("threading")
    if green or not hasattr(select, "epoll"):
        raise UnsupportedPlatform(
            "a node needs select.epoll and real threads, which this program has replaced (as gevent's patches "
            "do): run the node in a process of its own"
        )
    return select.epoll()


def _nothing(_events: int) -> None:
    """The wait is over, and that is all."""


class Loop(LoopTurn):
    """The event loop of one thread. Only `call_soon_threadsafe` and `stop` may be called from other threads.

    `now` is its clock, in seconds: it never goes back.
    """

    def __init__(self, *, max_events: int = 1024, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(max_events)
        self._epoll = _epoll()
        self.callbacks_time, self.timers_time, self.posted_time = CALLBACKS_TIME, TIMERS_TIME, POSTED_TIME
        self._callbacks = {}
        self._timers = []
        self._nap = 0.0
        self._sequence = 0
        self._cancelled = 0
        self._posted = deque()
        self._behind = []
        self._again = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._to_close = [self._wake]
        self._waking: list[None] = []  # one for each thread that writes to it
        self._stopping = False
        self._closed = False
        #: The number of turns, and their time without the wait (seconds): the sum and the longest.
        self.turns = 0
        self.turn_seconds = 0.0
        self.longest_turn = 0.0
        #: The number of turns in which this thread worked for longer than SLOW_TURN. This is processor time, so the
        #: time that other processes take of a busy machine does not count.
        self.slow_turns = 0
        self.longest_work = 0.0
        self._urgent = set()
        self._edges: set[int] = set()
        self._urgent_epoll = _epoll()
        self.all_fd, self.urgent_fd = self._epoll.fileno(), self._urgent_epoll.fileno()
        self.await_readable = await_readable
        self._left = []
        self.thread_time = time.thread_time
        self._worked = time.thread_time()
        self._unsure = math.inf
        self._began = 0.0
        self.now = now
        self.quiet = Quiet()
        self.add(self._wake, READ, _nothing, urgent=True, edge=True)

    # ---- file descriptors

    def add(
        self, fd: int, mask: int, callback: Callable[[int], object], *, urgent: bool = False, edge: bool = False
    ) -> None:
        """Watches `fd` for `mask`; `callback(events)` may also get HANGUP. ValueError if it is watched already.

        In a turn that is too short for all ready descriptors, the `urgent` ones come first. `edge` is for an eventfd:
        each write to it is told once, so nobody has to read it.
        """
        if fd in self._callbacks:
            raise ValueError(f"file descriptor {fd} is watched already")
        self._epoll.register(fd, mask | EDGE if edge else mask)
        if edge:
            self._edges.add(fd)
        self._callbacks[fd] = callback
        if urgent:
            self._urgent.add(fd)
            self._urgent_epoll.register(fd, mask | EDGE if edge else mask)

    def modify(self, fd: int, mask: int) -> None:
        """Changes the events for which `fd` is watched. KeyError if it is not watched."""
        if fd not in self._callbacks:
            raise KeyError(fd)
        self._epoll.modify(fd, mask)
        if fd in self._urgent:
            self._urgent_epoll.modify(fd, mask)

    def remove(self, fd: int) -> None:
        """Stops watching `fd`. The owner calls this before it closes `fd`. Harmless if `fd` is not watched."""
        if self._callbacks.pop(fd, None) is not None:
            self._edges.discard(fd)
            if fd in self._urgent:
                self._urgent.discard(fd)
                self._urgent_epoll.unregister(fd)
            self._epoll.unregister(fd)

    def descriptors(self) -> list[int]:
        """All that are watched, and the loop's own."""
        return [] if self._closed else [self._epoll.fileno(), self._urgent_epoll.fileno(), *list(self._callbacks)]

    # ---- timers and posted calls

    def nap(self, seconds: float) -> None:
        """Look at nothing for so long after this turn. What comes meanwhile shares the next one."""
        self._nap = seconds

    def _take_nap(self) -> None:
        if not (self._posted or self._stopping or self._left or self._again):
            time.sleep(self._nap)
        self._nap = 0.0

    def call_at(self, when: float, call: Callable[[], object]) -> Timer:
        """Runs `call()` in the first turn at or after `when` (seconds of `now()`)."""
        timer = Timer(self, when, call)
        self._sequence += 1
        heapq.heappush(self._timers, (when, self._sequence, timer))
        return timer

    def call_later(self, delay: float, call: Callable[[], object]) -> Timer:
        """Runs `call()` `delay` seconds from now."""
        return self.call_at(self.now() + delay, call)

    def call_behind(self, call: Callable[[], object]) -> None:
        """Runs `call()` behind the owner's turn, when those who came in have been served. Another turn follows at once,
        so what `call` leaves is sent then. A timer would run before those who came in with it. See `pressed`."""
        self._behind.append(call)

    def call_soon_threadsafe(self, call: Callable[[], object]) -> None:
        """Runs `call()` in the loop's thread soon. Any thread may call this. A closed loop ignores it."""
        self._posted.append(call)
        self._wake_up()

    def _wake_up(self) -> None:
        # No lock: a signal's handler may run in here, or the collector, and wait for the loop's thread, which wakes the
        # loop as well. Who is in here when the loop is closed has the descriptor, which is closed when he leaves.
        self._waking.append(None)
        try:
            if not self._closed:
                os.eventfd_write(self._wake, 1)
        finally:
            self._waking.pop()
            if self._closed:
                self._let_wake_go()

    def _let_wake_go(self) -> None:
        """The loop is closed: close the eventfd when nobody writes to it any more."""
        if not self._waking:
            with contextlib.suppress(IndexError):
                os.close(self._to_close.pop())

    def stop(self) -> None:
        """Ends `run` after the turn that is under way. Any thread may call this."""
        self._stopping = True
        self._wake_up()

    def _timer_cancelled(self) -> None:
        self._cancelled += 1
        if self._cancelled > MANY_CANCELLED and self._cancelled * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if entry[2].call is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def _drop_cancelled(self) -> None:
        """No turn comes for a timer that was cancelled, but for the last of all."""
        timers = self._timers
        while timers[0][2].call is None and len(timers) > 1:
            heapq.heappop(timers)
            self._cancelled = max(0, self._cancelled - 1)

    def _run_timers(self, until: float) -> None:
        """Runs the timers that are due; after `until` (seconds of perf_counter) only one of them."""
        now = self.now()
        # Timers set by these calls wait for the next turn, even when they are due already.
        due = []
        while self._timers and self._timers[0][0] <= now:
            due.append(heapq.heappop(self._timers))
        for at, (_, _, timer) in enumerate(due, 1):
            call, timer.call = timer.call, None
            if call is None:
                self._cancelled = max(0, self._cancelled - 1)
                continue
            call()
            if time.perf_counter() >= until:
                for entry in due[at:]:
                    heapq.heappush(self._timers, entry)
                return

    def _run_posted(self, until: float) -> None:
        """Runs the calls that were posted before this; after `until` (seconds of perf_counter) only one of them."""
        for _ in range(len(self._posted)):
            self._posted.popleft()()
            if time.perf_counter() >= until:
                return

    def _run_behind(self) -> None:
        self.quiet.open = False
        calls, self._behind = self._behind, []
        for call in calls:
            call()

    def pressed(self) -> bool:
        """Whether somebody waits for the next turn. What comes behind a turn asks this after each of its pieces, and
        goes on if nobody does: asking takes 1 us, and a turn 40."""
        return (
            bool(self._posted or self._left)
            or readable(self._epoll.fileno())
            or bool(self._timers and self._timers[0][0] <= self.now())
        )

    # ---- turns

    def _in_order(self, ready: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Returns the ready descriptors: the urgent ones, then those left over from the previous turn, then
        the rest. Of those left over, the system does not tell again of those that it tells of only once.
        """
        told = {fd for fd, _ in ready}
        ready += [(fd, events) for fd, events in self._left if fd in self._edges and fd not in told]
        place = {fd: at for at, (fd, _) in enumerate(self._left)}
        last, urgent = len(place), self._urgent
        self._left = []
        return sorted(ready, key=lambda one: -1 if one[0] in urgent else place.get(one[0], last))

    def run_once(self, timeout: float | None = None, turn: Callable[[], object] | None = None) -> None:
        """Runs one turn, which waits at most `timeout` seconds (None: until an event comes). `turn` is called at its
        end.
        """
        self.serve(self.look(self.patience(timeout)), turn)

    def run(self, turn: Callable[[], object] | None = None) -> None:
        """Runs turns until `stop`, and calls `turn` at the end of each. Raises a callback's exception; after that the
        loop can still be run again or closed.
        """
        self._stopping = False
        while not self._stopping:
            self.run_once(turn=turn)

    def close(self) -> None:
        """Releases the loop's own descriptors. The watched ones still belong to their owners. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._callbacks.clear()
        self._epoll.close()
        self._urgent_epoll.close()
        self.all_fd = self.urgent_fd = -1  # another loop may get these numbers
        self._let_wake_go()


#: accept() errors that mean "out of a resource, try later", not "this listener is broken".
ACCEPT_LATER: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def shared_time(now: float, interval: float) -> float:
    """About `interval` seconds from `now`, a whole multiple of it: what is done now and then on a loop that has nothing
    else to do shares one turn. It is at least nine tenths of the interval from now, and less than two intervals."""
    return math.ceil(now / interval + 0.9) * interval
