"""This member among the others: publishing itself, changing the membership, and whom the transport talks to."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Container, Iterable
from typing import Any, Protocol
from urllib.parse import urlsplit

from .. import errors
from .._core.kv_server import KVServer
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

PUBLISH_RETRY = 1.0  # seconds until a publication without an outcome is tried again

DoneWith = Callable[[Member, errors.MetaStoreError | None], object]


class Peers(Protocol):
    """What the transport is told about the others."""

    def set_peers(self, peers: dict[int, str], names: dict[int, str]) -> None:
        """Whom to dial, by id, and where (host:port), and what they are called."""

    def hear(self, member: int, place: str) -> None:
        """Another member says that `member` is one, and listens there."""

    def label(self, member: int) -> str:
        """A member's name and id, for people."""

    def set_removed(self, removed: Iterable[int]) -> None:
        """Ids that must be told that they are removed."""

    def expect(self, ident: int, incarnation: str) -> None:
        """The data directory of that member has this incarnation; refuse another."""


def _names(members: Iterable[Member]) -> str:
    """Members for people."""
    told = (f"{m.name or '(no name)'} {m.id:016x} {','.join(m.peer_urls)}" for m in members)
    return "; ".join(sorted(told)) or "none"


def dialled_address(member: Member) -> str:
    """host:port at which `member` is dialled, "" if its record names none: a log of before there were checks may hold
    anything, and must not stop a node."""
    for url in member.peer_urls:
        with contextlib.suppress(ValueError):
            if urlsplit(url).netloc:
                return urlsplit(url).netloc
    return ""


def hand_in(
    kv: KVServer, kind: int, request: bytes, waiter: Waiter, send: Callable[[bytes], object], caller: Caller | None
) -> None:
    """Give an operation that is no KV call its request id and hand it in by `send`. `waiter` is answered once: here
    when writes are refused or `send` raises an ApiError (it is surely not logged then), else when it was applied.

    `caller` is the call on whose behalf this happens, or None. Where its time is over already nothing is handed in;
    where its time ends later, the id that it gets here is the one to withdraw (`Driver.withdraw`)."""
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


class MembershipClient:
    """The roster's user in the loop thread. `peers` is None while this member listens to no others. `chance` gives so
    many random bits, for the ids of new members."""

    def __init__(
        self, driver: Driver, kv: KVServer, roster: Roster, identity: Identity, chance: Callable[[int], int]
    ) -> None:
        self.driver = driver
        self.kv = kv
        self.roster = roster
        self.identity = identity
        self._chance = chance
        self.peers: Peers | None = None
        self.published = False  # the roster says who and where we are
        self.settled = False  # and the leader knows that we have started; nothing is left to be published
        self._told = False
        self._publishing = False
        self._publish_again = 0.0
        #: Whether this member has no vote.
        self.learner = self._is_learner()

    def _is_learner(self) -> bool:
        known = {member.id: member for member in self.identity.contacts} | self.roster.members
        me = known.get(self.identity.member_id)
        return me is not None and me.is_learner

    def members(self) -> list[Member]:
        """The members, as this node has applied them, in the order of their ids."""
        return [member for _, member in sorted(self.roster.members.items())]

    def label(self, member: int) -> str:
        """A member's name and id for people, or that there is none."""
        if not member:
            return "no leader"
        known = {record.id: record for record in self.identity.contacts} | self.roster.members
        name = known[member].name if member in known else ""
        if name:
            return f"{name} ({member:016x})"
        return self.peers.label(member) if self.peers is not None else f"member {member:016x}"

    # ---- towards the transport

    def tell(self, peers: Peers) -> None:
        """Keep `peers` informed of the roster from now on."""
        self.peers = peers
        self.refresh()

    def refresh(self) -> None:
        """The roster has changed."""
        self.settled = False
        self.learner = self._is_learner()
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

    def mended(self, before: RosterState, told: RosterState) -> None:
        """This member's roster was not the leader's, and is from now on."""
        had, has = set(before.members), set(told.members)
        log.warning(
            "the roster of this member (%s) differs from the leader's (%s), which it takes over: gone are %s and "
            "removed ids %s, %s; instead there are %s and removed ids %s, %s",
            before.digest, told.digest, _names(had - has),
            sorted(before.removed - told.removed), before.conf_state, _names(has - had),
            sorted(told.removed - before.removed), told.conf_state,
        )  # fmt: skip

    def hear(self, members: Iterable[Member]) -> None:
        """Another member's roster, which may be newer than ours: where members are that we do not find, or know."""
        for member in members:
            place = dialled_address(member)
            unknown = member.id != self.identity.member_id and member.id not in self.roster.removed
            if self.peers is not None and place and unknown:
                self.peers.hear(member.id, place)

    @property
    def removed(self) -> bool:
        """Whether the applied log says that this member is none any more."""
        return self.identity.member_id in self.roster.removed

    # ---- changes

    def publish(self, name: str, client_urls: tuple[str, ...], now: float) -> None:
        """Have the roster say who and where we are; called until `settled`.

        Also once where ours says so already: the leader's may be another one, and states itself in answer to it."""
        own = self.roster.members.get(self.identity.member_id)
        if self.settled or self._publishing or now < self._publish_again or not self.driver.leader_id or own is None:
            return
        told = Member(own.id, name, own.peer_urls, client_urls, own.is_learner, self.identity.incarnation)
        self.published = told == own
        if self.published and (self._told or len(self.roster.members) == 1):
            self.settled = True
            return
        self._publishing = True
        self._publish_again = now + PUBLISH_RETRY

        def done(error: errors.MetaStoreError | None) -> None:
            self._publishing = False
            self._told = error is None
            if error is not None:
                # Where the roster has us already it may take until a newcomer is started: no news for people.
                level = logging.DEBUG if self.published else logging.INFO
                log.log(level, "publishing this member again: %s", error)
            self.published = self.published or self._told

        self.change(Change(PUBLISH, told), done, now)

    def add(
        self, peer_urls: Iterable[str], learner: bool, done: DoneWith, now: float, caller: Caller | None = None
    ) -> None:
        """Add a member that will be reached at `peer_urls`; `done` gets its record. Raises MemberBadURLs."""
        urls = check_peer_urls(peer_urls)
        token = f"{self._chance(64):016x}"
        member = Member(new_member_id(str(self.identity.cluster_id), urls, token), "", urls, (), learner)
        self.change(Change(ADD_LEARNER if learner else ADD, member), lambda error: done(member, error), now, caller)

    def change(self, change: Change, done: Done, now: float, caller: Caller | None = None) -> None:
        """Have `change` carried out, for `caller` (see `hand_in`); `done` is called once, here or later."""
        waiter = outcome(done)
        hand_in(self.kv, MEMBER, change.encode(), waiter, lambda op: self.driver.change_members(op, now), caller)

    def others_go_on(self) -> bool:
        """Whether the others could commit without this leader: a quorum of them has been heard lately and has more of
        the log on disk than this member, so that their disks go on."""
        status: Any = self.driver.raw.status()
        ahead = {ident for ident, peer in status.progress.items() if peer.heard and peer.match > status.persisted}
        ahead -= {self.identity.member_id}
        halves = (status.config.voters, status.config.voters_outgoing)
        return all(len(ahead.intersection(voters)) > len(voters) // 2 for voters in halves if voters)

    def best_successor(self, besides: Container[int] = ()) -> int:
        """The voter that should lead when this leader goes: heard of lately, with the most of the log, and not one of
        `besides`. 0: nobody."""
        status: Any = self.driver.raw.status()
        ready = [
            (peer.match, ident)
            for ident, peer in status.progress.items()
            if ident != self.identity.member_id and peer.heard and not peer.is_learner and ident not in besides
        ]
        return max(ready, default=(0, 0))[1]
