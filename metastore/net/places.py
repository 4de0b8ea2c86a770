"""The places of a listener: which address holds how many, and which connection gives way when all are taken.

A listener accepts a bounded number of connections, its places. When all are taken, a new connection gets the place of
one of these, tried in this order:

1. A connection that has not sent a whole request, if one address has more such connections than an eighth of all
   places. The connection is chosen from that address, so a flood of connections displaces itself.
2. The connection that has made no request for longest, if that is more than IDLE seconds. A search for such
   connections runs once a second.
3. A connection that has not sent a whole request, from the address that has most of these.
4. A connection between two requests, from the address with most places, if the address of the new connection has
   fewer places even after the exchange. Where one address has more than half of all places, one of its connections may
   also be closed while it has a call under way.

Within an address the choice is random, because an attacker who can tell which connection is next could arrange for it
to be another client's. But eight connections are looked at, and the oldest of the eight goes if it is older than NEW,
because it is then slow or silent. When the fourth rule finds no connection, addresses with no more than their share use
all places. The new connection is then the one too many: it is refused at once, so its client can try another member.
Closing an existing connection instead would only make that client come back, and this would never end.

Every step takes constant time per new connection, because floods bring thousands a second.
"""

from __future__ import annotations

import random
from typing import Final, Generic, Protocol, TypeVar

#: A connection should make its first request within NEW seconds. It is idle after IDLE seconds without a request.
NEW: Final = 1.0
IDLE: Final = 60.0
#: So many connections of an address are compared, and the oldest gives way.
LOOKS: Final = 8
#: An address has a crowd of connections without a request when they are more than this part of all places.
CROWD: Final = 8


class Guest(Protocol):
    """`Places` sees a connection that holds a place by these attributes."""

    since: float  # when it came
    origin: str  # the part of its address that all connections of one client share
    at: int  # its position in the list where `Places` keeps it
    settled: bool  # `Places` counts it among those that have made a request

    @property
    def has_asked(self) -> bool:
        """Whether a whole request has come, which makes a connection worth more than one that only holds a place."""

    @property
    def busy(self) -> bool:
        """Whether a whole request or a reply is under way."""

    @property
    def asked_at(self) -> float:
        """The time when the last whole request came."""


G = TypeVar("G", bound=Guest)


class Tally:
    """A tally counts something by name and knows the name with the highest count. Each change by one takes constant
    time.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._names: dict[int, dict[str, None]] = {}  # the names with each count
        self.most = 0

    def count(self, name: str) -> int:
        """The count of `name`."""
        return self._counts.get(name, 0)

    def top(self) -> str:
        """The name with the highest count, among equals the one that has had it for longest; "" if there is none."""
        return next(iter(self._names[self.most])) if self.most else ""

    def more(self, name: str) -> None:
        """Counts `name` up by one."""
        count = self._counts.get(name, 0)
        self._move(name, count, count + 1)
        self.most = max(self.most, count + 1)

    def less(self, name: str) -> None:
        """Counts `name` down by one."""
        count = self._counts[name]
        self._move(name, count, count - 1)
        if self.most not in self._names:
            self.most -= 1

    def _move(self, name: str, before: int, after: int) -> None:
        if before:
            names = self._names[before]
            del names[name]
            if not names:
                del self._names[before]
        if after:
            self._counts[name] = after
            self._names.setdefault(after, {})[name] = None
        else:
            del self._counts[name]


class _Group(Generic[G]):
    """A group holds the connections of one kind, sorted by address."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._of: dict[str, list[G]] = {}

    def add(self, guest: G) -> None:
        guests = self._of.setdefault(guest.origin, [])
        guest.at = len(guests)
        guests.append(guest)
        self.tally.more(guest.origin)

    def remove(self, guest: G) -> None:
        guests = self._of[guest.origin]
        last = guests.pop()
        if last is not guest:
            guests[guest.at] = last
            last.at = guest.at
        if not guests:
            del self._of[guest.origin]
        self.tally.less(guest.origin)

    def some(self, origin: str) -> list[G]:
        """Returns random connections of an address, or all if there are few."""
        guests = self._of.get(origin, [])
        if len(guests) <= LOOKS:
            return guests[:]
        return [guests[int(random.random() * len(guests))] for _ in range(LOOKS)]


class Places(Generic[G]):
    """This object manages the places of one listener; there are `most` places."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._fresh: _Group[G] = _Group()  # no whole request has come
        self._settled: _Group[G] = _Group()
        self._all = Tally()
        self._idlest: list[G] = []
        self._looked = -NEW
        self.taken: set[G] = set()

    def take(self, guest: G) -> None:
        """Registers a new connection."""
        guest.settled = False
        self.taken.add(guest)
        self._all.more(guest.origin)
        self._fresh.add(guest)

    def settle(self, guest: G) -> None:
        """Notes that the first whole request of a connection has come."""
        if not guest.settled and guest in self.taken:
            self._fresh.remove(guest)
            guest.settled = True
            self._settled.add(guest)

    def leave(self, guest: G) -> None:
        """Removes a connection that has ended; harmless when it was removed before."""
        if guest in self.taken:
            self.taken.discard(guest)
            (self._settled if guest.settled else self._fresh).remove(guest)
            self._all.less(guest.origin)

    def crowd(self) -> tuple[str, int]:
        """Returns the address with most places, and how many places it has."""
        return self._all.top(), self._all.most

    def who_gives_way(self, origin: str, now: float) -> G | None:
        """Returns the connection whose place a new connection from address `origin` gets, or None. See the
        rules above.
        """
        return (
            self._of_fresh(now, self.most // CROWD)
            or self._long_idle(now)
            or self._of_fresh(now, 0)
            or self._of_more_than_its_share(origin)
        )

    def _of_fresh(self, now: float, crowd: int) -> G | None:
        """Returns a connection without a whole request, from an address that has more than `crowd` of these, or None.

        A connection that has made a request meanwhile moves to the other group as soon as this function notices it.
        """
        while self._fresh.tally.most > crowd:
            some = self._fresh.some(self._fresh.tally.top())
            for guest in some:
                if guest.has_asked:
                    self.settle(guest)
            some = [guest for guest in some if not guest.settled]
            free = [guest for guest in some if not guest.busy]
            if free:
                oldest = min(free, key=lambda guest: guest.since)
                return oldest if now - oldest.since >= NEW else free[0]
            if some:
                break
        return None

    def _long_idle(self, now: float) -> G | None:
        """Returns the connection that has made no request for longest, or None. A search through all connections costs
        milliseconds, so it runs at most once in NEW seconds.
        """

        def idle(guest: G) -> bool:
            return guest.has_asked and not guest.busy and now - guest.asked_at >= IDLE

        if not self._idlest and now - self._looked >= NEW:
            self._looked = now
            self._idlest = sorted(filter(idle, self.taken), key=lambda guest: -guest.asked_at)
        while self._idlest:
            guest = self._idlest.pop()
            if guest in self.taken and idle(guest):
                return guest
        return None

    def _of_more_than_its_share(self, origin: str) -> G | None:
        """Returns a connection of an address that still has at least as many places as `origin` after the
        exchange, or None.
        """
        top, most = self.crowd()
        if self._all.count(origin) + 2 > most:
            return None
        some = self._settled.some(top)
        free = [guest for guest in some if not guest.busy]
        if not free and 2 * most > self.most:
            free = some
        return min(free, key=lambda guest: guest.asked_at, default=None)
