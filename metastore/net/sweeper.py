"""Once in a while a sweep looks for client connections that have to go: those past a deadline, and those that take
nothing of what they asked for while others need the room.

Ten thousand connections can be due in one sweep. To close them takes 0.3 s, so each turn closes those for which
SWEEP_TIME is enough, and the following turns close the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from typing import Final, Generic, Protocol, TypeVar

from metastore._core.grpc import Limits
from metastore.net.loop import Loop, Timer, shared_time

log = logging.getLogger("metastore.conn")

#: Seconds of one turn in which connections are closed.
SWEEP_TIME: Final = 0.005


class Owing(Protocol):
    """What a sweep asks a connection."""

    fd: int
    deadline: float | None
    stalled: bool

    @property
    def owes(self) -> int:
        """Reply bytes that the client has not taken."""

    @property
    def asks(self) -> int:
        """Bytes of requests that are not answered, or whose answers the client has not taken."""

    @property
    def taken(self) -> tuple[int, int]: ...

    def took(self, before: tuple[int, int]) -> int: ...

    def overdue(self) -> bool:
        """Handles a deadline that has passed. Returns whether the connection was closed."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Owing)


class Sweeper(Generic[C]):
    """Sweeps the connections `conns` of one listener every `interval` seconds; `suspects` are those with a deadline.

    A client that does not take its replies at `min_rate` bytes a second may have to go. `accounts` has what all
    connections hold. `tells(what)` is whether the log may say that connections were closed.
    """

    def __init__(
        self,
        loop: Loop,
        conns: Collection[C],
        suspects: Collection[C],
        accounts: Limits,
        *,
        interval: float,
        min_rate: float,
        tells: Callable[[str], bool],
    ) -> None:
        self._loop = loop
        self._conns = conns
        self._suspects = suspects
        self._accounts = accounts
        self._interval = interval
        self._least = min_rate * interval
        self._tells = tells
        self._owing: dict[C, tuple[tuple[int, int], int]] = {}  # what each had taken at the last sweep, and owed
        self._dropped = 0
        self._timer: Timer = loop.call_at(shared_time(loop.now(), interval), self._sweep)

    def close(self) -> None:
        """Sweeps no more; idempotent."""
        self._timer.cancel()

    def _sweep(self) -> None:
        self._go_on(self._drop())

    def _go_on(self, drops: Iterator[None]) -> None:
        """Closes some connections now, and the others in the following turns."""
        until = self._loop.now() + SWEEP_TIME
        for _ in drops:
            if self._loop.now() >= until:
                self._timer = self._loop.call_later(0, lambda: self._go_on(drops))
                return
        self._timer = self._loop.call_at(shared_time(self._loop.now(), self._interval), self._sweep)
        if self._dropped and self._tells("dropped"):
            log.info(
                "%d connections were closed that made no first request, or took their replies too slowly", self._dropped
            )
            self._dropped = 0

    def _drop(self) -> Iterator[None]:
        """Closes what has to go, and stops after each step so that other work can come between."""
        now = self._loop.now()
        due = [conn for conn in self._suspects if conn.deadline is not None and conn.deadline <= now]
        for conn in due:
            # Between two turns the client may have done what it owed, or may have gone.
            if conn.deadline is not None and conn.deadline <= now:
                self._dropped += conn.overdue()
                yield
        accounts = self._accounts
        if accounts.total_output >= accounts.max_total_output // 4 * 3:
            yield from self._relieve()
        else:
            self._owing.clear()
        if accounts.total_buffered >= accounts.max_total_buffered // 2:
            yield from self._relieve_requests()

    def _relieve(self) -> Iterator[None]:
        """Drops clients that do not take their replies, until half of the room for replies is free.

        Other reads wait for such clients (long reads do when three quarters of the room are used). Only clients that
        took next to nothing since the last check are dropped, those with the most bytes first. A client that took all
        that it was owed then is not among them, however little that was.
        """
        before, self._owing = self._owing, {conn: (conn.taken, conn.owes) for conn in self._conns if conn.owes}
        slow = [
            (owed, conn.fd, conn)
            for conn, (_, owed) in self._owing.items()
            if conn in before and conn.took(before[conn][0]) < min(self._least, before[conn][1])
        ]
        yield from self._close_largest(slow, self._accounts.total_output - self._accounts.max_total_output // 2)

    def _relieve_requests(self) -> Iterator[None]:
        """Drops clients that take nothing of small replies, until less than half of the room for requests is used.

        A call counts until its reply is taken, and no client gets more room than is still free, so those that take
        nothing would leave others with too little for a large request. Those with the most bytes go first.
        """
        held = [(conn.asks, conn.fd, conn) for conn in self._conns if conn.stalled and conn.asks]
        yield from self._close_largest(held, self._accounts.total_buffered - self._accounts.max_total_buffered // 2)

    def _close_largest(self, slow: list[tuple[int, int, C]], excess: int) -> Iterator[None]:
        """Closes connections, those with the most bytes first, until they held `excess` bytes together.

        The accounts themselves cannot tell when it is enough, because what a session holds is given back later.
        """
        for held, _, conn in sorted(slow, key=lambda one: one[:2], reverse=True):
            if excess < 0:
                return
            excess -= held
            self._dropped += 1
            log.debug("closing a client that takes nothing of %d bytes", held)
            conn.close()
            yield
