"""Single streams between members: sockets, greetings, queues, back-off. `transport.py` uses them.

A `DialledStream` comes back by itself for as long as it is not closed; a `SnapshotSender` lives for one connection;
an `AcceptedStream` is the other end of either. All are bounded: output by the outbox, input by the largest frame.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._core.raft_wire import MAX_FRAME, Blob, FrameReader, Outbox
from ..errors import DamagedData, DiskFailed, FormatError
from ..net.loop import HANGUP, READ, WRITE, Timer
from ..net.resolver import Places
from . import handshake as hs

if TYPE_CHECKING:
    from .._core.raft_types import Message
    from .transport import Peer, PeerTransport

#: Bytes of a frame that an acceptor may send on a stream that is not for snapshots.
SIGNS = 1024

WAITING, CONNECTING, GREETING, OPEN, CLOSED = range(5)

#: Tags of blobs on streams that are not for snapshots: the acceptor asks for a sign of life, the dialler gives it; the
#: roster, as the answer to a roster hello.
PING, PONG, ROSTER_RECORD = 240, 241, 242
#: Bytes of a frame on any stream but a bulk one: nothing that is longer goes there.
SMALL_FRAME = 1024 * 1024
#: Bytes of a roster that a running member takes; whoever joins takes any.
MAX_ROSTER = 1024 * 1024


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """Bounds of the streams; sizes in bytes, times in seconds.

    max_frame is the largest frame on a bulk stream, and what one that is not complete may take of memory: each member,
    and each of MAX_STRANGERS, has one bulk stream. max_control and max_bulk bound what waits to be sent on one stream.
    stall_timeout: a peer that takes nothing for so long, while there is something for it, is dialled anew.
    dead_timeout: so is one whose system does not confirm what was sent; it is shorter than what TCP waits between its
    late retransmissions, so that a healed network is used soon.
    max_accepted: accepted streams at once, strangers included. max_rosters: those among them that are told the roster.
    stranger_timeout: a member that is not in the roster is forgotten when nothing is heard of it for so long.
    """

    max_frame: int = MAX_FRAME
    max_control: int = 1024 * 1024
    max_bulk: int = 64 * 1024 * 1024
    max_snapshot: int = 8 * 1024 * 1024
    send_size: int = 1024 * 1024
    connect_timeout: float = 2.0
    handshake_timeout: float = 5.0
    stall_timeout: float = 10.0
    dead_timeout: float = 5.0
    backoff_min: float = 0.05
    backoff_max: float = 2.0
    max_accepted: int = 256
    max_snapshots: int = 2
    max_rosters: int = 8
    stranger_timeout: float = 30.0
    sweep: float = 0.25


def largest(limits: PeerLimits, kind: int) -> int:
    """Bytes of the largest frame on a stream of this kind; a roster is as long as its members make it."""
    return limits.max_frame if kind in (0, hs.BULK, hs.ROSTER) else min(limits.max_frame, SMALL_FRAME)


def tune(sock: socket.socket, dead_timeout: float) -> None:
    """No delay for small frames; the system finds out about peers that are gone. Raises OSError."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(dead_timeout * 1000)))


def blame(error: Exception) -> str:
    """What the log says of an exception that bytes of a peer caused. Those that are this node's own trouble, whatever
    the bytes were, are raised again: its disk, its data."""
    if isinstance(error, DiskFailed | DamagedData):
        raise error
    if isinstance(error, FormatError):
        return hs.clip(error.text)
    where, at = "", error.__traceback__
    while at is not None:
        where, at = f" in {at.tb_frame.f_code.co_name}, line {at.tb_lineno}", at.tb_next
    return f"what it sent could not be handled: {type(error).__name__}{where}: {hs.clip(str(error))}"


class Stream:
    """A socket in the loop with an outbox. Subclasses say what is done with input (`_received`) and an end (`fail`)."""

    def __init__(self, transport: PeerTransport, kind: int, max_bytes: int) -> None:
        limits = transport.limits
        self.transport = transport
        self.loop = transport.loop
        self.kind = kind
        self.outbox = Outbox(max_bytes, largest(limits, kind))
        self.state = WAITING
        self.queued = False  # in the transport's list of streams to flush
        self.deadline: float | None = None
        self.sock: socket.socket | None = None
        self._blocked = False
        self._since = 0.0  # when the socket took no more

    @property
    def is_open(self) -> bool:
        """Whether both sides have greeted each other."""
        return self.state == OPEN

    def _watch(self, sock: socket.socket, mask: int) -> None:
        self.sock = sock
        self._blocked = False
        self.loop.add(sock.fileno(), mask, self._on_event, urgent=True)

    def _drop_socket(self) -> None:
        if self.sock is not None:
            self.loop.remove(self.sock.fileno())
            self.sock.close()
            self.sock = None
        self.deadline = None
        self._blocked = False

    def _on_event(self, events: int) -> None:
        if events & WRITE and self._blocked and self.sock is not None:
            self._blocked = False
            self.loop.modify(self.sock.fileno(), READ)
            self.flush()
        if events & (READ | HANGUP) and self.sock is not None:
            self._read()

    def _read(self) -> None:
        buffer = self.transport.buffer
        assert self.sock is not None
        try:
            n = self.sock.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(error.strerror or str(error))
            return
        if n == 0:
            self.fail("closed by the other side")
            return
        try:
            self._received(buffer, n)
        except Exception as error:  # noqa: BLE001 - whatever bytes of a peer cause ends their connection, not the node
            self.fail(blame(error), logging.WARNING)

    def _received(self, buffer: memoryview, n: int) -> None:
        raise NotImplementedError

    def fail(self, reason: str, level: int = logging.INFO) -> None:
        """The connection is over."""
        raise NotImplementedError

    def queue(self) -> None:
        """Have the outbox sent at the end of this turn."""
        if not self.queued:
            self.queued = True
            self.transport.dirty.append(self)

    def flush(self) -> None:
        """Send what is in the outbox, as much as the socket takes."""
        if self.state != OPEN or self._blocked:
            return
        transport, outbox, sock = self.transport, self.outbox, self.sock
        assert sock is not None
        try:
            while outbox.size:
                if transport.failpoints is not None and transport.failpoints.active:
                    transport.failpoints.hit("peer.send")
                outbox.sent(sock.sendmsg(outbox.pieces(transport.limits.send_size)))
        except BlockingIOError:
            self._blocked = True
            self._since = self.loop.now()
            self.loop.modify(sock.fileno(), READ | WRITE)
        except OSError as error:
            self.fail(error.strerror or str(error))

    def check(self, now: float) -> None:
        """Called by the transport now and then: deadlines, and peers that take nothing."""
        if self.deadline is not None and now >= self.deadline:
            self.fail(
                "no connection in time"
                if self.state == CONNECTING
                else "no greeting in time"
                if self.state == GREETING
                else "not at an end in time"
            )
        elif self._blocked and now - self._since >= self.transport.limits.stall_timeout:
            self.fail(f"took nothing for {self.transport.limits.stall_timeout:g} s")


class DialledStream(Stream):
    """A stream that this member opened to `owner`, and opens again with back-off whenever it ends."""

    def __init__(self, transport: PeerTransport, owner: Peer, kind: int, max_bytes: int) -> None:
        super().__init__(transport, kind, max_bytes)
        self.owner = owner
        self.peer = owner.id
        self.address = ""  # where it was dialled last
        self.opened = 0  # how often it came to be open
        self._greeting = b""
        self._delay = transport.limits.backoff_min
        self._opened_at = 0.0
        self._timer: Timer | None = None
        self._attempt = 0  # tells the answer of an outdated resolver
        self._turn = 0  # which of several addresses comes next
        self._place = 0  # and which of the member's places
        self._signs = FrameReader(SIGNS)

    def __repr__(self) -> str:
        return f"{hs.KINDS[self.kind]} stream to {self.owner} at {self.address or 'no address'}"

    @property
    def takes(self) -> bool:
        """Whether messages may be queued: it is open, or about to be."""
        return CONNECTING <= self.state <= OPEN

    def dial(self) -> None:
        """Begin to connect."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._attempt += 1
        attempt = self._attempt
        self.state = CONNECTING
        places = self.owner.places
        if not places:
            self.fail("nobody knows its address")
            return
        self.address = places[self._place % len(places)]

        def resolved(found: Places | str) -> None:
            if attempt == self._attempt and self.state == CONNECTING:
                self._connect(found)

        self.transport.resolver.resolve(self.address, resolved)

    def _connect(self, found: Places | str) -> None:
        if isinstance(found, str):
            self.fail(found)
            return
        family, kind, proto, _, where = found[self._turn % len(found)]
        self._turn += 1
        try:
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, proto)
        except OSError as error:
            self.fail(error.strerror or str(error))
            return
        self._watch(sock, WRITE)
        try:
            tune(sock, self.transport.limits.dead_timeout)
            code = sock.connect_ex(where)
        except OSError as error:
            code = error.errno or errno.EIO
        if code not in (0, errno.EINPROGRESS):
            self.fail(os.strerror(code))
            return
        self.deadline = self.loop.now() + self.transport.limits.connect_timeout

    def _on_event(self, events: int) -> None:
        if self.state != CONNECTING:
            super()._on_event(events)
            return
        sock = self.sock
        assert sock is not None
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self.fail(os.strerror(code))
            return
        hello = hs.encode_hello(hs.Hello(self.kind, self.transport.greeting(), self.peer))
        try:
            sock.getpeername()
            sent = sock.send(hello)
        except OSError as error:
            # An event that was meant for the descriptor's last owner says nothing about this connection.
            if error.errno != errno.ENOTCONN:
                self.fail(error.strerror or str(error))
            return
        if sent != len(hello):
            self.fail("the socket does not even take a greeting")
            return
        self.state = GREETING
        self.deadline = self.loop.now() + self.transport.limits.handshake_timeout
        self.loop.modify(sock.fileno(), READ)

    def _received(self, buffer: memoryview, n: int) -> None:
        if self.state != GREETING:
            self._behind_greeting(buffer, n)
            return
        self._greeting += buffer[:n]
        size = hs.greeting_size(self._greeting)
        if size is None or len(self._greeting) < size:
            return
        answer, rest = hs.decode_answer(self._greeting[:size]), self._greeting[size:]
        self._greeting = b""
        if not self.transport.answered(self, answer):
            return
        self._open()
        if rest and self.state == OPEN:
            self._behind_greeting(memoryview(rest), len(rest))

    def _open(self) -> None:
        self.state = OPEN
        self.deadline = None
        self.opened += 1
        self._opened_at = self.loop.now()
        self._signs = FrameReader(SIGNS)
        self.transport.stream_open(self)
        self.flush()

    def _behind_greeting(self, buffer: memoryview, n: int) -> None:
        for item in self._signs.feed(buffer, n):
            if not isinstance(item, Blob) or item.tag != PING:
                raise FormatError("the acceptor sent frames, which only the dialler may")
            if self.outbox.add_blob(PONG, b""):
                self.queue()

    def fail(self, reason: str, level: int = logging.INFO) -> None:
        """The connection is over, or did not come about: forget what was queued, try again later."""
        limits = self.transport.limits
        was_open = self.state == OPEN
        self._reset()
        self.state = WAITING
        if was_open and self.loop.now() - self._opened_at > limits.backoff_max:
            self._delay = limits.backoff_min
        if not was_open:
            self._place += 1
        self.transport.stream_lost(self, was_open, reason, level)
        if self.state == WAITING and self._timer is None:
            wait = self._delay * (0.5 + self.transport.random() / 2)
            self._delay = min(limits.backoff_max, self._delay * 2)
            self._timer = self.loop.call_later(wait, self.dial)

    def _reset(self) -> None:
        self._drop_socket()
        self.outbox.clear()
        self._greeting = b""

    def hasten(self) -> None:
        """The peer is known to be up: do not wait for the end of the back-off."""
        if self.state == WAITING:
            self.dial()

    def move(self) -> None:
        """The member's address in the roster has changed: dial that one from now on."""
        self._place = 0
        if self.state == OPEN and self.address == self.owner.address:
            return
        was_open = self.state == OPEN
        self._reset()
        self.state = WAITING
        self.transport.stream_lost(self, was_open, "the address changed", logging.INFO)
        self._delay = self.transport.limits.backoff_min
        self.dial()

    def close(self) -> None:
        """End it for good; what can be sent at once still goes out."""
        if self.state != CLOSED:
            self.flush()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._reset()
        self.state = CLOSED


class SnapshotSender(DialledStream):
    """A stream for one snapshot. It ends with its first failure; the hooks are set by whoever opened it.

    `send_message` and `send` queue (False: the outbox is full, go on when `on_drain` comes), `close` ends it.
    """

    def __init__(self, transport: PeerTransport, owner: Peer) -> None:
        super().__init__(transport, owner, hs.SNAPSHOT, transport.limits.max_snapshot)
        self.on_open: Callable[[], object] = lambda: None
        self.on_blob: Callable[[int, bytes], object] = lambda _tag, _data: None
        self.on_drain: Callable[[], object] = lambda: None
        self.on_end: Callable[[str], object] = lambda _reason: None
        self._reader = FrameReader(largest(transport.limits, hs.SNAPSHOT))

    def send_message(self, message: Message) -> bool:
        """Queue a Raft message (the MsgSnap itself)."""
        return self._queued(self.takes and self.outbox.add(message))

    def send(self, tag: int, data: bytes) -> bool:
        """Queue bytes under a tag of 0 to 255."""
        return self._queued(self.takes and self.outbox.add_blob(tag, data))

    def _queued(self, taken: bool) -> bool:
        if taken:
            self.queue()
        return taken

    def _open(self) -> None:
        super()._open()
        if self.state == OPEN:
            self.on_open()

    def flush(self) -> None:
        """Send; `on_drain` comes when nothing is left."""
        waiting = self.outbox.size
        super().flush()
        if waiting and self.state == OPEN and not self.outbox.size:
            self.on_drain()

    def _behind_greeting(self, buffer: memoryview, n: int) -> None:
        for item in self._reader.feed(buffer, n):
            if not isinstance(item, Blob):
                raise FormatError("only blobs come back on a snapshot stream")
            self.on_blob(item.tag, item.data)
            if self.state != OPEN:
                return

    def close(self) -> None:
        """End it for good, without `on_end`; what can be sent at once still goes out."""
        super().close()
        self.transport.snapshot_over(self)

    def fail(self, reason: str, level: int = logging.INFO) -> None:
        """The end."""
        if self.state == CLOSED:
            return
        was_open = self.state == OPEN
        self._reset()
        self.state = CLOSED
        self.transport.snapshot_over(self)
        self.transport.stream_lost(self, was_open, reason, level)
        self.on_end(reason)


class RosterStream(DialledStream):
    """A stream by which a running member asks another one for its roster. It ends with the answer, or without."""

    def __init__(self, transport: PeerTransport, owner: Peer) -> None:
        super().__init__(transport, owner, hs.ROSTER, transport.limits.max_control)
        self._reader = FrameReader(MAX_ROSTER)

    def _open(self) -> None:
        self.state = OPEN
        self.deadline = self.loop.now() + self.transport.limits.handshake_timeout

    def _behind_greeting(self, buffer: memoryview, n: int) -> None:
        for item in self._reader.feed(buffer, n):
            if not isinstance(item, Blob) or item.tag != ROSTER_RECORD:
                raise FormatError("not a roster")
            self.close()
            self.transport.handler.on_roster(self.peer, item.data)
            return

    def close(self) -> None:
        """The end."""
        super().close()
        self.owner.roster = None

    def fail(self, reason: str, level: int = logging.INFO) -> None:
        """The end, without an answer."""
        if self.state != CLOSED:
            self.close()
            self.transport.stream_lost(self, False, reason, level)


class AcceptedStream(Stream):
    """A stream that a member opened to us. `from_` and `identity` are known once its hello was accepted."""

    def __init__(self, transport: PeerTransport, sock: socket.socket, where: str) -> None:
        super().__init__(transport, 0, transport.limits.max_control)
        self.where = where
        self.from_ = 0
        self.identity: hs.PeerIdentity | None = None
        self.took_part = False  # whether a frame came
        self.received_bytes = 0
        self.on_blob: Callable[[int, bytes], object] | None = None
        self.on_end: Callable[[str], object] = lambda _reason: None
        self._greeting = b""
        self.reader: FrameReader | None = None
        self.state = GREETING
        self.deadline = self.loop.now() + transport.limits.handshake_timeout
        self._watch(sock, READ)

    def __repr__(self) -> str:
        whom = self.transport.label(self.from_) if self.from_ else "a stranger"
        return f"{hs.KINDS.get(self.kind, 'new')} stream from {whom} at {self.where}"

    @property
    def reader_frames(self) -> int:
        """Frames read so far."""
        return 0 if self.reader is None else self.reader.frames

    def reply(self, tag: int, data: bytes) -> bool:
        """Queue bytes for the dialler of a snapshot stream; False if there is no room."""
        taken = self.state == OPEN and self.outbox.add_blob(tag, data)
        if taken:
            self.queue()
        return taken

    def _received(self, buffer: memoryview, n: int) -> None:
        self.received_bytes += n
        if self.reader is not None:
            self._frames(self.reader, buffer, n)
            return
        self._greeting += buffer[:n]
        size = hs.greeting_size(self._greeting)
        if size is None or len(self._greeting) < size:
            return
        greeting, rest = self._greeting[:size], self._greeting[size:]
        self._greeting = b""
        self._greet(greeting)
        if rest and self.reader is not None and self.is_open:
            self._frames(self.reader, memoryview(rest), len(rest))

    def _frames(self, reader: FrameReader, buffer: memoryview, n: int) -> None:
        if self.kind == hs.ROSTER:
            raise FormatError("whoever asks for the roster has nothing more to say")
        self.transport.dispatch(self, reader.feed(buffer, n))

    def _greet(self, greeting: bytes) -> None:
        transport = self.transport
        hello: hs.Hello | None = None
        try:
            hello = hs.decode_hello(greeting)
        except FormatError as error:
            status = hs.OTHER_VERSION if isinstance(error, hs.UnknownVersion) else hs.MALFORMED
            text = hs.clip(error.text)
        if hello is not None:
            status, text = transport.judge(hello)
        me = hs.NOBODY if status in hs.STRANGE else transport.greeting()
        answer = hs.encode_answer(hs.Answer(status, text, me))
        assert self.sock is not None
        try:
            if self.sock.send(answer) != len(answer):
                raise OSError(errno.ENOBUFS, "the socket does not even take a greeting")
        except OSError as error:
            self.fail(error.strerror or str(error))
            return
        if hello is not None and status == hs.TOLD:
            self._tell_roster()
        elif hello is None or status != hs.OK:
            self.fail(f"refused: {text}", logging.INFO if status in (hs.WAIT, hs.BUSY) else logging.WARNING)
        else:
            self.state = OPEN
            self.deadline = None
            self.kind, self.from_, self.identity = hello.kind, hello.sender.member_id, hello.sender
            self.reader = FrameReader(largest(transport.limits, self.kind), self.from_, transport.me.member_id)
            transport.accepted(self)

    def _tell_roster(self) -> None:
        """Send the roster; whoever asked for it closes the connection, or time does."""
        self.state = OPEN
        self.kind = hs.ROSTER
        self.deadline = self.loop.now() + self.transport.limits.handshake_timeout
        self.reader = FrameReader(SIGNS)
        if not self.reply(ROSTER_RECORD, self.transport.handler.roster_record()):
            self.fail("the roster is too long to be told", logging.WARNING)

    def fail(self, reason: str, level: int = logging.INFO) -> None:
        """The end of it; the dialler may come back."""
        if self.state == CLOSED:
            return
        self._drop_socket()
        self.outbox.clear()
        self.state = CLOSED
        self.transport.accepted_lost(self, reason, level)
        self.on_end(reason)
