"""Measures the cost of an attack on a live node, and the effect on another client.

The load of the machine says nothing about the node, so all times are the node's own: the processor time that it spent
while the attack lasted, the longest turn of its loop in that time, and the part that another client had to wait for.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any, Self

from . import http2 as h
from .client import ROUTES
from .processes import Server, wait_until
from .turns import SOMEWHAT, Turns

RANGE_PATH = b"/etcdserverpb.KV/Range"
MIB = 1 << 20
WAIT = 0.2  # seconds of the node's processor time for which another client may wait


class Raw:
    """A connection that sends any bytes and decodes the answers. `agrees` says whether it acknowledges the server's
    settings; without that, windows are small and the number of streams is not bounded. `source` is the address to dial
    from."""

    def __init__(
        self, server: Server, window: int = 1 << 24, receive_buffer: int = 0, timeout: float = 20, agrees: bool = True,
        source: str = "",
    ) -> None:  # fmt: skip
        host, _, port = server.address.rpartition(":")
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        if source:
            self.socket.bind((source, 0))
        self.socket.connect((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = h.Reader()
        self.send(h.hello(window) + (h.frame(h.SETTINGS, h.ACK, 0) if agrees else b""))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Send bytes. Return whether the server still took them; if it cuts the connection, the attack is over."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def receive(self) -> bool:
        """Take the bytes that come. Return False at the end of the connection."""
        try:
            data = self.socket.recv(1 << 18)
        except TimeoutError:
            raise
        except OSError:
            return False
        if data:
            self.reader.feed(data)
        return bool(data)

    def answer(self, stream: int) -> h.Stream:
        """Return the answer on `stream` when the stream or the connection has ended."""
        reply = self.reader.stream(stream)
        while not reply.ended and reply.reset is None and self.receive():
            pass
        return reply

    def ask(self, stream: int, request: Any, timeout: bytes = b"200m") -> tuple[int | None, str]:
        """Return the (code, text) that a message is answered with in a call with this grpc-timeout. No gRPC library
        ends the call here before the server does."""
        path = ROUTES[type(request).__name__][0].encode()
        self.send(h.call(stream, request.SerializeToString(), path, (b"grpc-timeout", timeout)))
        answer = self.answer(stream)
        return answer.status, answer.text

    def to_end(self) -> h.Reader:
        """Read until the server closes the connection."""
        while self.receive():
            pass
        return self.reader


class Probe:
    """Another client, which puts and gets in a thread of its own while an attack lasts."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.times: list[float] = []
        self.costs: list[float] = []  # processor seconds of the node in each of these times
        self.errors: list[object] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        put, key = b"\x0a\x05probe\x12\x01x", b"\x0a\x05probe"
        node = self._server.running()
        try:
            with Raw(self._server, timeout=60) as raw:
                stream = -1
                while not self._stop.is_set():
                    began, worked = time.monotonic(), node.cpu_ns()
                    for path, body in ((h.PUT_PATH, put), (RANGE_PATH, key)):
                        stream += 2
                        raw.send(h.call(stream, body, path))
                        status = raw.answer(stream).status
                        if status != 0:
                            self.errors.append(status)
                            return
                        del raw.reader.streams[stream]
                    self.times.append(time.monotonic() - began)
                    self.costs.append((node.cpu_ns() - worked) / 1e9)
                    self._stop.wait(0.005)
        except (OSError, AssertionError) as error:
            self.errors.append(error)


@dataclass
class Cost:
    """The cost of an attack for the node: processor seconds, the longest turn of its loop in them, bytes of memory."""

    cpu: float = 0.0
    longest: float = 0.0
    memory: int = 0


@contextlib.contextmanager
def attacked(server: Server, memory: int) -> contextlib.nullcontext[Cost]:  # type: ignore[misc]
    """Let the body attack the node while a probe works beside it. Then check three things: the probe had no error; the
    node took at most `memory` bytes more than before; and the node never worked long on the attack while the probe
    waited, which means not longer than some turns, or than a part of the attack's whole cost."""
    process, cost, turns = server.running(), Cost(), Turns(server)
    with Probe(server) as calm:
        wait_until(lambda: calm.errors or len(calm.times) >= 50, what="a calm node")
    before, rss = process.cpu_ns(), process.rss()
    with Probe(server) as probe:
        yield cost  # type: ignore[misc]
    cost.cpu = (process.cpu_ns() - before) / 1e9
    cost.memory = process.peak_rss() - rss
    cost.longest = turns.longest
    assert calm.errors == probe.errors == [], (calm.errors, probe.errors)
    assert process.popen.poll() is None
    assert cost.memory < memory, f"{cost.memory / MIB:.0f} MiB more"
    # The longest turn is part of the attack. If it were a large part, the attack would be a single turn. How fast
    # the machine is shows in the cheapest answer of the calm node, which takes 1 ms on a quiet one.
    turn = max(SOMEWHAT, 20 * min(calm.costs))
    assert cost.longest < max(turn, cost.cpu / 8), (cost, turn)
    worst = max(probe.costs)
    assert worst < max(WAIT, cost.cpu / 4), (worst, max(calm.costs), cost)
