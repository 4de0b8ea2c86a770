"""Members that greet each other before they are heard: what stands in for the streams of `metastore/peers/`.

The judgements are the real ones: `peers/acquaintances.py` and `peers/handshake.py` say who is heard and where others
are dialled, `member/peering.py` with `peers/founding.py` who may take part. A stream is a number that both ends know,
drawn by the dialler; a member hears what comes by a number that it has accepted in this life, and nothing else. Where a
member listens is a place, "n3:2", and nobody knows who is there before somebody answers. Greetings are late, lost or
doubled like all else, and their bytes are the real ones.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from metastore import errors
from metastore._core.op import LEVEL
from metastore.member.abilities import Abilities, CommonCodecs
from metastore.member.peering import Peering
from metastore.peers import handshake as hs
from metastore.peers.acquaintances import Acquaintance, Acquaintances

from .checker import Platter
from .disk import Disk

if TYPE_CHECKING:
    from metastore.replica.roster import Identity

    from .node import Member

#: Loggers. What members say of each other, and of the snapshots that the simulated network breaks, is no news here.
QUIET = ("metastore.snapshot", "metastore.members")
KINDS = frozenset({"hello", "answer", "bye", "ping", "pong"})
#: What of a member is its directory, or goes with it.
DIRECTORY = ("platter", "disk", "files", "doubt", "unsynced_gone", "fresh", "installs", "rotten")
TOKEN = 7
HANDSHAKE = 2.0  # seconds for an answer
REFUSED = 0.001  # seconds until a place where nobody listens says so
BACKOFF_MIN, BACKOFF_MAX = 0.05, 2.0
FORGET = 30.0  # seconds until one who is not in the roster and says nothing is forgotten
SWEEP = 1.0
WAITING, GREETING, OPEN = range(3)


class SimPeering(Peering):
    """The real thing; the checker hears when its member begins to take part."""

    def __init__(self, member: Member) -> None:
        self._member = member
        cluster = SimpleNamespace(begin_wait=member.cluster.settings.begin_wait)
        config: Any = SimpleNamespace(cluster=cluster, plugins=lambda _table: {})
        loop: Any = SimpleNamespace(now=member.now, call_later=member.later)
        nobody: Any = None  # its ports are not opened, and snapshots go another way
        super().__init__(
            config, member.identity, member.driver, member.membership,
            Abilities(member.kv, member.replica.codec, CommonCodecs()), loop, nobody, nobody,
            connect=nobody, leases=member.replica.leases, start=member.life,
            life=member.clock.random.getrandbits(64), doubt=member.doubt, transfers=nobody,
            held=lambda index, term: member.snapshots.catalogue.find(index, term) is not None,
            declines=lambda leader: False, end=member.must_end, stopping=lambda: False,
        )  # fmt: skip

    def _begin(self, why: str) -> None:
        super()._begin(why)
        self._member.begins(why)


class Link(Acquaintance):
    """Another member, and the one stream that we open to it."""

    def __init__(self, now: float, member: int, address: str, known: bool) -> None:
        super().__init__(member, address, known, now)
        self.state = WAITING
        self.number = 0  # of the stream that is open, or to be
        self.at = ""  # the place that was dialled
        self.turn = 0  # which of its places comes next
        self.delay = BACKOFF_MIN
        self.opened_at = 0.0
        self.timer: Any = None
        self.trouble = ""


class Greeter:
    """One member in one of its lives: its streams, and whom it knows. What `PeerTransport` is to a server."""

    def __init__(self, member: Member, peering: Peering) -> None:
        self.member = member
        self.peering = peering
        self.network = member.cluster.network
        self.me = hs.PeerIdentity(
            member.identity.cluster_id, TOKEN, member.id, member.identity.incarnation, peering._codecs,
            name=f"n{member.id}", places=(member.place,), start=member.life, life=peering._process[1], level=LEVEL,
        )  # fmt: skip
        self.known: Acquaintances[Link] = member.cluster.settings.acquaintances(
            member.id, lambda ident, address, known: Link(member.now(), ident, address, known)
        )
        self.accepted: dict[int, hs.PeerIdentity] = {}  # by the number of the stream
        self.asked: dict[int, Link] = {}  # for its roster, by the number of the stream
        self.strays = 0
        member.later(SWEEP, self._sweep)

    # ---- what members are told of by the roster (membership_client.Peers)

    def set_peers(self, peers: dict[int, str], names: dict[int, str]) -> None:
        """As PeerTransport."""
        changed = self.known.set_peers(peers, names)
        for member in changed.gone:
            self._forget(member)
        for link in changed.new:
            self._dial(link)
        for link in changed.moved:
            link.turn = 0
            if link.state != OPEN or link.at != link.address:
                self._fail(link, "the address changed", 0.0)
        self._drop(lambda identity: identity.member_id not in self.known.members)

    def hear(self, member: int, place: str) -> None:
        """As PeerTransport."""
        stranger = self.known.hear(member, place)
        if stranger is not None:
            self._dial(stranger)

    def set_removed(self, members: Any) -> None:
        """As PeerTransport."""
        for member in self.known.set_removed(members):
            self._forget(member)
        self._drop(lambda identity: identity.member_id in self.known.removed)

    def expect(self, member: int, incarnation: str) -> None:
        """As PeerTransport."""
        if self.known.expect(member, incarnation):
            link = self.known.members[member]
            if link.state == OPEN:
                self._fail(link, "another data directory is expected")
        self._drop(lambda identity: identity.member_id == member and identity.incarnation != incarnation)

    def _forget(self, member: int) -> None:
        link = self.known.forget(member)
        if link.timer is not None:
            link.timer.cancel()
        if link.state == OPEN:
            self._say(link.id, "bye", link.number)
        link.state, link.number = WAITING, 0
        self._drop(lambda identity: identity.member_id == member)

    def _drop(self, which: Any) -> None:
        for number, identity in list(self.accepted.items()):
            if which(identity):
                del self.accepted[number]
                self._say(identity.member_id, "bye", number)

    # ---- what Peering asks

    def identity_of(self, member: int) -> hs.PeerIdentity | None:
        """As PeerTransport."""
        link = self.known.members.get(member)
        return None if link is None else link.identity

    def label(self, member: int) -> str:
        """As PeerTransport."""
        return str(self.known.members.get(member, member))

    def stats(self) -> dict[int, dict[str, Any]]:
        """As PeerTransport, what Peering looks at."""
        return {
            link.id: {"connected": link.state == OPEN, "address": link.at, "trouble": link.trouble}
            for link in self.known.members.values()
        }

    def ask_again(self, member: int) -> None:
        """As PeerTransport."""
        link = self.known.members.get(member)
        if link is not None and link.state == OPEN:
            self._say(link.id, "bye", link.number)
            self._fail(link, "it is asked again")

    def ask_roster(self, member: int) -> None:
        """As PeerTransport."""
        link = self.known.members.get(member)
        if link is None or link in self.asked.values() or not link.places:
            return
        number = next(self.member.cluster.numbers)
        self.asked[number] = link
        self.member.later(HANDSHAKE, self.asked.pop, number, None)
        self._knock(link.places[link.turn % len(link.places)], number, hs.ROSTER, member)

    # ---- dialling

    def greeting(self) -> hs.PeerIdentity:
        """What this member says of itself now."""
        return replace(self.me, flags=self.peering.flags())

    def _dial(self, link: Link) -> None:
        if link.timer is not None:
            link.timer.cancel()
            link.timer = None
        places = link.places
        if not places:
            self._fail(link, "nobody knows its address")
            return
        link.at = places[link.turn % len(places)]
        link.state, link.number = GREETING, next(self.member.cluster.numbers)
        self.member.later(HANDSHAKE, self._late, link, link.number)
        self._knock(link.at, link.number, hs.CONTROL, link.id)

    def _knock(self, place: str, number: int, kind: int, target: int) -> None:
        there = self.member.cluster.at(place)
        if there is None:
            self.member.later(REFUSED, self.bye, number)
            return
        hello = hs.encode_hello(hs.Hello(kind, self.greeting(), target))
        self.network.send(self.member.id, there.id, "hello", (place, number, hello), zlib.crc32(hello))

    def _late(self, link: Link, number: int) -> None:
        if link.number == number and link.state == GREETING:
            self._fail(link, "no greeting in time")

    def _fail(self, link: Link, reason: str, wait: float | None = None) -> None:
        """There is no stream any more, or none came about: dial again later, or in `wait` seconds."""
        now, was_open = self.member.now(), link.state == OPEN
        if link.timer is not None:
            link.timer.cancel()
        link.state, link.number, link.trouble = WAITING, 0, reason
        link.connected = False
        if was_open and now - link.opened_at > BACKOFF_MAX:
            link.delay = BACKOFF_MIN
        link.turn += not was_open and wait is None
        self.member.later(0.0, self.member.unreachable, link.id)
        if wait is None:
            wait = link.delay * (0.5 + self.member.clock.random.random() / 2)
            link.delay = min(BACKOFF_MAX, link.delay * 2)
        link.timer = self.member.later(wait, self._dial, link)

    def answer(self, sender: int, told: tuple[int, bytes, bytes | None]) -> None:
        """What somebody says to a hello of ours, and its roster, if that was asked for."""
        number, data, record = told
        answer = hs.decode_answer(data)
        asked = self.asked.pop(number, None)
        link = asked or next((one for one in self.known.members.values() if one.number == number), None)
        if link is None:
            self._say(sender, "bye", number)
            return
        if asked is None and link.state != GREETING:
            return  # the answer was doubled
        status, text, counts, ends = self.known.answered(link, link.at, answer, self.me)
        if asked is not None and record is not None and status == hs.TOLD:
            self.peering.on_roster(link.id, record)
            return
        if counts:
            self.peering.on_answer(link.id, status, answer.sender)
        if ends:
            self.peering.on_verdict(status, text)
        elif asked is None and status != hs.OK:
            self._fail(link, f"refused: {text}")
        elif asked is None and link.state == GREETING:
            link.state, link.connected = OPEN, True
            link.opened_at = self.member.now()

    # ---- being dialled

    def hello(self, sender: int, told: tuple[str, int, bytes]) -> None:
        """Somebody dials us at a place that was ours when it did so."""
        place, number, data = told
        member, now = self.member, self.member.now()
        if place != member.place:
            self._say(sender, "bye", number)
            return
        hello = hs.decode_hello(data)
        who = hello.sender
        others = {
            stream: identity for stream, identity in self.accepted.items()
            if identity.member_id == who.member_id and identity.process != who.process
        }  # fmt: skip
        there = next((identity.process for identity in others.values()), None)
        status, text, ask = self.known.judge(hello, self.greeting(), self.peering.must_read(), there, now)
        for stream in others if ask else ():
            self._say(sender, "ping", stream)
        me = hs.NOBODY if status in hs.STRANGE else self.greeting()
        answer = hs.encode_answer(hs.Answer(status, text, me))
        record = self.peering.roster_record() if status == hs.TOLD else None
        self.network.send(member.id, sender, "answer", (number, answer, record), zlib.crc32(answer))
        if status != hs.OK:
            return
        for stream, identity in list(self.accepted.items()):
            if identity.member_id == who.member_id and stream != number:
                del self.accepted[stream]
                self._say(sender, "bye", stream)
        self.accepted[number] = who
        link = self.known.accepted(who, now)
        self.peering.on_greeting(link.id, who, link.known)
        if link.state == WAITING and link.id in self.known.members:
            self._dial(link)

    # ---- streams

    def _say(self, to: int, kind: str, number: int) -> None:
        self.network.send(self.member.id, to, kind, number, number)

    def number(self, to: int) -> int | None:
        """The stream by which something may go to that member; None: there is none, and 0: there is no such member."""
        link = self.known.members.get(to)
        if link is None:
            self.strays += 1
            return 0
        return link.number if link.state == OPEN else None

    def takes(self, sender: int, number: int) -> bool:
        """Whether what came by this stream is heard; who sent it is told if not."""
        identity = self.accepted.get(number)
        if identity is None:
            self._say(sender, "bye", number)
            return False
        self.known.took_part(sender, identity.incarnation)
        return True

    def bye(self, number: int) -> None:
        """The other end knows nothing of that stream."""
        self.accepted.pop(number, None)
        self.asked.pop(number, None)
        for link in list(self.known.members.values()):
            if link.number == number:
                self._fail(link, "closed by the other side")

    def ping(self, sender: int, number: int) -> None:
        """Does the process that opened this stream live?"""
        if any(link.number == number and link.state == OPEN for link in self.known.members.values()):
            self._say(sender, "pong", number)

    def pong(self, sender: int, number: int) -> None:
        """It does."""
        if number in self.accepted:
            self.known.lives.alive(sender, self.member.now())

    def _sweep(self) -> None:
        self.member.later(SWEEP, self._sweep)
        heard = {identity.member_id for identity in self.accepted.values()}
        for member in self.known.silent(heard, self.member.now(), FORGET):
            self._forget(member)

    def close(self) -> None:
        """The process has ended: its system closes the streams."""
        for number, identity in self.accepted.items():
            self._say(identity.member_id, "bye", number)
        for link in self.known.members.values():
            if link.state == OPEN:
                self._say(link.id, "bye", link.number)


class Greeted:
    """What a member has of all this, by whatever it is greeted: it is what `Member` is besides a replica."""

    if TYPE_CHECKING:
        id: int
        life: int
        alive: bool
        doubt: int
        cluster: Any
        clock: Any
        disk: Disk
        platter: Platter
        driver: Any
        membership: Any
        files: Any
        fresh: Identity
        unsynced_gone: bool
        installs: set[str]
        rotten: set[str]
        crash: Any
        _enter: Any

    def __init__(self) -> None:
        self.place = f"n{self.id}:2"  # where this member listens
        self.greeter: Greeter | None = None
        self.wiped = 0  # how often its directory was taken away
        self.kept: tuple[Any, ...] | None = None  # that directory, while it is away
        self.ended: errors.MetaStoreError | None = None  # why the process has ended and will not be started again

    @property
    def platters(self) -> list[Platter]:
        """What is on the disk that is there, and on the one that was taken away with what it had acknowledged."""
        return [self.platter] if self.kept is None else [self.platter, self.kept[0]]

    # ---- beginning and end

    def greet(self) -> None:
        """The process opens its port."""
        member: Any = self
        peering = self.cluster.settings.peering(member)
        self.greeter = peering.transport = Greeter(member, peering)
        self.membership.tell(self.greeter)
        peering.update()

    def begins(self, why: str) -> None:
        """This member takes part from now on."""
        self.cluster.checker.begins(self, why)

    def must_end(self, why: errors.MetaStoreError) -> None:
        """Another member says so."""
        self.cluster.checker.must_end(self, why)
        self.ended = why
        self.crash(False)

    def wipe(self) -> None:
        """The directory of a member that is down is not there when it is started again."""
        assert not self.alive
        if self.kept is None:
            self.kept = tuple(getattr(self, name) for name in DIRECTORY)
        self.wiped += 1
        self.disk, self.files, self.doubt, self.unsynced_gone = Disk(), None, 0, False
        self.fresh = replace(self.fresh, incarnation=f"incarnation {self.id}.{self.wiped}")
        self.platter, self.installs, self.rotten = Platter(), set(), set()

    def mount(self) -> None:
        """It is there again."""
        assert not self.alive and self.kept is not None
        for name, value in zip(DIRECTORY, self.kept, strict=True):
            setattr(self, name, value)
        self.kept = self.ended = None

    # ---- streams

    def unreachable(self, member: int) -> None:
        """Something for `member` may be lost."""
        self.driver.unreachable(member)

    def post(self, to: int, kind: str, data: Any, check: int) -> bool:
        """Send something to a member by the stream to it; False: the sender sees the loss."""
        network = self.cluster.network
        if self.greeter is None:
            return bool(network.send(self.id, to, kind, data, check))
        number = self.greeter.number(to)
        return number == 0 or (number is not None and network.send(self.id, to, kind, (number, data), check))

    def greeted(self, sender: int, kind: str, data: Any) -> None:
        """Something arrives that is no message."""
        if not self.alive:
            if kind == "hello":
                self.refuses(sender, data[1])
            return
        assert self.greeter is not None
        call = getattr(self.greeter, kind)
        self._enter(self.life, call, (data,) if kind == "bye" else (sender, data))

    def refuses(self, sender: int, number: int) -> None:
        """Nobody listens here."""
        self.cluster.network.send(self.id, sender, "bye", number, number)

    def hears(self, sender: int, number: int, call: Any, args: tuple[Any, ...]) -> None:
        """Something has come by a stream."""
        assert self.greeter is not None
        if self.greeter.takes(sender, number):
            call(*args)
