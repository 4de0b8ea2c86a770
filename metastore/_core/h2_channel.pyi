"""The ordinary way of a client's bytes: from its socket to its session, and from there back."""

from collections.abc import Callable
from typing import TypeVar

from metastore._core.grpc import Limits
from metastore._core.h2 import Session
from metastore._core.h2_request import Request
from metastore.net.loop import Loop, Timer

C = TypeVar("C", bound=Channel)

class Channel:
    """The compiled half of a connection: reads, and sends. A subclass has the rare half: `other_event`, `read_first`,
    `handle_first`, `take_page`, `flush_later`, `after_flush` and `close`. All calls come from the loop's thread."""

    fd: int
    opened: bool
    session: Session | None
    settled: bool
    _blocked: bool
    _hold: bool
    _mask: int
    _stuck: int
    _owed: int
    _loop: Loop

    def __init__(
        self,
        fd: int,
        loop: Loop,
        room: bytearray,
        handle: Callable[[list[Request]], object],
        mask: int,
        send_size: int,
    ) -> None:
        """`fd` is a socket that does not block, and stays the subclass's. `mask` is what the loop watches for,
        `send_size` bounds what one `flush` sends (bytes, plus at most one piece of output)."""

    @property
    def unsent(self) -> int:
        """Bytes of output that the socket has not taken."""

    def on_event(self, events: int) -> None:
        """The socket is ready for something."""

    def on_readable(self) -> None:
        """Read once: what does not fit comes in the next turn, after the other connections."""

    def flush(self) -> None:
        """Send what the session has, until it has no more or the socket takes no more, or has had enough for a turn."""

    def shut(self) -> None:
        """The socket is closed. Nothing is read or sent any more."""

class Flusher:
    """The part of a listener that each turn passes. A subclass has `_unpack` and `_expire_later`."""

    dirty: list[Session]
    loop: Loop
    _expirer: Timer | None

    def __init__(self, loop: Loop, limits: Limits, seconds: float) -> None:
        """`seconds` of one turn are for sending."""

    def flush_dirty(self) -> None:
        """Send the output of all connections that have any. The node calls this at the end of a turn."""

def flush_all(channels: list[C], now: Callable[[], float], seconds: float) -> list[C]:
    """Flush connections for about so many seconds by the clock `now`. Returns those that were left."""
