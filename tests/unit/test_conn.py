"""Listeners and connections with real sockets and real clients: grpcio, h2load, curl, and raw bytes."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http import client
from pathlib import Path

import grpc
import pytest
from support import TESTS
from support import http2 as h
from support.dialling import (
    PUT,
    ask,
    channel,
    dial,
    held_for_readers,
    put_works,
    read_all,
    read_until,
    served_until,
    unread,
)
from support.echo_server import BIDI_PATH, EchoServer, Running, Turns

from metastore import errors
from metastore._core.grpc import Limits
from metastore._core.h2_request import Request
from metastore.net import client_conn
from metastore.net.accept import host_and_port, origin
from metastore.net.client_conn import (
    ACCEPTS_PER_TURN,
    HTTP_SIZE,
    PAGE_TIME,
    SEND_TIME,
    TOLD_PER_TURN,
    ClientConn,
    ConnLimits,
    Listener,
)
from metastore.net.loop import Loop

TAKE = 256 * 1024  # bytes that are taken of a session's output at a time
FAST = ConnLimits(handshake=0.3, http_idle=0.3, grace=0.3, sweep=0.05)


@pytest.fixture(scope="module")
def echo() -> Iterator[Running]:
    with Running() as running:
        yield running


# ---- gRPC by grpcio


def test_grpcio_unary(echo: Running) -> None:
    with channel(echo) as ch:
        put = ch.unary_unary(PUT)
        for body in (b"", b"x", b"y" * 65536, b"z" * (2 << 20)):
            assert put(body, timeout=10) == body
        futures = [put.future(b"%d" % i, timeout=10) for i in range(300)]
        assert [future.result() for future in futures] == [b"%d" % i for i in range(300)]
        assert len(ch.unary_unary("/test.Test/Big")(b"9000000", timeout=20)) == 9_000_000


def test_grpcio_errors(echo: Running) -> None:
    with channel(echo) as ch:
        for method, body, code, text in [
            ("/test.Test/Fail", b"", grpc.StatusCode.OUT_OF_RANGE, errors.Compacted.default),
            (
                "/etcdserverpb.KV/No",
                b"",
                grpc.StatusCode.UNIMPLEMENTED,
                "unknown method No for service etcdserverpb.KV",
            ),
            ("/x.Y/Z", b"", grpc.StatusCode.UNIMPLEMENTED, "unknown service x.Y"),
            (
                PUT,
                b"x" * ((2 << 20) + 1),
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "grpc: received message larger than max (2097153 vs. 2097152)",
            ),
        ]:
            with pytest.raises(grpc.RpcError) as failure:
                ch.unary_unary(method)(body, timeout=10)
            assert (failure.value.code(), failure.value.details()) == (code, text)
        with pytest.raises(grpc.RpcError) as failure:
            ch.unary_unary(PUT)(b"x", timeout=10, compression=grpc.Compression.Deflate)
        assert failure.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert ch.unary_unary(PUT)(b"x" * 100_000, timeout=10, compression=grpc.Compression.Gzip) == b"x" * 100_000
        # A streaming client of an unknown method gets its answer before its request has ended.
        with pytest.raises(grpc.RpcError) as failure:
            next(ch.stream_stream("/etcdserverpb.Watch/Watch")(iter([b"a"]), timeout=10))
        assert failure.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert ch.unary_unary(PUT)(b"fine", timeout=10) == b"fine"


def test_grpcio_bidi(echo: Running) -> None:
    with channel(echo) as ch:
        bidi = ch.stream_stream("/test.Test/Bidi")
        messages = [b"%d" % i * i for i in range(200)]
        assert list(bidi(iter(messages), timeout=10)) == messages
        before = echo.server.closed_streams
        stop = threading.Event()

        def forever() -> Iterator[bytes]:
            yield b"one"
            stop.wait(10)

        stream = bidi(forever(), timeout=10)
        assert next(stream) == b"one"
        stream.cancel()
        stop.set()
        put_works(echo)
    served_until(echo, lambda: echo.server.closed_streams == before + 1)


def test_deadline_and_late_answer(echo: Running) -> None:
    with channel(echo) as ch:
        with pytest.raises(grpc.RpcError) as failure:
            ch.unary_unary("/test.Test/Hold")(b"x", timeout=0.2)
        assert failure.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert ch.unary_unary(PUT)(b"x", timeout=10) == b"x"
        echo.call(echo.server.release)
        assert ch.unary_unary(PUT)(b"y", timeout=10) == b"y"


def test_connection_gone_before_the_answer(echo: Running) -> None:
    with dial(echo) as sock:
        sock.sendall(h.hello() + h.call(1, b"x", b"/test.Test/Hold") + h.frame(h.PING, 0, 0, bytes(8)))
        reader = h.Reader()
        read_until(sock, reader, lambda: reader.pings)
    served_until(echo, lambda: bool(echo.server.held) and all(request.closed for request in echo.server.held))
    echo.call(echo.server.release)
    put_works(echo)


def test_h2load(echo: Running, tmp_path: Path) -> None:
    body = tmp_path / "put.bin"
    body.write_bytes(h.message(b"x" * 300))
    before = echo.server.count
    run = subprocess.run(
        [
            "h2load",
            "-c20",
            "-m50",
            "-n20000",
            "-t1",
            "-d",
            str(body),
            "-H",
            "content-type: application/grpc",
            "-H",
            "te: trailers",
            f"http://{echo.address}{PUT}",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "20000 succeeded, 0 failed, 0 errored" in run.stdout
    assert echo.server.count - before == 20000


# ---- HTTP/1.1


def test_http_page_and_keep_alive(echo: Running) -> None:
    with dial(echo) as sock:
        stream = sock.makefile("rb")
        for _ in range(2):
            sock.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
            fields = {}
            while (line := stream.readline()) != b"\r\n":
                name, _, value = line.partition(b":")
                fields[name.lower()] = value.strip()
            assert fields[b"content-type"] == b"application/json"
            assert stream.read(int(fields[b"content-length"])) == b'{"etcdserver":"3.5.17"}'


def test_http_byte_by_byte_pipelined_and_posted(echo: Running) -> None:
    request = (
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    with dial(echo) as sock:
        for i in range(len(request)):
            sock.sendall(request[i : i + 1])
        slow = read_all(sock)
    assert slow == ask(echo, request)
    bodies = [part.split(b"\r\n\r\n", 1)[1] for part in slow.split(b"HTTP/1.1 ")[1:]]
    assert bodies == [b"hello", b"abcde", b"404 page not found\n"]


def test_http_head_and_continue(echo: Running) -> None:
    answer = ask(echo, b"HEAD /version HTTP/1.0\r\n\r\n")
    assert b"Content-Length: 23\r\n" in answer and answer.endswith(b"\r\n\r\n")
    answer = ask(
        echo,
        b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi",
    )
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n") and answer.endswith(b"hi")


def test_http_upgrade_is_ignored(echo: Running) -> None:
    answer = ask(
        echo,
        b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and b"Connection: close" in answer


def test_http_by_a_real_client(echo: Running) -> None:
    connection = client.HTTPConnection(echo.host, echo.port, timeout=10)
    for method, path, body, status, answer in [
        ("GET", "/version", None, 200, b'{"etcdserver":"3.5.17"}'),
        ("POST", "/echo", b"hello", 200, b"hello"),
        ("GET", "/none", None, 404, b"404 page not found\n"),
    ]:
        connection.request(method, path, body)
        response = connection.getresponse()
        assert (response.status, response.read()) == (status, answer)
    connection.close()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00", b"400"),
        (b"PRESENT /version HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /version HTTP/9.9\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000, b"431"),
        (b"GET /" + b"y" * 100_000 + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"x%d: y\r\n" % i for i in range(3000)) + b"\r\n", b"431"),
        (b"POST /echo HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 3_000_000, b"413"),
    ],
    ids=range(9),
)
def test_http_malformed(echo: Running, request_bytes: bytes, status: bytes) -> None:
    with dial(echo) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(request_bytes)
        answer = read_all(sock)
    # A server that closes while data is unread resets the connection, and the answer may be lost with it.
    assert answer == b"" or answer.startswith(b"HTTP/1.1 " + status)
    put_works(echo)


def test_http_requests_sent_at_once_are_answered_one_a_turn(echo: Running) -> None:
    turns = []
    count = echo.turn

    def turn() -> None:
        turns.append(echo.server.pages)
        count()

    with dial(echo) as sock:
        echo.turn = turn
        sock.sendall(
            b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n" * 999 + b"GET /version HTTP/1.1\r\nConnection: close\r\n\r\n"
        )
        answer = read_all(sock)
        echo.turn = count
    assert answer.count(b" 200 OK") == 1000
    assert max(after - before for before, after in itertools.pairwise(turns)) == 1


@contextlib.contextmanager
def held(running: Running) -> Iterator[None]:
    """Hold the loop, so everything that is sent meanwhile comes in one turn."""
    gate = threading.Event()
    running.loop.call_soon_threadsafe(lambda: gate.wait(10))
    yield
    gate.set()


def test_pages_of_many_connections_share_the_time_of_a_turn() -> None:
    class Slow(EchoServer):
        def http(self, *request: object) -> tuple[int, str, bytes]:
            turns.add()
            return super().http(*request)  # type: ignore[arg-type]

    with Running(server=Slow()) as running, contextlib.ExitStack() as stack:
        turns = Turns(running, PAGE_TIME * 0.6)
        socks = [stack.enter_context(dial(running)) for _ in range(20)]
        with held(running):
            for sock in socks:
                sock.sendall(b"GET /version HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert all(read_all(sock).startswith(b"HTTP/1.1 200") for sock in socks)
        assert turns.most == 2


def test_sending_to_many_shares_the_time_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    flush = ClientConn.flush
    monkeypatch.setattr(ClientConn, "flush", lambda conn: (turns.add(), flush(conn))[1])
    with Running() as running, contextlib.ExitStack() as stack:
        turns = Turns(running, 0)
        clients = [(stack.enter_context(dial(running)), h.Reader()) for _ in range(20)]
        for sock, reader in clients:
            sock.sendall(h.hello())
            read_until(sock, reader, lambda reader=reader: reader.settings_acks)
        running.call(lambda: (setattr(turns, "cost", SEND_TIME / 4), setattr(turns, "most", 0)))
        with held(running):
            for sock, _ in clients:
                sock.sendall(h.call(1, b"x"))
        for sock, reader in clients:
            read_until(sock, reader, lambda reader=reader: reader.stream(1).ended)
        # There are twenty, and a turn may have two rounds.
        assert turns.most <= 10


@pytest.mark.parametrize("patient", [False, True])
def test_one_connection_is_sent_so_much_in_a_turn(monkeypatch: pytest.MonkeyPatch, patient: bool) -> None:
    class Patient(EchoServer):
        def _bidi(self, request: Request) -> None:
            request.start(on_message=request.send, on_end=request.finish, patient=True)

    sizes: list[int] = []
    flush = ClientConn.flush

    def counted(conn: ClientConn) -> None:
        before = conn.session.taken if conn.session else 0
        flush(conn)
        sizes.append((conn.session.taken if conn.session else 0) - before)

    monkeypatch.setattr(ClientConn, "flush", counted)
    monkeypatch.setattr(client_conn, "SEND_SIZE", 100_000)
    with Running(server=Patient()) as running, dial(running) as sock:
        watch = h.frame(h.HEADERS, h.END_HEADERS, 1, h.head(BIDI_PATH)) if patient else b""
        sock.sendall(h.hello(1 << 30) + watch + h.call(3, b"9000000", b"/test.Test/Big"))
        reader = h.Reader()
        read_until(sock, reader, lambda: reader.stream(3).ended)
        # One piece of the session's output, which is so much and a frame.
        piece = TAKE // 2 if patient else TAKE
        assert piece <= max(sizes) < piece + 20_000


def test_the_first_whole_request_settles_a_connection() -> None:
    with Running() as running, dial(running) as sock:
        sock.sendall(h.hello() + h.call(1, b"x", b"/test.Test/Hold")[:-1])
        asking: list[ClientConn] = []

        def asks() -> bool:
            # `served_until` has a connection of its own.
            asking[:] = [one for one in running.listener.conns if one.session and one.session.open_streams]
            return len(asking) == 1

        served_until(running, asks)
        [conn] = asking
        assert not conn.settled
        sock.sendall(h.call(1, b"x")[-1:])
        served_until(running, lambda: conn.settled)


def test_requests_sent_at_once_are_read_little_by_little() -> None:
    """The interpreter parses them: 256 KiB of the shortest requests took a tenth of a second, in one turn."""
    shortest = b"GET / HTTP/1.1\r\n\r\n"
    with Running() as running:
        flush, waiting = running.turn, [0]

        def turn() -> None:
            flush()
            waiting.extend(len(conn.http._waiting) for conn in running.listener.conns if conn.http)

        running.turn = turn
        with held(running):
            sock = dial(running)
            sock.sendall(shortest * 8000)
        with sock:
            put_works(running)
            sock.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
            assert read_all(sock).count(b"404 Not Found") == 8001
        assert 10 < max(waiting) <= HTTP_SIZE // len(shortest) + 1


def test_so_many_are_accepted_in_a_turn() -> None:
    with Running() as running, contextlib.ExitStack() as stack:
        flush, there = running.turn, [0]

        def turn() -> None:
            flush()
            there.append(len(running.listener.conns))

        running.turn = turn
        with held(running):
            for _ in range(3 * ACCEPTS_PER_TURN):
                stack.enter_context(dial(running))
        put_works(running)
        assert max(after - before for before, after in itertools.pairwise(there)) == ACCEPTS_PER_TURN


def test_a_page_that_fails_is_a_500(echo: Running) -> None:
    answer = ask(echo, b"GET /fail HTTP/1.1\r\n\r\nGET /version HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 500") and answer.count(b" 200 OK") == 1


# ---- HTTP/2 by hand


def test_h2_byte_by_byte(echo: Running) -> None:
    reader = h.Reader()
    with dial(echo) as sock:
        data = h.hello() + h.call(1, b"slow")
        for i in range(len(data)):
            sock.sendall(data[i : i + 1])
        read_until(sock, reader, lambda: reader.stream(1).ended)
    assert reader.stream(1).messages == [b"slow"]


@pytest.mark.parametrize(
    "data",
    [
        b"PRI * HTTP/1.1\r\n\r\n" + bytes(20),
        h.PREFACE + b"garbage that is no frame at all, but long enough to be taken for one",
        h.hello() + h.frame(h.HEADERS, h.END_HEADERS, 1, b"\xff" * 50),
    ],
    ids=["preface", "no frames", "no headers"],
)
def test_h2_malformed(echo: Running, data: bytes) -> None:
    with dial(echo) as sock:
        sock.sendall(data)
        read_all(sock)
    put_works(echo)


def test_h2_floods_end_only_their_connection(echo: Running) -> None:
    for flood in (
        h.frame(h.PING, 0, 0, bytes(8)) * 5000,
        b"".join(h.call(1 + 2 * i, b"x") + h.frame(h.RST_STREAM, 0, 1 + 2 * i, bytes(4)) for i in range(5000)),
    ):
        with dial(echo) as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(h.hello() + flood)
            read_all(sock)
        put_works(echo)


def test_a_client_that_never_reads_is_held_and_dropped() -> None:
    limits = ConnLimits(max_unsent=200_000, grace=0.5, sweep=0.05)
    with Running(Limits(max_output=1 << 40), limits) as running, dial(running) as sock:
        size = b"100000".rjust(4000, b"0")
        calls = b"".join(h.call(1 + 2 * i, size, b"/test.Test/Big") for i in range(2000))
        with contextlib.suppress(ConnectionError):
            sock.sendall(h.hello(1 << 30) + calls)  # it ends with a reset: the server stops reading, then drops us
        put_works(running)
        served_until(
            running, lambda: not any(conn.session and conn.session.taken > 100_000 for conn in running.listener.conns)
        )
        # Not all of its requests were handled, because reading stopped long before.
        assert running.server.big < 600


def test_a_client_that_opens_no_window_is_dropped() -> None:
    limits = ConnLimits(max_unsent=100_000, grace=0.3, sweep=0.05)
    with Running(Limits(max_output=150_000), limits) as running, dial(running) as sock:
        calls = [h.call(1 + 2 * i, b"100000", b"/test.Test/Big") for i in range(10)]
        sock.sendall(h.hello() + b"".join(calls[:4]))
        reader = h.Reader()
        read_until(sock, reader, lambda: sum(len(stream.data) for stream in reader.streams.values()) == 65535)
        sock.sendall(b"".join(calls[4:]))
        read_all(sock)
        assert running.server.count == 4
        put_works(running)


def test_a_client_that_takes_nothing_of_little_stays_until_others_need_the_room() -> None:
    """A call counts for 1 KiB until its answer is taken. All together may count for 64 KiB here."""
    limits = ConnLimits(grace=0.2, sweep=0.05)
    with Running(Limits(max_total_buffered=64 * 1024), limits) as running, contextlib.ExitStack() as stack:
        first = stack.enter_context(unread(running, 10))
        served_until(running, lambda: held_for_readers(running) == (1, 10))
        # The answers to its PINGs are no replies, and a client that asks more without taking is no busier for it.
        first.sendall(h.frame(h.PING, 0, 0, bytes(8)) * 30 + h.call(101, b"never read"))
        served_until(running, lambda: held_for_readers(running) == (1, 11))
        passed, states = running.loop.now() + 3 * limits.grace, []
        served_until(running, lambda: states.append(held_for_readers(running)) or running.loop.now() >= passed)
        assert set(states) == {(1, 11)}, "nobody needs the room"
        [conn] = [conn for conn in running.listener.conns if conn.stalled]
        assert not conn.busy and conn.session is not None and conn.asked_at < conn.session.asked_at
        idle = stack.enter_context(dial(running))
        idle.sendall(h.SHUT + h.call(1, b"", b"/test.Test/Bidi")[:-1])
        second = stack.enter_context(unread(running, 15))
        served_until(running, lambda: held_for_readers(running) == (2, 27))
        third = stack.enter_context(unread(running, 12))
        # The one that holds most goes, and that is enough.
        served_until(running, lambda: held_for_readers(running) == (2, 24))
        assert read_all(second).endswith(b"never read") is False
        for sock in (first, third):
            sock.sendall(h.frame(h.WINDOW_UPDATE, 0, 1, (100).to_bytes(4, "big")))
            reader = h.Reader()
            read_until(sock, reader, lambda reader=reader: reader.stream(1).ended)
            assert reader.stream(1).messages == [b"never read"]


def test_clients_that_say_nothing_or_too_slowly_are_dropped() -> None:
    with Running(conn_limits=FAST) as running:
        starts = [
            b"",
            b"P",
            b"PRI * HTTP/2",
            b"GET / HTTP/1.1\r\nX",
            h.PREFACE,
            b"GET /version HTTP/1.1\r\n\r\n",
            h.hello() + h.call(1, b"never whole")[:-1],
        ]
        sockets = [dial(running) for _ in starts]
        for sock, start in zip(sockets, starts, strict=True):
            sock.sendall(start)
        for sock in sockets:
            read_all(sock)
            sock.close()
        # A connection that made a request may be silent for as long as it likes. Others come and go meanwhile.
        with dial(running) as quiet:
            quiet.sendall(h.hello() + h.call(1, b"x"))
            with dial(running) as other:
                read_all(other)
            with dial(running) as other:
                read_all(other)
            quiet.sendall(h.call(3, b"x"))
            reader = h.Reader()
            read_until(quiet, reader, lambda: reader.stream(3).ended)


def test_a_large_first_request_over_a_slow_link_may_take_its_time() -> None:
    """It was cut off after `handshake` seconds, and so was each connection that the client made to try again."""
    whole = h.message(bytes(60_000))
    frames = [
        h.frame(h.DATA, h.END_STREAM if at + 10_000 >= len(whole) else 0, 1, whole[at : at + 10_000])
        for at in range(0, len(whole), 10_000)
    ]
    with Running(Limits(receive_rate=1000), conn_limits=FAST) as running, dial(running) as slow:
        slow.sendall(h.hello() + h.frame(h.HEADERS, h.END_HEADERS, 1, h.head()) + b"".join(frames[:4]))
        for _ in range(2):
            with dial(running) as silent:
                read_all(silent)  # the time of this one has passed, so the time of the first one would have passed too
        slow.sendall(b"".join(frames[4:]))
        reader = h.Reader()
        read_until(slow, reader, lambda: reader.stream(1).data)


def test_what_is_no_request_buys_no_time_for_the_first_one() -> None:
    """The first call never ends, and those behind it are too large: of what came at most one message counts."""
    with Running(Limits(receive_rate=1000, max_message=1000), conn_limits=FAST) as running, dial(running) as sock:
        large = h.message(bytes(1 << 20))[:16_000]
        sock.sendall(h.hello() + h.frame(h.HEADERS, h.END_HEADERS, 1, h.head()))
        for stream in range(3, 43, 2):
            sock.sendall(h.frame(h.HEADERS, h.END_HEADERS, stream, h.head()) + h.frame(h.DATA, 0, stream, large))
        read_all(sock)


def test_pause_and_resume(echo: Running) -> None:
    with dial(echo) as sock:
        sock.sendall(h.hello() + h.call(1, b"a"))
        reader = h.Reader()
        read_until(sock, reader, lambda: reader.stream(1).ended)
        echo.call(echo.listener.pause_all)
        before = echo.server.count
        sock.sendall(h.call(3, b"b"))
        with dial(echo) as late:
            late.sendall(h.hello() + h.call(1, b"c"))
            sock.settimeout(0.2)
            with pytest.raises(TimeoutError):
                sock.recv(1)
            assert echo.server.count == before
            echo.call(echo.listener.resume_all)
            sock.settimeout(10)
            read_until(sock, reader, lambda: reader.stream(3).ended)
            other = h.Reader()
            read_until(late, other, lambda: other.stream(1).ended)


# ---- listening, ending


OUT_OF_FILES = """
import resource, sys
from support.echo_server import main
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
main()
"""


def test_out_of_file_descriptors() -> None:
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen(
        [sys.executable, "-c", OUT_OF_FILES], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as server:
        assert server.stdout is not None and server.stderr is not None
        host, _, port = server.stdout.readline().strip().rpartition(":")
        sockets = [socket.create_connection((host, int(port)), timeout=10) for _ in range(60)]
        # The connections that were accepted before the limit are served.
        sockets[0].sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sockets[0].recv(100).startswith(b"HTTP/1.1 200")
        assert "Too many open files; no connection is taken" in server.stderr.readline()
        for sock in sockets[1:50]:
            sock.close()
        # The ones that had to wait are served as soon as there is room.
        sockets[-1].sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sockets[-1].recv(100).startswith(b"HTTP/1.1 200")
        for sock in sockets:
            sock.close()
        server.terminate()
        # The listener waited and did not spin.
        assert len(server.stderr.readlines()) < 50


def test_address_in_use_and_nonsense() -> None:
    loop = Loop()
    listener = Listener(loop, ["127.0.0.1:0", "[::1]:0"], EchoServer())
    assert len(listener.bound) == 2 and listener.bound[1].startswith("[::1]:")
    with pytest.raises(errors.AddressInUse, match="cannot listen on"):
        Listener(loop, ["127.0.0.1:0", listener.bound[0]], EchoServer())
    for address in ("127.0.0.1", "::1:80", "127.0.0.1:http", "127.0.0.1:70000", "no such host.invalid:1"):
        with pytest.raises(errors.ConfigError):
            Listener(loop, address, EchoServer())
    listener.close()
    listener.close()
    loop.close()


@pytest.mark.parametrize(
    ("address", "parts"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:0", ("::1", 0)), (":2379", ("", 2379)), ("h:1", ("h", 1))],
)
def test_host_and_port(address: str, parts: tuple[str, int]) -> None:
    assert host_and_port(address) == parts


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("10.1.2.3:4", "10.1.2.3"),
        ("[::ffff:10.1.2.3]:4", "10.1.2.3"),
        ("[2001:db8:1:2:3:4:5:6]:7", "2001:db8:1:2::/64"),
        ("[fe80::1%lo]:7", "fe80::/64"),
        ("[::1]:7", "::/64"),
    ],
)
def test_origin_of_an_address(where: str, what: str) -> None:
    assert origin(where) == what


def test_shutdown_finishes_running_calls() -> None:
    with Running() as running, dial(running) as sock, dial(running) as idle:
        idle.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(100)
        sock.sendall(h.hello() + h.call(1, b"x", b"/test.Test/Hold") + h.frame(h.PING, 0, 0, bytes(8)))
        reader = h.Reader()
        read_until(sock, reader, lambda: reader.pings)
        assert running.call(lambda: len(running.server.held)) == 1
        running.call(running.listener.shutdown)
        with pytest.raises(ConnectionRefusedError):
            dial(running)
        read_all(idle)
        assert running.call(lambda: len(running.listener.conns)) == 1
        running.call(running.server.release)
        reader.feed(read_all(sock))
        assert reader.goaway == (1, 0)
        assert reader.stream(1).messages == [b"done"] and reader.stream(1).status == 0
        assert running.call(lambda: len(running.listener.conns)) == 0


def test_many_hear_of_a_stop_over_several_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    count = TOLD_PER_TURN + 30
    connections: list[ClientConn] = []
    retire = ClientConn.retire
    monkeypatch.setattr(ClientConn, "retire", lambda conn: (connections.append(conn), retire(conn)))
    with Running() as running, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(dial(running)) for _ in range(count)]
        readers = [h.Reader() for _ in socks]
        for sock, reader in zip(socks, readers, strict=True):
            sock.sendall(h.hello())
            read_until(sock, reader, lambda reader=reader: reader.settings)
        assert running.call(lambda: (running.listener.retire(), len(connections)))[1] == TOLD_PER_TURN
        for sock, reader in zip(socks, readers, strict=True):
            read_until(sock, reader, lambda reader=reader: reader.goaway)
            sock.sendall(h.frame(h.PING, h.ACK, 0, bytes(8)))
            reader.feed(read_all(sock))
            assert reader.goaway == (0, 0)
        assert len(connections) == count and running.call(lambda: len(running.listener.conns)) == 0


def test_a_fatal_error_surfaces() -> None:
    class Broken(EchoServer):
        def handle(self, requests: list[object]) -> None:
            raise errors.DiskFailed("the sync failed")

    loop = Loop()
    listener = Listener(loop, "127.0.0.1:0", Broken())
    host, _, port = listener.bound[0].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(h.hello() + h.call(1, b"x"))
        with pytest.raises(errors.DiskFailed):
            loop.run(listener.flush_dirty)
        listener.close()
        read_all(sock)
    loop.close()


def test_no_descriptor_is_left_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Running() as running:
        for _ in range(20):
            ask(running, b"GET /version HTTP/1.0\r\n\r\n")
            with dial(running) as sock:
                sock.sendall(h.hello() + h.call(1, b"x", b"/test.Test/Hold"))
    assert len(os.listdir("/proc/self/fd")) == before
