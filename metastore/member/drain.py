"""The stop of a member: clients go elsewhere, leadership goes elsewhere, and what was taken is finished.

Nothing is refused while that lasts. A client that has not heard yet goes on calling, and another member that has not
heard yet goes on forwarding; both are served as ever, by way of the new leader if need be.
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

#: Seconds that a client has to hear that it is to go elsewhere; calls that it makes later are not taken.
NOTICE: Final = 0.25
#: Seconds after leadership went elsewhere in which members that have not heard of it still forward to this one.
LINGER: Final = 0.2
#: Seconds for closing everything, after `limits.drain_timeout`: then a disk that stands still is waited for no more.
CLOSING: Final = 1.0


class Drain:
    """The stop of one member, in its loop's thread: `begin` once, then `turn` at the end of each turn.

    patience: seconds in which all must be over. ends: called at the beginning, what begins nothing more from then on.
    hand_over: gives leadership to another member and tells to whom, 0 for nobody. connected: whether the control stream
    to a member is open.
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
        #: When all is to be closed, in seconds of the loop's clock.
        self.stop_by = self._until + CLOSING
        self._linger = 0.0
        self._successor = 0

    def begin(self) -> None:
        """Send the clients and leadership away."""
        for end in self._ends:
            end()
        self._successor = self._hand_over()
        self._driver.stop()
        self._listener.retire()
        self._loop.call_later(NOTICE, self._listener.shutdown)
        self._loop.call_at(self._until, self._late)

    def _late(self) -> None:
        """Time is up; the turn that follows sees it."""
        waiting = len(self._driver.kv.waiters)
        if waiting:
            log.warning("stopping with %d calls unanswered: limits.drain_timeout is over", waiting)

    def turn(self, now: float) -> None:
        """Stop the loop when nobody waits any more, or when time is up."""
        driver = self._driver
        if self._successor and not self._linger and not driver.is_leader:
            self._linger = now + LINGER
            self._loop.call_at(self._linger, lambda: None)
        # Where all members are stopped together the successor may be gone before it leads.
        leads = self._successor and driver.is_leader and self._connected(self._successor)
        busy = not driver.quiet or driver.kv.late or self._listener.conns
        if now >= self._until or not (leads or busy or now < self._linger):
            self._loop.stop()
