"""A member publishes itself, changes the membership, and tells the transport whom to dial."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Container, Iterable
from typing import Any, Protocol
from urllib.parse import urlsplit

from .. import errors
from .._core.kv_server import KVServer
from .._core.member_turn import MembershipFields
from .._core.op import MEMBER, encode_op, level_of
from .._core.waiter import Waiter
from ..ports import Caller, Done
from ..replica.driver import Driver
from ..replica.roster import (
    ADD,
    ADD_LEARNER,
    PUBLISH,
    Change,
    Identity,
    Member,
    Roster,
    RosterState,
    check_peer_urls,
    new_member_id,
)
from .waiters import outcome

log = logging.getLogger("metastore.members")

PUBLISH_RETRY = 1.0  # seconds until a publication that had no outcome is tried again

DoneWith = Callable[[Member, errors.MetaStoreError | None], object]


class Peers(Protocol):
    """The transport learns about the other members by these methods."""

    def set_peers(self, peers: dict[int, str], names: dict[int, str]) -> None:
        """Sets the members to dial: their addresses (host:port) and their names, by id."""

    def hear(self, member: int, place: str) -> None:
        """Another member says that `member` belongs to the cluster and listens at `place`."""

    def label(self, member: int) -> str:
        """A member's name and id, for people."""

    def set_removed(self, removed: Iterable[int]) -> None:
        """Sets the ids of removed members. A process that comes with such an id is told so."""

    def expect(self, ident: int, incarnation: str) -> None:
        """Sets the incarnation of that member's data directory. Another one is refused."""


def _names(members: Iterable[Member]) -> str:
    """Names members for people."""
    names = (f"{m.name or '(no name)'} {m.id:016x} {','.join(m.peer_urls)}" for m in members)
    return "; ".join(sorted(names)) or "none"


def dialled_address(member: Member) -> str:
    """The host:port at which `member` is dialled, "" if its record names none.

    Early versions did not check the URLs, so an old log may hold anything. That must not stop a node.
    """
    for url in member.peer_urls:
        with contextlib.suppress(ValueError):
            if urlsplit(url).netloc:
                return urlsplit(url).netloc
    return ""


def hand_in(
    kv: KVServer, kind: int, request: bytes, waiter: Waiter, send: Callable[[bytes], object], caller: Caller | None
) -> None:
    """Gives an operation that is no KV call its request id, and passes the encoded operation to `send`.

    `waiter` is answered once. If writes are refused, or `send` raises an ApiError, it is answered here, and the
    operation is surely not logged. Otherwise it is answered when the operation was applied.

    `caller` is the call on whose behalf this happens, or None. If its time is over already, nothing is handed in. If
    its time ends later, the id that it gets here is the one to withdraw (`Driver.withdraw`).
    """
    closed = kv.closed_to_writes
    if caller is not None and caller.answered:
        closed = errors.DeadlineExceeded()
    if closed is not None:
        waiter.fail(closed)
        return
    ident = kv.expect(waiter)
    if caller is not None:
        caller.ident = ident
    operation = encode_op(kind, ident, request)
    try:
        if level_of(operation) > kv.cluster_level:
            raise errors.NotCapable()
        send(operation)
    except errors.ApiError as error:
        kv.waiters.pop(ident, None)
        waiter.fail(error)


class MembershipClient(MembershipFields):
    """This class uses the roster on behalf of its member, in the loop's thread.

    `peers` is None while this member listens to no others. `chance(n)` gives n random bits, for the ids of new members.
    """

    def __init__(
        self, driver: Driver, kv: KVServer, roster: Roster, identity: Identity, chance: Callable[[int], int]
    ) -> None:
        self.driver = driver
        self.kv = kv
        self.roster = roster
        self.identity = identity
        self._chance = chance
        self.peers: Peers | None = None
        self.published = False  # the roster has our name and addresses
        self.settled = False  # the leader also knows that we have started, so nothing is left to be published
        self._announced = False  # a publication of this run was applied
        self._publishing = False
        self._publish_again = 0.0
        #: Whether this member has no vote.
        self.learner = self._is_learner()
        #: Whether the applied log has removed this member. `refresh` keeps it, which follows each change of the roster.
        self.removed = identity.member_id in roster.removed

    def _is_learner(self) -> bool:
        known = {member.id: member for member in self.identity.contacts} | self.roster.members
        me = known.get(self.identity.member_id)
        return me is not None and me.is_learner

    def members(self) -> list[Member]:
        """Returns the members that this node has applied, in the order of their ids."""
        return [member for _, member in sorted(self.roster.members.items())]

    def label(self, member: int) -> str:
        """Names a member for people by its name and id; "no leader" for 0."""
        if not member:
            return "no leader"
        known = {record.id: record for record in self.identity.contacts} | self.roster.members
        name = known[member].name if member in known else ""
        if name:
            return f"{name} ({member:016x})"
        return self.peers.label(member) if self.peers is not None else f"member {member:016x}"

    # ---- towards the transport

    def tell(self, peers: Peers) -> None:
        """Keeps `peers` informed of the roster from now on."""
        self.peers = peers
        self.refresh()

    def refresh(self) -> None:
        """The roster has changed."""
        self.settled = False
        self.learner = self._is_learner()
        self.removed = self.identity.member_id in self.roster.removed
        if self.peers is None:
            return
        known = {member.id: member for member in self.identity.contacts}
        known |= self.roster.members
        own = self.identity.member_id
        removed = self.roster.removed
        others = {ident: member for ident, member in known.items() if ident != own and ident not in removed}
        self.peers.set_removed(removed)
        self.peers.set_peers(
            {ident: dialled_address(member) for ident, member in others.items()},
            {ident: member.name for ident, member in others.items()},
        )
        for ident, member in others.items():
            if member.incarnation:
                self.peers.expect(ident, member.incarnation)

    def mended(self, before: RosterState, after: RosterState) -> None:
        """Logs that this member's roster differed from the leader's and was replaced by it."""
        had, has = set(before.members), set(after.members)
        log.warning(
            "the roster of this member (%s) differs from the leader's (%s), which it takes over: gone are %s and "
            "removed ids %s, %s; instead there are %s and removed ids %s, %s",
            before.digest, after.digest, _names(had - has),
            sorted(before.removed - after.removed), before.conf_state, _names(has - had),
            sorted(after.removed - before.removed), after.conf_state,
        )  # fmt: skip

    def hear(self, members: Iterable[Member]) -> None:
        """Takes another member's roster. It may be newer than ours, and say where members are that we cannot reach."""
        for member in members:
            place = dialled_address(member)
            unknown = member.id != self.identity.member_id and member.id not in self.roster.removed
            if self.peers is not None and place and unknown:
                self.peers.hear(member.id, place)

    # ---- changes

    def publish(self, name: str, client_urls: tuple[str, ...], now: float) -> None:
        """Publishes our name and addresses in the roster. The owner calls this until `settled`.

        A member publishes itself once even if its own roster has everything already, because the leader's roster may
        differ. The leader states its roster after a publication.
        """
        own = self.roster.members.get(self.identity.member_id)
        if self.settled or self._publishing or now < self._publish_again or not self.driver.leader_id or own is None:
            return
        record = Member(own.id, name, own.peer_urls, client_urls, own.is_learner, self.identity.incarnation)
        self.published = record == own
        if self.published and (self._announced or len(self.roster.members) == 1):
            self.settled = True
            return
        self._publishing = True
        self._publish_again = now + PUBLISH_RETRY

        def done(error: errors.MetaStoreError | None) -> None:
            self._publishing = False
            self._announced = error is None
            if error is not None:
                # If the roster has us already, this may last until a newcomer is started, and is no news for people.
                level = logging.DEBUG if self.published else logging.INFO
                log.log(level, "publishing this member again: %s", error)
            self.published = self.published or self._announced

        self.change(Change(PUBLISH, record), done, now)

    def add(
        self, peer_urls: Iterable[str], learner: bool, done: DoneWith, now: float, caller: Caller | None = None
    ) -> None:
        """Adds a member that listens at `peer_urls`. `done` gets its record. Raises MemberBadURLs."""
        urls = check_peer_urls(peer_urls)
        token = f"{self._chance(64):016x}"
        member = Member(new_member_id(str(self.identity.cluster_id), urls, token), "", urls, (), learner)
        self.change(Change(ADD_LEARNER if learner else ADD, member), lambda error: done(member, error), now, caller)

    def change(self, change: Change, done: Done, now: float, caller: Caller | None = None) -> None:
        """Requests `change` for `caller` (see `hand_in`). `done` is called once, here or later."""
        waiter = outcome(done)
        hand_in(self.kv, MEMBER, change.encode(), waiter, lambda op: self.driver.change_members(op, now), caller)

    def others_go_on(self) -> bool:
        """Whether the others could commit without this leader.

        That needs a quorum of other members that were heard lately and have more of the log on disk than this member.
        """
        status: Any = self.driver.raw.status()
        ahead = {ident for ident, peer in status.progress.items() if peer.heard and peer.match > status.persisted}
        ahead -= {self.identity.member_id}
        halves = (status.config.voters, status.config.voters_outgoing)
        return all(len(ahead.intersection(voters)) > len(voters) // 2 for voters in halves if voters)

    def best_successor(self, besides: Container[int] = ()) -> int:
        """The voter that should lead after this member: it was heard lately, has the most of the log, and is not in
        `besides`. Returns 0 if there is none.
        """
        status: Any = self.driver.raw.status()
        ready = [
            (peer.match, ident)
            for ident, peer in status.progress.items()
            if ident != self.identity.member_id and peer.heard and not peer.is_learner and ident not in besides
        ]
        return max(ready, default=(0, 0))[1]
