"""RangeStream through the port of a real node, with both engines: what it answers, what it keeps in memory, how long a
turn of the loop is, and what a compaction does to it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support import http2 as h
from support import messages as m
from support.attack import MIB, Raw
from support.client import Client, op
from support.processes import Server, make_server, metric, wait_until
from support.turns import no_long_turn

pytestmark = pytest.mark.node_only

KEYS = {"memory": 40_000, "rocksdb": 20_000}
PATH = b"/etcdserverpb.KV/RangeStream"
VALUE = 512


@pytest.fixture(scope="module", params=sorted(KEYS))
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, int]]:
    """Yield a node with many keys, and their number."""
    settings = {"storage.engine": f'"{request.param}"', "limits.max_txn_ops": "2000", "limits.request_timeout": '"60s"'}
    folder: Path = tmp_path_factory.mktemp(request.param) / "data"
    server = make_server(request.config.getoption("--server"), folder, settings=settings)
    with server.start(), server.client(60) as client:
        fill(client, KEYS[request.param], b"1")
        yield server, KEYS[request.param]
    server.discard()


def fill(client: Client, count: int, value: bytes) -> None:
    for first in range(0, count, 2000):
        puts = [m.PutRequest(key=b"k%06d" % n, value=value * VALUE) for n in range(first, first + 2000)]
        client.txn(success=[op(put) for put in puts])


def merged(responses: Any) -> Any:
    """Return the chunks of a stream as one response. Only the last one has header, count and `more`."""
    whole = m.RangeResponse()
    for response in responses:
        assert not whole.HasField("header"), "nothing follows the last chunk"
        assert response.HasField("header") or response.kvs
        assert response.HasField("header") or not (response.count or response.more)
        whole.MergeFrom(response)
    assert whole.HasField("header")
    return whole


def test_a_stream_is_the_range(node: tuple[Server, int]) -> None:
    server, count = node
    flags: list[dict[str, Any]] = [
        {}, {"serializable": True}, {"limit": 700}, {"limit": count}, {"limit": count + 1}, {"count_only": True},
        {"keys_only": True, "limit": count // 2}, {"sort_order": 1}, {"revision": 5}, {"limit": -1},
    ]  # fmt: skip
    with server.client(60) as client, no_long_turn(server):
        for more in flags:
            assert merged(client.range_stream(b"k", b"l", **more)) == client.range(b"k", b"l", **more), more
        for key, end in ((b"k000007", b""), (b"none", b""), (b"a", b"b"), (b"k000007", b"\0"), (b"\0", b"\0")):
            assert merged(client.range_stream(key, end)) == client.range(key, end)


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"sort_order": 2}, 12, "order"), ({"sort_target": 3}, 12, "order"), ({"max_mod_revision": 9}, 12, "filter"),
        ({"revision": 1 << 40}, 11, "etcdserver: mvcc: required revision is a future revision"),
        ({"key": b""}, 3, "etcdserver: key is not provided"), ({"sort_order": 7}, 3, "invalid sort option"),
    ],
)  # fmt: skip
def test_refusals(node: tuple[Server, int], fields: dict[str, Any], code: int, text: str) -> None:
    with node[0].client() as client, pytest.raises(grpc.RpcError) as raised:
        list(client.range_stream(**{"key": b"k", "range_end": b"l", **fields}))
    assert raised.value.code().value[0] == code and text in raised.value.details()


def test_what_a_stream_keeps_in_memory(node: tuple[Server, int]) -> None:
    """A reading client never has much more than two chunks here, and one that stops with its windows as gRPC
    has them (64 KiB) has a small one."""
    server, count = node

    def kept() -> float:
        return metric(server, "metastore_kv_late_bytes") + metric(server, "metastore_client_reply_bytes")

    with server.client(60) as client:
        most = 0.0
        responses = client.range_stream(b"k", b"l")
        seen = 0
        for number, response in enumerate(responses):
            seen += len(response.kvs)
            if number % 4 == 0:
                most = max(most, kept())
        assert seen == count
        # A chunk is joined from parts, so it is there twice for a moment.
        assert most < 6 * MIB, most
    request = m.RangeRequest(key=b"k", range_end=b"l").SerializeToString()
    with contextlib.ExitStack() as stack, no_long_turn(server):
        raws = [stack.enter_context(Raw(server, window=65_535)) for _ in range(30)]
        for raw in raws:
            raw.send(b"".join(h.call(stream, request, PATH) for stream in range(1, 11, 2)))
        wait_until(lambda: metric(server, "metastore_kv_range_streams") == 150, 30, "150 streams")
        wait_until(lambda: metric(server, "metastore_kv_late_requests") == 0, 30, "the end of all work")
        assert kept() < 150 * 70_000
        with server.client() as client:
            assert client.get(b"k000001") == b"1" * VALUE
    wait_until(lambda: metric(server, "metastore_kv_range_streams") == 0, 30, "the end of the streams")


def test_a_compaction_meanwhile(node: tuple[Server, int]) -> None:
    """The client has read a part when all keys are overwritten and compacted. It gets the rest of what it began."""
    server, count = node
    with server.client(60) as client, server.client(60) as writer:
        before = writer.range(b"k", b"l")
        responses = client.range_stream(b"k", b"l")
        first = next(responses)
        fill(writer, count, b"2")
        writer.compact(writer.revision())
        assert metric(server, "metastore_sweep_pending") == 1
        whole = merged(itertools.chain([first], responses))
        assert whole.kvs == before.kvs and whole.count == count
        wait_until(lambda: metric(server, "metastore_sweep_pending") == 0, 40, "the sweep")
        assert merged(client.range_stream(b"k", b"l")).kvs[0].value == b"2" * VALUE
