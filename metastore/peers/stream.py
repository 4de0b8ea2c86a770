"""The common part of all streams between members: a socket in the loop, an outbox, and their bounds.

`dialled.py` has the streams that this member opens; `accepted.py` has the streams that other members open to it. The
outbox bounds the output, and the largest frame bounds the input. A stream knows its transport only as a Protocol with
the methods that it calls, so no module here imports the transport's module.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .._core.peer_path import CONNECTING, GREETING, PeerChannel
from .._core.raft_wire import MAX_FRAME, Outbox
from ..errors import DamagedData, DiskFailed, FormatError
from ..net.loop import HANGUP, READ, WRITE, Loop
from . import handshake as hs

if TYPE_CHECKING:
    from .._core.raft_types import Message
    from .._core.raft_wire import Blob, Forward, Refusal
    from ..failpoints import Failpoints

    Frame = Message | Forward | Refusal | Blob

#: Bytes of a frame that an acceptor may send on a stream that is not for snapshots.
SIGNS = 1024

#: Tags of blobs on streams that are not for snapshots: the acceptor asks for a sign of life, the dialler gives it; the
#: roster, as the answer to a roster hello.
PING, PONG, ROSTER_RECORD = 240, 241, 242
#: Tags of blobs from a dialler, on its control stream: a question about leases, and the answer to one.
LEASE_QUESTION, LEASE_ANSWER = 243, 244
#: Tags of blobs from a dialler, on its control stream: it asks for a sum over the data, or tells its own.
SUM_ASKED, SUM_TOLD = 245, 246
#: Tag of blobs from a dialler, on its bulk stream: other frames, packed (packing.py).
PACKED = 247
#: Bytes of a frame on any stream but a bulk one: nothing that is longer goes there.
SMALL_FRAME = 1024 * 1024
#: The largest roster, in bytes, that a running member accepts. A joining member has no such limit.
MAX_ROSTER = 1024 * 1024


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """These limits bound the streams. Sizes are in bytes, times in seconds.

    max_frame: the largest frame on a bulk stream, and the memory that an incomplete frame may take. Each member, and
    each of MAX_STRANGERS strangers, has one bulk stream.
    max_control, max_bulk: the bytes that may wait to be sent on one stream of that kind.
    stall_timeout: a peer that takes no bytes for this long, while bytes wait for it, is dialled again.
    dead_timeout: a peer whose system acknowledges no bytes for this long is dialled again. This time is shorter than
    the pauses between TCP's late retransmissions, so the members soon use a network that works again.
    max_accepted: the number of accepted streams at once, those of strangers included.
    max_rosters: how many of these streams may ask for the roster at once.
    stranger_timeout: a member that is not in the roster is forgotten when it has sent nothing for this long.
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
    """The size in bytes of the largest frame on a stream of this kind. The size of a roster depends on its members."""
    return limits.max_frame if kind in (0, hs.BULK, hs.ROSTER) else min(limits.max_frame, SMALL_FRAME)


def tune(sock: socket.socket, dead_timeout: float) -> None:
    """Switches off the delay of small frames and lets the system detect dead peers. Raises OSError."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(dead_timeout * 1000)))


def blame(error: Exception) -> str:
    """Returns the log text for an exception that the bytes of a peer caused.

    Exceptions that are this node's own trouble whatever the bytes were (its disk, its data) are raised again.
    """
    if isinstance(error, DiskFailed | DamagedData):
        raise error
    if isinstance(error, FormatError):
        return hs.clip(error.text)
    where, at = "", error.__traceback__
    while at is not None:
        where, at = f" in {at.tb_frame.f_code.co_name}, line {at.tb_lineno}", at.tb_next
    return f"what it sent could not be handled: {type(error).__name__}{where}: {hs.clip(str(error))}"


class StreamOwner(Protocol):
    """Every stream calls its transport, which is a `PeerPath`, by these methods."""

    loop: Loop
    limits: PeerLimits
    failpoints: Failpoints | None

    def greeting(self) -> hs.PeerIdentity:
        """This member's present description of itself, for greetings."""

    def sweep_soon(self) -> None:
        """A stream has a deadline from now on, or takes no more."""


class Stream(PeerChannel):
    """A stream is a socket in the loop with an outbox. Its compiled base reads and writes the socket. Subclasses define
    how to handle other input than frames (`received`) and an end (`fail`).
    """

    transport: StreamOwner

    def __init__(self, transport: StreamOwner, kind: int, max_bytes: int) -> None:
        super().__init__(transport, kind, Outbox(max_bytes, largest(transport.limits, kind)))
        self.transport = transport
        self.loop = transport.loop
        self.deadline: float | None = None
        self.sock: socket.socket | None = None
        self._since = 0.0  # when the socket took no more

    def _watch(self, sock: socket.socket, mask: int) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self._blocked = False
        self.loop.add(self.fd, mask, self.on_event, urgent=True)

    def _drop_socket(self) -> None:
        if self.sock is not None:
            self.loop.remove(self.fd)
            self.fd = -1
            self.sock.close()
            self.sock = None
        self.deadline = None
        self._blocked = False

    def other_event(self, events: int) -> None:
        """Something else than that an established connection can be read."""
        if events & WRITE and self._blocked and self.sock is not None:
            self._blocked = False
            self.loop.modify(self.fd, READ)
            self.flush()
        if events & (READ | HANGUP) and self.sock is not None:
            self.read()

    def received(self, data: bytes) -> None:
        """Takes bytes where only greetings and signs of life may come."""
        raise NotImplementedError

    def unpacked(self, frames: list[Frame]) -> list[Frame]:
        """Returns the frames with those that are packed in them."""
        return frames

    def packed_output(self) -> Outbox:
        """Returns what the socket gets next where frames are packed."""
        raise NotImplementedError

    def drained(self) -> None:
        """Hears that everything is sent, if the stream `_tells`."""
        raise NotImplementedError

    def spoilt(self, error: Exception) -> None:
        """The bytes of the peer caused this error."""
        self.fail(blame(error), logging.WARNING)

    def broken(self, code: int) -> None:
        """The system reported this error of the socket."""
        self.fail(os.strerror(code))

    def fail(self, reason: str, level: int = logging.INFO) -> None:
        """The connection has ended."""
        raise NotImplementedError

    @property
    def sent_bytes(self) -> int:
        """The bytes that the sockets of this stream have taken."""
        return self.outbox.sent_bytes

    def pass_point(self) -> bool:
        """Passes the failpoint before a write. Returns whether the connection goes on."""
        assert self.transport.failpoints is not None, "one of them is active"
        try:
            self.transport.failpoints.hit("peer.send")
        except OSError as error:
            self.fail(error.strerror or str(error))
            return False
        return True

    def await_room(self) -> None:
        """The socket takes no more for now."""
        self._since = self.loop.now()
        self.transport.sweep_soon()
        self.loop.modify(self.fd, READ | WRITE)

    def _end_by(self, seconds: float) -> None:
        """Set a deadline, in `seconds` from now."""
        self.deadline = self.loop.now() + seconds
        self.transport.sweep_soon()

    @property
    def watched(self) -> bool:
        """Whether `check` has anything to look at."""
        return self.deadline is not None or self._blocked

    def check(self, now: float) -> None:
        """Checks the deadlines, and whether the peer still takes bytes. The transport calls this now and then."""
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
