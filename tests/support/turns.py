"""Turns of a live node's loop that worked for longer than 20 ms, which no request may cause.

The node counts by its loop thread's own processor time. That leaves out what other processes do on this machine, but
not what its host does: a virtual processor that the host stops goes on counting for the thread that was on it, and a
slower processor takes longer for the same work. Runs of all tests on such machines saw one to three turns of 20 to
31 ms, each time in another test, where these tests see none on a quiet machine. So the default run lets some turns take
somewhat longer. The faults that these tests look for took from 0.1 to 15 seconds in one turn, or made hundreds of turns
slow. The long tests (tests/once/long) allow no slow turn at all, on a machine that is kept quiet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .processes import Server, metric

SLOW = "metastore_loop_slow_turns_total"
LONGEST = "metastore_loop_longest_work_seconds"
#: So many turns may be slow, and none of them longer than this (seconds).
FEW, SOMEWHAT = 15, 0.1


class Turns:
    """The slow turns of a node since this object was made."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._slow, self._longest = metric(server, SLOW), metric(server, LONGEST)

    @property
    def slow(self) -> int:
        """The number of them."""
        return int(metric(self._server, SLOW) - self._slow)

    @property
    def longest(self) -> float:
        """The longest one in seconds, or 0.0 if a turn before took longer."""
        longest = metric(self._server, LONGEST)
        return longest if longest > self._longest else 0.0

    def check(self, few: int = FEW) -> None:
        """Fail if more than `few` turns were slow, or if one was much too long."""
        slow, longest = self.slow, self.longest
        text = f"{slow} turns worked for more than 20 ms, the longest for {longest * 1000:.0f} ms"
        assert slow <= few and (slow == 0 or longest < SOMEWHAT), text


@contextlib.contextmanager
def no_long_turn(server: Server) -> Iterator[None]:
    """Check that the body causes no long turn of the loop."""
    turns = Turns(server)
    yield
    turns.check()
