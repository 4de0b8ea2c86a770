"""The peer transport carries Raft messages, forwarded operations and refusals between members over TCP.

It runs in the loop's thread. Each member dials every other member twice. The control stream carries heartbeats, votes,
answers and refusals; the bulk stream carries appends and forwarded operations. A heartbeat therefore never waits behind
entries. `send` and similar methods only queue; `flush`, called once at the end of a turn, makes one gathering write for
each stream. A message that cannot be queued or sent is dropped and reported by `on_unreachable`; no message is ever
sent twice. Formats: FORMATS.md, "Peer streams".
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from .. import errors
from .._core.peer_path import CLOSED, OPEN, WAITING, PeerPath
from .._core.raft_wire import REFUSALS, WITHDRAWN, Refusal
from ..net.accept import Acceptor
from ..net.loop import Loop, Timer, shared_time
from ..net.resolver import Resolver
from . import handshake as hs
from .accepted import AcceptedStream
from .acquaintances import Acquaintances
from .dialled import DialledStream, Peer, RosterStream, SnapshotSender
from .handshake import PeerIdentity
from .stream import (
    LEASE_ANSWER,
    LEASE_QUESTION,
    PING,
    PONG,
    SUM_ASKED,
    SUM_TOLD,
    PeerLimits,
    tune,
)

if TYPE_CHECKING:
    from .._core.raft_types import Message
    from .._core.raft_wire import Blob
    from ..failpoints import Failpoints

__all__ = ["REFUSALS", "PeerHandler", "PeerIdentity", "PeerLimits", "PeerTransport"]

log = logging.getLogger("metastore.peer")

#: Bytes that are read of a connection in one turn. The smallest frames take 1 to 2 us for 22 bytes, which makes at most
#: 6 ms.
RECV_SIZE: Final = 64 * 1024
BACKLOG: Final = 128
#: Sweeps are so much rarer while no stream has a deadline.
SELDOM: Final = 4
#: Seconds between two equal log lines about the same peer.
REPEAT: Final = 30.0
MAX_REPORTS: Final = 1000
#: The number of log lines about ended connections in that time. It bounds all texts together, because a stranger may
#: have chosen the reason.
MAX_LINES: Final = 100
#: The offset of the smoothed round-trip time (microseconds) in struct tcp_info of Linux.
TCP_INFO_RTT: Final = 68
#: The operation level of members that know what questions about leases are.
LEASES: Final = 2


class PeerHandler(Protocol):
    """The transport reports to its owner by these methods, all called in the loop's thread.

    An exception from the first four, or from the code that takes a snapshot's blobs, ends the connection that the
    bytes came from: see `stream.blame`.
    """

    def on_message(self, message: Message) -> None:
        """A Raft message for this member has come; its sender is the member that the greeting named."""

    def on_forward(self, from_: int, frame: bytes) -> None:
        """Raw operations of member `from_`, as a batch (batch.unframe)."""

    def on_refusal(self, from_: int, code: int, ids: list[int]) -> None:
        """Operations that were forwarded to `from_` were surely not logged, because of REFUSALS[code]; for WITHDRAWN,
        `from_` wants operations that it forwarded not to be logged.
        """

    def on_lease(self, from_: int, asks: bool, data: bytes) -> None:
        """`from_` asks about leases, or (not `asks`) answers. Raises FormatError."""

    def on_news(self, from_: int, tag: int, data: bytes) -> None:
        """Member `from_` said this by `tell`. Raises FormatError."""

    def on_snapshot(self, message: Message) -> None:
        """`send` was given this MsgSnap. The handler opens a stream for it (`open_snapshot`)."""

    def on_snapshot_stream(self, stream: AcceptedStream) -> None:
        """Another member opened this stream to send a snapshot. The stream needs its `on_blob` and `on_end` now."""

    def on_unreachable(self, member: int) -> None:
        """A message for `member` was dropped or may be lost. `flush` calls this at most once a turn."""

    def flags(self) -> int:
        """The flags by which this member describes its state in greetings (handshake.NEW and others)."""

    def must_read(self) -> Set[tuple[int, str]]:
        """Codecs (flag byte, name) that a member must be able to read."""

    def roster_record(self) -> bytes:
        """The encoded roster, for a process that asks for it (see peers/join.py)."""

    def on_answer(self, member: int, status: int, identity: PeerIdentity) -> None:
        """`member` answered our hello."""

    def on_greeting(self, member: int, identity: PeerIdentity, known: bool) -> None:
        """`member` dialled us and was accepted; `known` is whether it is one of those of `set_peers`."""

    def on_roster(self, member: int, record: bytes) -> None:
        """`member` answered `ask_roster` with this record. Raises FormatError if it cannot be read."""

    def on_verdict(self, status: int, text: str) -> None:
        """Another member says that this process must not go on, for a status of handshake.FATAL. Called once."""


class PeerTransport(PeerPath):
    """The transport owns all peer streams of one member. It is the ports.Transport of the driver.

    `address` is one "host:port" to listen on, or several; with port 0 the system chooses a port (see `bound`).
    `random()` gives floats in [0, 1) for the jitter of the back-off. With `pack`, bulk streams to members that can
    unpack them are packed. The constructor raises errors.AddressInUse or errors.ConfigError. What every message passes
    is in the compiled base.
    """

    handler: PeerHandler
    failpoints: Failpoints | None
    _peers: dict[int, Peer]

    def __init__(
        self,
        loop: Loop,
        me: PeerIdentity,
        address: str | Iterable[str],
        *,
        handler: PeerHandler,
        random: Callable[[], float],
        limits: PeerLimits | None = None,
        failpoints: Failpoints | None = None,
        pack: bool = False,
    ) -> None:
        self.limits = limits if limits is not None else PeerLimits()
        self._known = Acquaintances(me.member_id, partial(Peer, self))
        super().__init__(self._known.members, handler, failpoints, RECV_SIZE, self.limits.send_size)
        self.loop = loop
        self.me = me
        self.random = random
        self._pack = pack
        self.resolver = Resolver(loop)
        self._accepted: dict[AcceptedStream, None] = {}
        self._reports: dict[object, tuple[str, float]] = {}
        self._lines_since = loop.now()
        self._lines = 0
        self._closed = False
        self._timer: Timer | None = None  # the next sweep
        self._seldom = False  # it comes late, because no stream has a deadline
        self._acceptor = Acceptor(loop, address, self._take_in, backlog=BACKLOG, per_turn=1, whom="for peers ")
        self.bound = self._acceptor.bound
        self._sweep()

    # ---- members

    def set_peers(self, peers: Mapping[int, str], names: Mapping[int, str] | None = None) -> None:
        """Sets the other members, the addresses where they listen, and their names; this member itself is ignored.

        An address is "host:port"; a URL's scheme is allowed, and "" means that the member listens nowhere. New members
        are dialled at once. Members whose address changed are dialled again. Streams from and to known members that are
        missing now are closed.
        """
        changed = self._known.set_peers(peers, names or {})
        for member in changed.gone:
            self._forget(member, "it is no member any more")
        for peer in changed.new:
            self._dial(peer)
        for peer in changed.moved:
            peer.control.move()
            peer.bulk.move()
        self._drop_accepted(lambda stream: stream.from_ not in self._peers, "is no member any more")

    def hear(self, member: int, place: str) -> None:
        """Another member says that `member` listens at `place`, so this address is dialled too.

        If the roster does not have the member, it counts as one that is not known here yet.
        """
        stranger = self._known.hear(member, place)
        if stranger is not None:
            self._dial(stranger)

    @staticmethod
    def _dial(peer: Peer) -> None:
        peer.control.dial()
        peer.bulk.dial()

    def _forget(self, member: int, reason: str) -> None:
        self._close_peer(self._known.forget(member), reason)
        self._unreachable.discard(member)
        self._drop_accepted(lambda stream: stream.from_ == member, reason)

    def label(self, member: int) -> str:
        """A member's name and id, for people."""
        peer = self._peers.get(member)
        return str(peer) if peer is not None else f"member {member:016x}"

    def _close_peer(self, peer: Peer, reason: str) -> None:
        peer.control.close()
        peer.bulk.close()
        if peer.roster is not None:
            peer.roster.close()
        for snapshot in list(peer.snapshots):
            snapshot.fail(reason)

    def set_removed(self, members: Iterable[int]) -> None:
        """Sets the members that were removed for good. A process that dials us under such an id is told to stop."""
        for member in self._known.set_removed(members):
            self._forget(member, "was removed")
        self._drop_accepted(lambda stream: stream.from_ in self._known.removed, "was removed")

    def expect(self, member: int, incarnation: str) -> None:
        """Sets the data directory of `member`. A different one under its id is refused, in both directions."""
        if self._known.expect(member, incarnation):
            for stream in self._peers[member].streams:
                if stream.state == OPEN:
                    stream.fail("another data directory is expected", logging.WARNING)
        self._drop_accepted(
            lambda stream: (
                stream.from_ == member and stream.identity is not None and stream.identity.incarnation != incarnation
            ),
            "another data directory is expected",
        )

    def identity_of(self, member: int) -> PeerIdentity | None:
        """The last description that a member gave of itself (codecs, program version); None before its
        first greeting.
        """
        peer = self._peers.get(member)
        return None if peer is None else peer.identity

    def connected(self, member: int) -> bool:
        """Whether the control stream to a member is open."""
        peer = self._peers.get(member)
        return peer is not None and peer.control.state == OPEN

    # ---- sending

    def refuse(self, to: int, code: int, ids: list[int]) -> bool:
        """Queues the answer to a forward that its operations `ids` were not logged, because of REFUSALS[code]."""
        peer = self._peers.get(to)
        if peer is None:
            self.strays += 1
            return False
        return self._queued(peer, peer.control, peer.control.takes and peer.control.outbox.add_refusal(code, ids))

    def withdraw(self, to: int, ids: list[int]) -> bool:
        """Queue the wish that `to` does not log these operations, behind those that `forward` queued."""
        peer = self._peers.get(to)
        if peer is None:
            self.strays += 1
            return False
        return self._queued(peer, peer.bulk, peer.bulk.is_open and peer.bulk.outbox.add_refusal(WITHDRAWN, ids))

    def lease(self, to: int, asks: bool, data: bytes) -> bool:
        """Queues a question about leases, or an answer to one. Members that know nothing of leases get none."""
        peer = self._peers.get(to)
        if peer is None:
            self.strays += 1
            return False
        if peer.identity is None or peer.identity.level < LEASES or not peer.control.is_open:
            return False
        return self._queued(
            peer, peer.control, peer.control.outbox.add_blob(LEASE_QUESTION if asks else LEASE_ANSWER, data)
        )

    def tell(self, to: int, tag: int, data: bytes) -> bool:
        """Queues a short message for a member: SUM_ASKED or SUM_TOLD. Returns whether it was taken."""
        peer = self._peers.get(to)
        if peer is None or not peer.control.takes or not peer.control.outbox.add_blob(tag, data):
            return False
        peer.control.queue()
        return True

    def open_snapshot(self, to: int) -> SnapshotSender | None:
        """Opens a stream for one snapshot; None if `to` is not a member or already has its maximum of such streams."""
        peer = self._peers.get(to)
        if peer is None or len(peer.snapshots) >= self.limits.max_snapshots:
            return None
        stream = SnapshotSender(self, peer)
        peer.snapshots.add(stream)
        # Start in a later turn, because the caller must set the hooks before anything happens.
        self.loop.call_later(0, lambda: stream.dial() if stream.state == WAITING else None)
        return stream

    def ask_roster(self, member: int) -> None:
        """Asks a member for its roster, unless a request is under way; see PeerHandler.on_roster."""
        peer = self._peers.get(member)
        if peer is not None and peer.roster is None:
            peer.roster = RosterStream(self, peer)
            peer.roster.dial()

    def ask_again(self, member: int) -> None:
        """Sends a member another hello, because its description of itself may have changed."""
        peer = self._peers.get(member)
        if peer is not None and peer.control.state == OPEN:
            peer.control.fail("it is asked again", logging.DEBUG)

    # ---- calls of the streams

    def greeting(self) -> PeerIdentity:
        """This member's present description of itself, for greetings."""
        return replace(self.me, flags=self.handler.flags())

    def roster_record(self) -> bytes:
        """The encoded roster, for a process that asks for it."""
        return self.handler.roster_record()

    def roster_came(self, member: int, record: bytes) -> None:
        """`member` answered with its roster. Raises FormatError if the roster cannot be read."""
        self.handler.on_roster(member, record)

    def answered(self, stream: DialledStream, answer: hs.Answer) -> bool:
        """Our hello was answered. Returns whether the stream is open now. A fatal verdict is passed to the handler."""
        peer = stream.owner
        status, text, counts, ends = self._known.answered(peer, stream.address, answer, self.me)
        if stream.kind == hs.ROSTER and status == hs.TOLD:
            return True
        if counts:
            self.handler.on_answer(peer.id, status, answer.sender)
        if ends:
            stream.fail("it says that this member must not go on", logging.DEBUG)
            self.handler.on_verdict(status, f"{peer} says: {text}")
            return False
        if status != hs.OK and stream.state != CLOSED:
            stream.fail(f"refused: {text}", logging.INFO if status in (hs.WAIT, hs.BUSY) else logging.WARNING)
        return status == hs.OK and stream.state != CLOSED

    def packs(self, member: int) -> bool:
        """Whether the bulk stream to `member` is packed: we want that, and it has said that it can unpack it."""
        identity = self.identity_of(member)
        return self._pack and identity is not None and identity.unpacks

    def stream_open(self, stream: DialledStream) -> None:
        """A stream that we dialled is open."""
        peer = stream.owner
        if not peer.connected and peer.control.state == peer.bulk.state == OPEN:
            peer.connected = True
            peer.trouble = ""
            log.info("%s at %s: connected", peer, stream.address)

    def stream_lost(self, stream: DialledStream, was_open: bool, reason: str, level: int) -> None:
        """A stream that we dialled has ended or could not be opened. All streams to a member share one log line."""
        peer = stream.owner
        if stream.kind in (hs.SNAPSHOT, hs.ROSTER):
            self._report((peer.id, stream.kind), level, repr(stream), reason)
            return
        if peer.id in self._peers:
            self._unreachable.add(peer.id)
        peer.trouble = reason
        lost, peer.connected = peer.connected, False
        self._report(peer.id, level, f"{peer} at {stream.address}", reason, "connection lost: " if lost else "")

    def snapshot_over(self, stream: SnapshotSender) -> None:
        """A snapshot stream is closed, whether it succeeded or failed."""
        stream.owner.snapshots.discard(stream)

    def judge(self, hello: hs.Hello) -> tuple[int, str]:
        """Judges a hello. Returns (status, reason)."""
        member, process = hello.sender.member_id, hello.sender.process
        theirs = [stream for stream in self._accepted if stream.from_ == member and stream.identity is not None]
        others = [stream for stream in theirs if stream.identity and stream.identity.process != process]
        there = next((stream.identity.process for stream in others if stream.identity), None)
        status, text, ask = self._known.judge(hello, self.greeting(), self.handler.must_read(), there, self.loop.now())
        if ask:
            for stream in others:
                stream.reply(PING, b"")
        if status == hs.TOLD and sum(one.kind == hs.ROSTER for one in self._accepted) >= self.limits.max_rosters:
            return hs.BUSY, "too many ask for the roster at the moment"
        if status != hs.OK:
            return status, text
        for stream in others:
            stream.fail("replaced by another process of the member")
        known = self._peers.get(member)
        if known is not None and known.identity is not None and process[0] < known.identity.start:
            log.warning(
                "%s comes with start %d of its data directory after start %d: is it an older copy, which may have "
                "forgotten what the member promised?", known, process[0], known.identity.start,
            )  # fmt: skip
        if hello.kind == hs.SNAPSHOT:
            open_now = sum(one.kind == hs.SNAPSHOT for one in theirs if one.is_open)
            if open_now >= self.limits.max_snapshots:
                return hs.BUSY, "no more snapshots at the moment"
        return hs.OK, ""

    def accepted(self, stream: AcceptedStream) -> None:
        """A hello was accepted. This stream replaces an older one of its kind, and we may dial the member back."""
        identity = stream.identity
        assert identity is not None, "greeted"
        if stream.from_ not in self._peers:
            log.info("%s, at %s, is not known here yet", hs.clip(identity.name) or f"{stream.from_:016x}",
                     ", ".join(map(hs.clip, identity.places)) or "an unknown address")  # fmt: skip
        peer = self._known.accepted(identity, self.loop.now())
        self.handler.on_greeting(peer.id, identity, peer.known)
        if stream.kind == hs.SNAPSHOT:
            self.handler.on_snapshot_stream(stream)
        else:
            self._drop_accepted(
                lambda old: old is not stream and old.from_ == stream.from_ and old.kind == stream.kind,
                "replaced by a newer one",
            )
        if not self._closed:
            peer.control.hasten()
            peer.bulk.hasten()

    def accepted_lost(self, stream: AcceptedStream, reason: str, level: int) -> None:
        """An accepted stream has ended or was refused. If it simply ended, the stream in the other
        direction logs the end.
        """
        self._accepted.pop(stream, None)
        peer = self._peers.get(stream.from_)
        if peer is not None and stream.reader_frames:
            peer.received_frames += stream.reader_frames
            peer.received_bytes += stream.received_bytes
        if stream.kind == hs.ROSTER and level <= logging.INFO:
            return
        if not stream.from_:
            self._report((stream.where.rpartition(":")[0], reason), level, repr(stream), reason)
        elif level > logging.INFO or stream.kind == hs.SNAPSHOT:
            self._report((stream.from_, stream.kind, "accepted"), level, repr(stream), reason)

    def first_frame(self, stream: AcceptedStream) -> None:
        """The first frame came on a stream."""
        assert stream.identity is not None, "greeted"
        self._known.took_part(stream.from_, stream.identity.incarnation)

    def other_frame(self, stream: AcceptedStream, frame: Refusal | Blob) -> None:
        """Passes a frame on. Raises FormatError if it is not allowed on that stream, and the errors of the handler."""
        handler = self.handler
        if isinstance(frame, Refusal):
            handler.on_refusal(stream.from_, frame.code, frame.ids)
        elif stream.on_blob is not None:
            stream.on_blob(frame.tag, frame.data)
        elif frame.tag in (LEASE_QUESTION, LEASE_ANSWER):
            handler.on_lease(stream.from_, frame.tag == LEASE_QUESTION, frame.data)
        elif frame.tag == PONG:
            self._known.lives.alive(stream.from_, self.loop.now())
        elif frame.tag in (SUM_ASKED, SUM_TOLD):
            handler.on_news(stream.from_, frame.tag, frame.data)
        else:
            raise errors.FormatError("a blob on a stream that is not for snapshots")

    def _drop_accepted(self, which: Callable[[AcceptedStream], bool], reason: str) -> None:
        for stream in [stream for stream in self._accepted if stream.from_ and which(stream)]:
            stream.fail(reason)

    def _report(self, key: object, level: int, whom: str, reason: str, news: str = "") -> None:
        """Logs the end of a stream, but not the same end repeatedly, unless there is `news` to put before it."""
        now = self.loop.now()
        last, when = self._reports.get(key, ("", 0.0))
        if not news and last == reason and now - when < REPEAT:
            return
        if len(self._reports) >= MAX_REPORTS:
            self._reports.clear()
        self._reports[key] = (reason, now)
        if now - self._lines_since >= REPEAT:
            self._lines_since, self._lines = now, 0
        self._lines += 1
        if self._lines <= MAX_LINES:
            log.log(level, "%s: %s%s", whom, news, reason)
        elif self._lines == MAX_LINES + 1:
            log.warning("more than %d lines about connections in %g s: the others are left out", MAX_LINES, REPEAT)

    # ---- accepting

    def _take_in(self, sock: socket.socket, where: str) -> None:
        if len(self._accepted) >= self.limits.max_accepted:
            # A connection that has sent nothing makes room for one that may have something to send.
            silent = next((stream for stream in self._accepted if not stream.from_), None)
            if silent is None:
                sock.close()
                return
            silent.fail("no room for so many connections")
        try:
            sock.setblocking(False)
            tune(sock, self.limits.dead_timeout)
        except OSError:
            sock.close()
            return
        self._accepted[AcceptedStream(self, sock, where)] = None

    # ---- life

    def _sweep(self) -> None:
        now, self._seldom = self.loop.now(), False
        for peer in list(self._peers.values()):
            for stream in peer.streams:
                stream.check(now)
        heard = {stream.from_ for stream in self._accepted}
        for member in self._known.silent(heard, now, self.limits.stranger_timeout):
            self._forget(member, "nothing is heard of it any more")
        for accepted in list(self._accepted):
            accepted.check(now)
        # Four sweeps a second were a sixth of the turns of a member that did nothing.
        dialled = (stream for peer in self._peers.values() for stream in peer.streams)
        self._seldom = not any(stream.watched for stream in (*dialled, *self._accepted))
        often = self.limits.sweep
        when = shared_time(now, SELDOM * often) if self._seldom else now + often
        self._timer = self.loop.call_at(when, self._sweep)

    def sweep_soon(self) -> None:
        """A stream has a deadline from now on, or takes no more."""
        if self._seldom and self._timer is not None and not self._closed:
            self._seldom = False
            self._timer.cancel()
            self._timer = self.loop.call_at(self.loop.now() + self.limits.sweep, self._sweep)

    def close(self) -> None:
        """Ends all streams, after output that can be sent at once was sent. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._acceptor.close()
        self.resolver.close()
        for peer in list(self._peers.values()):
            self._close_peer(peer, "this member stops")
        for accepted in list(self._accepted):
            accepted.fail("this member stops")
        self._peers.clear()
        self._unreachable.clear()
        self.dirty = []

    def stats(self) -> dict[int, dict[str, Any]]:
        """Figures for each member; bytes and counts since it became known, `rtt` in seconds (None: not connected)."""
        out: dict[int, dict[str, Any]] = {}
        for member, peer in self._peers.items():
            open_now = [stream for stream in self._accepted if stream.from_ == member]
            both = (peer.control, peer.bulk)
            out[member] = {
                "name": peer.name,
                "address": peer.control.address or peer.address,
                "known": peer.known,
                "trouble": "" if peer.connected else peer.trouble,
                "connected": peer.control.state == OPEN,
                "connected_bulk": peer.bulk.state == OPEN,
                "connects": sum(stream.opened for stream in both),
                "sent_bytes": sum(stream.sent_bytes for stream in peer.streams),
                "queued_frames": sum(stream.outbox.frames for stream in both),
                "queued_bytes": sum(stream.outbox.size for stream in peer.streams),
                "received_bytes": peer.received_bytes + sum(stream.received_bytes for stream in open_now),
                "received_frames": peer.received_frames + sum(stream.reader_frames for stream in open_now),
                "dropped": peer.dropped,
                "rtt": _rtt(peer.control.sock) if peer.control.state == OPEN else None,
                "software": peer.identity.software if peer.identity is not None else None,
            }
        return out


def _rtt(sock: socket.socket | None) -> float | None:
    """The kernel's smoothed round-trip time of a connection, in seconds."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104) if sock is not None else b""
    except OSError:
        return None
    return struct.unpack_from("=I", info, TCP_INFO_RTT)[0] / 1e6 if len(info) >= TCP_INFO_RTT + 4 else None
