"""A load generator for puts with a key and a value of their own each, which h2load cannot make.

`put_keys` builds the HTTP/2 frames with numpy. The values are random bytes, so no codec can make them smaller.
`put_pairs` sends given keys and values. `ask_timed` makes calls of any method and takes the time of each, at a steady
rate if one is asked.

One thread serves ten connections or so, with many calls under way on each. It counts replies and nothing else: the
caller must check by the revision that the puts were really done.
"""

from __future__ import annotations

import selectors
import socket
import time
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
# Seconds between two looks at what a steady rate lets out.
TICK = 0.001


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _text(first: int, value: str) -> bytes:
    """Encode a literal header value that goes into the dynamic table. `first` is the byte that names the field (RFC
    7541)."""
    return bytes([first, len(value)]) + value.encode()


def _first_block(path: str) -> bytes:
    """Return the headers of the first call of a connection. They teach the server four fields; the calls after it name
    these by index."""
    fields = _text(0x44, path) + _text(0x41, "bench") + _text(0x5F, "application/grpc") + b"\x40\x02te\x08trailers"
    return b"\x83\x86" + fields


FIRST_BLOCK = _first_block(PUT)
BLOCK_AFTER = b"\x83\x86\xc1\xc0\xbf\xbe"


def put_message(key: bytes, value: bytes) -> bytes:
    """Return a PutRequest behind the 5-byte prefix of gRPC."""
    body = b"\n" + varint(len(key)) + key + b"\x12" + varint(len(value)) + value
    return b"\0" + len(body).to_bytes(4, "big") + body


def range_message(key: bytes) -> bytes:
    """Return a RangeRequest for one key behind the prefix."""
    body = b"\n" + varint(len(key)) + key
    return b"\0" + len(body).to_bytes(4, "big") + body


def _call(stream: int, block: bytes, data: bytes) -> bytes:
    return _frame(HEADERS, END_HEADERS, stream, block) + _frame(DATA, END_STREAM, stream, data)


class Source(Protocol):
    """The calls of one connection."""

    count: int

    def take(self, start: int, room: int, window: int) -> tuple[bytes, int, int]:
        """Return the frames of calls from `start` on, at most `room` calls and `window` bytes of messages; how many
        calls these are; and their messages' bytes."""


class _Messages:
    """Calls of one method with any messages, each behind the prefix of gRPC. A message fits into one frame."""

    def __init__(self, messages: list[bytes], path: str = PUT) -> None:
        self.count = len(messages)
        self._messages = messages
        self._first = _first_block(path)

    def take(self, start: int, room: int, window: int) -> tuple[bytes, int, int]:
        """See Source."""
        parts: list[bytes] = []
        used = 0
        for number in range(start, min(self.count, start + room)):
            message = self._messages[number]
            if used + len(message) > window:
                break
            used += len(message)
            parts.append(_call(2 * number + 1, BLOCK_AFTER if number else self._first, message))
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
        """See Source. It does not go beyond the end of start's block, and call 0 comes alone."""
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
class Times:
    """When each call began and what it took, in microseconds; starts are since the epoch. At a steady `rate` (0: as
    many as are answered) so many calls a second are let out, one after the other on all connections."""

    rate: int = 0
    starts: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    began: float = 0.0
    sent: int = 0
    turn: int = 0

    def let_out(self, connections: list[Connection]) -> None:
        """Send the calls that are due. A connection without room is passed over."""
        due = int((time.time() - self.began) * self.rate) - self.sent
        passed = 0
        while due > 0 and passed < len(connections):
            self.turn += 1
            taken = connections[self.turn % len(connections)].fill(1)
            passed = 0 if taken else passed + 1
            self.sent += taken
            due -= taken

    def note(self, began: list[float]) -> None:
        """Calls have ended that began at these times."""
        now = time.time()
        self.starts += [start * 1e6 for start in began]
        self.latencies += [(now - start) * 1e6 for start in began]

    @property
    def reached(self) -> float:
        """The calls a second, from the first beginning to the last end."""
        ends = map(sum, zip(self.starts, self.latencies, strict=True))
        return len(self.starts) / (max(ends) - min(self.starts)) * 1e6


@dataclass
class Connection:
    """One connection: what is sent, what came back, and how much the server lets us send."""

    calls: Source
    streams: int
    sock: socket.socket
    sent: int = 0
    done: int = 0
    replies: int = 0
    window: int = FIRST_WINDOW
    pending: bytes = b""
    acked_bytes: int = 0
    out: bytearray = field(default_factory=bytearray)
    times: Times | None = None
    begun: list[float] = field(default_factory=list)

    @property
    def room(self) -> int:
        """How many calls may be sent now, if the window allows it."""
        return min(self.streams - (self.sent - self.done), self.calls.count - self.sent)

    def fill(self, most: int | None = None) -> int:
        """Add as many calls as streams and window allow, `most` at most, and send. Return how many."""
        added = 0
        while (room := self.room if most is None else min(self.room, most - added)) > 0:
            data, taken, nbytes = self.calls.take(self.sent, room, self.window)
            if not taken:
                break
            self.out += data
            self.sent += taken
            self.window -= nbytes
            added += taken
            if self.times is not None:
                self.begun += [time.time()] * taken
        self.flush()
        return added

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
                if flags & END_STREAM:
                    self.done += 1
                    if self.times is not None:
                        number = int.from_bytes(buffer[at + 5 : at + 9], "big") >> 1
                        self.times.note(self.begun[number : number + 1])
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
    address: str,
    prefix: bytes,
    count: int,
    value_size: int,
    seed: int,
    connections: int = 10,
    streams: int = 100,
    begin: int = 0,
) -> int:
    """Put keys prefix + 12 digits, `count` of them from number `begin` on, each once. Return how many got a reply
    message.

    Raises RuntimeError if a connection fails.
    """
    share = -(-count // connections)
    firsts = range(begin, begin + count, share)
    calls = [_Calls(prefix, first, min(share, begin + count - first), value_size, seed) for first in firsts]
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
        messages = [put_message(*pair) for pair in some]
        sources = [_Messages(messages[n::connections]) for n in range(min(connections, len(messages)))]
        replies += _play(address, sources, streams)
    return count, replies


def ask_timed(
    address: str, messages: list[bytes], times: Times, path: str = PUT, connections: int = 50, streams: int = 20
) -> int:
    """Make calls of one method with these messages, and note the time of each in `times`. Return how many got a reply.

    Raises RuntimeError if a connection fails.
    """
    sources = [_Messages(messages[n::connections], path) for n in range(min(connections, len(messages)))]
    return _play(address, sources, streams, times)


def _connect(address: str, calls: Source, streams: int, times: Times | None) -> Connection:
    host, _, port = address.rpartition(":")
    sock = socket.create_connection((host, int(port)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    connection = Connection(calls, streams, sock, times=times)
    grown = _frame(WINDOW_UPDATE, 0, 0, (WINDOW - FIRST_WINDOW).to_bytes(4, "big"))
    settings = _frame(SETTINGS, 0, 0, SET_WINDOW.to_bytes(2, "big") + WINDOW.to_bytes(4, "big"))
    connection.out += PREFACE + settings + grown
    return connection


def _play(address: str, sources: Iterable[Source], streams: int, times: Times | None = None) -> int:
    """Use one connection for each source, until all calls have ended. Return how many got a reply."""
    made = [_connect(address, calls, streams, times) for calls in sources]
    play(made, times)
    return sum(connection.replies for connection in made)


def play(made: list[Connection], times: Times | None = None) -> None:
    """Serve connections until all of their calls have ended, and close them."""
    paced = times if times is not None and times.rate else None
    most = None if paced is None else 0
    with selectors.DefaultSelector() as selector:
        for connection in made:
            connection.fill(most)
            selector.register(connection.sock, selectors.EVENT_READ, connection)
        if paced is not None:
            paced.began = time.time()
        left = len(made)
        while left:
            for key, _ in selector.select(None if paced is None else TICK):
                connection = key.data
                connection.receive()
                connection.fill(most)
                if connection.done == connection.calls.count:
                    selector.unregister(connection.sock)
                    connection.sock.close()
                    left -= 1
                elif connection.out:
                    _wait_writable(connection)
            if paced is not None:
                paced.let_out(made)


def _wait_writable(connection: Connection) -> None:
    """Wait until a full send buffer has drained. Replies are read meanwhile; otherwise both sides would wait."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection.sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while connection.out:
            for _, events in selector.select():
                if events & selectors.EVENT_READ:
                    connection.receive()
                if events & selectors.EVENT_WRITE:
                    connection.flush()
