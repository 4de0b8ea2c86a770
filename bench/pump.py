"""Many connections to a server from one thread, which sees the frames that come back and sends what may be sent.

The same code serves every server, and it takes a part of one processor. What is measured beside it is the CPU of the
server's own process.
"""

from __future__ import annotations

import selectors
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from support import http2 as h  # noqa: E402

WINDOW = (1 << 31) - 1 - 65_535
FIRST_WINDOW = 65_535
RECEIVED = 1 << 29  # bytes after which a connection opens its window again


class Prepared:
    """A unary call that is made again and again. Only the number of the stream is filled in, because a client that
    makes each call from the beginning takes half of a processor beside a quick server."""

    def __init__(self, path: bytes, body: bytes) -> None:
        frames = h.call(0, body, path)
        second = 9 + int.from_bytes(frames[:3], "big")  # where the DATA frame begins
        self._parts = frames[:5], frames[9 : second + 5], frames[second + 9 :]
        self.size = len(body) + 5

    def on(self, stream: int) -> bytes:
        """Its frames on a stream."""
        number = stream.to_bytes(4, "big")
        before, between, behind = self._parts
        return before + number + between + number + behind


class Link:
    """One connection. `ended` is called with each stream that the server has ended, `message` with the number of bytes
    of each DATA frame."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.sock = socket.create_connection((host, int(port)))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.out = bytearray(h.hello(WINDOW))
        self.window = FIRST_WINDOW
        self.stream_window = FIRST_WINDOW  # of the only stream that sends much
        self.frames = 0  # DATA frames that came
        self.data = 0  # bytes in them
        self.done = False
        self.ended: Callable[[Link, int], object] = lambda _link, _stream: None
        self._pending = b""
        self._since = 0

    def call(self, stream: int, path: bytes, body: bytes) -> None:
        """Queue a unary call."""
        self.repeat(stream, Prepared(path, body))

    def repeat(self, stream: int, call: Prepared) -> None:
        """Queue a call that was prepared."""
        self.out += call.on(stream)
        self.window -= call.size

    def receive(self) -> None:
        """Read what is there. Raises RuntimeError if the server ends the connection or resets a stream."""
        try:
            data = self.sock.recv(1 << 18)
        except BlockingIOError:
            return
        if not data:
            raise RuntimeError("the server closed the connection")
        self._since += len(data)
        buffer = self._pending + data
        at, end = 0, len(buffer)
        while at + 9 <= end:
            size = int.from_bytes(buffer[at : at + 3], "big")
            if at + 9 + size > end:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            if kind == h.DATA:
                self.frames += 1
                self.data += size
            elif kind != h.HEADERS:
                self._control(kind, flags, buffer[at + 5 : at + 9], buffer[at + 9 : at + 9 + size])
            if kind <= h.HEADERS and flags & h.END_STREAM:
                self.ended(self, int.from_bytes(buffer[at + 5 : at + 9], "big"))
            at += 9 + size
        self._pending = buffer[at:]
        if self._since > RECEIVED:
            self.out += h.frame(h.WINDOW_UPDATE, 0, 0, self._since.to_bytes(4, "big"))
            self._since = 0

    def _control(self, kind: int, flags: int, stream: bytes, payload: bytes) -> None:
        if kind == h.WINDOW_UPDATE:
            if any(stream):
                self.stream_window += int.from_bytes(payload, "big")
            else:
                self.window += int.from_bytes(payload, "big")
        elif kind == h.SETTINGS and not flags & h.ACK:
            for at in range(0, len(payload), 6):
                if payload[at : at + 2] == b"\0\x04":
                    self.stream_window += int.from_bytes(payload[at + 2 : at + 6], "big") - FIRST_WINDOW
            self.out += h.frame(h.SETTINGS, h.ACK, 0)
        elif kind == h.PING and not flags & h.ACK:
            self.out += h.frame(h.PING, h.ACK, 0, payload)
        elif kind in (h.GOAWAY, h.RST_STREAM):
            raise RuntimeError(f"frame {kind} of the server: {payload.hex()}")

    def flush(self) -> bool:
        """Send what the socket takes. Return whether nothing is left."""
        while self.out:
            try:
                sent = self.sock.send(self.out)
            except BlockingIOError:
                return False
            del self.out[:sent]
        return True


def play(links: Iterable[Link], more: Callable[[Link], object] = lambda _link: None) -> None:
    """Serve the connections until all of them are `done`. `more` is called for each that has received something."""
    left = set(links)
    with selectors.DefaultSelector() as selector:
        for link in left:
            more(link)
            mask = selectors.EVENT_READ | (0 if link.flush() else selectors.EVENT_WRITE)
            selector.register(link.sock, mask, link)
        while left:
            for key, events in selector.select():
                link = key.data
                if events & selectors.EVENT_READ:
                    link.receive()
                    more(link)
                mask = selectors.EVENT_READ | (0 if link.flush() else selectors.EVENT_WRITE)
                if mask != key.events:
                    selector.modify(link.sock, mask, link)
                if link.done and not link.out:
                    selector.unregister(link.sock)
                    left.discard(link)


def close(links: Iterable[Link]) -> None:
    """Close the connections."""
    for link in links:
        link.sock.close()
