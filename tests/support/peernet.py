"""Members of a made-up cluster in one loop, and raw sockets that speak to them."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable
from typing import Any

from metastore import errors
from metastore._core.entry import Entry, encode_entry
from metastore._core.raft_types import Message, MessageType
from metastore._core.raft_wire import Outbox
from metastore.failpoints import Failpoints
from metastore.net.loop import Loop
from metastore.peers import handshake as hs
from metastore.peers.transport import PeerIdentity, PeerLimits, PeerTransport

T = MessageType
FAST = PeerLimits(
    connect_timeout=2.0, handshake_timeout=0.3, stall_timeout=0.4, backoff_min=0.01, backoff_max=0.05, sweep=0.02
)
CODECS = ((1, "snappy"), (1, "zstd"))


class Handler:
    """Keeps everything that it receives."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.forwards: list[tuple[int, bytes]] = []
        self.refusals: list[tuple[int, int, list[int]]] = []
        self.leases: list[tuple[int, bool, bytes]] = []
        self.news: list[tuple[int, int, bytes]] = []
        self.unreachable: list[int] = []
        self.verdicts: list[tuple[int, str]] = []
        self.answers: list[tuple[int, int, int]] = []
        self.greetings: list[tuple[int, bool]] = []
        self.rosters: list[tuple[int, bytes]] = []
        self.needed: set[tuple[int, str]] = set()
        self.record = b"the roster"
        self.refuse = ""  # the reason for which messages are refused

    def on_message(self, message: Message) -> None:
        if self.refuse:
            raise errors.FormatError(self.refuse)
        self.messages.append(message)

    def on_forward(self, from_: int, frame: bytes) -> None:
        self.forwards.append((from_, frame))

    def on_refusal(self, from_: int, code: int, ids: list[int]) -> None:
        self.refusals.append((from_, code, ids))

    def on_lease(self, from_: int, asks: bool, data: bytes) -> None:
        self.leases.append((from_, asks, data))

    def on_news(self, from_: int, tag: int, data: bytes) -> None:
        self.news.append((from_, tag, data))

    def on_snapshot(self, message: Message) -> None:
        raise AssertionError("nobody sends snapshots here")

    def on_snapshot_stream(self, stream: Any) -> None:
        raise AssertionError("nobody sends snapshots here")

    def on_unreachable(self, member: int) -> None:
        self.unreachable.append(member)

    def on_verdict(self, status: int, text: str) -> None:
        self.verdicts.append((status, text))

    def flags(self) -> int:
        return 0

    def must_read(self) -> set[tuple[int, str]]:
        return self.needed

    def roster_record(self) -> bytes:
        return self.record

    def on_answer(self, member: int, status: int, identity: PeerIdentity) -> None:
        self.answers.append((member, status, identity.member_id))

    def on_greeting(self, member: int, identity: PeerIdentity, known: bool) -> None:
        self.greetings.append((member, known))

    def on_roster(self, member: int, record: bytes) -> None:
        self.rosters.append((member, record))


class Net:
    """Transports in one loop."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.transports: list[PeerTransport] = []
        self.raw: list[socket.socket] = []

    def turn(self, seconds: float = 0.01) -> None:
        """Turn the loop once. It waits for so long at most."""
        self.loop.run_once(seconds, self._flush)

    def _flush(self) -> None:
        for transport in self.transports:
            transport.flush()

    def add(
        self,
        member: int,
        *,
        handler: Handler | None = None,
        address: str = "127.0.0.1:0",
        limits: PeerLimits = FAST,
        failpoints: Failpoints | None = None,
        pack: bool = False,
        **fields: Any,
    ) -> Any:
        """Return a transport of member `member` of cluster 77; its handler is its attribute."""
        settings = {"cluster_id": 77, "token": 5, "member_id": member, "incarnation": f"dir-{member}", "codecs": CODECS}
        settings |= {"start": 1, "life": member}
        transport = PeerTransport(
            self.loop,
            PeerIdentity(**{**settings, **fields}),
            address,
            handler=handler or Handler(),
            random=random.Random(member).random,
            limits=limits,
            failpoints=failpoints,
            pack=pack,
        )
        self.transports.append(transport)
        return transport

    def pair(self, **options: Any) -> tuple[Any, Any]:
        """Return members 1 and 2, which know each other and are connected both ways."""
        one, two = self.add(1, **options), self.add(2, **options)
        one.set_peers({1: one.bound[0], 2: two.bound[0]})
        two.set_peers({1: one.bound[0], 2: two.bound[0]})
        self.until(lambda: connected(one, 2) and connected(two, 1))
        return one, two

    def until(self, done: Callable[[], object], seconds: float = 10.0) -> None:
        """Turn the loop until `done()`. Fails after `seconds`."""
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, "it did not come to that"
            self.turn()

    def during(self, seconds: float) -> None:
        """Turn the loop for some time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.turn()

    def listen(self) -> socket.socket:
        """Return a raw listener in a member's place."""
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        self.raw.append(sock)
        return sock

    def accept(self, listener: socket.socket, answer: hs.Answer | None) -> tuple[socket.socket, hs.Hello]:
        """Return the next connection and its hello, answered unless `answer` is None."""
        sockets: list[socket.socket] = []

        def try_accept() -> bool:
            with contextlib.suppress(BlockingIOError):
                sockets.append(listener.accept()[0])
            return bool(sockets)

        self.until(try_accept)
        sock = sockets[0]
        sock.setblocking(False)
        self.raw.append(sock)
        data = b""
        while (size := hs.greeting_size(data)) is None or len(data) < size:
            data += self.receive(sock)
        if answer is not None:
            sock.send(hs.encode_answer(answer))
        return sock, hs.decode_hello(data)

    def dial(self, transport: PeerTransport, data: bytes) -> socket.socket:
        """Return a raw connection to a member that sends `data`."""
        host, port = transport.bound[0].split(":")
        sock = socket.create_connection((host, int(port)))
        sock.setblocking(False)
        self.raw.append(sock)
        sock.send(data)
        return sock

    def receive(self, sock: socket.socket) -> bytes:
        """Return what comes next; empty at the end of the connection."""
        data: list[bytes] = []

        def try_receive() -> bool:
            try:
                data.append(sock.recv(1 << 16))
            except BlockingIOError:
                return False
            except ConnectionResetError:
                data.append(b"")
            return True

        self.until(try_receive)
        return data[0]

    def greet(self, transport: PeerTransport, member: int, kind: int = hs.CONTROL) -> socket.socket:
        """Return a raw connection as `member`, accepted."""
        sock = self.dial(transport, hello(member, transport.me.member_id, kind))
        assert hs.decode_answer(self.receive(sock)).status == hs.OK
        return sock

    def close(self) -> None:
        for transport in self.transports:
            transport.close()
        for sock in self.raw:
            sock.close()
        self.loop.close()


def connected(transport: PeerTransport, member: int) -> bool:
    stats = transport.stats()[member]
    return bool(stats["connected"] and stats["connected_bulk"])


def hello(member: int, target: int, kind: int = hs.CONTROL, **fields: Any) -> bytes:
    settings = {"cluster_id": 77, "token": 5, "member_id": member, "incarnation": f"dir-{member}"}
    settings |= {"start": 1, "life": member}
    return hs.encode_hello(hs.Hello(kind, PeerIdentity(**{**settings, **fields}), target))


def accepted(member: int) -> hs.Answer:
    return hs.Answer(hs.OK, "", PeerIdentity(77, 0, member, f"dir-{member}"))


def heartbeat(to: int = 2, from_: int = 1, commit: int = 0) -> Message:
    return Message(T.MsgHeartbeat, to, from_, 5, commit=commit)


def append(size: int, index: int = 7) -> Message:
    return Message(T.MsgApp, 2, 1, 5, 5, index, images=encode_entry(Entry(5, index + 1, 0, bytes(size))))


def framed(*messages: Message) -> bytes:
    outbox = Outbox(1 << 20)
    assert all(outbox.add(message) for message in messages)
    return b"".join(outbox.pieces())
