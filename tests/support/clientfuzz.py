"""Random traffic on the client port of a live node, most of it wrong."""

from __future__ import annotations

import contextlib
import functools
import gzip
import random
import socket
import time
from collections.abc import Callable

from . import http2 as h
from . import messages as m
from .client import Client, Failure
from .processes import Server, metric, wait_until

MIB = 1 << 20
STREAMS = 200
#: The bounds are small, so the traffic reaches them.
SETTINGS = {
    "limits.max_connections": "30", "limits.max_inflight_bytes": '"8MiB"', "limits.max_reply_bytes": '"8MiB"',
    "limits.max_output_bytes": '"1MiB"', "limits.output_timeout": '"2s"', "limits.handshake_timeout": '"1s"',
    "limits.max_concurrent_streams": str(STREAMS), "wal.segment_size": '"4MiB"',
}  # fmt: skip
WATCH = b"/etcdserverpb.Watch/Watch"
#: Twice what requests may hold, what replies may hold, what is gathered for them, and what the allocator keeps.
GROWTH = 160 * MIB
KV = (b"Put", b"Range", b"DeleteRange", b"Txn", b"Compact")
NUMBERS = (0, 1, 2, 5, 255, 256, 16383, 16384, 16385, 65535, 1 << 20, (1 << 24) - 1, (1 << 31) - 1, (1 << 32) - 1)
CLIENTS = 20
#: The bytes that an answered call counts until its client has read the answer, and the bytes of answers that a client
#: may leave unread while no other client needs the room: see `net/client_conn.py`.
CALL_COST = 1024
UNREAD = 64 * 1024
#: Bytes of events that all clients together may leave unread: three quarters of max_reply_bytes, and some responses.
EVENTS = 7 * MIB
#: A client that has taken note of the server's settings, without which its windows are small.
AGREED = h.frame(h.SETTINGS, h.ACK, 0)
REQUESTS, REPLIES = "metastore_client_request_bytes", "metastore_client_reply_bytes"
PAGES = (
    b"/metrics",
    b"/health",
    b"/readyz?verbose",
    b"/status",
    b"/version",
    b"/none",
    b"//[",
    b"/health?" + b"&a" * 100,
)


class Fuzzer:
    """Makes the bytes of one client. All of them follow from `rng`."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.stream = -1

    def body(self) -> bytes:
        rng = self.rng
        key, value = b"f/%d" % rng.randrange(50), rng.randbytes(rng.choice((0, 1, 100, 5000, 200_000)))
        whole = m.RangeRequest(key=b"f/", range_end=b"f0", serializable=rng.random() < 0.5).SerializeToString()
        return rng.choice((
            m.PutRequest(key=key, value=value).SerializeToString(), whole, whole,
            m.DeleteRangeRequest(key=key).SerializeToString(),
            m.CompactionRequest(revision=rng.choice((0, 1, 5, 1 << 40))).SerializeToString(),
            rng.randbytes(rng.choice((0, 1, 30, 3000))),
        ))  # fmt: skip

    def message(self) -> bytes:
        rng, body = self.rng, self.body()
        way = rng.random()
        if way < 0.7:
            return h.message(body)
        if way < 0.8:
            packed = bytearray(gzip.compress(body))
            if rng.random() < 0.3:
                packed[rng.randrange(len(packed))] ^= 1 << rng.randrange(8)
            return h.message(bytes(packed), 1)
        if way < 0.85:
            return h.message(gzip.compress(bytes(rng.choice((10, 3 * MIB)))), 1)
        return bytes([rng.choice((0, 1, 2, 255))]) + rng.choice(NUMBERS).to_bytes(4, "big") + body

    def watch_request(self) -> bytes:
        rng, made = self.rng, m.TYPES["WatchRequest"]()
        way = rng.random()
        if way < 0.7:
            create = made.create_request
            create.key = rng.choice((b"", b"f/", b"f/%d" % rng.randrange(50), b"x" * rng.choice((10, 5000))))
            create.range_end = rng.choice((b"", b"\0", b"f0", b"a"))
            create.start_revision = rng.choice((0, 0, 1, 5, 1 << 40, -1))
            create.watch_id = rng.choice((0, 0, 0, 7, -1))
            create.progress_notify, create.prev_kv, create.fragment = (rng.random() < 0.3 for _ in range(3))
            create.filters.extend(rng.choices((0, 1, 9), k=rng.choice((0, 0, 1, 3))))
        elif way < 0.85:
            made.cancel_request.watch_id = rng.choice((0, 1, 7, -1, 1 << 40))
        elif way < 0.95:
            made.progress_request.SetInParent()
        else:
            return rng.randbytes(rng.choice((1, 10, 300)))
        return bytes(made.SerializeToString())

    def watch(self) -> bytes:
        """A watch stream with some requests; mostly it stays open."""
        rng = self.rng
        self.stream += 2
        extra = [(b"hasleader", b"true")] if rng.random() < 0.3 else []
        out = h.frame(h.HEADERS, h.END_HEADERS, self.stream, h.head(WATCH, *extra))
        for _ in range(rng.choice((1, 1, 3, 200))):
            out += h.frame(h.DATA, rng.random() < 0.05, self.stream, h.message(self.watch_request()))
        return out

    def head(self, packed: bool) -> bytes:
        rng = self.rng
        path = b"/etcdserverpb.KV/" + rng.choice(KV)
        if rng.random() < 0.1:
            path = rng.choice((b"/", b"", b"x" * 9000, b"/etcdserverpb.Maintenance/Snapshot", rng.randbytes(20)))
        extra = [(b"grpc-encoding", b"gzip")] if packed and rng.random() < 0.8 else []
        for _ in range(rng.choice((0, 0, 1, 2, 20))):
            name = rng.choice(
                (
                    b"grpc-timeout",
                    b"grpc-encoding",
                    b"token",
                    b"hasleader",
                    b"x" * rng.randrange(1, 3000),
                    b"content-length",
                    b"connection",
                    b":path",
                    b"X-Upper",
                    b"te",
                )
            )
            value = rng.choice(
                (
                    b"1n",
                    b"50m",
                    b"10S",
                    b"gzip",
                    b"identity",
                    b"true",
                    b"",
                    rng.randbytes(10),
                    b"y" * rng.choice((1, 100, 15_000)),
                )
            )
            extra.append((name, value))
        return h.head(path, *extra, method=rng.choice((b"POST",) * 9 + (b"GET",)))

    def call(self) -> bytes:
        rng = self.rng
        if rng.random() < 0.1:
            return self.watch()
        self.stream += 2
        wire = self.message()
        head = self.head(wire[:1] == b"\1")[:16_000]
        out = h.frame(h.HEADERS, h.END_HEADERS | (rng.random() < 0.03), self.stream, head)
        if rng.random() < 0.2:
            wire = wire[: rng.randrange(len(wire) + 1)]
        for at in range(0, len(wire), 16_000):
            end = at + 16_000 >= len(wire) and rng.random() < 0.85
            out += h.frame(h.DATA, end, self.stream, wire[at : at + 16_000])
        if rng.random() < 0.1:
            out += h.frame(h.RST_STREAM, 0, self.stream, rng.choice(NUMBERS).to_bytes(4, "big"))
        return out

    def strange(self) -> bytes:
        rng = self.rng
        stream = rng.choice((0, self.stream, self.stream - 2, self.stream + 2, 2, 1 << 30)) % (1 << 31)
        kind = rng.choice(
            (
                h.PING,
                h.SETTINGS,
                h.WINDOW_UPDATE,
                h.PRIORITY,
                h.RST_STREAM,
                h.GOAWAY,
                h.CONTINUATION,
                h.PUSH_PROMISE,
                h.DATA,
                h.HEADERS,
                10,
                200,
            )
        )
        size = {h.PING: 8, h.WINDOW_UPDATE: 4, h.RST_STREAM: 4, h.PRIORITY: 5, h.SETTINGS: 6}.get(kind, 20)
        payload = rng.randbytes(size if rng.random() < 0.8 else rng.randrange(40))
        if kind == h.SETTINGS and len(payload) == 6:
            payload = rng.randrange(1, 8).to_bytes(2, "big") + rng.choice(NUMBERS).to_bytes(4, "big")
        return h.frame(kind, rng.choice((0, 0, 1, 4, 5, 8, 255)), stream, payload) * rng.choice((1, 1, 1, 3, 300))

    def http(self) -> bytes:
        rng, out = self.rng, b""
        for _ in range(rng.choice((1, 2, 50, 500))):
            out += b"GET " + rng.choice(PAGES) + b" HTTP/1.1\r\nHost: x\r\n\r\n"
        return self.bent(out)

    def bent(self, data: bytes) -> bytes:
        rng = self.rng
        if data and rng.random() < 0.3:
            bent = bytearray(data)
            for _ in range(rng.choice((1, 1, 5))):
                bent[rng.randrange(len(bent))] ^= 1 << rng.randrange(8)
            return bytes(bent)
        return data[: rng.randrange(len(data) + 1)] if rng.random() < 0.1 else data

    def traffic(self) -> bytes:
        if self.stream < 0:
            kind = self.rng.random()
            if kind < 0.15:
                self.stream = 1 << 29
                return self.http()
            self.stream = 1
            hello = h.hello(self.rng.choice((0, 1, 1 << 16, 1 << 24))) + h.frame(h.SETTINGS, h.ACK, 0)
            return self.bent(hello) if kind < 0.2 else hello
        if self.stream >= 1 << 29:
            return self.http()
        return self.bent(
            b"".join(
                self.call() if self.rng.random() < 0.8 else self.strange() for _ in range(self.rng.choice((1, 3, 30)))
            )
        )


def serves(node: Server, client: Client, number: int, seed: int) -> None:
    def served() -> bool:
        assert node.running().popen.poll() is None, f"seed {seed}: the node ended\n{node.running().log[-3000:]}"
        with contextlib.suppress(Failure):
            client.put(b"clean", b"%d" % number)
            return client.get(b"clean") == b"%d" % number
        return False

    wait_until(served, 30, f"seed {seed}: a write beside the attack")


def in_frames(stream: int, wire: bytes, end: bool = True) -> bytes:
    """A message on a stream, in frames of its own; `end`: and nothing behind it."""
    ends = range(0, len(wire), 16_000)
    return b"".join(h.frame(h.DATA, end and at == ends[-1], stream, wire[at : at + 16_000]) for at in ends)


def greedy(sock: socket.socket) -> None:
    """Send a message that unpacks to 1,000 times as much, then messages that never end, as much of them as is taken."""
    sock.sendall(h.hello() + AGREED)
    packed = h.head(h.PUT_PATH, (b"grpc-encoding", b"gzip"))
    sock.sendall(h.frame(h.HEADERS, h.END_HEADERS, 1, packed) + in_frames(1, h.message(bomb(), 1)))
    part = h.message(bytes(MIB))[:976_000]
    for stream in range(3, 2 * STREAMS, 2):
        sock.sendall(h.frame(h.HEADERS, h.END_HEADERS, stream, h.head()) + in_frames(stream, part, end=False))


@functools.cache
def bomb() -> bytes:
    """A message that unpacks to 200 MiB."""
    return gzip.compress(bytes(200 * MIB), 1)


def linger(connect: Callable[[], socket.socket]) -> int:
    """Clients that stay: two do not read small answers, two do not read large ones, two never finish a call.

    Returns how many answered calls may stay. The key clean/large is large.
    """
    put = m.PutRequest(key=b"f/0", value=bytes(5000)).SerializeToString()
    large = m.RangeRequest(key=b"clean/large").SerializeToString()
    for sock in (connect(), connect()):
        sock.sendall(h.SHUT + AGREED + b"".join(h.call(2 * n + 1, put) for n in range(20)))
    for sock in (connect(), connect()):
        sock.sendall(h.SHUT + AGREED + b"".join(h.call(2 * n + 1, large, b"/etcdserverpb.KV/Range") for n in range(60)))
    for sock in (connect(), connect()):
        # It is no newcomer, which would end with its connection.
        sock.sendall(h.hello() + AGREED + h.call(1, put) + h.call(3, put)[:-1000])
    return 40


def at_rest(node: Server, stay: int) -> bool:
    """Whether all complete calls are answered and all others are given up, although the clients have not hung up. Only
    calls are left whose small answers the clients do not read, at least `stay` of them, and watch streams."""
    requests, replies = int(metric(node, REQUESTS)), metric(node, REPLIES)
    calls, rest = divmod(requests, CALL_COST)
    return rest == 0 and stay <= calls <= CLIENTS * STREAMS and replies <= CLIENTS * UNREAD + EVENTS


def nothing_left(node: Server) -> bool:
    """Whether nothing is left of clients that have hung up. One client stays, and one asks."""
    left = sum(metric(node, name) for name in (REQUESTS, REPLIES, "metastore_watchers", "metastore_watch_streams"))
    return left == 0 and metric(node, "metastore_client_connections") <= 2


def attack(node: Server, seed: int, seconds: float) -> None:
    rng = random.Random(seed)
    host, _, port = node.address.rpartition(":")
    until, number = time.monotonic() + seconds, 0
    with node.client() as client, contextlib.ExitStack() as stack:
        serves(node, client, number, seed)
        rss = node.running().rss()
        busy: dict[socket.socket, Fuzzer] = {}

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection((host, int(port)), timeout=20))

        while time.monotonic() < until:
            if len(busy) < CLIENTS:
                sock = connect()
                sock.settimeout(0.02)
                busy[sock] = Fuzzer(rng)
            sock = rng.choice(list(busy))
            try:
                sock.sendall(busy[sock].traffic())
                if rng.random() < 0.5:
                    sock.recv(1 << 18)
            except TimeoutError:
                pass
            except OSError:
                busy.pop(sock)
                sock.close()
                continue
            if rng.random() < 0.02:
                busy.pop(sock)
                sock.close()
            number += 1
            if number % 200 == 0:
                serves(node, client, number, seed)
        serves(node, client, number, seed)
        with connect() as sock:
            greedy(sock)
        client.put(b"clean/large", bytes(200_000))
        stay = linger(connect)
        wait_until(lambda: at_rest(node, stay), 30, f"seed {seed}: the end of all calls")
        stack.close()
        wait_until(lambda: nothing_left(node), 30, f"seed {seed}: the end of all that clients held")
        grown = node.running().peak_rss() - rss
        assert grown < GROWTH, f"seed {seed}: the node has grown by {grown >> 20} MiB"
    # After all that the node must still stop in order, and its log must be sound.
    assert "Traceback" not in node.running().log, node.running().log[-3000:]
    assert node.stop() == 0
