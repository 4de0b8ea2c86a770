"""What watchers may not do to a node: make a turn of its loop long, keep other clients waiting, or make its memory
grow.

Turns are counted by the loop thread's own processor time (see test_turns.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import http2 as h
from support import messages as m
from support.attack import MIB, Raw
from support.client import Client, op
from support.processes import Server, make_server, metric, wait_until
from support.turns import no_long_turn
from support.watching import PATH, WatchRequest, WatchStream

pytestmark = pytest.mark.node_only

KEYS = {"memory": 30_000, "rocksdb": 10_000}


@pytest.fixture(params=sorted(KEYS))
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Server, int]]:
    """Yield a node, and the number of keys that it may be filled with."""
    settings = {
        "storage.engine": f'"{request.param}"',
        "limits.max_txn_ops": "5000",
        "limits.max_txn_walk": "10000000",
        "limits.request_timeout": '"60s"',
    }
    server = make_server(request.config.getoption("--server"), tmp_path / "data", settings=settings)
    with server.start():
        yield server, KEYS[request.param]
    server.discard()


def fill(client: Client, count: int, prefix: bytes = b"k") -> int:
    """Put so many keys. Return the revision before them."""
    before = client.put(b"before").header.revision
    for first in range(0, count, 5000):
        puts = [m.PutRequest(key=prefix + b"%06d" % n, value=b"%d" % n) for n in range(first, min(count, first + 5000))]
        client.txn(success=[op(put) for put in puts])
    return int(before)


def create(**fields: Any) -> bytes:
    return WatchRequest(create_request=fields).SerializeToString()  # type: ignore[no-any-return]


def test_a_deletion_of_all_keys_is_told_to_many(node: tuple[Server, int]) -> None:
    """200 watchers of distinct ranges watch all keys. Each gets all deletions in one response."""
    server, count = node
    with server.client(60) as client, WatchStream(client) as stream:
        fill(client, count)
        for number in range(200):
            stream.send_bytes(create(key=b"k", range_end=b"l%03d" % number))
        stream.wait(lambda: len(stream.responses) >= 200)
        with no_long_turn(server):
            assert client.delete(b"k", b"l").deleted == count
            stream.wait(lambda: len(stream.responses) >= 400)
        told = stream.responses[200:]
        assert all(len(response.events) == count for response in told)
        assert len({response.watch_id for response in told}) == 200


def test_many_read_history_while_others_write(node: tuple[Server, int]) -> None:
    server, count = node
    with server.client(60) as client, WatchStream(client) as stream:
        before = fill(client, count)
        with no_long_turn(server):
            for number in range(40):
                stream.send_bytes(create(key=b"k%06d" % (number * 100), range_end=b"l", start_revision=before))
            for number in range(200):
                client.put(b"k%06d" % number, b"again")
            wanted = sum(count - number * 100 for number in range(40))
            stream.wait(lambda: sum(len(r.events) for r in stream.responses) >= wanted)


def test_a_flood_of_requests(fresh: Callable[..., Server]) -> None:
    """60,000 creates come on one stream; 30,000 get a watcher. Then all watchers leave at once."""
    server = fresh(settings={"limits.max_watches_per_stream": "30000"}).start()
    process = server.running()
    with no_long_turn(server), server.client(60) as client:
        rss = process.rss()
        with WatchStream(client) as stream:
            requests = 60_000
            for number in range(requests):
                stream.send_bytes(create(key=b"%06d" % number, range_end=b"a", progress_notify=True))
            stream.wait(lambda: len(stream.responses) >= requests)
            refused = [response for response in stream.responses if response.canceled]
            assert len(refused) == requests - 30_000
            assert "limits.max_watches_per_stream is 30000" in refused[-1].cancel_reason
            assert process.rss() - rss < 90 * MIB
        wait_until(lambda: metric(server, "metastore_watchers") == 0, what="all watchers gone")
        assert client.put(b"a").header.revision


def write(client: Client) -> None:
    """Write 40,000 values of 1 KiB, in transactions of 50 KiB."""
    for first in range(0, 40_000, 50):
        client.txn(success=[op(m.PutRequest(key=b"k%d" % n, value=b"v" * 1024)) for n in range(first, first + 50)])


def test_readers_that_have_stopped_cost_no_memory(node: tuple[Server, int]) -> None:
    """The clients of 60 connections take next to nothing, while 40 MB are written that each of them watches."""
    server, _ = node
    process = server.running()
    with contextlib.ExitStack() as stack, server.client(60) as client:
        write(client)
        stopped = [stack.enter_context(Raw(server, receive_buffer=4096, timeout=60)) for _ in range(60)]
        for number, raw in enumerate(stopped):
            raw.send(h.frame(h.HEADERS, h.END_HEADERS, 1, h.head(PATH.encode())))
            raw.send(h.frame(h.DATA, 0, 1, h.message(create(key=b"k", range_end=b"l%d" % number))))
        wait_until(lambda: metric(server, "metastore_watchers") == 60, what="all watchers")
        before = process.rss() - engine_bytes(server)
        write(client)
        assert metric(server, "metastore_watchers") == 60
        assert metric(server, "metastore_watch_responses_total") > 60
        more = process.rss() - engine_bytes(server) - before
        assert more < 40 * MIB, f"{more / MIB:.0f} MiB more"


def engine_bytes(server: Server) -> int:
    return int(metric(server, "metastore_engine_bytes"))
