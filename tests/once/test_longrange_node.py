"""Long ranges of many clients at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support import messages as m
from support.client import Client, op
from support.longranges import MANY
from support.processes import Server


def fill(client: Client, count: int) -> None:
    """Put `count` keys in few transactions."""
    for first in range(0, count, 10000):
        puts = [op(m.PutRequest(key=b"k%06d" % number, value=b"v")) for number in range(first, first + 10000)]
        client.txn(success=puts)


def whole(**more: Any) -> Any:
    """Return a request for all keys."""
    return m.RangeRequest(key=b"k", range_end=b"l", **more)


@pytest.mark.node_only
def test_many_long_ranges_of_real_clients(fresh: Callable[..., Server]) -> None:
    """All ranges are answered, each from one revision, while a writer goes on and some clients go away."""
    # A build with bounds checks is slow, and a range that waits for its turn has a deadline.
    node = fresh(settings={"limits.max_txn_ops": "10000", "limits.request_timeout": '"60s"'}).start()
    with node.client(60) as client, node.client(60) as leaver:
        fill(client, MANY)
        requests = [whole(count_only=True), whole(), whole(keys_only=True), whole(sort_order=2, limit=5)]
        calls = [leaver.future(request) for request in requests * 8]
        futures = [client.future(request) for request in requests * 4]
        leaver.close()
        for number in range(20):
            client.put(b"m/%d" % number)
        replies = [m.RangeResponse.FromString(future.result()) for future in futures]
        assert all(future.done() for future in calls)
        assert {reply.count for reply in replies} == {MANY}
        assert [len(reply.kvs) for reply in replies] == [0, MANY, MANY, 5] * 4
        assert replies[1].kvs == replies[-3].kvs
        assert replies[3].kvs[0].key == b"k%06d" % (MANY - 1)
        assert node.stop() == 0
