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
from support.kvrequests import DELETES, PUTS, TXNS, build

from metastore import errors
from metastore._core.batch import frame
from metastore._core.codec import PayloadCodec
from metastore._core.entry import Entry, encode_entry
from metastore._core.mvcc import Store
from metastore._core.mvcc_apply import Applier
from metastore._core.mvcc_txn_work import execute
from metastore._core.op import COMPACT, DELETE_RANGE, PUT, TXN, encode_op
from metastore.storage.engines.memory import MemoryEngine

KINDS = {"put": PUT, "delete_range": DELETE_RANGE, "txn": TXN, "compact": COMPACT}
OPS = st.one_of(
    st.tuples(st.just("put"), PUTS),
    st.tuples(st.just("delete_range"), DELETES),
    st.tuples(st.just("txn"), TXNS),
    st.tuples(st.just("compact"), st.integers(-1, 3)),
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


def applier(engine: MemoryEngine) -> Applier:
    return Applier(Store(engine, 1, 2), PayloadCodec(None, 1024, 1 << 20), {})


def images(entries: list[list[bytes]]) -> list[bytes]:
    codec = PayloadCodec(None, 1024, 1 << 20)
    return [encode_entry(Entry(1, n + 1, 0, codec.encode(frame(ops)))) for n, ops in enumerate(entries)]


def operations(entries: list[list[tuple[str, Any]]]) -> list[list[bytes]]:
    """Encode operations; request ids count from 1. Revisions come from a store that has carried out the operations
    before."""
    store, ident, made = Store(MemoryEngine(), 1, 2), 0, []
    for ops in entries:
        encoded = []
        for kind, fields in ops:
            ident += 1
            body = build(kind, fields, store.revision).SerializeToString()
            try:
                execute(store, KINDS[kind], body)
            except errors.ApiError:
                pass
            encoded.append(encode_op(KINDS[kind], ident, body))
        made.append(encoded)
    return made


def contents(store: Store) -> list[tuple[bytes, bytes]]:
    return store.engine.scan(b"", None, False, 0)


def at_once(entries: list[list[bytes]]) -> tuple[Applier, list[Any], list[bytes]]:
    """Return the applier, the replies, and what a reader sees before the first operation and after each."""
    made = applier(MemoryEngine())
    callers, seen, ident = [], [made.store.range_reply(ALL)], 0
    watcher = applier(MemoryEngine())
    for number, image in enumerate(images(entries)):
        for op in entries[number]:
            ident += 1
            caller = Caller()
            callers.append(caller)
            made.waiters[ident] = caller
            watcher.apply_images(images([[op]] * (watcher.applied_index + 1))[-1])
            seen.append(watcher.store.range_reply(ALL))
        made.apply_images(image)
        made.commit()
        made.release()
    return made, [caller.result for caller in callers], seen


def push(made: Applier, image: bytes, chance: random.Random, look: Any) -> None:
    """Apply one entry in pieces and write it. `look` is called in between."""
    while True:
        made.spill_at = chance.randint(1, 12)
        made.apply_images(image, 0, chance.randint(1, 120))
        if not made.halted:
            break
        look()
        try:
            made.relieve()
        except errors.EngineBusy:
            pass
        look()
    while True:
        try:
            made.commit()
            return
        except errors.EngineBusy:
            look()


def put(key: bytes, **more: Any) -> dict[str, Any]:
    fields = {"value": b"", "prev_kv": False, "ignore_value": False, "ignore_lease": False, "lease": 0}
    return {"key": key, **fields, **more}


#: The engine has a part of this deletion when the put behind it fails. Nothing of it may stay, and the entry ends.
FAILS_LATE = [
    [("put", put(b"a\0"))],
    [("txn", {"compare": [], "failure": [], "success": [
        ("request_delete_range", {"key": b"a", "range_end": b"\0", "prev_kv": False}),
        ("request_put", put(b"a\0", ignore_value=True)),
    ]})],
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(ENTRIES, st.integers(0, 2**32))
@example(FAILS_LATE, 0)
def test_pieces_do_the_same(drawn: list[list[tuple[str, Any]]], seed: int) -> None:
    entries, chance = operations(drawn), random.Random(seed)
    wanted, replies, seen = at_once(entries)
    engine = Busy()
    made = applier(engine)
    engine.chance = chance
    callers = [Caller() for _ in replies]
    made.waiters.update({n + 1: caller for n, caller in enumerate(callers)})
    shown = 0

    def look() -> None:
        nonlocal shown
        reply = made.store.range_reply(ALL)
        assert reply in seen[shown:], "a reader sees a state that never was"
        shown = seen.index(reply, shown)

    for image in images(entries):
        push(made, image, chance, look)
        made.release()
        assert made.whole
    assert [caller.result for caller in callers] == replies
    assert contents(made.store) == contents(wanted.store)
    assert (made.applied_index, made.rejected) == (wanted.applied_index, wanted.rejected)


@settings(max_examples=60, deadline=None)
@given(ENTRIES, st.integers(0, 2**32))
def test_a_crash_in_the_middle_leaves_nothing_of_an_entry(drawn: list[list[tuple[str, Any]]], seed: int) -> None:
    """The engine keeps everything that was written to it, like an engine with files that flushed at the worst
    moment."""
    entries, chance = operations(drawn), random.Random(seed)
    wanted, _, _ = at_once(entries)
    log = images(entries)
    made = applier(MemoryEngine())
    for _ in range(6):
        for image in log[made.applied_index :]:
            if chance.random() < 0.4:
                break
            push(made, image, chance, int)
        if made.applied_index == len(log):
            break
        for _ in range(chance.randint(1, 8)):
            made.spill_at = 1
            made.apply_images(log[made.applied_index], 0, chance.randint(1, 60))
            if not made.halted:
                break
            made.relieve()
        engine = MemoryEngine()
        if not made.store.engine.applied()[0]:
            batch = made.store.engine.scan(b"", None, False, 0)
            engine.restore(batch if batch else [(b"mapplied", bytes(16))])
        else:
            engine.restore(contents(made.store))
        made = applier(engine)
    for image in log[made.applied_index :]:
        push(made, image, chance, int)
    assert contents(made.store) == contents(wanted.store)
    assert made.whole and made.store.revision == wanted.store.revision


def filled(keys: int) -> Applier:
    made = applier(MemoryEngine())
    ops = [encode_op(PUT, 0, pb.PutRequest(key=b"k%06d" % n, value=b"v").SerializeToString()) for n in range(keys)]
    made.apply_images(images([ops])[0])
    made.commit()
    return made


def second(*ops: bytes) -> bytes:
    """Return the image of entry 2."""
    return images([[b""], list(ops)])[1]


def test_an_error_in_the_middle_takes_back_what_went_to_the_engine() -> None:
    """No operation fails after its checks. If one did, `undo` must reach what was spilled."""
    made = filled(50)
    before = contents(made.store)
    request = pb.DeleteRangeRequest(key=b"k", range_end=b"l").SerializeToString()
    made.apply_images(second(encode_op(DELETE_RANGE, 1, request)), 0, 200)
    made.spill_at = 1
    made.relieve()
    assert made.inside and made.store.spilled and contents(made.store) != before
    made.store.undo()
    assert made.store.stale
    while made.store.stale:
        made.relieve()
    assert contents(made.store) == before


def test_a_waiter_that_has_gone_is_not_answered_and_the_entry_goes_on() -> None:
    made, caller = filled(500), Caller()
    request = pb.DeleteRangeRequest(key=b"k", range_end=b"l").SerializeToString()
    made.waiters[7] = caller
    image = second(encode_op(DELETE_RANGE, 7, request))
    made.apply_images(image, 0, 500)
    assert made.halted and made.inside and 7 in made.waiters
    made.waiters.pop(7).fail(errors.Timeout())
    while made.halted:
        made.relieve()
        made.apply_images(image, 0, 500)
    made.commit()
    made.release()
    assert caller.result is errors.Timeout
    assert pb.RangeResponse.FromString(made.store.range_reply(ALL)).count == 0


def test_what_is_done_before_a_long_operation_is_answered_before_its_end() -> None:
    made = filled(2000)
    first, last = Caller(), Caller()
    put = pb.PutRequest(key=b"a", value=b"x").SerializeToString()
    request = pb.DeleteRangeRequest(key=b"k", range_end=b"l", prev_kv=True).SerializeToString()
    made.waiters.update({7: first, 8: last})
    image = second(encode_op(PUT, 7, put), encode_op(DELETE_RANGE, 8, request))
    made.apply_images(image, 0, 1000)
    made.release()
    assert made.inside and first.told and not last.told
    with pytest.raises(AssertionError):
        made.commit()
    while made.halted:
        made.relieve()
        made.apply_images(image, 0, 1000)
    made.commit()
    made.release()
    reply = pb.DeleteRangeResponse.FromString(last.reply)
    assert reply.deleted == len(reply.prev_kvs) == 2000 and reply.header.revision == made.store.revision
