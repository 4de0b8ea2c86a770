"""A load generator for puts with a key and a value of their own each, which h2load cannot make.

`put_keys` builds the HTTP/2 frames with numpy. The values are random bytes, so no codec can make them smaller.
`put_pairs` sends given keys and values.

One thread serves ten connections or so, with many calls under way on each. It counts replies and nothing else: the
caller must check by the revision that the puts were really done.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import numpy as np
from sim.varint import varint

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PUT = "/etcdserverpb.KV/Put"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
SET_WINDOW, WINDOW = 4, (1 << 31) - 1
FIRST_WINDOW = 65_535
DIGITS = 12
# So many calls have their frames built at once.
BLOCK = 20_000


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _text(first: int, value: str) -> bytes:
    """Encode a literal header value that goes into the dynamic table. `first` is the byte that names the field (RFC
    7541)."""
    return bytes([first, len(value)]) + value.encode()


# The first call of a connection teaches the server four fields; the others name these by index.
FIRST_BLOCK = (
    b"\x83\x86"
    + _text(0x44, PUT)
    + _text(0x41, "bench")
    + _text(0x5F, "application/grpc")
    + b"\x40\x02te"
    + b"\x08trailers"
)
BLOCK_AFTER = b"\x83\x86\xc1\xc0\xbf\xbe"


def put_message(key: bytes, value: bytes) -> bytes:
    """Return a PutRequest behind the 5-byte prefix of gRPC."""
    body = b"\n" + varint(len(key)) + key + b"\x12" + varint(len(value)) + value
    return b"\0" + len(body).to_bytes(4, "big") + body


def _call(stream: int, block: bytes, data: bytes) -> bytes:
    return _frame(HEADERS, END_HEADERS, stream, block) + _frame(DATA, END_STREAM, stream, data)


class _Source(Protocol):
    """The calls of one connection."""

    count: int

    def take(self, start: int, room: int, window: int) -> tuple[bytes, int, int]:
        """Return the frames of calls from `start` on, at most `room` calls and `window` bytes of messages; how many
        calls these are; and their messages' bytes."""


class _Pairs:
    """Calls with any keys and values. A message fits into one frame."""

    def __init__(self, pairs: list[tuple[bytes, bytes]]) -> None:
        self.count = len(pairs)
        self._pairs = pairs

    def take(self, start: int, room: int, window: int) -> tuple[bytes, int, int]:
        """See _Source."""
        parts: list[bytes] = []
        used = 0
        for number in range(start, min(self.count, start + room)):
            message = put_message(*self._pairs[number])
            if used + len(message) > window:
                break
            used += len(message)
            parts.append(_call(2 * number + 1, BLOCK_AFTER if number else FIRST_BLOCK, message))
        return b"".join(parts), len(parts), used


class _Calls:
    """The frames of one connection's calls, built a block at a time from a template."""

    def __init__(self, prefix: bytes, first: int, count: int, value_size: int, seed: int) -> None:
        self._prefix, self._first, self.count = prefix, first, count
        self._random = np.random.default_rng([seed, first])
        value = self._value = self._random.bytes(value_size)
        self.message_size = len(put_message(self._key(0), value))
        self._template = np.frombuffer(_call(1, BLOCK_AFTER, put_message(self._key(0), value)), np.uint8)
        self.size = len(self._template)
        self._key_at = self._template.tobytes().index(self._key(0)) + len(prefix)
        self._block_start = -BLOCK
        self._block = b""

    def _key(self, number: int) -> bytes:
        return self._prefix + b"%0*d" % (DIGITS, number)

    def take(self, start: int, room: int, window: int) -> tuple[bytes, int, int]:
        """See _Source. It does not go beyond the end of start's block, and call 0 comes alone."""
        count = min(room, window // self.message_size, self.count - start)
        if count <= 0:
            return b"", 0, 0
        if start == 0:
            return _call(1, FIRST_BLOCK, put_message(self._key(self._first), self._value)), 1, self.message_size
        if not self._block_start <= start < self._block_start + BLOCK:
            self._build(start)
        at = (start - self._block_start) * self.size
        data = self._block[at : at + count * self.size]
        taken = len(data) // self.size
        return data, taken, taken * self.message_size

    def _build(self, start: int) -> None:
        numbers = np.arange(start, min(start + BLOCK, self.count), dtype=np.int64)
        calls = np.tile(self._template, (len(numbers), 1))
        streams = (2 * numbers + 1).astype(">u4").view(np.uint8).reshape(-1, 4)
        calls[:, 5:9] = streams
        data = 9 + len(BLOCK_AFTER)
        calls[:, data + 5 : data + 9] = streams
        keys = numbers + self._first
        for digit in range(DIGITS):
            calls[:, self._key_at + DIGITS - 1 - digit] = 48 + keys // 10**digit % 10
        size = len(self._value)
        calls[:, self.size - size :] = self._random.integers(0, 256, (len(numbers), size), np.uint8)
        self._block, self._block_start = calls.tobytes(), start


@dataclass
class _Connection:
    """One connection: what is sent, what came back, and how much the server lets us send."""

    calls: _Source
    streams: int
    sock: socket.socket
    sent: int = 0
    done: int = 0
    replies: int = 0
    window: int = FIRST_WINDOW
    pending: bytes = b""
    acked_bytes: int = 0
    out: bytearray = field(default_factory=bytearray)

    def fill(self) -> None:
        """Add as many calls as streams and window allow, and send."""
        while (room := self.streams - (self.sent - self.done)) > 0 and self.sent < self.calls.count:
            data, taken, nbytes = self.calls.take(self.sent, room, self.window)
            if not taken:
                break
            self.out += data
            self.sent += taken
            self.window -= nbytes
        self.flush()

    def flush(self) -> None:
        while self.out:
            try:
                n = self.sock.send(self.out)
            except BlockingIOError:
                return
            del self.out[:n]

    def receive(self) -> None:
        """Read what is there. Raises RuntimeError if the server ends the connection or resets a stream."""
        try:
            data = self.sock.recv(1 << 18)
        except BlockingIOError:
            return
        if not data:
            raise RuntimeError("the server closed the connection")
        self.acked_bytes += len(data)
        buffer = self.pending + data
        at, end = 0, len(buffer)
        while at + 9 <= end:
            size = int.from_bytes(buffer[at : at + 3], "big")
            if at + 9 + size > end:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            if kind <= HEADERS:
                self.replies += kind == DATA
                self.done += flags & END_STREAM
            else:
                self._control(kind, flags, buffer[at + 5 : at + 9], buffer[at + 9 : at + 9 + size])
            at += 9 + size
        self.pending = buffer[at:]
        if self.acked_bytes > 1 << 29:
            self.out += _frame(WINDOW_UPDATE, 0, 0, self.acked_bytes.to_bytes(4, "big"))
            self.acked_bytes = 0

    def _control(self, kind: int, flags: int, stream: bytes, payload: bytes) -> None:
        if kind == WINDOW_UPDATE and not any(stream):
            self.window += int.from_bytes(payload, "big")
        elif kind == SETTINGS and not flags & ACK:
            self.out += _frame(SETTINGS, ACK, 0, b"")
        elif kind == PING and not flags & ACK:
            self.out += _frame(PING, ACK, 0, payload)
        elif kind in (GOAWAY, RST_STREAM):
            raise RuntimeError(f"frame {kind} of the server: {payload.hex()}")


def put_keys(
    address: str, prefix: bytes, count: int, value_size: int, seed: int, connections: int = 10, streams: int = 100
) -> int:
    """Put keys prefix + 12 digits, `count` of them, each once. Return how many got a reply message.

    Raises RuntimeError if a connection fails.
    """
    share = -(-count // connections)
    firsts = range(0, count, share)
    calls = [_Calls(prefix, first, min(share, count - first), value_size, seed) for first in firsts]
    return _play(address, calls, streams)


def put_pairs(
    address: str, pairs: Iterable[tuple[bytes, bytes]], connections: int = 10, streams: int = 100
) -> tuple[int, int]:
    """Put keys with their values, taken a few thousand at a time. Return how many there were, and how many got a reply.

    The order in which they are applied is only roughly that of `pairs`. Raises RuntimeError if a connection fails.
    """
    count = replies = 0
    left = iter(pairs)
    while some := list(islice(left, BLOCK)):
        count += len(some)
        replies += _play(address, [_Pairs(some[n::connections]) for n in range(min(connections, len(some)))], streams)
    return count, replies


def _play(address: str, sources: Iterable[_Source], streams: int) -> int:
    """Use one connection for each source, until all calls have ended. Return how many got a reply message."""
    host, _, port = address.rpartition(":")
    with selectors.DefaultSelector() as selector:
        made = []
        for calls in sources:
            sock = socket.create_connection((host, int(port)))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            connection = _Connection(calls, streams, sock)
            grown = _frame(WINDOW_UPDATE, 0, 0, (WINDOW - FIRST_WINDOW).to_bytes(4, "big"))
            settings = _frame(SETTINGS, 0, 0, SET_WINDOW.to_bytes(2, "big") + WINDOW.to_bytes(4, "big"))
            connection.out += PREFACE + settings + grown
            connection.fill()
            selector.register(sock, selectors.EVENT_READ, connection)
            made.append(connection)
        left = len(made)
        while left:
            for key, _ in selector.select():
                connection = key.data
                connection.receive()
                connection.fill()
                if connection.done == connection.calls.count:
                    selector.unregister(connection.sock)
                    connection.sock.close()
                    left -= 1
                elif connection.out:
                    _wait_writable(connection)
    return sum(connection.replies for connection in made)


def _wait_writable(connection: _Connection) -> None:
    """Wait until a full send buffer has drained. Replies are read meanwhile; otherwise both sides would wait."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection.sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while connection.out:
            for _, events in selector.select():
                if events & selectors.EVENT_READ:
                    connection.receive()
                if events & selectors.EVENT_WRITE:
                    connection.flush()
