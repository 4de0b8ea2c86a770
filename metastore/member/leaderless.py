"""How long this member has known no leader. Streams of clients that demand one end after a while."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .._core.h2_request import Request
    from ..replica.driver import Driver

#: What a client sends that demands a leader (etcd's clientv3.WithRequireLeader).
REQUIRE_LEADER: Final = (b"hasleader", b"true")
#: Election timeouts without a leader after which streams end whose clients demand one (etcd's number).
LEADERLESS: Final = 3


def needs_leader(request: Request) -> bool:
    """Whether the client of this call demands a leader."""
    return REQUIRE_LEADER in request.headers


class Leaderless:
    """Tells when there has been no leader for so long that streams must end. election_timeout: seconds."""

    def __init__(self, driver: Driver, election_timeout: float) -> None:
        self._driver = driver
        self._patience = LEADERLESS * election_timeout
        self._since: float | None = None

    def too_long(self, now: float) -> bool:
        """Whether that is so at `now` (seconds). To be asked at each tick."""
        if self._driver.leader_id:
            self._since = None
        elif self._since is None:
            self._since = now
        return self._since is not None and now - self._since >= self._patience
