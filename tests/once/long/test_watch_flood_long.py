"""A million requests for watchers come at once: as many as the limits allow get one, all others are refused by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from support.attack import MIB
from support.processes import Server, metric, wait_until
from support.streams import MessageStream
from support.turns import Turns
from support.watching import PATH, WatchRequest, WatchResponse

pytestmark = pytest.mark.node_only

STREAMS, EACH = 10, 100_000
PER_NODE = 100_000
REASON = "limits.max_watches_per_node is 100000"


class Refused:
    """Keeps of each answer whether it refuses, for a million answers would take a gigabyte here."""

    @staticmethod
    def FromString(message: bytes) -> bool:
        response = WatchResponse.FromString(message)
        assert response.created
        if response.canceled:
            assert response.watch_id == -1 and ("max_watches_per_stream" in response.cancel_reason or REASON in
                                                response.cancel_reason)  # fmt: skip
        return bool(response.canceled)


def test_a_million_creates(fresh: Callable[..., Server]) -> None:
    server = fresh().start()
    process = server.running()
    with server.client(60) as client, contextlib.ExitStack() as stack:
        client.put(b"k", b"")
        rss, turns = process.rss(), Turns(server)
        streams = [stack.enter_context(MessageStream(client, PATH, Refused)) for _ in range(STREAMS)]
        for number in range(EACH):
            body = WatchRequest(create_request={"key": b"%06d" % number, "range_end": b"a"}).SerializeToString()
            for stream in streams:
                stream.send_bytes(body)
        for stream in streams:
            stream.wait(lambda stream=stream: len(stream.responses) >= EACH, 900)
        made = sum(not refused for stream in streams for refused in stream.responses)
        assert made == metric(server, "metastore_watchers") == PER_NODE
        more = process.rss() - rss
        assert more < 200 * MIB, f"{more / MIB:.0f} MiB"
        print(f"{more / MIB:.0f} MiB for {made} watchers")
        revision = client.put(b"a", b"1").header.revision
        assert client.get(b"a") == b"1" and revision == 3
        turns.check()
    wait_until(lambda: metric(server, "metastore_watchers") == 0, 60, "the end of all watchers")
    turns.check()
