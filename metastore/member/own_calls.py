"""Calls of this process that are no calls of KV. They go to the parts that serve clients.

Belongs to the loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import errors
from .._core.lease_wire import RENEW
from ..api import pb
from ..replica.lease_rounds import Question

if TYPE_CHECKING:
    from .._core.waiter import Waiter
    from ..api.ports import Elections, Leases, Locks
    from ..replica.lease_rounds import LeaseRounds

#: Answers a call now or later, or raises an ApiError. A waiter of Lock and Campaign is told of what it can cancel.
Handler = Callable[[Any, Any], object]


class OwnCalls:
    """Their requests and replies are the encoded messages of the API, by the names of its methods."""

    def __init__(
        self, leases: Leases, rounds: LeaseRounds, locks: Locks, elections: Elections, now: Callable[[], float]
    ) -> None:
        self._rounds = rounds
        self._now = now
        self._handlers: Mapping[str, Handler] = {
            "LeaseGrant": lambda asked, waiter: leases.grant(waiter, asked.ID, asked.TTL),
            "LeaseRevoke": lambda asked, waiter: leases.revoke(waiter, asked.ID),
            "LeaseKeepAlive": lambda asked, waiter: self.renew([asked.ID], partial(_renewed, waiter)),
            "LeaseTimeToLive": lambda asked, waiter: leases.time_to_live(waiter, asked.ID, asked.keys),
            "LeaseLeases": lambda _asked, waiter: leases.list_all(waiter),
            "Lock": lambda asked, waiter: waiter.began(locks.lock(waiter, asked.name, asked.lease)),
            "Campaign": lambda asked, waiter: waiter.began(
                elections.campaign(waiter, asked.name, asked.lease, asked.value)
            ),
            "Proclaim": lambda asked, waiter: elections.proclaim(waiter, asked.leader, asked.value),
            "Leader": lambda asked, waiter: elections.leader(waiter, asked.name),
            "Resign": lambda asked, waiter: elections.resign(waiter, asked.leader),
        }

    def serves(self, method: str) -> bool:
        """Whether this is one of them."""
        return method in self._handlers

    def call(self, method: str, body: bytes, waiter: Waiter) -> None:
        """Begin a call."""
        try:
            self._handlers[method](pb.parse(getattr(pb, f"{method}Request"), body), waiter)
        except errors.ApiError as error:
            waiter.fail(error)

    def renew(self, idents: list[int], answered: Callable[[list[int | None], errors.MetaStoreError], object]) -> None:
        """Renew leases, a few thousand at most. `answered` gets the TTL of each: 0 if there is no such lease, None if
        nobody could renew it in time, because of the error."""

        def on_news(question: Question) -> None:
            if not question.left or question.error is not None:
                answered(list(question.ttls), question.error or errors.Timeout())

        self._rounds.ask(Question(RENEW, idents, on_news), self._now())


def _renewed(waiter: Waiter, ttls: list[int | None], error: errors.MetaStoreError) -> None:
    [ttl] = ttls
    if not ttl:
        waiter.fail(error if ttl is None else errors.LeaseNotFound())
    else:
        waiter.complete(pb.LeaseKeepAliveResponse(TTL=ttl).SerializeToString())
