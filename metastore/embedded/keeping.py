"""Leases that a node keeps alive for its own program. The loop's thread renews them, so no lease takes a thread.

A lease counts as lost when its TTL has passed since the last renewal that was answered was asked for. By then the store
may have ended it; before, it cannot have. The clock alone decides that, whatever the node does meanwhile.
"""

from __future__ import annotations

import heapq
import itertools
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from .. import errors
from . import forks
from .answers import belongs_to
from .bell import Bell

if TYPE_CHECKING:
    from ..member.running import RunningMember
    from .results import GrantResult

#: A lease is renewed when this part of its TTL has passed.
PART = 3
#: Seconds by which a renewal may come early, to go together with others.
TOGETHER = 0.05
#: Leases of one question to the leader.
MOST_TOGETHER = 1000


class Kept:
    """A lease that is kept alive until it is `closed` or lost, or nobody has this object any more.

    deadline: when it counts as lost (time.monotonic()). cause: what it was lost by, where that is known.
    """

    def __init__(self, keeper: Keeper, ident: int, ttl: int, asked: float) -> None:
        self.ident = ident
        self.ttl = ttl
        self.deadline = asked + ttl
        self.closed = False
        self.cause: BaseException | None = None
        self.bell = Bell()
        self._gone = False
        self._keeper = keeper
        self.process = forks.process
        keeper.begin(self)

    @property
    def lost(self) -> bool:
        """Whether it may have ended without the program's having asked for that. In a fork of the node's process it is
        lost: two processes must not both believe that they hold a lock."""
        if self.process != forks.process:
            return True
        return self._gone or (not self.closed and time.monotonic() >= self.deadline)

    def check(self) -> None:
        """Raises LeaseLost, and Forked in a fork of the node's process."""
        if self.process != forks.process:
            raise belongs_to(self.process)
        if self.lost:
            error = errors.LeaseLost(f"{errors.LeaseLost.default}: {self.ident:x}")
            error.__cause__ = self.cause
            raise error

    def quiet(self) -> bool:
        """Whether it is neither lost nor closed."""
        return not self.lost and not self.closed

    def close(self) -> None:
        """Keep it alive no more. From any thread, and never raises."""
        if not self.closed:
            self._gone = self.lost
            self.closed = True
            if self.process == forks.process:
                self.bell.ring()

    def lose(self, cause: BaseException | None) -> None:
        """It has ended, or nobody renews it any more."""
        if self.quiet():
            self.cause = cause
        self._gone = self._gone or not self.closed
        self.bell.ring()


class Keeper:
    """Renews leases. `keep` may be called in any thread; all else belongs to the loop's.

    It does not own what it renews. The handler of a signal that raises, as Ctrl-C does, ends a program's call anywhere,
    also where nothing closes the lease that the call was about to give, and a lock of it would then be held for ever.
    """

    def __init__(self) -> None:
        self._member: RunningMember | None = None
        self._heap: list[tuple[float, int, weakref.ref[Kept]]] = []  # when to look at a lease, by time.monotonic()
        self._serial = itertools.count()
        self._next = float("inf")  # when the next look comes
        self._refusal: Callable[[], errors.ApiError] | None = None

    def serve(self, member: RunningMember) -> None:
        """Keep leases from now on."""
        self._member = member

    def keep(self, lease: GrantResult, asked: float) -> Kept:
        """Keep a lease alive that was asked for at a time (time.monotonic())."""
        return Kept(self, lease.id, lease.ttl, asked)

    def begin(self, kept: Kept) -> None:
        """Keep one alive."""
        member = self._member
        if member is not None:
            member.loop.call_soon_threadsafe(partial(self._plan, kept))
        if self._refusal is not None:
            kept.lose(self._refusal())

    def end(self, refusal: Callable[[], errors.ApiError]) -> None:
        """The node is over: nobody renews any more."""
        self._refusal = refusal
        self._member = None
        heap, self._heap = self._heap, []
        for _, _, reference in heap:
            kept = reference()
            if kept is not None:
                kept.lose(refusal())

    def _plan(self, kept: Kept) -> None:
        """Look at a lease when it is to be renewed, or at its deadline if that comes first."""
        now = time.monotonic()
        if self._refusal is not None:
            kept.lose(self._refusal())
        elif not kept.closed:
            when = min(now + kept.ttl / PART, max(kept.deadline, now))
            heapq.heappush(self._heap, (when, next(self._serial), weakref.ref(kept)))
            self._look_at(when)

    def _look_at(self, when: float) -> None:
        member = self._member
        if member is not None and when < self._next:
            self._next = when
            member.loop.call_later(max(0.0, when - time.monotonic()), self._look)

    def _look(self) -> None:
        """Renew what is due."""
        self._next = float("inf")
        now, due = time.monotonic(), list[Kept]()
        while self._heap and self._heap[0][0] <= now + TOGETHER and len(due) < MOST_TOGETHER:
            kept = heapq.heappop(self._heap)[2]()
            if kept is None or kept.closed:
                continue
            if kept.lost:
                kept.lose(None)
                continue
            due.append(kept)
        member = self._member
        if due and member is not None:
            for kept in due:
                self._plan(kept)
            member.own_calls.renew([kept.ident for kept in due], partial(self._answered, due, now))
        if self._heap:
            self._look_at(self._heap[0][0])

    def _answered(self, asked: list[Kept], at: float, ttls: list[int | None], _error: errors.MetaStoreError) -> None:
        """What came of renewals that were asked for at a time. What nobody renewed is asked for again in time."""
        for kept, ttl in zip(asked, ttls, strict=True):
            if ttl == 0:
                kept.lose(errors.LeaseNotFound())
            elif ttl is not None and not kept.lost:
                kept.deadline = max(kept.deadline, at + ttl)
