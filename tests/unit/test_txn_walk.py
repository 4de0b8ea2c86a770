"""How many keys a transaction that writes may look at. Each is counted when it comes, and all together are bounded."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import http2 as h
from support import kvmessages as pb
from support.caller import Caller
from support.kvservice import ops, server, whole

from metastore import errors
from metastore._core.grpc import Limits, MethodTable
from metastore._core.h2 import Session
from metastore._core.kv_server import METHODS, KVServer
from metastore._core.mvcc_txn_work import walked_in_pieces
from metastore._core.op import TXN
from metastore._core.waiter import Waiter


def compare_all(end: bytes = b"l") -> Any:
    return pb.Compare(key=b"k", range_end=end, target=1, result=1, create_revision=0)


def writing(compares: int = 0, *more: Any, **fields: Any) -> bytes:
    """Return a put behind so many compares of all keys."""
    put = pb.RequestOp(request_put=pb.PutRequest(key=b"x"))
    return pb.TxnRequest(compare=[compare_all()] * compares, success=[put, *more], **fields).SerializeToString()


def call(kv: KVServer, body: bytes, now: float = 0.0) -> Caller:
    caller = Caller()
    kv.call("Txn", body, caller, now)
    return caller


def every_way() -> dict[str, bytes]:
    """Return transactions that may look at all keys six or seven times; a value counts for four more."""
    delete = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"k", range_end=b"\0"))
    keys, count = ops(whole(keys_only=True)), ops(whole(count_only=True))
    three = pb.RequestOp(request_txn=pb.TxnRequest(compare=[compare_all()], success=keys, failure=count))
    value = pb.Compare(key=b"k", range_end=b"l", target=3, result=3, value=b"")
    return {
        "compares": writing(6),
        "ranges": writing(0, *ops(*[whole(limit=1)] * 6)),
        "a range with values": writing(1, *ops(whole())),
        "values": pb.TxnRequest(compare=[compare_all(), value], success=[delete]).SerializeToString(),
        "deletions": writing(0, *[delete] * 6),
        "the other branch": writing(2, failure=count * 4),
        "nested": writing(0, three, three),
        "spans": pb.TxnRequest(compare=[compare_all(b"k%d" % n) for n in (1, 2)] + [compare_all()] * 3,
                               success=[delete]).SerializeToString(),
    }  # fmt: skip


@pytest.mark.parametrize("name", every_way())
def test_a_transaction_that_looks_at_too_many_keys_is_refused(name: str) -> None:
    body, keys = every_way()[name], 1000
    refusing, allowing = server(keys, 6 * keys - 1), server(keys, 8 * keys)
    refused, taken = call(refusing, body), call(allowing, body)
    assert isinstance(refused.error, errors.TooManyKeys) and refused.error.code == errors.INVALID_ARGUMENT
    assert refused.error.text.startswith("metastore: the transaction looks at too many keys: ")
    assert refused.error.text.endswith(f" or more, limits.max_txn_walk is {6 * keys - 1}")
    assert not refusing.waiters and not refusing.proposer.queued and refusing.refused == 1
    assert taken.error is None and allowing.proposer.queued == 1


def test_single_keys_reads_and_deletions_of_their_own_are_not_counted() -> None:
    kv = server(1000, 1)
    single = pb.Compare(key=b"k0000001", target=1, result=1, create_revision=0)
    puts = [pb.RequestOp(request_put=pb.PutRequest(key=b"%d" % n)) for n in range(100)]
    assert call(kv, pb.TxnRequest(compare=[single] * 100, success=puts).SerializeToString()).error is None
    read = call(kv, pb.TxnRequest(compare=[compare_all()], success=ops(whole())).SerializeToString())
    deletion = Caller()
    kv.call("DeleteRange", pb.DeleteRangeRequest(key=b"k", range_end=b"l").SerializeToString(), deletion, 0.0)
    turns(kv)
    assert (read.error, deletion.error) == (None, None) and read.reply
    assert kv.proposer.queued == 2 and kv.walking == 0
    kv.check_forwarded(TXN, writing(6))  # another member has admitted it


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 41)), min_size=1, max_size=8), st.integers(1, 50))
def test_the_count_does_not_depend_on_its_pieces(spans: list[tuple[int, int]], budget: int) -> None:
    """Keys that are deleted and not compacted are walked over, so they count."""
    kv = server(40)
    kv.store.delete_range(pb.DeleteRangeRequest(key=b"k", range_end=b"k0000010").SerializeToString())
    compares = [pb.Compare(key=b"k%07d" % low, range_end=b"k%07d" % high) for low, high in spans]
    body = pb.TxnRequest(compare=compares, success=[pb.RequestOp(request_put=pb.PutRequest(key=b"x"))])
    expected = sum(1 + len(range(low, min(high, 40))) for low, high in spans)
    assert walked_in_pieces(kv.store, body.SerializeToString(), 1 << 30, budget) == expected
    assert expected // 2 < walked_in_pieces(kv.store, body.SerializeToString(), expected // 2, budget) <= expected


def test_an_engine_that_knows_how_many_keys_there_are_is_asked() -> None:
    """A walk over so many keys would go on in later turns, as it does while the overlay has something."""
    kv = server(20_000)
    body = writing(1, *ops(whole(limit=1), pb.RangeRequest(key=b"k", range_end=b"k0019000", limit=1)))
    expected = walked_in_pieces(kv.store, body, 1 << 30, 1000)
    assert expected == 2 * 20_000 + 1 + 1 + 19_000 + 1
    kv.store.commit(1, 1)
    assert walked_in_pieces(kv.store, body, 1 << 30, 1) == expected
    assert call(kv, body).error is None and (kv.late, kv.proposer.queued) == (0, 1)
    kv.store.put(pb.PutRequest(key=b"other").SerializeToString())
    assert call(kv, writing(1)).error is None and (kv.late, kv.proposer.queued) == (1, 1)
    turns(kv)
    assert kv.proposer.queued == 2


def turns(kv: KVServer) -> None:
    while kv.serve_late():
        pass


def connection(kv: KVServer) -> Callable[[bytes], Waiter]:
    """Return a client, whose transactions reach the service as requests."""
    session = Session(MethodTable({b"/t/Txn": METHODS["Txn"]}), Limits(), [])
    streams = itertools.count(1, 2)
    session.feed(hello := h.hello(), len(hello), 0.0)

    def ask(body: bytes) -> Waiter:
        data = h.call(next(streams), body, b"/t/Txn")
        [request] = session.feed(data, len(data), 0.0)
        assert kv.handle([request], 0.0) == []
        turns(kv)
        return request

    return ask


def test_those_under_way_together_look_at_no_more_keys_than_one_may() -> None:
    """A transaction that would exceed the limit waits, and is not overtaken by those that look at fewer keys."""
    kv = server(1000, 2500)
    one, other, third = connection(kv), connection(kv), connection(kv)
    under_way = [one(writing(1)), one(writing(1))]
    large, small, again = other(writing(2)), third(writing(1)), one(writing(1))
    assert list(kv.waiters.values()) == under_way and kv.walking == 2002
    assert (kv.late, kv.proposer.queued) == (3, 2)
    put = third(writing())
    assert list(kv.waiters.values())[2:] == [put], "what looks at single keys waits for nobody"

    def answered(waiter: Waiter) -> list[Waiter]:
        """Return the transactions under way after this one has ended."""
        del kv.waiters[next(ident for ident, other in kv.waiters.items() if other is waiter)]
        turns(kv)
        return list(kv.waiters.values())

    assert answered(put) == under_way
    assert answered(under_way[0]) == under_way[1:], "there is room for the small ones, but it is not their turn"
    newcomer = connection(kv)(writing(1))
    assert list(kv.waiters.values()) == under_way[1:]
    assert answered(under_way[1]) == [large]
    assert set(answered(large)) < {small, again, newcomer} and kv.late == 1


def test_waiting_for_others_that_look_at_keys_has_an_end() -> None:
    kv = server(1000, 1500)
    under_way, late, later = call(kv, writing(1), 1.0), call(kv, writing(1), 2.0), call(kv, writing(1), 4.0)
    turns(kv)
    assert kv.late == 2
    kv.expire(9.5, 7.0)
    assert isinstance(late.error, errors.Timeout) and later.error is None
    kv.waiters.clear()
    turns(kv)
    assert list(kv.waiters.values()) == [later] and under_way.error is None
    stopped = call(kv, writing(1), 5.0)
    kv.abandon_late(errors.Stopped)
    assert isinstance(stopped.error, errors.Stopped) and kv.late == 0


def test_the_time_of_a_transaction_begins_when_it_comes() -> None:
    """Found by the simulator: one that had waited for others had all its time once more from then on."""
    kv = server(1000, 1500)
    for now in (1.0, 2.0, 3.0):
        call(kv, writing(1), now)
    turns(kv)
    kv.expire(5.0, 7.0)
    kv.waiters.clear()
    turns(kv)
    [ident] = kv.waiters
    assert kv.overdue(1.9) == [] and kv.overdue(2.0) == [ident] and kv.overdue(2.0) == []
    kv.waiters.clear()
    turns(kv)
    assert len(kv.waiters) == 1
    kv.waiters.clear()
    assert kv.overdue(9.0) == [], "it was answered in time"
