"""The streams that this member opens to others: dialling, the handshake, and back-off.

A `DialledStream` reconnects by itself until it is closed. A `SnapshotSender` and a `RosterStream` live for one
connection only. A `Peer` is the member at the other end, together with all streams that go to it.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from .._core.peer_path import CLOSED, CONNECTING, GREETING, OPEN, WAITING
from .._core.raft_wire import Blob, FrameReader
from ..errors import FormatError
from ..net.loop import READ, WRITE, Timer
from ..net.resolver import Places, Resolver
from . import handshake as hs
from .acquaintances import Acquaintance
from .packing import PackedOutbox
from .stream import (
    MAX_ROSTER,
    PACKED,
    PING,
    PONG,
    ROSTER_RECORD,
    SIGNS,
    Stream,
    StreamOwner,
    largest,
    tune,
)

if TYPE_CHECKING:
    from .._core.raft_types import Message
    from .._core.raft_wire import Outbox


class DialOwner(StreamOwner, Protocol):
    """A dialled stream calls its transport by these methods. `random()` gives floats in [0, 1)."""

    resolver: Resolver

    @property
    def random(self) -> Callable[[], float]: ...

    def answered(self, stream: DialledStream, answer: hs.Answer) -> bool:
        """Our hello was answered. Returns whether the stream is open now."""

    def packs(self, member: int) -> bool:
        """Whether frames for `member` are to be packed, which it must know how to unpack."""

    def stream_open(self, stream: DialledStream) -> None:
        """The stream is open."""

    def stream_lost(self, stream: DialledStream, was_open: bool, reason: str, level: int) -> None:
        """The stream has ended, or could not be opened."""

    def snapshot_over(self, stream: SnapshotSender) -> None:
        """A snapshot stream is closed, whether it succeeded or failed."""

    def roster_came(self, member: int, record: bytes) -> None:
        """`member` answered with its roster. Raises FormatError if the roster cannot be read."""


class Peer(Acquaintance):
    """Another member, with the two streams to it and counts of what came from it.

    `connected` is the state that the log last reported.
    """

    def __init__(self, transport: DialOwner, member: int, address: str, known: bool) -> None:
        super().__init__(member, address, known, transport.loop.now())
        limits = transport.limits
        self.trouble = ""  # why there is no connection
        self.control = DialledStream(transport, self, hs.CONTROL, limits.max_control)
        self.bulk = DialledStream(transport, self, hs.BULK, limits.max_bulk)
        self.snapshots: set[SnapshotSender] = set()
        self.roster: RosterStream | None = None
        self.dropped = 0
        self.received_bytes = 0  # of streams that are closed
        self.received_frames = 0

    @property
    def streams(self) -> list[DialledStream]:
        """All streams that this member opened to the peer."""
        return [self.control, self.bulk, *self.snapshots, *([self.roster] if self.roster is not None else [])]


class DialledStream(Stream):
    """A stream that this member opens to the peer `owner`. Whenever it ends, it is opened again with back-off."""

    transport: DialOwner

    def __init__(self, transport: DialOwner, owner: Peer, kind: int, max_bytes: int) -> None:
        super().__init__(transport, kind, max_bytes)
        self.owner = owner
        self.peer = owner.id
        self.address = ""  # where it was dialled last
        self.opened = 0  # how often it came to be open
        self._greeting = b""
        self._delay = transport.limits.backoff_min
        self._opened_at = 0.0
        self._timer: Timer | None = None
        self._attempt = 0  # identifies the attempt, so that a late answer of the resolver can be ignored
        self._turn = 0  # which of several addresses comes next
        self._place = 0  # and which of the member's places
        self._signs = FrameReader(SIGNS)
        self._packed: PackedOutbox | None = None  # from the first connection on that is packed

    def __repr__(self) -> str:
        return f"{hs.KINDS[self.kind]} stream to {self.owner} at {self.address or 'no address'}"

    def dial(self) -> None:
        """Begins to connect."""
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

        def resolved(answer: Places | str) -> None:
            if attempt == self._attempt and self.state == CONNECTING:
                self._connect(answer)

        self.transport.resolver.resolve(self.address, resolved)

    def _connect(self, answer: Places | str) -> None:
        if isinstance(answer, str):
            self.fail(answer)
            return
        family, kind, proto, _, where = answer[self._turn % len(answer)]
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
        self._end_by(self.transport.limits.connect_timeout)

    def other_event(self, events: int) -> None:
        """See Stream."""
        if self.state != CONNECTING:
            super().other_event(events)
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
            # The event belongs to the previous connection with this descriptor and says nothing about this one.
            if error.errno != errno.ENOTCONN:
                self.fail(error.strerror or str(error))
            return
        if sent != len(hello):
            self.fail("the socket does not even take a greeting")
            return
        self.state = GREETING
        self._end_by(self.transport.limits.handshake_timeout)
        self.loop.modify(self.fd, READ)

    def received(self, data: bytes) -> None:
        """See Stream."""
        if self.state != GREETING:
            self._behind_greeting(data)
            return
        self._greeting += data
        size = hs.greeting_size(self._greeting)
        if size is None or len(self._greeting) < size:
            return
        answer, rest = hs.decode_answer(self._greeting[:size]), self._greeting[size:]
        self._greeting = b""
        if not self.transport.answered(self, answer):
            return
        self._open()
        if rest and self.state == OPEN:
            self._behind_greeting(rest)

    def _open(self) -> None:
        self.state = OPEN
        self.deadline = None
        self.opened += 1
        self._opened_at = self.loop.now()
        self._signs = FrameReader(SIGNS)
        self._packs = self.kind == hs.BULK and self.transport.packs(self.peer)
        if self._packs:
            if self._packed is None:
                self._packed = PackedOutbox(self.outbox, PACKED)
            self._packed.begin()
        self.transport.stream_open(self)
        self.flush()

    def packed_output(self) -> Outbox:
        """See Stream."""
        assert self._packed is not None, "this connection is packed"
        self._packed.fill()
        return self._packed.out

    @property
    def sent_bytes(self) -> int:
        """See Stream. What was packed counts as it was sent."""
        plain = self.outbox.sent_bytes
        return plain if self._packed is None else plain - self._packed.taken + self._packed.out.sent_bytes

    def _behind_greeting(self, data: bytes) -> None:
        for item in self._signs.feed(data, len(data)):
            if not isinstance(item, Blob) or item.tag != PING:
                raise FormatError("the acceptor sent frames, which only the dialler may")
            if self.outbox.add_blob(PONG, b""):
                self.queue()

    def fail(self, reason: str, level: int = logging.INFO) -> None:
        """The connection has ended or could not be made. Drops the queued messages and tries again later."""
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
        """The peer is known to be up, so this does not wait for the end of the back-off."""
        if self.state == WAITING:
            self.dial()

    def move(self) -> None:
        """The member's address in the roster has changed. The stream dials the new address from now on."""
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
        """Ends the stream for good. Output that can be sent at once is still sent."""
        if self.state != CLOSED:
            self.flush()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._reset()
        self.state = CLOSED


class SnapshotSender(DialledStream):
    """A stream that carries one snapshot. It ends with its first failure; the code that opens it sets the hooks.

    `send_message` and `send` queue bytes. They return False when the outbox is full; the caller then goes on when
    `on_drain` is called. `close` ends the stream.
    """

    def __init__(self, transport: DialOwner, owner: Peer) -> None:
        super().__init__(transport, owner, hs.SNAPSHOT, transport.limits.max_snapshot)
        self.on_open: Callable[[], object] = lambda: None
        self.on_blob: Callable[[int, bytes], object] = lambda _tag, _data: None
        self.on_drain: Callable[[], object] = lambda: None
        self.on_end: Callable[[str], object] = lambda _reason: None
        self._reader = FrameReader(largest(transport.limits, hs.SNAPSHOT))
        self._tells = True

    def send_message(self, message: Message) -> bool:
        """Queues a Raft message (the MsgSnap itself)."""
        return self._queued(self.takes and self.outbox.add(message))

    def send(self, tag: int, data: bytes) -> bool:
        """Queues bytes under a tag of 0 to 255."""
        return self._queued(self.takes and self.outbox.add_blob(tag, data))

    def _queued(self, taken: bool) -> bool:
        if taken:
            self.queue()
        return taken

    def _open(self) -> None:
        super()._open()
        if self.state == OPEN:
            self.on_open()

    def drained(self) -> None:
        """See Stream."""
        self.on_drain()

    def _behind_greeting(self, data: bytes) -> None:
        for item in self._reader.feed(data, len(data)):
            if not isinstance(item, Blob):
                raise FormatError("only blobs come back on a snapshot stream")
            self.on_blob(item.tag, item.data)
            if self.state != OPEN:
                return

    def close(self) -> None:
        """Ends the stream for good, without `on_end`. Output that can be sent at once is still sent."""
        super().close()
        self.transport.snapshot_over(self)

    def fail(self, reason: str, level: int = logging.INFO) -> None:
        """Ends the stream after a failure."""
        if self.state == CLOSED:
            return
        was_open = self.state == OPEN
        self._reset()
        self.state = CLOSED
        self.transport.snapshot_over(self)
        self.transport.stream_lost(self, was_open, reason, level)
        self.on_end(reason)


class RosterStream(DialledStream):
    """A running member opens this stream to ask another member for its roster. The stream ends with the answer or a
    failure.
    """

    def __init__(self, transport: DialOwner, owner: Peer) -> None:
        super().__init__(transport, owner, hs.ROSTER, transport.limits.max_control)
        self._reader = FrameReader(MAX_ROSTER)

    def _open(self) -> None:
        self.state = OPEN
        self._end_by(self.transport.limits.handshake_timeout)

    def _behind_greeting(self, data: bytes) -> None:
        for item in self._reader.feed(data, len(data)):
            if not isinstance(item, Blob) or item.tag != ROSTER_RECORD:
                raise FormatError("not a roster")
            self.close()
            self.transport.roster_came(self.peer, item.data)
            return

    def close(self) -> None:
        """Ends the stream."""
        super().close()
        self.owner.roster = None

    def fail(self, reason: str, level: int = logging.INFO) -> None:
        """Ends the stream without an answer."""
        if self.state != CLOSED:
            self.close()
            self.transport.stream_lost(self, False, reason, level)
