"""This member among its peers: the peer port, what comes in by it, who may take part, and what all members can do.

The transport's owner (peer.Handler) in the loop's thread. Verdicts of other members are acted on here: a member that
was removed, lost its directory or runs twice ends; a member whose log is empty waits until it may begin
(`peers/founding.py`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Set
from typing import TYPE_CHECKING, Any, Final

from .. import errors
from .._core.op import LEVEL
from .._core.raft_types import Message, MessageType
from ..codecs import Snappy, load_all
from ..net.accept import place
from ..net.resolver import Places
from ..peers import handshake as hs
from ..peers.accepted import AcceptedStream
from ..peers.founding import Founding
from ..peers.handshake import PeerIdentity
from ..peers.join import read_record, roster_record
from ..peers.transport import PeerTransport
from ..ports import Done
from ..replica.roster import token_number

if TYPE_CHECKING:
    from ..ports import Codec
    from .server import Server

log = logging.getLogger("metastore.members")

#: Seconds until a member that waits for others says for whom, and between such lines.
FIRST_LINE: Final = 1.0
NEXT_LINE: Final = 10.0
#: Seconds between two questions for the roster, while there is no leader or somebody unknown has come.
ASK_ROSTER: Final = 10.0
#: Messages that only a leader sends.
LEADERS: Final = frozenset({int(MessageType.MsgApp), int(MessageType.MsgHeartbeat), int(MessageType.MsgSnap)})

VERDICTS: Final[dict[int, type[errors.MetaStoreError]]] = {
    hs.REMOVED: errors.RemovedFromCluster,
    hs.OTHER_INCARNATION: errors.MustJoinAnew,
    hs.TWIN: errors.AnotherProcess,
    hs.UNREADABLE: errors.CodecMissing,
}


class Peering:
    """What a server has to do with its peers. `transport` is None while this member listens to no others.

    start: the number of this start of the data directory. life: drawn by this process, in 64 bits.
    """

    def __init__(self, server: Server, start: int, life: int) -> None:
        self._server = server
        self.transport: PeerTransport | None = None
        self._process = (start, life)
        self._wanted: Codec | None = server.codec.codec
        self._codecs = tuple(sorted((codec.flag, codec.name) for codec in load_all()))
        self._line_at: float | None = None
        self._since = 0.0  # without a leader
        self._asked_at = -ASK_ROSTER
        self.founding = self._founding()
        self._hold()

    # ---- beginning

    def _founding(self) -> Founding | None:
        """The question whether this member may begin its cluster, if it is one: see peers/founding.py. A directory
        that has a term took part before, so it was not lost; asked again, it could wait for ever for the first leader,
        who was alone with the first entry when all members stopped."""
        server, identity = self._server, self._server.identity
        if not self._new() or server.raw.term or len(identity.members) < 2:
            return None
        wait = server.config.cluster.begin_wait
        return Founding(identity.member_id, (member.id for member in identity.members), wait)

    def _new(self) -> bool:
        server = self._server
        return server.identity.founder and not server.raw.status().last_index and not server.unsynced.doubt

    def _hold(self) -> None:
        holding = self.founding is not None
        self._server.driver.hold(holding)
        self._server.kv.holding = holding

    def _begin(self, why: str) -> None:
        log.info("this member takes part from now on: %s", why)
        self.founding = None
        self._hold()

    # ---- the port

    def watch(self) -> None:
        """Open the port as soon as there is anybody else: a member that is alone takes no port that it does not use."""
        server = self._server
        alone = set(server.roster.members) == {server.identity.member_id} and not server.identity.contacts
        if self.transport is None and not alone:
            self.open()

    def listen(self, done: Done) -> None:
        """Open the port, if it is closed, and call `done`, with an error if it cannot be opened.

        A name is looked up in a thread: the loop must not wait for a name server."""
        server = self._server
        if self.transport is not None:
            done(None)
            return
        address = server.config.listen.peer

        def resolved(found: Places | str) -> None:
            try:
                if isinstance(found, str):
                    raise errors.ConfigError(f"listen.peer {address!r}: {found}")
                if self.transport is None and server.drain is None:
                    self.open(place(found[0][4]))
            except (errors.AddressInUse, errors.ConfigError, OSError) as error:
                done(errors.Unhealthy(f"{errors.Unhealthy.default}: the peer port cannot be opened: {error}"))
            else:
                done(None)

        server.resolver.resolve(address, resolved)

    def open(self, address: str = "") -> None:
        """Listen for peers at `address` (default: as configured). Raises AddressInUse, ConfigError, OSError."""
        server, identity, config = self._server, self._server.identity, self._server.config
        start, life = self._process
        announced = [codec for codec in self._codecs if len(codec[1].encode()) <= hs.MAX_WORD][: hs.MAX_CODECS]
        me = PeerIdentity(
            identity.cluster_id,
            token_number(config.cluster.token),
            identity.member_id,
            identity.incarnation,
            tuple(announced),
            name=config.node.name,
            places=(server.own_peer_address(),),
            start=start,
            life=life,
            level=LEVEL,
        )
        transport = PeerTransport(
            server.loop,
            me,
            address or config.listen.peer,
            handler=self,
            random=random.random,
            failpoints=server.failpoints,
        )
        self.transport = transport
        server.closing.callback(transport.close)
        server.peer_link.connect(transport)
        server.membership.tell(transport)
        log.info("listening for peers on %s", ",".join(transport.bound))
        self.update()

    def connected(self, member: int) -> bool:
        """Whether the control stream to a member is open."""
        return self.transport is not None and self.transport.connected(member)

    # ---- what comes in (peer.Handler)

    def on_message(self, message: Message) -> None:
        """A Raft message."""
        server = self._server
        if server.space.declines(message):
            return
        if self.founding is not None:
            if message.type not in LEADERS:
                return
            self._begin(f"{self.label(message.from_)} leads and knows this member")
        if message.snapshot is None or server.snapshots.find(message.snapshot.index, message.snapshot.term) is not None:
            server.driver.receive(message)

    def on_snapshot(self, message: Message) -> None:
        """A peer needs a snapshot."""
        if self.transport is not None:
            self._server.transfers.send(self.transport, message)

    def on_snapshot_stream(self, stream: AcceptedStream) -> None:
        """A leader begins to send us one."""
        self._server.transfers.accept(stream)

    def on_forward(self, from_: int, frame: bytes) -> None:
        """Operations that a follower wants proposed."""
        self._server.driver.receive_forward(from_, frame, self._server.loop.now())

    def on_refusal(self, from_: int, code: int, ids: list[int]) -> None:
        """Operations of ours that were not logged."""
        self._server.driver.receive_refusal(code, ids)

    def on_unreachable(self, member: int) -> None:
        """Something for `member` was lost."""
        self._server.driver.unreachable(member)

    def flags(self) -> int:
        """What this member says of its state."""
        return (
            (hs.NEW if self._new() else 0)
            | (hs.FORMING if self.founding is not None else 0)
            | (hs.LEADER if self._server.driver.leader_id else 0)
        )

    def must_read(self) -> Set[tuple[int, str]]:
        """Codecs that the log needs."""
        return self._server.codec.plugins

    def roster_record(self) -> bytes:
        """What we tell somebody who is about to join, or in doubt."""
        return roster_record(self._server.identity, self._server.roster)

    def on_answer(self, member: int, status: int, identity: PeerIdentity) -> None:
        """`member` answered our hello."""
        if self.founding is not None:
            self.founding.answered(member, status, identity.flags)
            self._try_to_begin()
        self.update()

    def on_greeting(self, member: int, identity: PeerIdentity, known: bool) -> None:
        """`member` dialled us."""
        transport, now = self.transport, self._server.loop.now()
        assert transport is not None, "it is what calls"
        if self.founding is not None and self.founding.greeted(member, identity.flags, now):
            transport.ask_again(member)
        if not known and now - self._asked_at >= ASK_ROSTER:
            self._asked_at = now
            self._server.loop.call_later(0, lambda: transport.ask_roster(member))
        self.update()

    def on_roster(self, member: int, record: bytes) -> None:
        """What `member` has in its roster."""
        told = read_record(record)
        if told.cluster_id != self._server.identity.cluster_id:
            raise errors.FormatError("a roster of another cluster")
        self._server.membership.hear(told.contacts)

    def on_verdict(self, status: int, text: str) -> None:
        """Another member says that this process must not go on."""
        removed = "this member was removed from the cluster: " if status == hs.REMOVED else ""
        self._server.end(VERDICTS[status](removed + text))

    def _try_to_begin(self) -> None:
        founding = self.founding
        if founding is not None and founding.may_begin(self._server.loop.now()):
            if founding.took_in:
                self._begin(f"{self.names(founding.took_in)} took it in")
            else:
                self._begin(f"it is as new as {self.names(founding.new)}")

    # ---- now and then

    def label(self, member: int) -> str:
        """A member's name and id, or that there is none."""
        if not member:
            return "no leader"
        known = {record.id: record for record in self._server.identity.contacts} | self._server.roster.members
        name = known[member].name if member in known else ""
        if name:
            return f"{name} ({member:016x})"
        return self.transport.label(member) if self.transport is not None else f"member {member:016x}"

    def names(self, members: Set[int]) -> str:
        """Several members, for people."""
        return ", ".join(self.label(member) for member in sorted(members))

    def tick(self, now: float) -> None:
        """Once a tick: whether we may begin, and what we wait for."""
        self._try_to_begin()
        server, transport = self._server, self.transport
        if server.driver.leader_id or transport is None:
            self._line_at = None
            return
        if self._line_at is None:
            self._line_at = now + FIRST_LINE
            self._since = now
        elif now >= self._line_at:
            self._line_at = now + NEXT_LINE
            self._tell_waiting(transport.stats(), now)
        if now - self._asked_at >= ASK_ROSTER:
            self._asked_at = now
            for member, stats in transport.stats().items():
                if stats["connected"]:
                    transport.ask_roster(member)

    def _tell_waiting(self, stats: dict[int, dict[str, Any]], now: float) -> None:
        missing = [
            f"{self.label(member)} at {one['address'] or 'no address'} ({one['trouble'] or 'being dialled'})"
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
        """Somebody has greeted, or the roster has changed: what all members can apply and read."""
        server = self._server
        others = [ident for ident in server.roster.members if ident != server.identity.member_id]
        told = [self.transport.identity_of(ident) if self.transport is not None else None for ident in others]
        # Who was not heard of may be of the first version that there was.
        server.kv.cluster_level = min([LEVEL, *(1 if one is None else one.level for one in told)])
        codecs = [frozenset(() if one is None else one.codecs) for one in told]
        server.common_codecs = frozenset.intersection(*codecs) if codecs else None
        self._choose_codec()

    def _choose_codec(self) -> None:
        """Compress by the codec that the configuration names, if all members have said that they can read it."""
        wanted, codec = self._wanted, self._server.codec
        if wanted is None:
            return
        usable = self._server.readable(wanted)
        if usable and codec.codec is not wanted:
            log.info("performance.compression_codec: all members can read %r, it is used", wanted.name)
            codec.use(wanted)
        elif not usable and codec.codec is wanted:
            log.warning(
                "performance.compression_codec: not all members have said that they can read %r: snappy is used until "
                "they have", wanted.name,
            )  # fmt: skip
            codec.use(Snappy())
