"""Keys that are longer than `limits.max_key_bytes` are refused in all requests, before anything is logged."""

from __future__ import annotations

from typing import Any

import pytest
from support import messages as m
from support.caller import Caller

from metastore import errors
from metastore._core.batch import BatchProposer
from metastore._core.codec import PayloadCodec
from metastore._core.engine import MemoryEngine
from metastore._core.kv_keys import check_request
from metastore._core.kv_server import KVServer
from metastore._core.mvcc import Store
from metastore._core.op import DELETE_RANGE, PUT, TXN
from metastore.member.abilities import Abilities, CommonCodecs
from metastore.peers.handshake import NOBODY, PeerIdentity, replace
from metastore.settings import LimitsTable

MOST = 20
LONG = [b"k" * 21, b"k" * 19 + b"\0", b"\0" * 11, b"k" * 100_000]
SHORT = [b"k" * 20, b"k" * 18 + b"\0", b"\0" * 10, b"a"]


def requests(key: bytes) -> dict[str, tuple[str, int, Any]]:
    """Return requests that have a key in each place where a key can be, with their methods and kinds."""
    put, delete = m.PutRequest(key=key, value=b"v" * 1000), m.DeleteRangeRequest(key=key)
    asks, ends = m.RangeRequest(key=key), m.RangeRequest(key=b"a", range_end=key)
    found: dict[str, tuple[str, int, Any]] = {
        "put": ("Put", 2, put), "range": ("Range", 1, asks), "end": ("Range", 1, ends),
        "delete": ("DeleteRange", 3, delete),
        "delete end": ("DeleteRange", 3, m.DeleteRangeRequest(key=b"a", range_end=key)),
    }  # fmt: skip
    operations = {
        "put": m.RequestOp(request_put=put), "range": m.RequestOp(request_range=asks),
        "end": m.RequestOp(request_range=ends), "delete": m.RequestOp(request_delete_range=delete),
    }  # fmt: skip
    operations["txn"] = m.RequestOp(request_txn=m.TxnRequest(failure=[operations["put"]]))
    for name, operation in operations.items():
        found[f"then {name}"] = ("Txn", 4, m.TxnRequest(success=[operation]))
        found[f"else {name}"] = ("Txn", 4, m.TxnRequest(failure=[operation]))
    compare = m.Compare(key=key, target=m.CMP_VERSION, result=m.GREATER, version=0)
    found["compare"] = ("Txn", 4, m.TxnRequest(compare=[compare]))
    compare = m.Compare(key=b"a", range_end=key, target=m.CMP_VERSION, result=m.GREATER, version=0)
    found["compare end"] = ("Txn", 4, m.TxnRequest(compare=[compare]))
    return found


def served(most: int) -> KVServer:
    """Return a KV service with this limit."""
    proposer = BatchProposer(50, 1 << 20, 0.002, 100, 1 << 20, True)
    return KVServer(Store(MemoryEngine(), 3, 4), proposer, {}, 1, LimitsTable(max_key_bytes=most))


@pytest.mark.parametrize("place", requests(b""))
def test_a_long_key_is_refused_wherever_it_stands(place: str) -> None:
    for key in LONG:
        method, kind, request = requests(key)[place]
        body = request.SerializeToString()
        with pytest.raises(errors.RequestTooLarge, match=r"a key takes \d+ bytes, limits\.max_key_bytes is 20"):
            check_request(kind, body, MOST)
        check_request(kind, body, 0)
        check_request(kind, body, len(key) * 2)
        kv, caller = served(MOST), Caller()
        kv.call(method, body, caller, 0.0)
        assert isinstance(caller.error, errors.RequestTooLarge), (key, caller.error)
        assert not kv.proposer.queued
        operation = {"Put": PUT, "DeleteRange": DELETE_RANGE, "Txn": TXN}.get(method)
        if operation is not None:
            # A follower with another limit has admitted it.
            with pytest.raises(errors.RequestTooLarge):
                kv.check_forwarded(operation, body)
            served(0).check_forwarded(operation, body)
    for key in SHORT:
        method, kind, request = requests(key)[place]
        kv, caller = served(MOST), Caller()
        kv.call(method, request.SerializeToString(), caller, 0.0)
        assert caller.error is None, (key, caller.error)


def test_what_is_no_request_is_left_to_others() -> None:
    for kind in (1, 2, 3, 4, 5, 77):
        check_request(kind, b"\xff\xff", 1)
        check_request(kind, b"", 1)
    deep = m.TxnRequest(success=[m.RequestOp(request_put=m.PutRequest(key=b"k" * 50))]).SerializeToString()
    for _ in range(300):
        deep = wrapped(0x12, wrapped(0x22, deep))  # a transaction in an operation in a transaction
    check_request(4, deep, MOST)  # it is refused for its depth


def wrapped(tag: int, body: bytes) -> bytes:
    """Return a message with one field that holds another message."""
    size, left = b"", len(body)
    while left > 127:
        size, left = size + bytes([left & 127 | 128]), left >> 7
    return bytes([tag]) + size + bytes([left]) + body


@pytest.mark.parametrize("own", [0, 30])
def test_no_key_is_admitted_that_another_member_cannot_store(own: int) -> None:
    kv = served(own)
    abilities = Abilities(kv, PayloadCodec(None, 64, 1000), CommonCodecs())

    def after(*others: PeerIdentity | None) -> int:
        abilities.update(others)
        return kv.max_logged_key

    free, short, long = (replace(NOBODY, max_key=size) for size in (0, 20, 40))
    assert after() == after(None) == after(free, None) == own
    assert after(short, long, None) == after(free, short) == 20
    caller = Caller()
    kv.call("Put", m.PutRequest(key=b"k" * 21, value=b"v").SerializeToString(), caller, 0.0)
    assert isinstance(caller.error, errors.RequestTooLarge) and "is 20 (for writes the least of all members)" in str(
        caller.error
    )
    reader = Caller()
    kv.call("Range", m.RangeRequest(key=b"k" * 30, serializable=True).SerializeToString(), reader, 0.0)
    assert reader.error is None, "only this member reads it"
    # The member has left.
    assert after(long) == (own or 40) and after(free) == own
