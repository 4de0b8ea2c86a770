"""Work in pieces: a transaction in pieces of any size gives the same reply and state as in one go; memory is given
back; clients share a turn; and the contents of a request are counted before any object is made from it."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim.varint import varint
from support import kvmessages as pb
from support.caller import Caller
from support.kvrequests import COMPARES, RANGES, build
from support.kvservice import ops, server, whole
from support.longranges import Writer, outcome

from metastore import errors
from metastore._core import build_info, mvcc_txn
from metastore._core.mvcc import Store
from metastore._core.mvcc_txn_work import execute_txn, read_in_pieces
from metastore.plugin import Engine
from metastore.storage.engines.memory import MemoryEngine


def reads_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw a read-only transaction whose nested ones come from `inner`."""
    op = st.one_of(st.tuples(st.just("request_range"), RANGES), st.tuples(st.just("request_txn"), inner))
    return st.builds(
        dict, compare=st.lists(COMPARES, max_size=3), success=st.lists(op, max_size=4), failure=st.lists(op, max_size=4)
    )


EMPTY = st.builds(dict, compare=st.just([]), success=st.just([]), failure=st.just([]))
READS = st.recursive(EMPTY, reads_of, max_leaves=8)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30), st.lists(READS, min_size=1, max_size=3), st.integers(1, 40))
def test_a_readonly_transaction_in_pieces_answers_the_same(
    seed: int, changes: int, reads: list[dict], budget: int
) -> None:
    """This holds whatever is written, compacted and swept between two of its pieces."""
    writer = Writer(seed)
    for _ in range(changes):
        writer.change()
    for fields in reads:
        body = build("txn", fields, writer.store.revision).SerializeToString()
        expected = outcome(lambda body=body: execute_txn(writer.store, body))
        assert outcome(lambda body=body: read_in_pieces(writer.store, body, budget, writer.change_much)) == expected


class Seen(MemoryEngine):
    """An engine whose views do not know how many keys they have, as those of RocksDB."""

    def view(self) -> Engine:
        seen = MemoryEngine()
        seen.restore([*self.scan(b"", None, False, 0)])
        return Blind(seen)


class Blind(Engine):
    """A view that can only be walked over."""

    def __init__(self, inner: MemoryEngine) -> None:
        self.inner = inner

    def scan(self, *args: Any) -> list[tuple[bytes, bytes]]:
        return self.inner.scan(*args)

    def get(self, key: bytes) -> bytes | None:
        return self.inner.get(key)


@pytest.mark.parametrize("revision", [0, 3100])
def test_a_later_range_of_a_transaction_is_not_walked_over_to_be_counted(revision: int) -> None:
    """By then the transaction reads a view, and others write. The live store knows the count at its revision."""
    store = Store(Seen())
    for number in range(3000):
        store.put(pb.PutRequest(key=b"k%06d" % number).SerializeToString())
    for number in range(100):
        store.delete_range(pb.DeleteRangeRequest(key=b"k%06d" % (number * 7)).SerializeToString())
    store.commit(1, 1)
    store.put(pb.PutRequest(key=b"k1").SerializeToString())
    store.commit(2, 1)
    pieces, later = 0, itertools.count(2)

    def between() -> None:
        nonlocal pieces
        pieces += 1
        store.put(pb.PutRequest(key=b"k%06d-" % pieces).SerializeToString())
        store.delete_range(pb.DeleteRangeRequest(key=b"k%06d" % (1500 + pieces)).SerializeToString())
        if pieces % 2:
            store.commit(next(later), 1)

    fields = {"key": b"k", "range_end": b"l", "limit": 2, "revision": revision}
    body = pb.TxnRequest(success=ops(*[pb.RangeRequest(**fields)] * 20)).SerializeToString()
    expected = execute_txn(store, body)
    assert read_in_pieces(store, body, 20, between) == expected
    assert pieces < 20 * 6, "a walk over 3,000 keys in pieces of 20 takes 150"


def nest(body: bytes) -> bytes:
    """Put an encoded transaction inside another one."""
    op = b"\x22" + varint(len(body)) + body
    return b"\x12" + varint(len(op)) + op


def test_what_a_transaction_may_hold_is_counted_before_it_is_decoded() -> None:
    """Two million bytes of empty operations took half a second once."""
    empty = b"\x12\x00" * 900_000
    deep = b""
    for _ in range(5000):
        deep = nest(deep)
    wide = pb.TxnRequest(success=[pb.RequestOp(request_txn=pb.TxnRequest(success=ops(*[whole()] * 20)))] * 60)
    members = b"\x12" + varint(1_800_000) + b"\x0a\x00" * 900_000
    unknown = b"\xa0\x06\x00" * 600_000
    for body in (empty, deep, wide.SerializeToString(), members, unknown, b"\x0a" + varint(len(unknown)) + unknown):
        began = time.thread_time()
        with pytest.raises(errors.TooManyOps):
            mvcc_txn.check_txn(body)
        # Decoding took fifty times as long. The build with bounds checks takes ten times as long for everything.
        assert time.thread_time() - began < (0.05 if build_info()["flavour"] == "release" else 0.2)
    mvcc_txn.check_txn(wide.SerializeToString(), 1000)


def test_fields_of_a_request_are_counted_before_it_is_decoded() -> None:
    kv = server(1)
    for method in ("Put", "Range", "DeleteRange", "Compaction"):
        caller = Caller()
        kv.call(method, b"\x0a\x01k" + b"\xa0\x06\x00" * 600_000, caller, 0.0)
        assert isinstance(caller.error, errors.MalformedRequest) and "1024 fields" in caller.error.text


def test_looking_for_overlaps_is_bounded() -> None:
    """Each level above a put looks at it again."""
    puts = [pb.RequestOp(request_put=pb.PutRequest(key=b"%d" % n)) for n in range(900)]
    body = pb.TxnRequest(success=puts).SerializeToString()
    for _ in range(60):
        body = nest(body)
    with pytest.raises(errors.TooManyOps):
        mvcc_txn.check_txn(body, 1000)


def test_many_transactions_of_one_turn_are_admitted_over_several() -> None:
    """The checks of a transaction cost more than those of any other request."""
    kv = server(1)
    body = pb.TxnRequest(
        success=[pb.RequestOp(request_put=pb.PutRequest(key=b"k%d" % number)) for number in range(128)]
    ).SerializeToString()
    for _ in range(200):
        kv.call("Txn", body, Caller(), 0.0)
    admitted = [kv.proposer.queued]
    while kv.serve_late():
        admitted.append(kv.proposer.queued)
    assert admitted[-1] == 200 and admitted[0] < 60
    assert all(b - a < 60 for a, b in itertools.pairwise(admitted))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 2000))
def test_a_transaction_that_writes_does_the_same_in_pieces(budget: int) -> None:
    """(test_mvcc.py compares both with the model; this one has many keys.)"""
    whole_store, pieces = Store(MemoryEngine()), Store(MemoryEngine())
    for store in (whole_store, pieces):
        for number in range(300):
            store.put(pb.PutRequest(key=b"k%03d" % number, value=b"v").SerializeToString())
    request = pb.TxnRequest(
        compare=[pb.Compare(key=b"k", range_end=b"l", target=1, result=1, create_revision=0)],
        success=[
            pb.RequestOp(request_range=pb.RangeRequest(key=b"k", range_end=b"l", sort_target=2, sort_order=2)),
            pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"k1", range_end=b"k2", prev_kv=True)),
            pb.RequestOp(request_range=pb.RangeRequest(key=b"k", range_end=b"l")),
            pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"k", range_end=b"\0")),
        ],
    )
    body = request.SerializeToString()
    assert execute_txn(pieces, body, True, budget) == execute_txn(whole_store, body)
    assert pieces.overlay.scan() == whole_store.overlay.scan()
