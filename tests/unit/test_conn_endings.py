"""What a connection leaves behind when it ends, and sweeps that end many connections, are spread over turns."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest
from support import http2 as h
from support.dialling import dial, held_for_readers, read_all, read_until, served_until, unread
from support.echo_server import BIDI_PATH, EchoServer, Running, Turns
from support.talk import Talk

from metastore import errors
from metastore._core.grpc import Limits
from metastore._core.h2_expiry import expire
from metastore._core.h2_request import Request
from metastore.net.client_conn import ClientConn, ConnLimits
from metastore.net.endings import CALLS, FEW, PIECE_TIME
from metastore.net.sweeper import SWEEP_TIME

STREAMS = 4 * CALLS + FEW


class Counted(EchoServer):
    """It counts the streams that end as the work of a turn."""

    turns: Turns

    def _bidi(self, request: Request) -> None:
        def closed() -> None:
            self.closed_streams += 1
            self.turns.add()

        request.start(on_message=request.send, on_close=closed)


def left_behind(running: Running) -> socket.socket:
    """Return a client with STREAMS streams that have begun."""
    sock = dial(running)
    sock.sendall(h.hello() + b"".join(h.call(1 + 2 * n, b"x", BIDI_PATH) for n in range(STREAMS)))
    reader = h.Reader()
    read_until(sock, reader, lambda: reader.stream(2 * STREAMS - 1).messages == [b"x"])
    return sock


def test_calls_that_a_connection_leaves_behind_go_over_several_turns() -> None:
    server = Counted()
    with Running(server=server) as running:
        server.turns = turns = Turns(running, 0)
        sock = left_behind(running)
        running.call(lambda: setattr(turns, "cost", PIECE_TIME / CALLS))
        sock.close()
        served_until(running, lambda: server.closed_streams == STREAMS)
        assert CALLS <= turns.most <= 2 * CALLS
        assert server.limits.total_buffered == server.limits.total_output == 0
        served_until(running, lambda: not [t for t in threading.enumerate() if t.name == "metastore-ending"])


def test_a_listener_that_closes_leaves_nothing_behind() -> None:
    server = Counted()
    with Running(server=server) as running:
        server.turns = turns = Turns(running, 0)
        with left_behind(running):
            running.call(lambda: setattr(turns, "cost", PIECE_TIME))
            [conn] = running.listener.conns
            running.call(lambda: (conn.close(), running.listener.close()))
            assert server.closed_streams == STREAMS and server.limits.total_buffered == 0
            assert not [t for t in threading.enumerate() if t.name == "metastore-ending"]


def test_where_no_thread_can_begin_the_loop_gives_the_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    server = Counted()
    with Running(server=server) as running:
        server.turns = Turns(running, 0)
        sock = left_behind(running)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        sock.close()
        served_until(running, lambda: server.closed_streams == STREAMS)
        assert server.limits.total_queued == 0


def test_a_sweep_that_ends_many_connections_shares_the_time_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    overdue = ClientConn.overdue
    monkeypatch.setattr(ClientConn, "overdue", lambda conn: (turns.add(), overdue(conn))[1])
    with Running(conn_limits=ConnLimits(handshake=1000, sweep=0.02)) as running, contextlib.ExitStack() as stack:
        turns = Turns(running, SWEEP_TIME * 0.6)
        socks = [stack.enter_context(dial(running)) for _ in range(30)]
        served_until(running, lambda: len(running.listener.conns) == 30)
        running.call(lambda: setattr(turns, "time", turns.time + 2000))
        assert [read_all(sock) for sock in socks] == [b""] * 30
        assert turns.most == 2


def test_no_more_clients_go_than_the_room_needs() -> None:
    """What a closed connection held is given back over several turns, but it counts at once."""
    limits = ConnLimits(grace=0.2, sweep=0.05)
    with Running(Limits(max_total_buffered=1024 * 1024), limits) as running, contextlib.ExitStack() as stack:
        first = stack.enter_context(unread(running, 200))
        served_until(running, lambda: held_for_readers(running) == (1, 200))
        second = stack.enter_context(unread(running, 300))
        served_until(running, lambda: held_for_readers(running) == (2, 500))
        third = stack.enter_context(unread(running, 100))
        assert b"never read" not in read_all(second)
        served_until(running, lambda: held_for_readers(running) == (2, 300))
        for sock in (first, third):
            sock.sendall(h.frame(h.WINDOW_UPDATE, 0, 1, (100).to_bytes(4, "big")))
            reader = h.Reader()
            read_until(sock, reader, lambda reader=reader: reader.stream(1).ended)
            assert reader.stream(1).messages == [b"never read"]


def test_a_session_ends_in_pieces() -> None:
    """It is over at once: what comes in, answers and time limits have no effect. What it held goes a few at a time."""
    talk = Talk()
    limits = talk.limits
    told: list[int] = []
    requests = talk.feed(
        h.call(1, b"timed", h.PUT_PATH, (b"grpc-timeout", b"1S"))
        + b"".join(h.call(n, b"x") for n in range(3, 19, 2))
        + h.call(19, b"s", BIDI_PATH)
    )
    requests[-1].start(on_close=lambda: told.append(19))
    requests[1].complete(b"never taken")
    session = talk.session
    before = limits.total_buffered
    assert session.held >= 10 and before >= 10 * 1024
    session.quit()
    assert session.closed and not session.want_write and session.open_streams == 10
    assert all(request.closed for request in requests) and told == []
    for request in requests[2:5]:
        request.complete(b"late")
        request.reset()
    requests[0].fail(errors.Compacted())
    requests[-1].send(b"late")
    assert expire(limits, 100.0) == [] and session.feed(h.call(21, b"more")) == [] and session.take_output() == b""
    session.retire()
    session.shutdown()
    assert not session.let_go(4) and session.open_streams == 6 and limits.total_buffered < before
    with pytest.raises(RuntimeError, match="before its calls are gone"):
        session.free()
    assert session.let_go(6) and session.open_streams == 0 and told == [19]
    assert (limits.total_buffered, limits.total_output) == (0, 0)
    session.free()
    session.free()
    session.close()
    assert limits.total_queued == 0


def test_a_client_that_takes_the_little_it_gets_stays_while_others_take_nothing() -> None:
    """At each sweep an answer may be on its way to it. It was dropped because other clients took nothing."""

    def large(running: Running, stack: contextlib.ExitStack) -> socket.socket:
        sock = stack.enter_context(dial(running))
        sock.sendall(h.SHUT + h.call(1, b"40000", b"/test.Test/Big"))
        return sock

    limits = Limits(max_total_output=64 * 1024)
    with Running(limits, ConnLimits(grace=1000, sweep=1000)) as running, contextlib.ExitStack() as stack:
        greedy = large(running, stack)
        quick = stack.enter_context(dial(running))
        quick.sendall(h.hello() + h.call(1, b"", b"/test.Test/Hold") + h.call(3, b"", b"/test.Test/Hold"))
        served_until(running, lambda: len(running.server.held) == 2 and limits.total_output >= 40_000)
        sweep = running.listener.sweeper._sweep

        def answer_and_sweep() -> None:
            """Sweep before the answer is sent."""
            running.server.held.pop(0).complete(b"little")
            sweep()

        large(running, stack)
        served_until(running, lambda: limits.total_output >= 80_000)
        running.call(answer_and_sweep)
        reader = h.Reader()
        read_until(quick, reader, lambda: reader.stream(1).ended)
        large(running, stack)
        served_until(running, lambda: limits.total_output >= 120_000)
        running.call(answer_and_sweep)
        read_until(quick, reader, lambda: reader.stream(3).ended)
        assert reader.stream(3).messages == [b"little"]
        assert read_all(greedy) is not None
        served_until(running, lambda: len(running.listener.conns) <= 2)


def test_a_long_reply_arrives_whole_through_a_small_buffer() -> None:
    """The rest of a piece may be small though the session has more. Then it waited for ever."""
    with Running() as running, dial(running) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.sendall(h.hello(1 << 30))
        served_until(running, lambda: len(running.listener.conns) == 1)
        [conn] = running.listener.conns
        conn._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sock.sendall(h.call(1, b"5000000", b"/test.Test/Big"))
        reader = h.Reader()
        read_until(sock, reader, lambda: reader.stream(1).ended)
        assert len(reader.stream(1).messages[0]) == 5_000_000
