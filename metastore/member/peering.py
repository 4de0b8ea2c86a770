"""A member deals with its peers here: it opens the peer port, handles what comes in there, and decides whether it may
take part.

`Peering` is the transport's owner (PeerHandler) in the loop's thread. It acts on the verdicts of other members: a
member that was removed, lost its directory or runs twice ends. A member whose log is empty waits until it may begin
(`peers/founding.py`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Set
from typing import TYPE_CHECKING, Any, Final, Protocol

from .. import errors
from .._core.op import LEVEL
from .._core.peer_intake import MessageIntake
from .._core.raft_types import Message, MessageType
from ..codecs import load_all
from ..net.accept import place, real_address
from ..net.resolver import Places
from ..peers import handshake as hs
from ..peers.founding import Founding
from ..peers.handshake import PeerIdentity
from ..peers.join import read_record, roster_record
from ..peers.transport import PeerTransport
from ..replica.roster import token_number

if TYPE_CHECKING:
    from ..config import Config
    from ..failpoints import Failpoints
    from ..net.loop import Loop
    from ..net.resolver import Resolver
    from ..peers.accepted import AcceptedStream
    from ..ports import Done
    from ..replica.driver import Driver
    from ..replica.roster import Identity
    from .abilities import Abilities
    from .membership_client import MembershipClient
    from .ticks import Ticks

log = logging.getLogger("metastore.members")

#: Seconds until a member that waits for others logs for whom, and between such lines.
FIRST_LINE: Final = 1.0
NEXT_LINE: Final = 10.0
#: Seconds between two questions for the roster, while there is no leader or an unknown member has come.
ASK_ROSTER: Final = 10.0
#: Messages that only a leader sends.
LEADERS: Final = frozenset({int(MessageType.MsgApp), int(MessageType.MsgHeartbeat), int(MessageType.MsgSnap)})

VERDICTS: Final[dict[int, type[errors.MetaStoreError]]] = {
    hs.REMOVED: errors.RemovedFromCluster,
    hs.OTHER_INCARNATION: errors.MustJoinAnew,
    hs.TWIN: errors.AnotherProcess,
    hs.UNREADABLE: errors.CodecMissing,
}


class SnapshotTraffic(Protocol):
    """Snapshots on their way between members (`snapshots.transfer.Transfers`)."""

    def send(self, transport: PeerTransport, message: Message) -> None:
        """Begin to send the snapshot that a MsgSnap is about."""

    def accept(self, stream: AcceptedStream) -> None:
        """A member begins to send a snapshot."""


class LeaseQuestions(Protocol):
    """What members ask each other about leases (`replica.lease_rounds.LeaseRounds`)."""

    def receive_question(self, sender: int, data: bytes, now: float) -> None:
        """A member asks. Raises FormatError."""

    def receive_answer(self, data: bytes) -> None:
        """A member answers. Raises FormatError."""


def own_address(config: Config) -> str:
    """The address at which the others dial this member."""
    return real_address(config.advertise.peer or config.cluster.initial[config.node.name])


def _ignored(_from: int, _tag: int, _data: bytes) -> None:
    """What a member says before anybody listens."""


class Peering(MessageIntake):
    """The dealings of a member with its peers. `transport` is None while this member listens to no others.

    connect: has the replica send by way of the transport. leases: gets what members ask each other about leases. start:
    the number of this start of the data directory. life: drawn by this process, in 64 bits. doubt: not 0 where the log
    may have lost what was acknowledged. held: whether a snapshot (index, term) is here. declines: whether this member
    does not take leadership from a member, for want of room. end: ends this process for a reason. stopping: whether it
    stops, so that no port is opened any more.
    """

    _driver: Driver
    founding: Founding | None
    ticks: Ticks | None
    _loop: Loop

    def __init__(
        self,
        config: Config,
        identity: Identity,
        driver: Driver,
        membership: MembershipClient,
        abilities: Abilities,
        loop: Loop,
        resolver: Resolver,
        failpoints: Failpoints,
        *,
        connect: Callable[[PeerTransport], object],
        leases: LeaseQuestions,
        start: int,
        life: int,
        doubt: int,
        transfers: SnapshotTraffic,
        held: Callable[[int, int], bool],
        declines: Callable[[int], bool],
        end: Callable[[errors.MetaStoreError], object],
        stopping: Callable[[], bool],
    ) -> None:
        super().__init__(driver, loop, declines, held)
        self._config = config
        self._identity = identity
        self._roster = driver.roster
        self._membership = membership
        self._abilities = abilities
        self._resolver = resolver
        self._failpoints = failpoints
        self._transfers = transfers
        self._connect = connect
        self._leases = leases
        self._end = end
        self._stopping = stopping
        self.transport: PeerTransport | None = None
        #: Gets what other members say by `tell`.
        self.news: Callable[[int, int, bytes], object] = _ignored
        self._doubt = doubt
        self._process = (start, life)
        self._codecs = tuple(sorted((codec.flag, codec.name) for codec in load_all(config.plugins("codecs"))))
        self._line_at: float | None = None
        self._since = 0.0  # without a leader
        self._asked_at = -ASK_ROSTER
        self.founding = self._founding()
        self._hold()

    # ---- beginning

    def _founding(self) -> Founding | None:
        """Returns the `Founding` of a member that may have to wait before it begins, or None (see peers/founding.py).

        A directory that has a term took part before, so it was not lost. If such a member asked again, it could wait
        for ever: the first leader may have been alone with the first entry when all members stopped.
        """
        identity = self._identity
        if not self._new() or self._driver.raw.term or len(identity.members) < 2:
            return None
        wait = self._config.cluster.begin_wait
        return Founding(identity.member_id, (member.id for member in identity.members), wait)

    def _new(self) -> bool:
        return self._identity.founder and not self._driver.raw.status().last_index and not self._doubt

    def _hold(self) -> None:
        holding = self.founding is not None
        self._driver.hold(holding)
        self._driver.kv.holding = holding

    def _begin(self, why: str) -> None:
        log.info("this member takes part from now on: %s", why)
        self.founding = None
        self._hold()

    # ---- the port

    def watch(self) -> None:
        """Opens the port as soon as there is another member. A member that is alone needs no port."""
        alone = set(self._roster.members) == {self._identity.member_id} and not self._identity.contacts
        if self.transport is None and not alone:
            self.open()

    def listen(self, done: Done) -> None:
        """Opens the port if it is closed, and calls `done`, with an error if it cannot be opened.

        A thread looks names up, because the loop must not wait for a name server.
        """
        if self.transport is not None:
            done(None)
            return
        address = self._config.listen.peer

        def resolved(answer: Places | str) -> None:
            try:
                if isinstance(answer, str):
                    raise errors.ConfigError(f"listen.peer {address!r}: {answer}")
                if self.transport is None and not self._stopping():
                    self.open(place(answer[0][4]))
            except (errors.AddressInUse, errors.ConfigError, OSError) as error:
                done(errors.Unhealthy(f"{errors.Unhealthy.default}: the peer port cannot be opened: {error}"))
            else:
                done(None)

        self._resolver.resolve(address, resolved)

    def open(self, address: str = "") -> None:
        """Listens for peers at `address` (default: the configured one). Raises AddressInUse, ConfigError, OSError."""
        identity, config = self._identity, self._config
        start, life = self._process
        announced = [codec for codec in self._codecs if len(codec[1].encode()) <= hs.MAX_WORD][: hs.MAX_CODECS - 2]
        me = PeerIdentity(
            identity.cluster_id,
            token_number(config.cluster.token),
            identity.member_id,
            identity.incarnation,
            tuple(announced),
            name=config.node.name,
            places=(own_address(config),),
            start=start,
            life=life,
            level=LEVEL,
            max_key=config.limits.max_key_bytes,
            unpacks=True,
        )
        transport = PeerTransport(
            self._loop,
            me,
            address or config.listen.peer,
            handler=self,
            random=random.random,
            failpoints=self._failpoints,
            pack=config.performance.pack_peers,
        )
        self.transport = transport
        self._connect(transport)
        log.info("listening for peers on %s", ",".join(transport.bound))
        self.update()

    def close(self) -> None:
        """Ends all streams. Idempotent."""
        if self.transport is not None:
            self.transport.close()

    def connected(self, member: int) -> bool:
        """Whether the control stream to a member is open."""
        return self.transport is not None and self.transport.connected(member)

    def stats(self) -> dict[str, float]:
        """Figures of the streams to and from all other members."""
        peers = [] if self.transport is None else list(self.transport.stats().values())
        return {f"peer_{name}_total": sum(peer[name] for peer in peers) for name in ("sent_bytes", "received_bytes")}

    # ---- what comes in (PeerHandler); the base takes messages and forwards

    def _taken_in_by(self, message: Message) -> bool:
        if message.type not in LEADERS:
            return False
        self._begin(f"{self._membership.label(message.from_)} leads and knows this member")
        return True

    def on_snapshot(self, message: Message) -> None:
        """A peer needs a snapshot."""
        if self.transport is not None:
            self._transfers.send(self.transport, message)

    def on_snapshot_stream(self, stream: AcceptedStream) -> None:
        """A leader begins to send us a snapshot."""
        self._transfers.accept(stream)

    def on_refusal(self, from_: int, code: int, ids: list[int]) -> None:
        """Operations of ours were not logged, or `from_` withdraws its own."""
        self._driver.receive_refusal(from_, code, ids)

    def on_lease(self, from_: int, asks: bool, data: bytes) -> None:
        """A member asks about leases, or answers."""
        if asks:
            self._leases.receive_question(from_, data, self._loop.now())
        else:
            self._leases.receive_answer(data)

    def on_news(self, from_: int, tag: int, data: bytes) -> None:
        """A member asks for a sum over our data, or tells its own."""
        self.news(from_, tag, data)

    def tell(self, member: int, tag: int, data: bytes) -> bool:
        """Says something to another member; see `PeerTransport.tell`."""
        return self.transport is not None and self.transport.tell(member, tag, data)

    def others(self) -> list[tuple[int, int]]:
        """The other members, and the operation level that each has given in its greeting; 0 before that."""
        found = []
        for ident in self._roster.members:
            known = None if self.transport is None else self.transport.identity_of(ident)
            if ident != self._identity.member_id:
                found.append((ident, 0 if known is None else known.level))
        return found

    def on_unreachable(self, member: int) -> None:
        """A message for `member` was lost."""
        self._driver.unreachable(member)

    def flags(self) -> int:
        """The flags by which this member describes its state."""
        return (
            (hs.NEW if self._new() else 0)
            | (hs.FORMING if self.founding is not None else 0)
            | (hs.LEADER if self._driver.leader_id else 0)
        )

    def must_read(self) -> Set[tuple[int, str]]:
        """The codecs that a member must be able to read, because the log uses them."""
        return self._driver.codec.plugins

    def roster_record(self) -> bytes:
        """The encoded roster, for a process that is about to join, or for a member that asks."""
        return roster_record(self._identity, self._roster)

    def on_answer(self, member: int, status: int, identity: PeerIdentity) -> None:
        """`member` answered our hello."""
        if self.founding is not None:
            self.founding.answered(member, status, identity.flags)
            self._try_to_begin()
        self.update()

    def on_greeting(self, member: int, identity: PeerIdentity, known: bool) -> None:
        """`member` dialled us."""
        transport, now = self.transport, self._loop.now()
        assert transport is not None, "it is what calls"
        if self.founding is not None and self.founding.greeted(member, identity.flags, now):
            transport.ask_again(member)
        if not known and now - self._asked_at >= ASK_ROSTER:
            self._asked_at = now
            self._loop.call_later(0, lambda: transport.ask_roster(member))
        self.update()

    def on_roster(self, member: int, record: bytes) -> None:
        """`member` has sent its roster."""
        theirs = read_record(record)
        if theirs.cluster_id != self._identity.cluster_id:
            raise errors.FormatError("a roster of another cluster")
        self._membership.hear(theirs.contacts)

    def on_verdict(self, status: int, text: str) -> None:
        """Another member says that this process must not go on."""
        removed = "this member was removed from the cluster: " if status == hs.REMOVED else ""
        self._end(VERDICTS[status](removed + text))

    def _try_to_begin(self) -> None:
        founding = self.founding
        if founding is not None and founding.may_begin(self._loop.now()):
            if founding.took_in:
                self._begin(f"{self.names(founding.took_in)} took it in")
            else:
                self._begin(f"it is as new as {self.names(founding.new)}")

    # ---- time

    def names(self, members: Set[int]) -> str:
        """Names several members for people."""
        return ", ".join(self._membership.label(member) for member in sorted(members))

    def tick(self, now: float) -> None:
        """Checks at each Raft tick whether we may begin, and logs now and then what we wait for."""
        self._try_to_begin()
        transport = self.transport
        if self._driver.leader_id or transport is None:
            self._line_at = None
            return
        if self._line_at is None:
            self._line_at = now + FIRST_LINE
            self._since = now
        elif now >= self._line_at:
            self._line_at = now + NEXT_LINE
            self._log_waiting(transport.stats(), now)
        if now - self._asked_at >= ASK_ROSTER:
            self._asked_at = now
            for member, stats in transport.stats().items():
                if stats["connected"]:
                    transport.ask_roster(member)

    def _log_waiting(self, stats: dict[int, dict[str, Any]], now: float) -> None:
        label = self._membership.label
        missing = [
            f"{label(member)} at {one['address'] or 'no address'} ({one['trouble'] or 'being dialled'})"
            for member, one in stats.items()
            if not one["connected"]
        ]
        founding = self.founding
        if founding is not None and founding.undecided:
            log.warning(
                "no leader: this member has an empty log and must not begin before a leader knows it; without a leader "
                "are %s", self.names(founding.undecided),
            )  # fmt: skip
        if missing:
            log.warning("no leader: waiting for %s", ", ".join(missing))
        elif now >= self._since + NEXT_LINE:
            log.warning("no leader, although all members are connected: an election is under way")

    # ---- what all members can do

    def update(self) -> None:
        """A member has greeted, or the roster has changed: what all members can do may be different now."""
        others = [ident for ident in self._roster.members if ident != self._identity.member_id]
        transport = self.transport
        self._abilities.update(transport.identity_of(ident) if transport is not None else None for ident in others)
