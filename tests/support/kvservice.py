"""The KV service over a store in memory, and callers that keep their results."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from metastore._core.batch import BatchProposer
from metastore._core.kv_server import KVServer
from metastore._core.mvcc import Store
from metastore._core.work import set_held_most
from metastore.storage.engines.memory import MemoryEngine

from . import kvmessages as pb


def server(keys: int, walk: int = 1 << 30) -> KVServer:
    """Make a KV service over so many keys. A transaction that writes may look at `walk` of these."""
    # A node with little memory, which another test ran in this process, has left smaller bounds.
    set_held_most(512 << 20, 256 << 20)
    store = Store(MemoryEngine())
    for number in range(keys):
        store.put(pb.PutRequest(key=b"k%07d" % number, value=b"%07d" % (number * 7919 % keys)).SerializeToString())
    store.commit(1, 1)
    limits = SimpleNamespace(
        max_request_bytes=1 << 21, max_txn_ops=128, max_key_bytes=0, max_txn_walk=walk, max_inflight_requests=1000
    )
    return KVServer(store, BatchProposer(50, 1 << 22, 0.002, 1000, 1 << 24, True), {}, 1, limits)


def ops(*ranges: Any) -> list[Any]:
    return [pb.RequestOp(request_range=one) for one in ranges]


def whole(**more: Any) -> Any:
    return pb.RangeRequest(key=b"k", range_end=b"l", serializable=True, **more)
