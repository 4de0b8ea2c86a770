"""The streams that other members open to this one: their handshake, and the frames that follow it."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from .._core.peer_path import CLOSED, GREETING, OPEN
from .._core.raft_wire import Blob, FrameReader
from ..errors import FormatError
from ..net.loop import READ
from . import handshake as hs
from .packing import Unpacker
from .stream import PACKED, ROSTER_RECORD, Stream, StreamOwner, largest

if TYPE_CHECKING:
    from .stream import Frame


class AcceptOwner(StreamOwner, Protocol):
    """An accepted stream calls its transport by these methods, to ask for decisions and to report events."""

    me: hs.PeerIdentity

    def label(self, member: int) -> str:
        """A member's name and id, for people."""

    def judge(self, hello: hs.Hello) -> tuple[int, str]:
        """Judges a hello. Returns (status, reason)."""

    def accepted(self, stream: AcceptedStream) -> None:
        """A hello was accepted."""

    def accepted_lost(self, stream: AcceptedStream, reason: str, level: int) -> None:
        """The stream has ended, or its hello was refused."""

    def roster_record(self) -> bytes:
        """The encoded roster, for a process that asks for it."""


class AcceptedStream(Stream):
    """A stream that another member opened to this one. `from_` and `identity` are set once its hello is accepted."""

    transport: AcceptOwner

    def __init__(self, transport: AcceptOwner, sock: socket.socket, where: str) -> None:
        super().__init__(transport, 0, transport.limits.max_control)
        self.where = where
        self.identity: hs.PeerIdentity | None = None
        self.on_blob: Callable[[int, bytes], object] | None = None
        self.on_end: Callable[[str], object] = lambda _reason: None
        self._greeting = b""
        self._inner: tuple[Unpacker, FrameReader] | None = None  # for packed frames, from the first of them on
        self.state = GREETING
        self._end_by(transport.limits.handshake_timeout)
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

    def received(self, data: bytes) -> None:
        """See Stream."""
        if self.kind == hs.ROSTER:
            raise FormatError("whoever asks for the roster has nothing more to say")
        self._greeting += data
        size = hs.greeting_size(self._greeting)
        if size is None or len(self._greeting) < size:
            return
        greeting, rest = self._greeting[:size], self._greeting[size:]
        self._greeting = b""
        self._greet(greeting)
        if rest and self.is_open:
            if self.reader is None:
                self.received(rest)
            else:
                self.take(rest)

    def unpacked(self, frames: list[Frame]) -> list[Frame]:
        """See Stream. Raises FormatError."""
        return [one for frame in frames for one in self._unpacked(frame)] if self.kind == hs.BULK else frames

    def _unpacked(self, frame: Frame) -> list[Frame]:
        if not isinstance(frame, Blob) or frame.tag != PACKED:
            return [frame]
        if self._inner is None:
            size = largest(self.transport.limits, self.kind)
            self._inner = Unpacker(), FrameReader(size, self.from_, self.transport.me.member_id)
        unpacker, reader = self._inner
        data = unpacker.unpack(frame.data)
        return reader.feed(data, len(data))

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
        """Sends the roster. The process that asked closes the connection, or a deadline does."""
        self.state = OPEN
        self.kind = hs.ROSTER
        self._end_by(self.transport.limits.handshake_timeout)
        if not self.reply(ROSTER_RECORD, self.transport.roster_record()):
            self.fail("the roster is too long to be told", logging.WARNING)

    def fail(self, reason: str, level: int = logging.INFO) -> None:
        """Ends the stream; the dialler may come back."""
        if self.state == CLOSED:
            return
        self._drop_socket()
        self.outbox.clear()
        self.state = CLOSED
        self.transport.accepted_lost(self, reason, level)
        self.on_end(reason)
