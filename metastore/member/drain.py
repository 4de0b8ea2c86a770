"""A member stops in three steps: it sends its clients elsewhere, hands leadership over, and finishes its open calls.

It refuses nothing meanwhile. Clients that do not know of the stop yet go on calling, and members that do not know of it
go on forwarding. This member serves both as before, through the new leader if it has to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..net.client_conn import Listener
    from ..net.loop import Loop
    from ..replica.driver import Driver

log = logging.getLogger("metastore.node")

#: Seconds that a client has to learn of the stop. Calls that it makes later are not taken.
NOTICE: Final = 0.25
#: Seconds after the hand-over in which members that do not know the new leader yet still forward to this member.
LINGER: Final = 0.2
#: Seconds for closing everything, after `limits.drain_timeout`. After that the stop waits no longer for a stuck disk.
CLOSING: Final = 1.0


class Drain:
    """The stop of one member, in its loop's thread. The owner calls `begin` once, then `turn` at the end of each turn.

    patience: the seconds in which the stop must be over.
    ends: functions that are called at the beginning; the parts behind them begin nothing more from then on.
    hand_over: hands leadership over and returns the id of the new leader, 0 if there is none.
    connected: whether the control stream to a member is open.
    """

    def __init__(
        self,
        patience: float,
        loop: Loop,
        listener: Listener,
        driver: Driver,
        *,
        ends: Iterable[Callable[[], object]],
        hand_over: Callable[[], int],
        connected: Callable[[int], bool],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._driver = driver
        self._ends = tuple(ends)
        self._hand_over = hand_over
        self._connected = connected
        self._until = loop.now() + patience
        #: The time by which everything must be closed, in seconds of the loop's clock.
        self.stop_by = self._until + CLOSING
        self._linger = 0.0
        self._successor = 0

    def begin(self) -> None:
        """Sends the clients elsewhere, and hands leadership over."""
        for end in self._ends:
            end()
        self._successor = self._hand_over()
        self._driver.stop()
        self._listener.retire()
        self._loop.call_later(NOTICE, self._listener.shutdown)
        self._loop.call_at(self._until, self._late)

    def _late(self) -> None:
        """The time is up; the turn that follows ends the loop."""
        waiting = len(self._driver.kv.waiters)
        if waiting:
            log.warning("stopping with %d calls unanswered: limits.drain_timeout is over", waiting)

    def turn(self, now: float) -> None:
        """Stops the loop when no caller waits any more, or when the time is up."""
        driver = self._driver
        if self._successor and not self._linger and not driver.is_leader:
            self._linger = now + LINGER
            self._loop.call_at(self._linger, lambda: None)
        # If all members are stopped together, the successor may be gone before it leads.
        leads = self._successor and driver.is_leader and self._connected(self._successor)
        busy = not driver.quiet or driver.kv.late or self._listener.conns
        if now >= self._until or not (leads or busy or now < self._linger):
            self._loop.stop()
