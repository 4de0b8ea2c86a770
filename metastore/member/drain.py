"""The stop of a member: clients go elsewhere, leadership goes elsewhere, and what was taken is finished.

Nothing is refused while that lasts. A client that has not heard yet goes on calling, and another member that has not
heard yet goes on forwarding; both are served as ever, by way of the new leader if need be.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .server import Server

log = logging.getLogger("metastore.node")

#: Seconds that a client has to hear that it is to go elsewhere; calls that it makes later are not taken.
NOTICE: Final = 0.25
#: Seconds after leadership went elsewhere in which members that have not heard of it still forward to this one.
LINGER: Final = 0.2
#: Seconds for closing everything, after `limits.drain_timeout`: then a disk that stands still is waited for no more.
CLOSING: Final = 1.0


class Drain:
    """The stop of one server, in its loop's thread: `begin` once, then `turn` at the end of each turn."""

    def __init__(self, server: Server) -> None:
        self._server = server
        loop = server.loop
        self._until = loop.now() + server.config.limits.drain_timeout
        #: When all is to be closed, in seconds of the loop's clock.
        self.stop_by = self._until + CLOSING
        self._linger = 0.0
        self._successor = 0

    def begin(self) -> None:
        """Send the clients and leadership away."""
        server, loop = self._server, self._server.loop
        server.health.shutdown()
        server.backups.stop()
        server.upkeep.stop()
        self._successor = server.leadership.hand_over()
        server.driver.stop()
        server.listener.retire()
        loop.call_later(NOTICE, server.listener.shutdown)
        loop.call_at(self._until, self._late)

    def _late(self) -> None:
        """Time is up; the turn that follows sees it."""
        waiting = len(self._server.kv.waiters)
        if waiting:
            log.warning("stopping with %d calls unanswered: limits.drain_timeout is over", waiting)

    def turn(self, now: float) -> None:
        """Stop the loop when nobody waits any more, or when time is up."""
        server = self._server
        if self._successor and not self._linger and not server.driver.is_leader:
            self._linger = now + LINGER
            server.loop.call_at(self._linger, lambda: None)
        # Where all members are stopped together the successor may be gone before it leads.
        awaited = server.peering.connected(self._successor)
        leads = self._successor and server.driver.is_leader and awaited
        busy = not server.driver.quiet or server.kv.late or server.listener.conns
        if now >= self._until or not (leads or busy or now < self._linger):
            server.loop.stop()
