"""Entries applied in pieces. Whatever the operations are and wherever the pieces end, replies and state are those of
applying them at once. Readers in between see whole operations only. A crash in between leaves nothing of an entry."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import kvmessages as pb
from support.caller import Caller
from support.kvrequests import CHECKPOINTS, DELETES, GRANTS, PUTS, REVOKES, TXNS, build

from metastore import errors
from metastore._core.batch import frame
from metastore._core.codec import PayloadCodec
from metastore._core.entry import Entry, encode_entry
from metastore._core.leases import encode_checkpoint, encode_grant, encode_revoke
from metastore._core.mvcc import Store
from metastore._core.mvcc_apply import Applier
from metastore._core.mvcc_txn_work import execute
from metastore._core.op import (
    COMPACT,
    DELETE_RANGE,
    LEASE_CHECKPOINT,
    LEASE_GRANT,
    LEASE_REVOKE,
    PUT,
    TXN,
    encode_op,
)  # fmt: skip
from metastore.storage.engines.memory import MemoryEngine

KINDS = {
    "put": PUT, "delete_range": DELETE_RANGE, "txn": TXN, "compact": COMPACT, "grant": LEASE_GRANT,
    "revoke": LEASE_REVOKE, "checkpoint": LEASE_CHECKPOINT,
}  # fmt: skip
OPS = st.one_of(
    st.tuples(st.just("put"), PUTS),
    st.tuples(st.just("delete_range"), DELETES),
    st.tuples(st.just("txn"), TXNS),
    st.tuples(st.just("compact"), st.integers(-1, 3)),
    st.tuples(st.just("grant"), GRANTS),
    st.tuples(st.just("revoke"), REVOKES),
    st.tuples(st.just("checkpoint"), CHECKPOINTS),
)
ENTRIES = st.lists(st.lists(OPS, min_size=1, max_size=5), min_size=1, max_size=8)
ALL = pb.RangeRequest(key=b"\0", range_end=b"\0").SerializeToString()


class Busy(MemoryEngine):
    """Refuses a write now and then."""

    chance: random.Random | None = None

    def write(self, batch: Any, index: int, term: int) -> None:
        if self.chance is not None and self.chance.random() < 0.3:
            raise errors.EngineBusy("not now")
        MemoryEngine.write(self, batch, index, term)


def make_applier(engine: MemoryEngine) -> Applier:
    return Applier(Store(engine, 1, 2), PayloadCodec(None, 1024, 1 << 20), {})


def images(entries: list[list[bytes]]) -> list[bytes]:
    codec = PayloadCodec(None, 1024, 1 << 20)
    return [encode_entry(Entry(1, n + 1, 0, codec.encode(frame(ops)))) for n, ops in enumerate(entries)]


def encode(kind: str, fields: Any, revision: int) -> bytes:
    """Return the request of an operation."""
    if kind == "grant":
        return encode_grant(*fields)
    if kind == "revoke":
        return encode_revoke(*fields)
    if kind == "checkpoint":
        return encode_checkpoint(fields)
    return build(kind, fields, revision).SerializeToString()


def operations(entries: list[list[tuple[str, Any]]]) -> list[list[bytes]]:
    """Encode operations; request ids count from 1. Revisions come from a store that has carried out the operations
    before."""
    store, ident, images = Store(MemoryEngine(), 1, 2), 0, []
    for ops in entries:
        encoded = []
        for kind, fields in ops:
            ident += 1
            body = encode(kind, fields, store.revision)
            try:
                execute(store, KINDS[kind], body)
            except errors.ApiError:
                pass
            encoded.append(encode_op(KINDS[kind], ident, body))
        images.append(encoded)
    return images


def contents(store: Store) -> list[tuple[bytes, bytes]]:
    return store.engine.scan(b"", None, False, 0)


def at_once(entries: list[list[bytes]]) -> tuple[Applier, list[Any], list[bytes]]:
    """Return the applier, the replies, and what a reader sees before the first operation and after each."""
    applier = make_applier(MemoryEngine())
    callers, views, ident = [], [applier.store.range_reply(ALL)], 0
    watcher = make_applier(MemoryEngine())
    for number, image in enumerate(images(entries)):
        for op in entries[number]:
            ident += 1
            caller = Caller()
            callers.append(caller)
            applier.waiters[ident] = caller
            watcher.apply_images(images([[op]] * (watcher.applied_index + 1))[-1])
            views.append(watcher.store.range_reply(ALL))
        applier.apply_images(image)
        applier.commit()
        applier.release()
    return applier, [caller.result for caller in callers], views


def push(applier: Applier, image: bytes, chance: random.Random, look: Any) -> None:
    """Apply one entry in pieces and write it. `look` is called in between."""
    while True:
        applier.spill_at = chance.randint(1, 12)
        applier.apply_images(image, 0, chance.randint(1, 120))
        if not applier.halted:
            break
        look()
        try:
            applier.relieve()
        except errors.EngineBusy:
            pass
        look()
    while True:
        try:
            applier.commit()
            return
        except errors.EngineBusy:
            look()


def put(key: bytes, **more: Any) -> dict[str, Any]:
    fields = {"value": b"", "prev_kv": False, "ignore_value": False, "ignore_lease": False, "lease": 0}
    return {"key": key, **fields, **more}


#: A lease is granted and used in the entry in which a long deletion comes. A crash in the middle forgets the lease.
SPILLS_LATE = [
    [("put", put(b"a")), ("put", put(b"b"))],
    [("grant", (7, 60)), ("put", put(b"a", lease=7)), ("delete_range", {"key": b"b", "range_end": b"\0"})],
]  # fmt: skip
#: The same entry gives a key away and takes its new lease back.
GIVES_AWAY = [
    [("grant", (7, 60)), ("grant", (8, 60)), ("put", put(b"a", lease=7)), ("put", put(b"b", lease=7))],
    [("put", put(b"a", lease=8)), ("revoke", (8, False)), ("revoke", (7, True)), ("grant", (7, 5))],
]  # fmt: skip
#: The engine has a part of this deletion when the put behind it fails. Nothing of it may stay, and the entry ends.
FAILS_LATE = [
    [("put", put(b"a\0"))],
    [("txn", {"compare": [], "failure": [], "success": [
        ("request_delete_range", {"key": b"a", "range_end": b"\0", "prev_kv": False}),
        ("request_put", put(b"a\0", ignore_value=True)),
    ]})],
]  # fmt: skip


#: The same with keys that have leases.
LEASE_FAILS_LATE = [[("grant", (7, 60)), ("put", put(b"a\0", lease=7)), ("put", put(b"b", lease=7))], FAILS_LATE[1]]


@settings(max_examples=60, deadline=None)
@given(ENTRIES, st.integers(0, 2**32))
@example(FAILS_LATE, 0)
@example(LEASE_FAILS_LATE, 0)
@example(GIVES_AWAY, 1)
def test_pieces_do_the_same(script: list[list[tuple[str, Any]]], seed: int) -> None:
    entries, chance = operations(script), random.Random(seed)
    expected, replies, views = at_once(entries)
    engine = Busy()
    applier = make_applier(engine)
    engine.chance = chance
    callers = [Caller() for _ in replies]
    applier.waiters.update({n + 1: caller for n, caller in enumerate(callers)})
    last_shown = 0

    def look() -> None:
        nonlocal last_shown
        reply = applier.store.range_reply(ALL)
        assert reply in views[last_shown:], "a reader sees a state that never was"
        last_shown = views.index(reply, last_shown)

    for image in images(entries):
        push(applier, image, chance, look)
        applier.release()
        assert applier.whole
    assert [caller.result for caller in callers] == replies
    assert contents(applier.store) == contents(expected.store)
    assert (applier.applied_index, applier.rejected) == (expected.applied_index, expected.rejected)


@settings(max_examples=60, deadline=None)
@given(ENTRIES, st.integers(0, 2**32))
@example(SPILLS_LATE, 3)
@example(GIVES_AWAY, 4)
def test_a_crash_in_the_middle_leaves_nothing_of_an_entry(drawn: list[list[tuple[str, Any]]], seed: int) -> None:
    """The engine keeps everything that was written to it, like an engine with files that flushed at the worst
    moment."""
    entries, chance = operations(drawn), random.Random(seed)
    expected, _, _ = at_once(entries)
    log = images(entries)
    applier = make_applier(MemoryEngine())
    for _ in range(6):
        for image in log[applier.applied_index :]:
            if chance.random() < 0.4:
                break
            push(applier, image, chance, int)
        if applier.applied_index == len(log):
            break
        for _ in range(chance.randint(1, 8)):
            applier.spill_at = 1
            applier.apply_images(log[applier.applied_index], 0, chance.randint(1, 60))
            if not applier.halted:
                break
            applier.relieve()
        engine = MemoryEngine()
        if not applier.store.engine.applied()[0]:
            batch = applier.store.engine.scan(b"", None, False, 0)
            engine.restore(batch if batch else [(b"mapplied", bytes(16))])
        else:
            engine.restore(contents(applier.store))
        applier = make_applier(engine)
    for image in log[applier.applied_index :]:
        push(applier, image, chance, int)
    assert contents(applier.store) == contents(expected.store)
    assert applier.whole and applier.store.revision == expected.store.revision


def filled(keys: int) -> Applier:
    applier = make_applier(MemoryEngine())
    ops = [encode_op(PUT, 0, pb.PutRequest(key=b"k%06d" % n, value=b"v").SerializeToString()) for n in range(keys)]
    applier.apply_images(images([ops])[0])
    applier.commit()
    return applier


def second(*ops: bytes) -> bytes:
    """Return the image of entry 2."""
    return images([[b""], list(ops)])[1]


def test_an_entry_that_the_rest_of_the_budget_is_too_small_for_is_not_begun() -> None:
    """An engine in files would get its first part in a write of its own. Alone it is begun whatever the budget is."""
    ops = [encode_op(PUT, 0, pb.PutRequest(key=b"k%d" % n).SerializeToString()) for n in range(20)]
    applier, log = make_applier(MemoryEngine()), images([ops] * 3)
    applier.apply_images(log[0])
    cost = applier.cost
    applier.apply_images(log[1] + log[2], 0, 3 * cost // 2)
    assert applier.halted and not applier.inside and applier.applied_index == 2
    applier.apply_images(log[2], 0, cost // 2)
    assert applier.halted and applier.inside and applier.applied_index == 2


def test_an_error_in_the_middle_takes_back_what_went_to_the_engine() -> None:
    """No operation fails after its checks. If one did, `undo` must reach what was spilled."""
    applier = filled(50)
    before = contents(applier.store)
    request = pb.DeleteRangeRequest(key=b"k", range_end=b"l").SerializeToString()
    applier.apply_images(second(encode_op(DELETE_RANGE, 1, request)), 0, 200)
    applier.spill_at = 1
    applier.relieve()
    assert applier.inside and applier.store.spilled and contents(applier.store) != before
    applier.store.undo()
    assert applier.store.stale
    while applier.store.stale:
        applier.relieve()
    assert contents(applier.store) == before


def test_an_error_in_the_middle_gives_a_key_its_lease_back() -> None:
    applier = filled(50)
    store = applier.store
    store.execute(LEASE_GRANT, encode_grant(1, 60))
    store.execute(PUT, pb.PutRequest(key=b"k000000", lease=1).SerializeToString())
    store.commit(1, 1)
    request = pb.DeleteRangeRequest(key=b"k", range_end=b"l").SerializeToString()
    applier.apply_images(second(encode_op(DELETE_RANGE, 1, request)), 0, 200)
    applier.spill_at = 1
    applier.relieve()
    assert store.leases.keys(1) == []
    store.undo()
    while store.stale:
        applier.relieve()
    assert store.leases.keys(1) == [b"k000000"]
    execute(store, LEASE_REVOKE, encode_revoke(1))
    store.commit(2, 1)
    assert store.leases.keys(1) == [] and pb.RangeResponse.FromString(store.range_reply(ALL)).count == 49


def test_a_waiter_that_has_gone_is_not_answered_and_the_entry_goes_on() -> None:
    applier, caller = filled(500), Caller()
    request = pb.DeleteRangeRequest(key=b"k", range_end=b"l").SerializeToString()
    applier.waiters[7] = caller
    image = second(encode_op(DELETE_RANGE, 7, request))
    applier.apply_images(image, 0, 500)
    assert applier.halted and applier.inside and 7 in applier.waiters
    applier.waiters.pop(7).fail(errors.Timeout())
    while applier.halted:
        applier.relieve()
        applier.apply_images(image, 0, 500)
    applier.commit()
    applier.release()
    assert caller.result is errors.Timeout
    assert pb.RangeResponse.FromString(applier.store.range_reply(ALL)).count == 0


def test_what_is_done_before_a_long_operation_is_answered_before_its_end() -> None:
    applier = filled(2000)
    first, last = Caller(), Caller()
    put = pb.PutRequest(key=b"a", value=b"x").SerializeToString()
    request = pb.DeleteRangeRequest(key=b"k", range_end=b"l", prev_kv=True).SerializeToString()
    applier.waiters.update({7: first, 8: last})
    image = second(encode_op(PUT, 7, put), encode_op(DELETE_RANGE, 8, request))
    applier.apply_images(image, 0, 1000)
    applier.release()
    assert applier.inside and first.told and not last.told
    with pytest.raises(AssertionError):
        applier.commit()
    while applier.halted:
        applier.relieve()
        applier.apply_images(image, 0, 1000)
    applier.commit()
    applier.release()
    reply = pb.DeleteRangeResponse.FromString(last.reply)
    assert reply.deleted == len(reply.prev_kvs) == 2000 and reply.header.revision == applier.store.revision
