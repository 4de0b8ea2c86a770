"""Connections to an `echo_server`, by grpcio and by raw sockets."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import grpc

from . import http2 as h
from .echo_server import Running

PUT = "/etcdserverpb.KV/Put"


@contextlib.contextmanager
def channel(running: Running) -> Iterator[grpc.Channel]:
    # The channel has a subchannel of its own, because grpcio shares connections between equal channels.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(running.address, options=options) as open_channel:
        yield open_channel


def dial(running: Running, source: str = "127.0.0.1") -> socket.socket:
    sock = socket.create_connection((running.host, running.port), timeout=10, source_address=(source, 0))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def read_all(sock: socket.socket) -> bytes:
    """Return everything until the server closes the connection. Fails after the socket's timeout."""
    data = b""
    while True:
        try:
            piece = sock.recv(65536)
        except ConnectionResetError:
            return data
        if not piece:
            return data
        data += piece


def read_until(sock: socket.socket, reader: h.Reader, done: Callable[[], object]) -> None:
    """Feed `reader` until `done()`. Fails if the server ends the connection first."""
    while not done():
        data = sock.recv(65536)
        assert data, "connection closed too early"
        reader.feed(data)


def ask(running: Running, request: bytes) -> bytes:
    with dial(running) as sock:
        sock.sendall(request)
        return read_all(sock)


def put_works(running: Running) -> None:
    with channel(running) as ch:
        assert ch.unary_unary(PUT)(b"still here", timeout=10) == b"still here"


def served_until(running: Running, done: Callable[[], bool]) -> None:
    """Serve other clients until `done()`, evaluated in the loop's thread, is true."""
    for _ in range(5000):
        if running.call(done):
            return
        put_works(running)
    raise AssertionError("did not happen")


def unread(running: Running, calls: int) -> socket.socket:
    """Return a client that makes so many calls and takes none of the small answers. The caller closes it."""
    sock = dial(running)
    sock.sendall(h.SHUT + b"".join(h.call(1 + 2 * n, b"never read") for n in range(calls)))
    return sock


def held_for_readers(running: Running) -> tuple[int, int]:
    """Return how many clients take nothing of small answers, and the KiB that all calls count for."""
    return running.listener.stalled, running.server.limits.total_buffered // 1024
