"""What a stop promises: every accepted call is answered, and no client that writes through a cluster sees an error
while the members are restarted one by one."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import http2 as h
from support import messages as m
from support.processes import Node, Process

pytestmark = pytest.mark.node_only

MAX_STREAM = 0x7FFFFFFF
PING_ACK = h.frame(h.PING, h.ACK, 0, bytes(8))


class Wire:
    """A client's connection, frame by frame."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self.reader = h.Reader()
        self.socket.sendall(h.hello())

    def until(self, condition: Callable[[], object]) -> None:
        """Read until `condition` holds. The connection's end is an error."""
        while not condition():
            data = self.socket.recv(65536)
            assert data, "the connection ended"
            self.reader.feed(data)

    def to_the_end(self) -> None:
        while data := self.socket.recv(65536):
            self.reader.feed(data)

    def ended(self, *streams: int) -> Callable[[], bool]:
        return lambda: all(self.reader.stream(number).ended for number in streams)


def put_in_parts(stream: int) -> tuple[bytes, bytes]:
    """Return the frames of a put in two parts: the body comes later than the headers."""
    body = h.message(m.PutRequest(key=b"k%d" % stream, value=b"v").SerializeToString())
    return h.frame(h.HEADERS, h.END_HEADERS, stream, h.head()), h.frame(h.DATA, h.END_STREAM, stream, body)


def stopped(process: Process, began: float) -> None:
    assert process.wait(20) == 0
    assert time.monotonic() - began < 10, "the promise is two seconds, on a machine that nobody shares"


def test_calls_made_before_the_client_has_heard_are_answered(tmp_path: Path) -> None:
    with Node(tmp_path / "data") as node:
        process = node.running()
        wire = Wire(node.address)
        first, rest = put_in_parts(1)
        wire.socket.sendall(first + h.frame(h.PING, 0, 0, b"12345678"))
        wire.until(lambda: wire.reader.pings)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        wire.until(lambda: wire.reader.goaway)
        assert wire.reader.goaway == (MAX_STREAM, 0)
        # The client has it in its socket, and has not read it yet.
        wire.socket.sendall(rest + b"".join(put_in_parts(3)))
        wire.until(wire.ended(1, 3))
        assert [wire.reader.stream(number).status for number in (1, 3)] == [0, 0]
        wire.socket.sendall(put_in_parts(5)[0] + PING_ACK)
        wire.until(lambda: wire.reader.goaway != (MAX_STREAM, 0))
        assert wire.reader.goaway == (5, 0)
        wire.socket.sendall(b"".join(put_in_parts(7)) + put_in_parts(5)[1])
        wire.to_the_end()
        assert wire.reader.stream(5).status == 0
        assert wire.reader.stream(7).status is None, "too late: the client knows by the number, and goes elsewhere"
        stopped(process, began)
        node.process = None
        with node.start().client() as client:
            assert sorted(client.prefix(b"k")) == [b"k1", b"k3", b"k5"]


def test_a_client_that_never_hears_holds_up_nothing(tmp_path: Path) -> None:
    """The stop waits neither for a client that answers no PING, nor for a call that never ends, nor for half a request
    of HTTP/1.1."""
    with Node(tmp_path / "data", {"limits.drain_timeout": '"500ms"'}) as node:
        process = node.running()
        deaf, stuck = Wire(node.address), Wire(node.address)
        stuck.socket.sendall(put_in_parts(1)[0])
        with socket.create_connection(deaf.socket.getpeername(), timeout=20) as plain:
            plain.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            assert plain.recv(4096).startswith(b"HTTP/1.1 200")
            plain.sendall(b"GET /ver")
            for wire in (deaf, stuck):
                wire.until(lambda wire=wire: wire.reader.settings)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            deaf.to_the_end()
            assert deaf.reader.goaway == (0, 0)
            stopped(process, began)


def test_a_request_of_http_1_is_answered_and_its_connection_closed(tmp_path: Path) -> None:
    with Node(tmp_path / "data") as node:
        process = node.running()
        host, port = node.address.rsplit(":", 1)
        other = Wire(node.address)
        with socket.create_connection((host, int(port)), timeout=20) as plain:
            plain.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n")
            other.socket.sendall(h.frame(h.PING, 0, 0, b"12345678"))
            other.until(lambda: other.reader.pings)
            process.send_signal(signal.SIGTERM)
            other.until(lambda: other.reader.goaway)
            plain.sendall(b"\r\n")
            answer = b""
            while data := plain.recv(4096):
                answer += data
        assert answer.startswith(b"HTTP/1.1 200") and b"Connection: close" in answer
        other.socket.sendall(PING_ACK)
        assert process.wait(20) == 0
        node.process = None
