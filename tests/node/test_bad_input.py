"""A broken or hostile client gets an error or a closed connection, memory stays bounded, and the others are served."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import h2raw
from support import http2 as h
from support import messages as m
from support.client import METHODS, Client, Failure
from support.processes import Server, wait_until

PUT = "/etcdserverpb.KV/Put"
RANGE = "/etcdserverpb.KV/Range"
MIB = 1 << 20

Make = Callable[..., Server]


@pytest.fixture
def served(server: Server, client: Client) -> Iterator[Client]:
    """Yield a well-behaved client. After the test the same process must still serve it."""
    pid = server.running().pid
    client.put(b"bystander", b"before")
    yield client
    assert client.get(b"bystander") == b"before"
    client.put(b"bystander", b"after")
    assert server.running().pid == pid
    assert server.running().popen.poll() is None


def open_files(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.running().pid}/fd"))


def connect(server: Server) -> socket.socket:
    host, _, port = server.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def reads_to_end(sock: socket.socket) -> bytes:
    """Return everything until the server closes the connection."""
    out = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(65_536):
            out += data
    return out


@pytest.mark.parametrize("seed", range(8))
def test_random_bytes_after_the_preface(seed: int, server: Server, served: Client) -> None:
    rng = random.Random(seed)
    with h2raw.Connection(server.address) as connection:
        with contextlib.suppress(ConnectionError):
            connection.send(rng.randbytes(40_000))
        connection.end()
        connection.drain()


@pytest.mark.parametrize("seed", range(4))
def test_random_frames(seed: int, server: Server, served: Client) -> None:
    """Frames of every type come with random flags, streams and payloads, with some correct ones in between."""
    rng = random.Random(seed)
    right = h2raw.call(1, RANGE, h.message(m.RangeRequest(key=b"bystander").SerializeToString()))
    for _ in range(25):
        with h2raw.Connection(server.address) as connection:
            with contextlib.suppress(ConnectionError):
                for _ in range(rng.randint(1, 20)):
                    kind, flags, stream = rng.randint(0, 11), rng.randint(0, 255), rng.choice([0, 1, 1, 2, 3, 99])
                    connection.send(h.frame(kind, flags, stream, rng.randbytes(rng.choice([0, 1, 4, 5, 8, 40]))))
                    if rng.random() < 0.2:
                        connection.send(right)
            connection.end()
            connection.drain()


@pytest.mark.parametrize(
    "opening",
    [
        b"\0" * 100,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"z" * 500,
        b"GET\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
    ],
    ids=["zeros", "tls", "broken-http1", "broken-preface"],
)
def test_other_protocols(opening: bytes, server: Server, served: Client) -> None:
    with connect(server) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(opening)
            sock.shutdown(socket.SHUT_WR)
        reads_to_end(sock)


def test_endless_http1_header(server: Server, served: Client) -> None:
    """A header without end is refused long before it takes memory."""
    before = server.running().rss()
    with connect(server) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(b"GET /health HTTP/1.1\r\nx: ")
            for _ in range(64):
                sock.sendall(b"y" * MIB)
            pytest.fail("64 MiB of header were taken")
    assert server.running().rss() < before + 32 * MIB


@pytest.mark.node_only
def test_endless_http2_headers(server: Server, served: Client) -> None:
    """CONTINUATION frames come without end."""
    before = server.running().rss()
    block = h.head(PUT.encode())
    with h2raw.Connection(server.address) as connection:
        with contextlib.suppress(ConnectionError):
            connection.send(h.frame(h.HEADERS, 0, 1, block))
            for number in range(4000):
                field = h.literal(b"x-%d" % number, b"y" * 16_000)
                connection.send(h.frame(h.CONTINUATION, 0, 1, field))
            pytest.fail("64 MB of headers were taken")
    assert server.running().rss() < before + 32 * MIB


@pytest.mark.parametrize("claimed", [3 * MIB, 1 << 30, (1 << 32) - 1])
def test_length_prefix_beyond_the_limit(claimed: int, server: Server, served: Client) -> None:
    """The call ends at the prefix. The server neither waits for the rest nor makes room for it."""
    before = server.running().rss()
    with h2raw.Connection(server.address) as connection:
        connection.send(h2raw.call(1, PUT, h.message(b"\n\x01a", length=claimed), end=False))
        frames = connection.finish(1)
        assert any(f.kind in (h.HEADERS, h.RST_STREAM) for f in frames), frames
    assert server.running().rss() < before + 32 * MIB


@pytest.mark.parametrize("size", [2 * MIB, 3 * MIB, 20 * MIB])
def test_text_of_a_message_over_the_limit(size: int, served: Client) -> None:
    body = m.PutRequest(key=b"big", value=b"x" * size).SerializeToString()
    with pytest.raises(Failure) as failure:
        served.raw(PUT, body)
    assert (failure.value.code, failure.value.text) == (
        8,
        f"grpc: received message larger than max ({len(body)} vs. 2097152)",
    )


MALFORMED = [
    b"\xff\xff\xff",
    b"\n\x05ab",
    b"\x08\x01",
    b"\x0b\x01",
    b"\x0c",
    b"\0\x01",
    b"\n\x01k\x12" + b"\xff" * 9 + b"\1",
]


@pytest.mark.parametrize("request_type", sorted(METHODS))
def test_malformed_messages(request_type: str, served: Client) -> None:
    path = METHODS[request_type][0]
    for body in MALFORMED:
        try:
            served.raw(path, body)
        except Failure as failure:
            if failure.code == 12:  # a service that does not exist yet
                return
            if (request_type, body, failure.code) == ("LeaseRevokeRequest", b"\x08\x01", 5):
                continue  # this one is well formed: it asks for the lease with the id 1
            assert failure.code == 13, (body, failure)
            assert failure.text.startswith("grpc: error unmarshalling request"), (body, failure)
        else:
            # A message without this field skips it as unknown. A message that has the field must not accept it.
            assert request_type not in ("PutRequest", "RangeRequest", "DeleteRangeRequest"), body


@pytest.mark.parametrize("path", ["/etcdserverpb.KV/Nope", "/nope.Service/Call", "/etcdserverpb.KV/", "/a/b/c"])
def test_unknown_methods(path: str, served: Client, reference: Server) -> None:
    texts = []
    with reference.client() as etcd:
        for client in (served, etcd):
            with pytest.raises(Failure) as failure:
                client.raw(path, b"")
            assert failure.value.code == 12
            texts.append(failure.value.text)
    assert texts[0] == texts[1]


def test_connection_closed_in_the_middle_of_a_put(server: Server, served: Client) -> None:
    """The connection closes at every byte of the call, right after it, and while it is in the log. No descriptor is
    left behind."""
    body = m.PutRequest(key=b"half", value=b"v" * 50).SerializeToString()
    whole = h2raw.call(1, PUT, h.message(body))
    before = open_files(server)
    for cut in range(1, len(whole) + 1):
        connection = h2raw.Connection(server.address)
        connection.send(whole[:cut])
        connection.close()
    wait_until(lambda: open_files(server) <= before, what="all connections are closed")
    assert served.get(b"half") in (None, b"v" * 50)


def test_puts_of_a_closed_connection_are_whole(server: Server, served: Client, prefix: str) -> None:
    """A client sends a thousand puts and goes away. Each put is done or not done, and counted once."""
    key = prefix.encode()
    before, files = served.revision(), open_files(server)
    with h2raw.Connection(server.address) as connection:
        calls = b""
        for number in range(1000):
            body = m.PutRequest(key=key + b"%04d" % number, value=b"%04d" % number).SerializeToString()
            calls += h2raw.call(2 * number + 1, PUT, h.message(body))
        connection.send(calls)
    wait_until(lambda: served.put(b"bystander", b"before") and open_files(server) <= files, what="the end")
    pairs = served.prefix(key)
    assert all(k == key + v for k, v in pairs.items())
    assert served.revision() - before >= len(pairs)


def test_reset_flood(server: Server, served: Client) -> None:
    """A hundred thousand streams are opened and reset at once. Memory stays bounded, and others get answers."""
    before = server.running().rss()
    body = h.message(m.RangeRequest(key=b"bystander").SerializeToString())
    with h2raw.Connection(server.address) as connection:
        connection.socket.settimeout(5)
        with contextlib.suppress(ConnectionError, TimeoutError):
            for burst in range(100):
                data = b""
                for number in range(1000):
                    stream = 2 * (burst * 1000 + number) + 1
                    data += h2raw.call(stream, RANGE, body)
                    data += h.frame(h.RST_STREAM, 0, stream, h2raw.CANCEL.to_bytes(4, "big"))
                connection.send(data)
                assert served.get(b"bystander") == b"before"
    assert server.running().rss() < before + 64 * MIB


@pytest.mark.parametrize("kind", [h.PING, h.SETTINGS])
def test_flood_of_frames_that_want_an_answer(kind: int, server: Server, served: Client) -> None:
    """PING or SETTINGS come without end from a client that does not read the acknowledgements."""
    before = server.running().rss()
    one = h.frame(kind, 0, 0, b"\0" * 8 if kind == h.PING else b"")
    with h2raw.Connection(server.address, receive_buffer=4096) as connection:
        connection.socket.settimeout(2)
        with contextlib.suppress(ConnectionError, TimeoutError):
            for _ in range(200):
                connection.send(one * 5000)
    assert served.get(b"bystander") == b"before"
    assert server.running().rss() < before + 64 * MIB


@pytest.mark.node_only
def test_client_that_never_reads(fresh: Make) -> None:
    """The client asks for gigabytes and takes none. The output held for it stays under the limit, then it is cut
    off."""
    settings = {"limits.max_output_bytes": '"1MiB"', "limits.output_timeout": '"500ms"'}
    node = fresh(settings=settings).start()
    with node.client() as client:
        client.put(b"big", b"x" * MIB)
        ask = m.RangeRequest(key=b"big").SerializeToString()
        base_files, base_rss = open_files(node), node.running().rss()
        silent = [h2raw.Connection(node.address, receive_buffer=4096) for _ in range(5)]
        for connection in silent:
            calls = b"".join(h2raw.call(2 * n + 1, RANGE, h.message(ask)) for n in range(500))
            connection.socket.settimeout(2)
            with contextlib.suppress(ConnectionError, TimeoutError):
                connection.send(calls)
        for number in range(50):
            client.put(b"others", b"%d" % number)
            assert client.get(b"others") == b"%d" % number
        wait_until(lambda: open_files(node) <= base_files, 30, "the silent clients are cut off")
        # Each client may have held its limit and one reply more; the rest is slack for the allocator.
        assert node.running().peak_rss() < base_rss + 5 * 8 * MIB
        for connection in silent:
            connection.close()


@pytest.mark.node_only
def test_client_that_says_nothing_is_closed(fresh: Make) -> None:
    node = fresh(settings={"limits.handshake_timeout": '"200ms"'}).start()
    with connect(node) as nothing, connect(node) as half:
        half.sendall(b"PRI * HT")
        assert reads_to_end(nothing) == b""
        reads_to_end(half)  # the server's own settings may come first; the connection must end


@pytest.mark.node_only
def test_connections_over_the_limit(fresh: Make) -> None:
    """Connections over the limit are refused. When one of the others goes, the next is served."""
    node = fresh(settings={"limits.max_connections": "5"}).start()
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(h2raw.Connection(node.address)) for _ in range(5)]
        for connection in connections:
            assert connection.receive() is not None
        with contextlib.suppress(ConnectionError), h2raw.Connection(node.address) as extra:
            extra.socket.settimeout(1)
            with contextlib.suppress(TimeoutError):
                assert extra.drain() == []
        connections[0].close()

        def served() -> bool:
            # The node may learn of the free place after it has learned of this connection.
            with contextlib.suppress(Failure), node.client() as client:
                client.put(b"a", b"1")
                return client.get(b"a") == b"1"
            return False

        wait_until(served, what="the next client")


def http(server: Server, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{server.address}{path}", timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_http_pages(server: Server, client: Client) -> None:
    status, text = http(server, "/version")
    assert status == 200
    assert set(json.loads(text)) == {"etcdserver", "etcdcluster"}
    assert json.loads(text)["etcdserver"] == client.status().version
    status, text = http(server, "/health")
    assert (status, json.loads(text)["health"]) == (200, "true")
    status, text = http(server, "/metrics")
    assert status == 200
    assert "# TYPE" in text
    assert http(server, "/nowhere")[0] == 404


def test_health_service(server: Server, client: Client, reference: Server) -> None:
    assert client.call(m.HealthCheckRequest()).status == 1
    with reference.client() as etcd:
        for name in ("etcdserverpb.KV", "nope"):
            answers = []
            for one in (client, etcd):
                with pytest.raises(Failure) as failure:
                    one.call(m.HealthCheckRequest(service=name))
                answers.append((failure.value.code, failure.value.text))
            assert answers[0] == answers[1]


def test_data_directory_is_for_the_owner_only(server: Server) -> None:
    assert Path(server.data_dir).stat().st_mode & 0o077 == 0
