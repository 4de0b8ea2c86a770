"""Member ids, the identity record of a data directory, and the roster that the log changes.

Ids are computed once, when a data directory is made, and are stored there. A member may therefore change its address
later and stays the same member. Each data directory gets a random incarnation, so a wiped directory is not mistaken for
the member that it was. Formats: FORMATS.md, "Identity" and "Membership".

The checks of a change follow etcd's (server/etcdserver/api/membership): the same errors, in the same order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .. import errors
from .._core.raft_types import ConfChange, ConfState
from ..settings import MAX_ADDRESSES, MAX_NAME

if TYPE_CHECKING:
    from .._core.mvcc import Store

VERSION = 1
IDENTITY_VERSION = 2
MAX_LEARNERS = 1  # etcd's limit: every learner costs the leader a full copy of the traffic
# These limits of a member's record let all records together fit in one frame between members. They are checked where a
# change is requested and again by the leader, but not when it is applied, because older logs may hold larger records.
MAX_URLS = MAX_ADDRESSES  # of each kind
MAX_URL = 256  # bytes
MAX_INCARNATION = 64  # bytes

ADD, ADD_LEARNER, REMOVE, PROMOTE = "add", "add_learner", "remove", "promote"
UPDATE, PUBLISH = "update", "publish"
RESTATE = "restate"  # the leader's whole roster, which every member takes over as it is
CONF_CHANGE_TYPES = {ADD: 0, REMOVE: 1, ADD_LEARNER: 3, PROMOTE: 0}  # raftpb.ConfChangeType

META_MEMBERS = b"members"
META_CONF_STATE = b"conf_state"


@dataclass(frozen=True, slots=True)
class Member:
    """One member as the Cluster API shows it. `id` has 64 bits and is never 0; URLs include their scheme.

    `name` is empty until the member has published itself; from then on `incarnation` is that of its data directory.
    """

    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    is_learner: bool = False
    incarnation: str = ""

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Member:
        """Make a member from the JSON form. Raises KeyError, TypeError, ValueError."""
        return cls(
            int(record["id"]),
            str(record["name"]),
            tuple(str(url) for url in record["peer_urls"]),
            tuple(str(url) for url in record["client_urls"]),
            bool(record["is_learner"]),
            str(record["incarnation"]),
        )


def _json(record: dict[str, Any]) -> bytes:
    return json.dumps({"version": VERSION, **record}, sort_keys=True, separators=(",", ":")).encode()


def _parse(data: bytes, what: str, *versions: int) -> dict[str, Any]:
    """The JSON object in `data`, of one of `versions` (default: VERSION). Raises FormatError, naming `what`."""
    try:
        record = json.loads(data)
        version = record["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise errors.FormatError(f"{what} cannot be read: {error}") from error
    if version not in (versions or (VERSION,)):
        raise errors.FormatError(f"{what} has version {version!r}, this program reads {(versions or (VERSION,))[-1]}")
    return dict(record)


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of a data directory: its member, its cluster, and the members with which the cluster began.

    `contacts` are the members at the time when this one joined. It reaches the cluster through them until it learns the
    roster from the log.
    """

    cluster_id: int
    member_id: int
    incarnation: str
    members: tuple[Member, ...]
    contacts: tuple[Member, ...] = ()
    name: str = ""
    token: int = 0

    @classmethod
    def create(cls, name: str, token: str, initial: dict[str, str], incarnation: str) -> Identity:
        """Makes the identity of a new data directory.

        `initial` maps names to peer addresses (host:port); `name` must be one of them. `incarnation` is a random string
        that the caller chooses. Raises ConfigError.
        """
        if name not in initial:
            raise errors.ConfigError(f"cluster.initial names {', '.join(sorted(initial))}, but not node.name {name!r}")
        members = tuple(
            Member(_number("member", token, who, where), who, (f"http://{where}",), ())
            for who, where in sorted(initial.items())
        )
        own = next(member.id for member in members if member.name == name)
        return cls(_cluster_number(token, initial), own, incarnation, members, (), name, token_number(token))

    def check(self, name: str, token: str) -> None:
        """Raise ConfigError when the configuration is not that of the member whose data directory this is."""
        known = self.name or next((member.name for member in self.members if member.id == self.member_id), "")
        if known and known != name:
            raise errors.ConfigError(f"node.name is {name!r}, but the data directory is that of {known!r}")
        if self.token:
            same = self.token == token_number(token)
        else:
            began = {member.name: member.peer_urls[0].removeprefix("http://") for member in self.members}
            same = bool(self.contacts) or _cluster_number(token, began) == self.cluster_id
        if not same:
            raise errors.ConfigError(f"cluster.token is {token!r}, but the data directory was made with another one")

    def differs(self, initial: dict[str, str]) -> bool:
        """Whether `initial` (names, host:port) is not the list with which this member began its cluster."""
        began = {member.name: member.peer_urls[0].removeprefix("http://") for member in self.members}
        return self.founder and initial != began

    @property
    def founder(self) -> bool:
        """Whether this member was made to begin the cluster, rather than to join it."""
        return not self.contacts

    def encode(self) -> bytes:
        """The record as the log's segments store it: JSON with a version, as UTF-8."""
        return _json({**asdict(self), "version": IDENTITY_VERSION})

    @classmethod
    def decode(cls, data: bytes) -> Identity:
        """Inverse of `encode`; raises FormatError."""
        record = _parse(data, "identity record", 1, IDENTITY_VERSION)
        try:
            members, contacts = (
                tuple(Member.from_record(member) for member in record[key]) for key in ("members", "contacts")
            )
            name, token = ("", 0) if record["version"] == 1 else (str(record["name"]), int(record["token"]))
            return cls(record["cluster_id"], record["member_id"], record["incarnation"], members, contacts, name, token)
        except (ValueError, KeyError, TypeError) as error:
            raise errors.FormatError(f"identity record cannot be read: {error}") from error


def _number(*parts: str) -> int:
    """A 64-bit id, not 0, computed from the parts. The length before each part tells ("a","bc") from ("ab","c")."""
    digest = hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") or 1


def _cluster_number(token: str, initial: dict[str, str]) -> int:
    """Id of the cluster that begins with these names and peer addresses."""
    return _number("cluster", token, "\n".join(f"{who}={where}" for who, where in sorted(initial.items())))


def token_number(token: str) -> int:
    """The number that represents a cluster's token in comparisons: on the wire and in the data directory."""
    return _number("token", token)


def new_member_id(token: str, peer_urls: Iterable[str], salt: str) -> int:
    """The id of a joining member. `salt` (random) makes it new even at an address where a member was before."""
    return _number("joined", token, ",".join(sorted(peer_urls)), salt)


def bad_urls(why: str) -> errors.ApiError:
    """Returns the error that clients know, with the reason added."""
    return errors.MemberBadURLs(f"{errors.MemberBadURLs.default}: {why}")


def check_urls(urls: tuple[str, ...]) -> None:
    """Raise MemberBadURLs for more or longer URLs than a member may have."""
    if len(urls) > MAX_URLS:
        raise bad_urls(f"{len(urls)} URLs; a member has {MAX_URLS} at most")
    if any(_size(url) > MAX_URL for url in urls):
        raise bad_urls(f"a URL is longer than {MAX_URL} bytes")


def _size(text: str) -> int:
    """Return the bytes of `text`. Raises MemberBadURLs for an invalid string: JSON allows lone surrogates, UTF-8 does
    not."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise bad_urls("half a character") from None


def peer_address(url: str) -> str:
    """The host:port of a peer URL that a client wants to add.

    Raises MemberBadURLs: with etcd's text for URLs that etcd refuses, with a reason for those that only we refuse.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise errors.MemberBadURLs() from None
    if parts.scheme == "https":
        raise bad_urls("https is not there yet between members, only http")
    if parts.scheme != "http" or not parts.hostname or not port or parts.path not in ("", "/") or "@" in parts.netloc:
        raise errors.MemberBadURLs()
    return parts.netloc


def check_peer_urls(urls: Iterable[str]) -> tuple[str, ...]:
    """The checked peer URLs of a member that is added or that moves. Raises MemberBadURLs."""
    checked = tuple(urls)
    if not checked:
        raise errors.MemberBadURLs()
    check_urls(checked)
    for url in checked:
        peer_address(url)
    return checked


@dataclass(frozen=True, slots=True)
class RosterState:
    """A complete roster: the members by ascending id, the ids that must never come back, and Raft's view of
    the membership.
    """

    members: tuple[Member, ...]
    removed: frozenset[int]
    conf_state: ConfState

    def records(self) -> dict[str, Any]:
        """The members and the removed ids as JSON values."""
        return {"members": [asdict(member) for member in self.members], "removed": sorted(self.removed)}

    @classmethod
    def from_records(cls, record: dict[str, Any], conf_state: ConfState) -> RosterState:
        """Inverse of `records`. Raises KeyError, TypeError, ValueError."""
        members = sorted((Member.from_record(member) for member in record["members"]), key=lambda member: member.id)
        return cls(tuple(members), frozenset(int(ident) for ident in record["removed"]), conf_state)

    @property
    def digest(self) -> str:
        """Sixteen hex digits, equal on two members if their rosters are equal."""
        data = _json({**self.records(), "conf_state": self.conf_state.encode().hex()})
        return hashlib.sha256(data).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Change:
    """One membership operation: an `action` and the member that it concerns.

    For REMOVE and PROMOTE only the member's id counts; for RESTATE the member is the leader. `roster` is the roster
    that a RESTATE states; it is None for all other actions.
    """

    action: str
    member: Member
    roster: RosterState | None = None

    def encode(self) -> bytes:
        """The request of an operation of kind MEMBER."""
        record: dict[str, Any] = {"action": self.action, "member": asdict(self.member)}
        if self.roster is not None:
            record["roster"] = {**self.roster.records(), "conf_state": self.roster.conf_state.encode().hex()}
        return _json(record)

    @classmethod
    def decode(cls, data: bytes) -> Change:
        """Inverse of `encode`. Raises FormatError."""
        record = _parse(data, "membership operation")
        try:
            action, roster = str(record["action"]), None
            if action == RESTATE:
                conf_state = ConfState.decode(bytes.fromhex(record["roster"]["conf_state"]))
                roster = RosterState.from_records(record["roster"], conf_state)
            change = cls(action, Member.from_record(record["member"]), roster)
        except (ValueError, KeyError, TypeError) as error:
            raise errors.FormatError(f"membership operation cannot be read: {error}") from error
        if change.action not in (*CONF_CHANGE_TYPES, UPDATE, PUBLISH, RESTATE) or not 0 < change.member.id < 1 << 64:
            raise errors.FormatError(f"membership operation: {change.action!r} of member {change.member.id}")
        return change

    def check_size(self) -> None:
        """Raise MemberBadURLs or RequestTooLarge for more than a member's record may hold."""
        member = self.member
        if self.action in (ADD, ADD_LEARNER, UPDATE):
            check_peer_urls(member.peer_urls)
        check_urls(member.peer_urls)
        check_urls(member.client_urls)
        if _size(member.name) > MAX_NAME or _size(member.incarnation) > MAX_INCARNATION:
            raise errors.RequestTooLarge()

    def conf_change(self, context: bytes) -> ConfChange | None:
        """The change that Raft has to decide for this operation, or None; its `context` is the operation."""
        kind = CONF_CHANGE_TYPES.get(self.action)
        return None if kind is None else ConfChange(kind, self.member.id, context)


class Roster:
    """The members of the applied state. The store's meta records hold them, and the write that applies a change updates
    both.

    members: id -> Member. removed: ids that must never come back. conf_state: Raft's view, as applied.
    """

    def __init__(self, store: Store, initial: Iterable[Member]) -> None:
        self.store = store
        self.initial = tuple(initial)
        self.members: dict[int, Member] = {}
        self.removed: frozenset[int] = frozenset()
        self.conf_state = ConfState()
        self.load()

    def load(self) -> None:
        """Loads the roster from the store. A store without a roster gets the initial one. Raises FormatError."""
        data = self.store.get_meta(META_MEMBERS)
        if data is None:
            self.members = {member.id: member for member in self.initial}
            self.removed = frozenset()
            self.conf_state = ConfState(voters=tuple(sorted(self.members)))
            return
        state = self.store.get_meta(META_CONF_STATE)
        if state is None:
            raise errors.FormatError("member records without a membership of Raft")
        try:
            self._take(RosterState.from_records(_parse(data, "member records"), ConfState.decode(state)))
        except (ValueError, KeyError, TypeError) as error:
            raise errors.FormatError(f"member records cannot be read: {error}") from error

    @property
    def state(self) -> RosterState:
        """The complete roster."""
        members = tuple(self.members[ident] for ident in sorted(self.members))
        return RosterState(members, self.removed, self.conf_state)

    def _take(self, state: RosterState) -> None:
        self.members = {member.id: member for member in state.members}
        self.removed = state.removed
        self.conf_state = state.conf_state

    def _save(self) -> None:
        self.store.put_meta(META_MEMBERS, _json(self.state.records()))
        self.store.put_meta(META_CONF_STATE, self.conf_state.encode())

    def check(self, change: Change) -> None:
        """Whether `change` fits the roster. Raises ApiError; the same on every node."""
        member, present = change.member, self.members.get(change.member.id)
        if change.action in (ADD, ADD_LEARNER):
            self._check_new(change)
            return
        if member.id in self.removed or present is None:
            raise errors.MemberNotFound()
        if change.action == PROMOTE and not present.is_learner:
            raise errors.MemberNotLearner()
        if change.action == UPDATE and self._taken(member.peer_urls, but=member.id):
            raise errors.PeerURLExist()

    def _check_new(self, change: Change) -> None:
        member = change.member
        if member.id in self.members or member.id in self.removed:
            raise errors.MemberExist()
        if self._taken(member.peer_urls):
            raise errors.PeerURLExist()
        if change.action == ADD_LEARNER and sum(m.is_learner for m in self.members.values()) >= MAX_LEARNERS:
            raise errors.TooManyLearners()

    def _taken(self, urls: Iterable[str], but: int = 0) -> bool:
        addresses = set(urls)
        return any(addresses & set(member.peer_urls) for member in self.members.values() if member.id != but)

    def apply(self, change: Change, conf_state: ConfState | None = None) -> None:
        """Carries out a committed change. If it raises ApiError, nothing has changed."""
        self.check(change)
        ident, present = change.member.id, self.members.get(change.member.id)
        if change.action in (ADD, ADD_LEARNER):
            self.members[ident] = replace(change.member, is_learner=change.action == ADD_LEARNER)
        elif change.action == REMOVE:
            del self.members[ident]
            self.removed |= {ident}
        elif present is not None:
            self.members[ident] = _changed(present, change)
        if conf_state is not None:
            self.conf_state = conf_state
        self._save()

    def restate(self, state: RosterState) -> RosterState | None:
        """Takes over the leader's roster as it is. Returns the previous roster if it was a different one."""
        before = self.state
        self._take(state)
        # Write the records even if the rosters are equal: a roster that was never changed has no records yet, and
        # members compare their records too.
        self._save()
        return None if before == state else before

    def set_conf_state(self, conf_state: ConfState) -> None:
        """Takes a change of Raft's membership that concerns no member (leaving a joint configuration)."""
        self.conf_state = conf_state
        self._save()


def _changed(present: Member, change: Change) -> Member:
    update = change.member
    if change.action == PROMOTE:
        return replace(present, is_learner=False)
    if change.action == UPDATE:
        return replace(present, peer_urls=update.peer_urls)
    return replace(present, name=update.name, client_urls=update.client_urls, incarnation=update.incarnation)


def check_healthy(roster: Roster, change: Change, active: frozenset[int], alive: frozenset[int]) -> None:
    """Makes the leader's strict checks before a change enters the log (etcd: strict-reconfig-check).

    active: the members that answer, the leader included. alive: these and the members that may answer again at any
    moment. Raises MemberNotEnoughStarted or Unhealthy if the change would leave the cluster without a live quorum.

    A new member, even a learner, counts as one that does not answer yet. As in etcd 3.6, the members that answer must
    be a quorum of the voters and one more. One of four or five members may therefore be down; one of three or two of
    five may not.
    """
    voters = {member.id for member in roster.members.values() if not member.is_learner}
    if change.action in (ADD, PROMOTE):
        started = {ident for ident in voters if roster.members[ident].name}
        if len(voters) > 1 and len(started) < (len(voters) + 1) // 2 + 1:
            raise errors.MemberNotEnoughStarted()
    if change.action in (ADD, ADD_LEARNER) and len(voters) > 1 and len(voters & active) < (len(voters) + 1) // 2 + 1:
        raise errors.Unhealthy()
    if change.action == REMOVE and change.member.id in voters:
        left = voters - {change.member.id}
        if not left:
            raise errors.MemberNotEnoughStarted()
        if change.member.id in alive and len(left & active) < len(left) // 2 + 1:
            raise errors.Unhealthy()
