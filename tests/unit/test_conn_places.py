"""Who gets a place when all places are taken, with real sockets."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest
from support import http2 as h
from support.dialling import dial, put_works, read_all, read_until, served_until
from support.echo_server import Running
from support.processes import wait_until

from metastore.net import places
from metastore.net.client_conn import ConnLimits


def asks(running: Running, source: str, path: bytes = h.PUT_PATH) -> tuple[socket.socket, h.Reader]:
    """Return a new client whose first request was taken, and answered if the path exists."""
    sock, reader = dial(running, source), h.Reader()
    sock.sendall(h.hello() + h.call(1, b"x", path) + h.frame(h.PING, 0, 0, bytes(8)))
    read_until(sock, reader, lambda: reader.pings and (path != h.PUT_PATH or reader.stream(1).ended))
    return sock, reader


def is_open(sock: socket.socket, reader: h.Reader) -> bool:
    """Whether the server still answers on a connection."""
    before = len(reader.pings)
    try:
        sock.sendall(h.frame(h.PING, 0, 0, bytes(8)))
        while len(reader.pings) == before:
            data = sock.recv(65536)
            if not data:
                return False
            reader.feed(data)
    except ConnectionError:
        return False
    return True


def counts(running: Running) -> tuple[int, int]:
    """Return how many connections were closed for newcomers, and how many newcomers were refused."""
    return running.call(lambda: (running.listener.evicted, running.listener.refused))  # type: ignore[return-value]


def test_newcomers_displace_those_without_a_request_however_young() -> None:
    with Running(conn_limits=ConnLimits(max_connections=8)) as running, contextlib.ExitStack() as stack:
        slow = stack.enter_context(dial(running, "127.0.0.2"))
        slow.sendall(h.hello()[:30])
        for number in range(100):
            crowd = stack.enter_context(dial(running))
            crowd.sendall([b"", h.hello(), h.hello() + h.call(1, b"never whole")[:-1], b"GET /"][number % 4])
        put_works(running)  # this one comes last of all
        assert counts(running) == (94, 0)
        # A slow connection from another address does not belong to the crowd.
        slow.sendall(h.hello()[30:] + h.call(1, b"x"))
        reader = h.Reader()
        read_until(slow, reader, lambda: reader.stream(1).ended)
        assert reader.goaway is None


def test_a_request_that_came_with_its_connection_counts_at_once() -> None:
    """Several connections are accepted in one turn of the loop, before anything is read in the usual way."""
    with Running(conn_limits=ConnLimits(max_connections=1)) as running:
        gate, held = threading.Event(), threading.Event()
        running.loop.call_soon_threadsafe(lambda: (held.set(), gate.wait(10)))
        assert held.wait(10)
        with dial(running) as first, dial(running) as second:
            first.sendall(h.hello() + h.call(1, b"x"))
            gate.set()
            reader = h.Reader()
            read_until(first, reader, lambda: reader.stream(1).ended)
            assert read_all(second) == b"" and counts(running) == (0, 1)


def test_a_request_that_waits_to_be_read_counts() -> None:
    """The newcomer is accepted first in the turn in which the other connection's request would be read."""
    with Running(conn_limits=ConnLimits(max_connections=1)) as running:
        gate, held = threading.Event(), threading.Event()
        with dial(running) as first:
            wait_until(lambda: running.call(lambda: len(running.listener.conns)) == 1, what="a place")
            running.loop.call_soon_threadsafe(lambda: (held.set(), gate.wait(10)))
            assert held.wait(10)
            with dial(running) as second:
                first.sendall(h.hello() + h.call(1, b"x"))
                gate.set()
                reader = h.Reader()
                read_until(first, reader, lambda: reader.stream(1).ended)
                assert read_all(second) == b"" and counts(running) == (0, 1)


def test_pages_give_no_right_to_a_place() -> None:
    with Running(conn_limits=ConnLimits(max_connections=2)) as running, contextlib.ExitStack() as stack:
        for _ in range(3):
            sock = stack.enter_context(dial(running))
            sock.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(100)
        put_works(running)
        assert counts(running) == (2, 0)


def test_places_are_shared_among_addresses() -> None:
    first, second = "127.0.0.1", "127.0.0.2"
    with Running(conn_limits=ConnLimits(max_connections=4)) as running, contextlib.ExitStack() as stack:
        clients = [asks(running, first) for _ in range(4)]
        for sock, _ in clients:
            stack.enter_context(sock)
        # The connections that made their first request need no further check.
        assert running.call(lambda: all(conn.settled for conn in running.listener.conns))
        with dial(running, first) as third:
            assert read_all(third) == b""
        assert counts(running) == (0, 1)
        for number in (1, 2):
            other = asks(running, second)
            stack.enter_context(other[0])
            assert counts(running) == (number, 1)
        with dial(running, second) as fifth:
            assert read_all(fifth) == b""
        assert counts(running) == (2, 2)
        # The connections that had made no request for longest are gone, and were told why.
        assert [is_open(*each) for each in clients] == [False, False, True, True]
        assert [reader.goaway for _, reader in clients] == [(1, 0), (1, 0), None, None]


def test_clients_that_take_nothing_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two have an answer that they do not take. They go on asking, and their PINGs are answered, which is no taking.
    A third one has a call without an answer."""
    monkeypatch.setattr(places, "IDLE", 0.5)
    limits = ConnLimits(max_connections=3, grace=0.2, sweep=0.05)
    with Running(conn_limits=limits) as running, contextlib.ExitStack() as stack:
        shut = [stack.enter_context(dial(running, f"127.0.0.{at}")) for at in (2, 3)]
        for sock in shut:
            sock.sendall(h.SHUT + h.call(1, b"never read"))
        other = asks(running, "127.0.0.4", b"/test.Test/Hold")
        stack.enter_context(other[0])
        stream = 1

        def taken_in() -> bool:
            nonlocal stream
            stream += 2
            for sock in shut:
                with contextlib.suppress(OSError):
                    sock.sendall(h.call(stream, b"x") + h.frame(h.PING, 0, 0, bytes(8)))
            newcomer = dial(running)
            with contextlib.suppress(ConnectionError, AssertionError):
                newcomer.sendall(h.hello() + h.call(1, b"x"))
                reader = h.Reader()
                read_until(newcomer, reader, lambda: reader.stream(1).ended)
                stack.enter_context(newcomer)
                return True
            newcomer.close()
            return False

        for number in (1, 2):
            wait_until(taken_in, what="a place")
            assert counts(running)[0] == number
        assert is_open(*other)


def test_calls_under_way_give_way_only_where_one_address_has_most_places() -> None:
    hold = b"/test.Test/Hold"
    with Running(conn_limits=ConnLimits(max_connections=4)) as running, contextlib.ExitStack() as stack:
        clients = [asks(running, f"127.0.0.{at}", hold) for at in (1, 1, 3, 3)]
        with dial(running, "127.0.0.2") as fifth:
            assert read_all(fifth) == b""
        assert counts(running) == (0, 1)
        clients[3][0].close()
        served_until(running, lambda: len(running.listener.conns) == 3)
        clients[3] = asks(running, "127.0.0.1", hold)
        for sock, _ in clients:
            stack.enter_context(sock)
        stack.enter_context(asks(running, "127.0.0.2")[0])
        assert [is_open(*each) for each in clients] == [False, True, True, True]
