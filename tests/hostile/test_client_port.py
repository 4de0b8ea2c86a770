"""Attacks on the client port of a live node, each with another client beside it."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable

import grpc
import pytest
from support import http2 as h
from support import messages as m
from support.attack import MIB, RANGE_PATH, Raw, attacked
from support.client import Failure
from support.processes import Process, Server, metric, wait_until

pytestmark = pytest.mark.node_only

Make = Callable[..., Server]
BEGIN = h.frame(h.HEADERS, h.END_HEADERS, 1, h.head())


def begin(stream: int, block: bytes = h.head()) -> bytes:
    return h.frame(h.HEADERS, h.END_HEADERS, stream, block)


def put(key: bytes, value: bytes) -> bytes:
    return m.PutRequest(key=key, value=value).SerializeToString()


def in_frames(stream: int, wire: bytes, end: bool = True) -> bytes:
    pieces = [wire[at : at + 16384] for at in range(0, len(wire), 16384)]
    return b"".join(
        h.frame(h.DATA, h.END_STREAM if end and n == len(pieces) - 1 else 0, stream, piece)
        for n, piece in enumerate(pieces)
    )


def is_served(node: Server) -> bool:
    """Whether a new client is."""
    with contextlib.suppress(Failure), node.client() as client:
        client.put(b"b", b"2")
        return True
    return False


def test_refused_streams_that_nobody_reads(fresh: Make) -> None:
    """39 MB became 1,670 MB in 12 s: nghttp2 queues a refusal for each stream over the limit."""
    node = fresh().start()
    with attacked(node, 48 * MIB), Raw(node, receive_buffer=4096, agrees=False) as raw:
        stream, sent = -1, True
        while sent and stream < 2_000_000:
            stream += 40_000
            sent = raw.send(b"".join(begin(n, b"\x83\x86\x84") for n in range(stream - 39_998, stream + 2, 2)))
        assert not sent


def test_headers_that_unfold(fresh: Make) -> None:
    """7.7 MB of one-byte fields became 1.2 GB, held for as long as the streams did not end."""
    node = fresh(settings={"limits.handshake_timeout": '"2s"'}).start()
    with attacked(node, 64 * MIB), Raw(node) as raw:
        first = b"\x40\x02xa\x02yb"
        for number in range(4095):
            fields = b"\xbe" * 1700
            if not raw.send(begin(2 * number + 1, h.head() + (first if number == 0 else b"") + fields)):
                break
        # And they end, though the client never ends them.
        wait_until(lambda: metric(node, "metastore_client_request_bytes") < 64 << 10, 30, "the end of the calls")
        assert "not complete" in raw.answer(1).text


def test_messages_that_do_not_end(fresh: Make) -> None:
    """14 connections filled the room for requests for ever, and all writers were refused."""
    settings = {"limits.max_inflight_bytes": '"16MiB"', "limits.handshake_timeout": '"3s"'}
    node = fresh(settings=settings).start()
    half = h.message(bytes(1_000_000))[:100_000]
    with attacked(node, 96 * MIB), contextlib.ExitStack() as stack, node.client() as client:
        raws = [stack.enter_context(Raw(node)) for _ in range(20)]
        for number in range(60):
            for raw in raws:
                stream = 2 * number + 1
                raw.send(begin(stream) + in_frames(stream, half, end=False))
        wait_until(lambda: metric(node, "metastore_client_request_bytes") > 24 * MIB, 30, "a full account")
        client.put(b"large", bytes(500_000))
        wait_until(lambda: metric(node, "metastore_client_request_bytes") < MIB, 60, "the end of the calls")


def test_replies_that_nobody_reads(fresh: Make) -> None:
    """60 connections that asked for 20 MB each took 1.24 GB; reads wait while others' replies are not taken."""
    node = fresh(settings={"limits.max_reply_bytes": '"32MiB"'}).start()
    with node.client() as client:
        for number in range(20):
            client.put(b"big/%02d" % number, os.urandom(250_000))
    every = m.RangeRequest(key=b"big/", range_end=b"big0", serializable=True).SerializeToString()
    # They ask for 300 MB. A reply stands there three times while it is made, and the allocator keeps some of it.
    with attacked(node, 160 * MIB), contextlib.ExitStack() as stack:
        raws = [stack.enter_context(Raw(node, window=1 << 30, receive_buffer=4096)) for _ in range(20)]
        for raw in raws:
            raw.send(b"".join(h.call(stream, every, RANGE_PATH) for stream in (1, 3, 5)))
        # Who takes nothing while others wait is dropped long before limits.output_timeout, one after the other.
        wait_until(lambda: metric(node, "metastore_client_connections") < 12, 28, "the end of those who read nothing")


def test_thousands_of_pages_at_once(fresh: Make) -> None:
    """GET /metrics x 8000 held the loop for 2.7 s."""
    node = fresh().start()
    host, _, port = node.address.rpartition(":")
    with attacked(node, 32 * MIB):
        for _ in range(3):
            with socket.create_connection((host, int(port)), timeout=20) as sock:
                ask = threading.Thread(target=lambda sock=sock: sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n" * 8000))
                ask.start()
                data = 0
                while data < 2_000_000:
                    data += len(sock.recv(1 << 16))
                sock.shutdown(socket.SHUT_RDWR)
                with contextlib.suppress(OSError):
                    ask.join(20)


@pytest.mark.parametrize("ended", [True, False])
def test_messages_that_unpack_to_much(ended: bool, fresh: Make) -> None:
    """Also where they are kept, because their calls do not end."""
    node = fresh(settings={"limits.max_inflight_bytes": '"16MiB"'}).start()
    bomb = h.message(gzip.compress(bytes(2_000_000), 9), 1)
    gzipped = h.head(h.PUT_PATH, (b"grpc-encoding", b"gzip"))
    with attacked(node, 96 * MIB), Raw(node) as raw:
        for number in range(300):
            raw.send(begin(2 * number + 1, gzipped) + in_frames(2 * number + 1, bomb, ended))
        assert raw.answer(599).status in (3, 4, 8, 13)


def test_all_calls_given_up_at_once(fresh: Make) -> None:
    """A shared context that ends: 1,500 calls at a time, again and again with work between them."""
    node = fresh().start()
    body = put(b"k", b"v")
    with attacked(node, 32 * MIB), Raw(node) as raw:
        at = 1
        for _ in range(4):
            raw.send(b"".join(begin(at + 2 * n) for n in range(1500)))
            raw.send(b"".join(h.frame(h.RST_STREAM, 0, at + 2 * n, (8).to_bytes(4, "big")) for n in range(1500)))
            at += 3000
            raw.send(b"".join(h.call(at + 2 * n, body) for n in range(1500)))
            assert raw.answer(at + 2998).status == 0
            at += 3000
        assert raw.reader.goaway is None


def test_places_that_nobody_uses(fresh: Make) -> None:
    """Connections that only greet are closed in time, and before that make room for those who ask something."""
    node = fresh(settings={"limits.max_connections": "40", "limits.handshake_timeout": '"6s"'}).start()
    with contextlib.ExitStack() as stack:
        user = stack.enter_context(Raw(node))
        user.send(h.call(1, put(b"a", b"1")))
        assert user.answer(1).status == 0
        idle = [stack.enter_context(Raw(node)) for _ in range(45)]
        half = stack.enter_context(Raw(node))
        half.send(BEGIN)

        assert is_served(node), "a newcomer's place is there at once"
        assert "all 40 connections (limits.max_connections) are taken" in node.running().log
        assert node.running().log.count("are taken") == 1
        for raw in [*idle, half]:
            raw.to_end()
        assert any(raw.reader.goaway == (0, 0) for raw in idle)
        user.send(h.call(3, put(b"a", b"3")))
        assert user.answer(3).status == 0


FLOOD = """
import collections, socket, sys
host, port, greeting = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
kept = collections.deque()
for number in range(1, 1 << 30):
    sock = socket.socket()
    kept.append(sock)
    try:
        sock.connect((host, port))
        sock.send(greeting)
    except OSError:
        pass
    if len(kept) > 300:
        kept.popleft().close()
    if number % 1000 == 0:
        print(number, flush=True)
"""


def test_a_flood_of_connections(fresh: Make) -> None:
    """Thousands of connections a second that only greet displace each other, and nobody who comes from elsewhere."""
    node = fresh(settings={"limits.max_connections": "100", "limits.handshake_timeout": '"10m"'}).start()
    host, _, port = node.address.rpartition(":")
    with attacked(node, 64 * MIB), Raw(node, source="127.0.0.3") as slow:
        slow.send(BEGIN)
        flood = Process([sys.executable, "-c", FLOOD, host, port, h.hello().hex()])
        try:
            served = 0
            while served < 200 or flood.log.count("\n") < 15:
                with Raw(node, source="127.0.0.2") as newcomer:
                    newcomer.send(h.call(1, put(b"n", b"%d" % served)))
                    assert newcomer.answer(1).status == 0, node.running().log[-2000:]
                served += 1
        finally:
            flood.kill()
        slow.send(h.frame(h.DATA, h.END_STREAM, 1, h.message(put(b"slow", b"1"))))
        assert slow.answer(1).status == 0
    assert metric(node, "metastore_client_connections_evicted_total") > 1000
    assert metric(node, "metastore_client_connections_refused_total") == 0
    assert re.search(r"all 100 connections \S+ are taken, \d+ of them from 127.0.0.1", node.running().log)


@pytest.mark.parametrize("engine", ["memory", "rocksdb"])
def test_descriptors_are_kept_for_our_own_files(fresh: Make, engine: str) -> None:
    """1,010 idle sockets under the usual limit of 1,024 ended a node: its log's next segment could not be opened."""
    settings = {"storage.engine": f'"{engine}"', "storage.rocksdb.max_open_files": "64", "wal.segment_size": '"1MiB"'}
    node = fresh(settings=settings)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A soft limit that is lower than the hard one, as shells have it.
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
    try:
        node.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    pid = node.running().pid
    assert len(limits := resource.prlimit(pid, resource.RLIMIT_NOFILE)) == 2 and limits[0] == min(limits[1], 1 << 20)
    node.stop()
    node = fresh("small", settings=settings)
    few = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400)); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    plain = node.argv()
    node.argv = lambda: [plain[0], "-c", few, *plain]  # type: ignore[method-assign]
    node.start()
    allowed = 400 - 160 - (64 if engine == "rocksdb" else 0)
    assert re.search(rf"at most {allowed} clients", node.running().log)
    with contextlib.ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(Raw(node))
        wait_until(lambda: f"all {allowed} connections (as many as 400 file descriptors" in node.running().log, 20)
        assert is_served(node), "a newcomer's place is there at once"
        with node.client() as client:
            for number in range(6):
                client.put(b"%d" % number, os.urandom(1_000_000))
            assert "NOSPACE" not in node.running().log and client.alarm() == []
        assert metric(node, "metastore_client_connections") <= allowed
    assert node.stop() == 0


def test_answers_that_nobody_reads_do_not_keep_their_requests(fresh: Make) -> None:
    """300 ranges with a key of 1 MB, each answered by a few bytes for which the client opens no window."""
    node = fresh().start()
    with attacked(node, 48 * MIB), Raw(node) as raw:
        raw.send(h.frame(h.SETTINGS, 0, 0, b"\x00\x04" + bytes(4)))
        wire = h.message(m.RangeRequest(key=bytes(1_000_000)).SerializeToString())
        for number in range(300):
            stream = 2 * number + 1
            raw.send(begin(stream, h.head(RANGE_PATH)) + in_frames(stream, wire))
        wait_until(lambda: metric(node, "metastore_client_request_bytes") <= 302 * 1024, what="an answer to each")
        assert metric(node, "metastore_client_reply_bytes") > 0


def test_gzip_by_a_real_client(fresh: Make) -> None:
    node = fresh().start()
    with grpc.insecure_channel(node.address, compression=grpc.Compression.Gzip) as channel:
        call = channel.unary_unary("/etcdserverpb.KV/Put")
        call(put(b"packed", b"v" * 100_000), timeout=20)
    with node.client() as client:
        assert client.get(b"packed") == b"v" * 100_000


def test_pings_without_calls(fresh: Make) -> None:
    node = fresh().start()
    with Raw(node) as raw:
        raw.send(h.call(1, put(b"a", b"1")))
        assert raw.answer(1).status == 0
        for _ in range(12):
            raw.send(h.frame(h.PING, 0, 0, bytes(8)))
            time.sleep(0.01)  # their pace is what this is about
        assert raw.to_end().goaway_text == b"too_many_pings"


@pytest.mark.parametrize("kind", ["watches", "answers"])
def test_a_client_that_leaves_thousands_of_calls_behind(kind: str, fresh: Make) -> None:
    """To end 4,000 watch streams took a turn of 24 ms, and to make 1,000 replies of 60 KB one of 42 ms."""
    node = fresh().start()
    with node.client() as client:
        client.put(b"k", os.urandom(60_000))
    if kind == "watches":
        create = m.TYPES["WatchRequest"](create_request={"key": b"k", "start_revision": 2}).SerializeToString()
        calls = [h.call(1 + 2 * n, create, b"/etcdserverpb.Watch/Watch") for n in range(4000)]
    else:
        read = m.RangeRequest(key=b"k").SerializeToString()
        calls = [h.call(1 + 2 * n, read, RANGE_PATH) for n in range(1000)]
    with attacked(node, 64 * MIB):
        for _ in range(2):
            with Raw(node) as raw:
                raw.send(h.frame(h.SETTINGS, 0, 0, b"\0\4\0\0\0\0") + b"".join(calls))
                wait_until(lambda: metric(node, "metastore_client_request_bytes") >= len(calls) << 10, 30, "the calls")
            wait_until(lambda: metric(node, "metastore_client_request_bytes") == 0, 30, "the end of the calls")
