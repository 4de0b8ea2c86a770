"""A member changes the membership on behalf of clients. This belongs to the loop's thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..replica.roster import PROMOTE, REMOVE, UPDATE, Change, Member, check_peer_urls

if TYPE_CHECKING:
    from .. import errors
    from ..ports import Caller, Done
    from .membership_client import DoneWith, MembershipClient

NOBODY = (1 << 64) - 1  # replaces an id of 0 in a request; no member has either id


class Membership:
    """The `api.ports.Membership` of a member. `listen` opens the peer port if it is closed."""

    def __init__(self, client: MembershipClient, listen: Callable[[Done], object], now: Callable[[], float]) -> None:
        self._client = client
        self._listen = listen
        self._now = now

    def members(self) -> list[Member]:
        """The members, as this node has applied them."""
        return self._client.members()

    def add_member(self, peer_urls: list[str], learner: bool, done: DoneWith, caller: Caller | None = None) -> None:
        """Adds a member. `done` gets Unhealthy if the new member could not reach us. Raises MemberBadURLs."""
        urls = check_peer_urls(peer_urls)

        def listening(error: errors.MetaStoreError | None) -> None:
            if error is not None:
                done(Member(0, "", urls, (), learner), error)
            else:
                self._client.add(urls, learner, done, self._now(), caller)

        # The port is opened first, because a committed change cannot be taken back.
        self._listen(listening)

    def remove_member(self, ident: int, done: Done, caller: Caller | None = None) -> None:
        """Removes a member."""
        self._change(REMOVE, Member(ident or NOBODY, "", (), ()), done, caller)

    def update_member(self, ident: int, peer_urls: list[str], done: Done, caller: Caller | None = None) -> None:
        """Changes a member's peer URLs. Raises MemberBadURLs."""
        self._change(UPDATE, Member(ident or NOBODY, "", check_peer_urls(peer_urls), ()), done, caller)

    def promote_member(self, ident: int, done: Done, caller: Caller | None = None) -> None:
        """Makes a learner a voter."""
        self._change(PROMOTE, Member(ident or NOBODY, "", (), ()), done, caller)

    def _change(self, action: str, member: Member, done: Done, caller: Caller | None) -> None:
        self._client.change(Change(action, member), done, self._now(), caller)
