"""A member's knowledge of the others decides whose streams it accepts, how it answers their hellos, where it dials
them, and whose answers it acts on.

This module is pure. The transport owns the streams and the clock. It reports events to this module and carries out the
decisions that this module returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Final, Generic, NamedTuple, TypeVar

from . import handshake as hs
from .founding import Lives

#: The number of members that this member answers at a time although the roster does not have them yet.
MAX_STRANGERS: Final = 8
#: The number of addresses of one member that are kept because rosters of others name them. The newest ones stay.
MAX_HEARSAY: Final = 4


class Acquaintance:
    """Another member. `known` is true when the roster has it.

    A member that is not known yet has either sent us a hello, and we dial the address that the hello gives; or the
    roster of another member names it.
    """

    def __init__(self, member: int, address: str, known: bool, now: float) -> None:
        self.id = member
        self.name = ""
        self.known = known
        self.address = address  # as the roster says
        self.greeted: tuple[str, ...] = ()  # its addresses according to its last greeting
        self.hearsay: tuple[str, ...] = ()  # its addresses in rosters of others, which may be older than its greeting
        self.heard = now
        self.connected = False
        self.identity: hs.PeerIdentity | None = None

    def __str__(self) -> str:
        name = self.name or (hs.clip(self.identity.name) if self.identity is not None else "")
        return f"{name} ({self.id:016x})" if name else f"member {self.id:016x}"

    @property
    def places(self) -> list[str]:
        """The addresses to dial, in turn. The roster may be older than a move, or the greeting may lack an address."""
        return list(dict.fromkeys(place for place in (self.address, *self.greeted, *self.hearsay) if place))


A = TypeVar("A", bound=Acquaintance)


class Changed(NamedTuple, Generic[A]):
    """The consequences of a new roster: members that it no longer has, members to dial, and members whose address
    changed.
    """

    gone: list[int]
    new: list[A]
    moved: list[A]


class Judged(NamedTuple):
    """The verdict on an answer to our hello.

    `counts`: we act on what the answer says, because we reached the other side at the address that the roster gives for
    it. `ends`: this process must end because of the answer.
    """

    status: int
    text: str
    counts: bool
    ends: bool


class Acquaintances(Generic[A]):
    """All that this member knows about the others. `make(member, address, known)` makes a record; `own` is this
    member's id.
    """

    def __init__(self, own: int, make: Callable[[int, str, bool], A]) -> None:
        self.own = own
        self.members: dict[int, A] = {}
        self.removed: frozenset[int] = frozenset()
        self.incarnations: dict[int, str] = {}  # those of the members' data directories in the roster
        self.lives = Lives()
        self._seen: dict[int, str] = {}  # incarnations of members that took part, in case the roster has none
        self._make = make
        self._ends = False

    # ---- what the roster says

    def set_peers(self, peers: Mapping[int, str], names: Mapping[int, str]) -> Changed[A]:
        """Sets the other members and the addresses where they listen ("" for none). The caller must forget
        those in `gone`.
        """
        changed: Changed[A] = Changed(
            [member for member, one in self.members.items() if one.known and member not in peers], [], []
        )
        for member, address in peers.items():
            if member == self.own:
                continue
            one = self.members.get(member)
            if one is None:
                one = self.members[member] = self._make(member, address, True)
                changed.new.append(one)
            elif one.address != address:
                one.address = address
                if one.known:
                    changed.moved.append(one)
            one.known = True
            one.name = names.get(member, "")
        return changed

    def set_removed(self, members: Iterable[int]) -> list[int]:
        """Sets the ids that must never come back. Returns the strangers among them, which the caller must forget."""
        self.removed = frozenset(members)
        for member in self.removed:
            self.lives.forget(member)
        return [member for member in self.removed if member in self.members and not self.members[member].known]

    def expect(self, member: int, incarnation: str) -> bool:
        """Sets the data directory that belongs to `member`. Returns whether the member had presented another one."""
        self.incarnations[member] = incarnation
        one = self.members.get(member)
        if one is None or one.identity is None or one.identity.incarnation == incarnation:
            return False
        one.identity = None
        return True

    def hear(self, member: int, place: str) -> A | None:
        """Another member says that `member` listens at `place`. Returns a new record to dial if the member
        was not known.
        """
        one = self.members.get(member)
        if one is not None:
            # What the member says of itself stays: a roster that is older than its move must not take that away.
            if not one.connected and place not in one.places:
                one.hearsay = (place, *one.hearsay)[:MAX_HEARSAY]
            return None
        if member in self.removed or self.strangers >= MAX_STRANGERS:
            return None
        one = self.members[member] = self._make(member, "", False)
        one.hearsay = (place,)
        return one

    @property
    def strangers(self) -> int:
        """The number of known members that the roster does not have."""
        return sum(not one.known for one in self.members.values())

    def forget(self, member: int) -> A:
        """Drops the record of a member that was removed, or of a stranger. The caller ends its streams."""
        self._seen.pop(member, None)
        return self.members.pop(member)

    def silent(self, heard: Set[int], now: float, patience: float) -> list[int]:
        """Returns the members that the roster does not have and that have sent nothing for `patience` seconds.

        `heard` holds the members that have streams open to us.
        """
        strangers = []
        for member, one in self.members.items():
            if member in heard:
                one.heard = now
            elif not one.known and now - one.heard > patience:
                strangers.append(member)
        return strangers

    # ---- greetings

    def incarnation_of(self, member: int) -> str | None:
        """The data directory of a member: the one in the roster, or else the one that took part under its id."""
        return self.incarnations.get(member) or self._seen.get(member)

    def took_part(self, member: int, incarnation: str) -> None:
        """A frame from that member came on an accepted stream."""
        self._seen.setdefault(member, incarnation)

    def judge(
        self, hello: hs.Hello, me: hs.PeerIdentity, must_read: Set[tuple[int, str]], there: tuple[int, int] | None,
        now: float,
    ) -> tuple[int, str, bool]:  # fmt: skip
        """Judges a hello. Returns (status, reason, whether to ask the member's open streams for a sign of life).

        `there` is another process of the dialler that has streams open (founding.Lives), or None.
        """
        known = hs.Known(self.removed, {**self._seen, **self.incarnations}, must_read)
        status, text = hs.judge_hello(hello, me, known)
        if status != hs.OK:
            return status, text, False
        member = hello.sender.member_id
        if member not in self.members and self.strangers >= MAX_STRANGERS:
            return hs.BUSY, f"{MAX_STRANGERS} members that are not known here yet are connected", False
        return self.lives.judge(member, hello.sender.process, there, now)

    def accepted(self, identity: hs.PeerIdentity, now: float) -> A:
        """A member dialled us, and we accepted its hello.

        A member that was not known before (its entry in the log comes later) is known from now on, and we dial it at
        the addresses that its hello gives.
        """
        member = identity.member_id
        one = self.members.get(member)
        if one is None:
            one = self.members[member] = self._make(member, "", False)
        one.identity = identity
        one.greeted = identity.places
        one.heard = now
        return one

    def answered(self, one: A, place: str, answer: hs.Answer, me: hs.PeerIdentity) -> Judged:
        """A member, dialled at `place`, answered our hello."""
        status, text = hs.judge_answer(answer, me, one.id, self.incarnation_of(one.id))
        # Only the roster's address is trusted: anybody may listen at an address that a greeting alone gives.
        trusted = one.known and place == one.address
        said = status in (hs.OK, hs.WAIT) and one.id == answer.sender.member_id
        if said:
            one.identity = answer.sender
            # It is found, so what else was said of it is not tried again.
            one.hearsay = tuple(told for told in one.hearsay if told == place)
        ends = status in hs.FATAL and trusted and not self._ends
        self._ends = self._ends or ends
        return Judged(status, text, said and trusted, ends)
