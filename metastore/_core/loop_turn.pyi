"""The compiled part of a turn of the loop: it calls whoever is ready, and keeps the time."""

from collections import deque
from collections.abc import Callable
from typing import Any

from metastore._core.quiet import Quiet

LONGEST_WAIT: float
SLOW_TURN: float
TURN_TIME: float
UNSURE: float
LONGEST_ASIDE: float

class LoopTurn:
    """The base of `net.loop.Loop`, which makes its fields."""

    _callbacks: dict[int, Callable[[int], object]]
    _timers: list[tuple[float, int, Any]]
    _posted: deque[Callable[[], object]]
    _behind: list[Callable[[], object]]
    _left: list[tuple[int, int]]
    _again: bool
    _stopping: bool
    _nap: float
    all_fd: int
    urgent_fd: int
    _urgent: set[int]
    _max_events: int

    def __init__(self, max_events: int) -> None: ...
    await_readable: Callable[[int, float, Quiet], object]
    _aside_until: float
    _aside_at_most: float
    gather: float
    now: Callable[[], float]
    thread_time: Callable[[], float]
    quiet: Quiet
    callbacks_time: float
    timers_time: float
    posted_time: float
    turns: int
    turn_seconds: float
    longest_turn: float
    slow_turns: int
    longest_work: float
    _worked: float
    _unsure: float
    _began: float

    def patience(self, timeout: float | None) -> float:
        """How long this turn may wait for descriptors, in seconds; `timeout` bounds it (None: LONGEST_WAIT)."""

    def set_aside(self, seconds: float) -> None:
        """Until `seconds` from now (0: not any more), only urgent descriptors, other threads and signals wake the loop.
        After LONGEST_ASIDE the loop looks at the others in any case, however often this is said, and while some of them
        are left over from the turn before, it is ignored."""

    def look(self, wait: float) -> list[tuple[int, int]]:
        """Wait for `wait` seconds at most, and return the descriptors that are to be looked at."""

    def serve(self, ready: list[tuple[int, int]], turn: Callable[[], object] | None) -> None:
        """Call whoever is ready, then what is due, then `turn` (None: nothing), and note how long that took."""

    def share(self) -> float:
        """How much of TURN_TIME this thread has not used up in this turn: from 1.0 down to 0.0."""
