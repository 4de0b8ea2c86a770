"""The store against the plain-dict model: random requests, with every reply and every error compared byte for byte."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim.varint import varint
from support import kvmessages as pb
from support.kvmodel import Model
from support.kvrequests import BACK, CHECKPOINTS, DELETES, GRANTS, PUTS, RANGES, REVOKES, TXNS, build

from metastore import errors
from metastore._core import kv_messages, mvcc_txn
from metastore._core.leases import encode_checkpoint, encode_grant, encode_revoke
from metastore._core.mvcc import Store
from metastore._core.mvcc_keys import encode_index_key
from metastore._core.mvcc_sweep import sweep_slice
from metastore._core.mvcc_txn_work import execute, execute_txn
from metastore._core.op import LEASE_CHECKPOINT, LEASE_GRANT, LEASE_REVOKE
from metastore._core.ordered_map import OrderedMap
from metastore.storage.engines.memory import MemoryEngine

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), PUTS),
        st.tuples(st.just("put"), PUTS),
        st.tuples(st.just("range"), RANGES),
        st.tuples(st.just("delete_range"), DELETES),
        st.tuples(st.just("txn"), TXNS),
        st.tuples(st.just("txn"), TXNS),
        st.tuples(st.just("compact"), BACK),
        st.tuples(st.just("grant"), GRANTS),
        st.tuples(st.just("grant"), GRANTS),
        st.tuples(st.just("revoke"), REVOKES),
        st.tuples(st.just("checkpoint"), CHECKPOINTS),
        st.tuples(st.just("commit"), st.none()),
        st.tuples(st.just("sweep"), st.integers(1, 40)),
        st.tuples(st.just("restart"), st.none()),
    ),
    max_size=60,
)


REPLIES = {
    "put": pb.PutResponse,
    "range": pb.RangeResponse,
    "delete_range": pb.DeleteRangeResponse,
    "txn": pb.TxnResponse,
    "compact": pb.CompactionResponse,
}
CHECKS = {
    "put": kv_messages.check_put,
    "range": kv_messages.check_range,
    "delete_range": kv_messages.check_delete_range,
    "txn": mvcc_txn.check_txn,
    "compact": kv_messages.check_compact,
}


OF_LEASES = {
    "grant": (LEASE_GRANT, lambda fields: encode_grant(*fields)),
    "revoke": (LEASE_REVOKE, lambda fields: encode_revoke(*fields)),
    "checkpoint": (LEASE_CHECKPOINT, encode_checkpoint),
}


def change_leases(store: Store, model: Model, kind: str, fields: Any) -> None:
    """Carry out an operation of leases, here and in the model."""
    outcomes: list[Any] = [None, None]
    number, encode = OF_LEASES[kind]
    for n, act in enumerate((lambda: execute(store, number, encode(fields)), lambda: model.execute(kind, fields))):
        try:
            act()
        except errors.ApiError as error:
            outcomes[n] = type(error)
    assert outcomes[0] == outcomes[1], (kind, fields)


def same_leases(store: Store, model: Model) -> None:
    leases = store.leases
    assert {lease: (leases.ttl(lease), leases.remaining(lease)) for lease in leases.ids()} == model.leases
    assert leases.count == len(model.leases)
    for lease in (7, 8, -1):
        assert leases.keys(lease) == model.keys(lease)


def ask(store: Store, kind: str, body: bytes) -> bytes:
    if kind == "txn":
        return execute_txn(store, body)
    return store.range_reply(body) if kind == "range" else getattr(store, kind)(body)


@settings(max_examples=250, deadline=None)
@given(STEPS)
def test_every_reply_equals_the_models(steps: list[tuple]) -> None:
    store, model, index = Store(MemoryEngine()), Model(), 0
    for kind, fields in steps:
        if kind == "commit":
            index += 1
            store.commit(index, 1)
        elif kind == "sweep":
            sweep_slice(store, fields)
        elif kind == "restart":
            index += 1
            store.commit(index, 1)
            store = Store(store.engine.view() if index % 2 else store.engine)
            copy = MemoryEngine()
            copy.restore(store.engine.scan(b"", None, False, 0))
            store = Store(copy)
        elif kind in OF_LEASES:
            change_leases(store, model, kind, fields)
        else:
            req = build(kind, fields, model.revision)
            body = req.SerializeToString()
            try:
                CHECKS[kind](body)
            except errors.ApiError:
                continue
            try:
                expected: Any = model.execute(kind, req)
            except errors.ApiError as error:
                expected = type(error)
            try:
                reply: Any = REPLIES[kind].FromString(ask(store, kind, body))
            except errors.ApiError as error:
                reply = type(error)
            # Pairs that are equal in the sort column stay in key order, here and in the model.
            assert normal(reply) == normal(expected), (kind, req)
        assert store.revision == model.revision
        same_leases(store, model)


def normal(reply: Any) -> Any:
    """Return replies as bytes, and errors unchanged."""
    return reply if isinstance(reply, type) else reply.SerializeToString(deterministic=True)


def put(key: bytes, value: bytes = b"v", **more: Any) -> bytes:
    return pb.PutRequest(key=key, value=value, **more).SerializeToString()


def get(store: Store, key: bytes, **more: Any) -> Any:
    return pb.RangeResponse.FromString(store.range_reply(pb.RangeRequest(key=key, **more).SerializeToString()))


def test_header_holds_ids_and_term() -> None:
    store = Store(MemoryEngine(), 2**64 - 1, 2**63)
    store.raft_term = 5
    reply = pb.PutResponse.FromString(store.put(put(b"a")))
    assert (reply.header.cluster_id, reply.header.member_id) == (2**64 - 1, 2**63)
    assert (reply.header.revision, reply.header.raft_term) == (2, 5)
    ranged = pb.RangeResponse.FromString(store.range_reply(pb.RangeRequest(key=b"a").SerializeToString(), 9))
    assert ranged.header.raft_term == 9 and ranged.kvs[0].mod_revision == 2


def test_compaction_keeps_its_own_revision_and_frees_the_rest() -> None:
    store = Store(MemoryEngine())
    for number in range(200):
        store.put(put(b"hot", b"%d" % number))
        store.put(put(b"k%d" % number))
    store.delete_range(pb.DeleteRangeRequest(key=b"k", range_end=b"l").SerializeToString())
    last = store.revision
    store.commit(1, 1)
    before = store.engine.size()
    store.compact(pb.CompactionRequest(revision=last - 1).SerializeToString())
    assert len(get(store, b"k", range_end=b"l", revision=last - 1).kvs) == 200
    with pytest.raises(errors.Compacted):
        get(store, b"hot", revision=last - 2)
    store.commit(2, 1)
    slices = 0
    while sweep_slice(store, 50):
        slices += 1
    assert slices > 10
    assert len(get(store, b"k", range_end=b"l", revision=last - 1).kvs) == 200
    assert get(store, b"hot", revision=last - 1).kvs[0].value == b"199"
    assert store.engine.size() < before
    store.put(put(b"one more"))
    store.compact(pb.CompactionRequest(revision=last + 1).SerializeToString())
    store.commit(3, 1)
    while sweep_slice(store, 50):
        pass
    keys = [key for key, _ in store.engine.scan(b"", None, False, 0)]
    assert sum(key[:1] == b"k" for key in keys) == 2 == sum(key[:1] == b"r" for key in keys), keys


def test_sweep_goes_on_after_a_restart() -> None:
    store = Store(MemoryEngine())
    for number in range(100):
        store.put(put(b"a", b"%d" % number))
    store.compact(pb.CompactionRequest(revision=101).SerializeToString())
    store.commit(1, 1)
    assert sweep_slice(store, 10)
    again = Store(store.engine)
    assert again.compact_revision == 101
    while sweep_slice(again, 10):
        pass
    assert len(again.engine.scan(b"r", None, False, 0)) == 1
    assert not sweep_slice(Store(again.engine), 10)


def test_a_swept_tombstone_at_the_compact_revision_stays() -> None:
    store = Store(MemoryEngine())
    store.put(put(b"a"))
    store.delete_range(pb.DeleteRangeRequest(key=b"a").SerializeToString())
    store.compact(pb.CompactionRequest(revision=3).SerializeToString())
    store.commit(1, 1)
    while sweep_slice(store, 10):
        pass
    assert len(store.engine.scan(b"r", None, False, 0)) == 1
    assert Store(store.engine).revision == 3


def test_a_failed_transaction_changes_nothing_even_half_way() -> None:
    """etcd's overlap check does not see a deletion "from key on": the put fails when the deletion is already done."""
    store = Store(MemoryEngine())
    store.put(put(b"a", b"1"))
    store.put(put(b"b", b"2"))
    store.commit(1, 1)
    req = pb.TxnRequest()
    req.success.add(request_put=pb.PutRequest(key=b"0", value=b"x"))
    req.success.add(request_delete_range=pb.DeleteRangeRequest(key=b"a", range_end=b"\0"))
    req.success.add(request_put=pb.PutRequest(key=b"b", ignore_value=True))
    body = req.SerializeToString()
    mvcc_txn.check_txn(body)
    with pytest.raises(errors.KeyNotFound):
        execute_txn(store, body)
    assert store.revision == 3 and len(store.overlay) == 0
    assert [kv.key for kv in get(store, b"\0", range_end=b"\0").kvs] == [b"a", b"b"]
    store.put(put(b"c"))
    assert store.revision == 4


def test_deleted_and_put_again_in_one_transaction() -> None:
    store = Store(MemoryEngine())
    store.put(put(b"a", b"1"))
    req = pb.TxnRequest()
    req.success.add(request_delete_range=pb.DeleteRangeRequest(key=b"a", range_end=b"\0"))
    req.success.add(request_put=pb.PutRequest(key=b"a", value=b"2"))
    execute_txn(store, req.SerializeToString())
    kv = get(store, b"a").kvs[0]
    assert (kv.create_revision, kv.mod_revision, kv.version, kv.value) == (3, 3, 1, b"2")


def nested(depth: int) -> bytes:
    """Return a transaction `depth` levels deep, without building it as messages."""
    heads: list[bytes] = []
    size = 0
    for _ in range(depth):
        inner = b"\x22" + varint(size)
        heads.append(b"\x12" + varint(len(inner) + size) + inner)
        size += len(heads[-1])
    return b"".join(reversed(heads))


def test_nesting_is_bounded() -> None:
    store = Store(MemoryEngine())
    mvcc_txn.check_txn(nested(128))
    assert pb.TxnResponse.FromString(execute_txn(store, nested(40))).succeeded
    assert execute_txn(store, nested(128)).startswith(b"\x0a\x02\x18\x01\x10\x01")
    for depth in (129, 5_000, 100_000):
        with pytest.raises(errors.TooManyOps):
            mvcc_txn.check_txn(nested(depth))
        with pytest.raises(errors.TooManyOps):
            execute_txn(store, nested(depth))
        with pytest.raises(errors.TooManyOps):
            mvcc_txn.check_txn(nested(depth), 10**6)


def check_text(req: Any, expected: type | None, max_ops: int = 128) -> None:
    if expected is None:
        mvcc_txn.check_txn(req.SerializeToString(), max_ops)
        return
    with pytest.raises(expected):
        mvcc_txn.check_txn(req.SerializeToString(), max_ops)


def test_number_of_operations() -> None:
    op = pb.RequestOp(request_range=pb.RangeRequest(key=b"a"))
    check_text(pb.TxnRequest(success=[op] * 128, failure=[op] * 128), None)
    check_text(pb.TxnRequest(success=[op] * 129), errors.TooManyOps)
    check_text(pb.TxnRequest(compare=[pb.Compare(key=b"a")] * 129), errors.TooManyOps)
    inner = pb.RequestOp(request_txn=pb.TxnRequest(success=[op] * 127))
    check_text(pb.TxnRequest(success=[inner]), None)
    check_text(pb.TxnRequest(success=[inner, op]), errors.TooManyOps)
    check_text(pb.TxnRequest(success=[op, op]), errors.TooManyOps, 1)


def test_order_of_the_checks() -> None:
    bad_put = pb.RequestOp(request_put=pb.PutRequest(key=b"a", value=b"1", ignore_value=True))
    twice = [pb.RequestOp(request_put=pb.PutRequest(key=b"b"))] * 2
    check_text(pb.TxnRequest(compare=[pb.Compare()], success=[bad_put]), errors.EmptyKey)
    check_text(pb.TxnRequest(success=[*twice, bad_put]), errors.ValueProvided)
    check_text(pb.TxnRequest(success=twice), errors.DuplicateKey)
    check_text(pb.TxnRequest(success=[pb.RequestOp()]), errors.KeyNotFound)
    check_text(
        pb.TxnRequest(failure=[pb.RequestOp(request_put=pb.PutRequest(key=b"a", ignore_lease=True, lease=1))]),
        errors.LeaseProvided,
    )
    check_text(
        pb.TxnRequest(failure=[pb.RequestOp(request_range=pb.RangeRequest(key=b"a", sort_order=3))]),
        errors.InvalidSortOption,
    )


def overlap(*ops: Any) -> Any:
    return pb.TxnRequest(success=list(ops))


def test_overlaps_of_puts_and_deletes() -> None:
    def one(key: bytes) -> Any:
        return pb.RequestOp(request_put=pb.PutRequest(key=key))

    def deletion(key: bytes, end: bytes = b"") -> Any:
        return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=end))

    def sub(then: list, other: list = ()) -> Any:
        return pb.RequestOp(request_txn=pb.TxnRequest(success=then, failure=other))

    check_text(overlap(deletion(b"a"), one(b"a")), errors.DuplicateKey)
    check_text(overlap(one(b"b"), deletion(b"a", b"c")), errors.DuplicateKey)
    check_text(overlap(one(b"c"), deletion(b"a", b"c"), deletion(b"a", b"b")), None)
    check_text(overlap(deletion(b"a", b"c"), deletion(b"b", b"d")), None)
    check_text(overlap(deletion(b"c", b"a"), one(b"b")), None)
    check_text(overlap(one(b"a"), sub([one(b"a")])), errors.DuplicateKey)
    check_text(overlap(sub([one(b"a")], [one(b"a")])), None)
    check_text(overlap(sub([one(b"a")]), sub([], [one(b"a")])), errors.DuplicateKey)
    check_text(overlap(deletion(b"a", b"b"), sub([], [sub([one(b"aa")])])), errors.DuplicateKey)
    check_text(overlap(one(b"aa"), sub([], [sub([deletion(b"a", b"b")])])), errors.DuplicateKey)
    check_text(overlap(sub([deletion(b"a")]), sub([one(b"a")])), errors.DuplicateKey)
    check_text(overlap(deletion(b"a", b"\0"), one(b"b")), None)
    check_text(pb.TxnRequest(success=[one(b"a")], failure=[one(b"a")]), None)


def damaged(key: bytes, value: bytes) -> Store:
    """Return a store with one pair whose engine record `key` has been replaced."""
    store = Store(MemoryEngine())
    store.put(put(b"a", b"value"))
    store.commit(1, 1)
    batch = OrderedMap()
    batch.set(key, value)
    store.engine.write(batch, 2, 1)
    return store


def test_damaged_index_records_are_told() -> None:
    key = encode_index_key(b"a", 2)
    good = damaged(b"m", b"").engine.get(key)
    assert good == b"\1\0\2\1"
    for n in range(len(good)):
        with pytest.raises(errors.DamagedData):
            get(damaged(key, good[:n]), b"a")
    for bad in (b"\2" + good[1:], b"\1\4" + good[2:], good + b"\0", b"\1\1" + good[2:], b"\1\2" + good[2:]):
        with pytest.raises(errors.DamagedData):
            get(damaged(key, bad), b"a")
    with pytest.raises(errors.DamagedData):
        get(damaged(key, b"\1\0" + b"\xff" * 9 + b"\x80\1\1"), b"a")


def test_damaged_revision_records_are_told() -> None:
    key = b"r" + (2).to_bytes(8, "big") + bytes(4)
    good = damaged(b"m", b"").engine.get(key)
    assert good == b"\1\0\1\0\0\0avalue"
    for bad in [good[:n] for n in range(7)] + [b"\2" + good[1:], b"\1\0\xff\xff\xff\xff" + good[6:]]:
        with pytest.raises(errors.DamagedData):
            get(damaged(key, bad), b"a")
    store = damaged(b"m", b"")
    batch = OrderedMap()
    batch.set_deleted(key)
    store.engine.write(batch, 3, 1)
    with pytest.raises(errors.DamagedData, match="2/0"):
        get(store, b"a")


@pytest.mark.parametrize("name", [b"mrevision", b"mcompact", b"mswept"])
def test_damaged_counters_are_told(name: bytes) -> None:
    for bad in (b"", b"\1" + bytes(7), b"\2" + bytes(8), b"\1" + bytes(9)):
        engine = damaged(name, bad).engine
        with pytest.raises(errors.DamagedData, match=name.decode()):
            Store(engine)


def test_readonly_and_serializable_transactions() -> None:
    fast = pb.RequestOp(request_range=pb.RangeRequest(key=b"a", serializable=True))
    slow = pb.RequestOp(request_range=pb.RangeRequest(key=b"a"))
    write = pb.RequestOp(request_put=pb.PutRequest(key=b"a"))
    for ops, readonly, serializable in [
        ([], True, True),
        ([fast], True, True),
        ([fast, slow], True, False),
        ([fast, write], False, False),
        ([pb.RequestOp(request_txn=pb.TxnRequest())], True, False),
        ([pb.RequestOp(request_txn=pb.TxnRequest(success=[fast]))], True, False),
        ([pb.RequestOp(request_txn=pb.TxnRequest(success=[write]))], False, False),
    ]:
        body = pb.TxnRequest(failure=ops).SerializeToString()
        assert mvcc_txn.txn_is_readonly(body) is readonly
        assert mvcc_txn.txn_is_serializable(body) is serializable
