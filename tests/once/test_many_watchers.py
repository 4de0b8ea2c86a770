"""Very many watchers on many connections: all are told, in bounded memory and without a long turn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from support import http2 as h
from support import messages as m
from support.attack import MIB, Raw
from support.client import op
from support.processes import Server, metric, wait_until
from support.turns import Turns
from support.watching import PATH, WatchRequest, WatchResponse

pytestmark = pytest.mark.node_only

CONNECTIONS, STREAMS, EACH = 100, 10, 10  # watchers of each stream, the first of which watches the hot key
WATCHERS = CONNECTIONS * STREAMS * EACH
HOT = 50  # puts of the hot key


def key_of(connection: int, stream: int, ident: int) -> bytes:
    return b"hot" if ident == 1 else b"k/%d/%d/%d" % (connection, stream, ident)


def begin(raw: Raw, connection: int) -> None:
    """Make the watchers of a connection. Their ids are those of `key_of`."""
    for stream in range(STREAMS):
        raw.send(h.frame(h.HEADERS, h.END_HEADERS, 2 * stream + 1, h.head(PATH.encode())))
        for ident in range(1, EACH + 1):
            fields = {"key": key_of(connection, stream, ident), "watch_id": ident}
            body = WatchRequest(create_request=fields).SerializeToString()
            raw.send(h.frame(h.DATA, 0, 2 * stream + 1, h.message(body)))


def events(raw: Raw, count: int) -> list[list[Any]]:
    """The events of each stream, once there are so many on each, as (id, event)."""
    found: list[list[Any]] = [[] for _ in range(STREAMS)]
    taken = [0] * STREAMS
    while min(map(len, found)) < count:
        for stream in range(STREAMS):
            bodies = raw.reader.stream(2 * stream + 1).messages
            for body in bodies[taken[stream] :]:
                response = WatchResponse.FromString(body)
                found[stream] += [(response.watch_id, event) for event in response.events]
            taken[stream] = len(bodies)
        if min(map(len, found)) < count:
            assert raw.receive(), "the connection has ended"
    return found


def test_10000_watchers_on_100_connections(fresh: Callable[..., Server]) -> None:
    """1,000 of them watch one hot key. Measured: 13 MiB."""
    server = fresh(settings={"limits.max_txn_ops": "1000"}).start()
    process = server.running()
    with contextlib.ExitStack() as stack, server.client(60) as client:
        client.put(b"hot", b"")
        before, turns = process.rss(), Turns(server)
        raws = [stack.enter_context(Raw(server, timeout=60)) for _ in range(CONNECTIONS)]
        for number, raw in enumerate(raws):
            begin(raw, number)
        wait_until(lambda: metric(server, "metastore_watchers") == WATCHERS, 60, "all watchers")
        more = process.rss() - before
        hot = [client.put(b"hot", b"%d" % n).header.revision for n in range(HOT)]
        own: dict[bytes, int] = {}
        for connection in range(CONNECTIONS):
            keys = [key_of(connection, stream, ident) for stream in range(STREAMS) for ident in range(2, EACH + 1)]
            done = client.txn(success=[op(m.PutRequest(key=key)) for key in keys])
            own |= dict.fromkeys(keys, done.header.revision)
        for connection, raw in enumerate(raws):
            for stream, told in enumerate(events(raw, HOT + EACH - 1)):
                assert [event.kv.mod_revision for ident, event in told if ident == 1] == hot
                rest = {ident: (event.kv.key, event.kv.mod_revision) for ident, event in told if ident != 1}
                keys = {ident: key_of(connection, stream, ident) for ident in range(2, EACH + 1)}
                assert rest == {ident: (key, own[key]) for ident, key in keys.items()}
                assert len(told) == HOT + EACH - 1
        turns.check()
        assert more < 40 * MIB, f"{more / MIB:.0f} MiB more"
    wait_until(lambda: metric(server, "metastore_watchers") == 0, what="the end of all watchers")
