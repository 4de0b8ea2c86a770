"""Quota and alarms: the replicated record, the refused operations with their texts, and the way out. The same is
compared with a real etcd, by both versions of etcdctl, over restarts."""

from __future__ import annotations

from typing import Any

import pytest
from support import kvmessages as pb
from support.caller import Caller

from metastore import errors
from metastore._core.batch import frame
from metastore._core.codec import PayloadCodec
from metastore._core.entry import Entry, encode_entry
from metastore._core.mvcc import Store
from metastore._core.mvcc_apply import Applier
from metastore._core.op import ALARM, COMPACT, DELETE_RANGE, PUT, TXN, encode_op
from metastore.replica.alarms import (
    ACTIVATE,
    CORRUPT,
    DEACTIVATE,
    MAX_ALARMS,
    NOSPACE,
    Alarms,
    decode_alarms,
    decode_change,
    encode_alarms,
    encode_change,
)
from metastore.storage.engines.memory import MemoryEngine

CORRUPTED = (15, "etcdserver: corrupt cluster")
# ---- the record and the operation


def test_encoding_goes_both_ways() -> None:
    assert encode_change(ACTIVATE, 2**64 - 1, CORRUPT) == b"\1\1\2\0" + b"\xff" * 8
    assert decode_change(encode_change(DEACTIVATE, 7, 0)) == (DEACTIVATE, (7, 0))
    alarms = [(5, NOSPACE), (5, CORRUPT), (2**64 - 1, NOSPACE)]
    assert decode_alarms(encode_alarms(reversed(alarms))) == alarms
    assert encode_alarms(()) == b"\1" and decode_alarms(b"\1") == []


@pytest.mark.parametrize("action, alarm", [(0, 1), (3, 1), (-1, 1), (1, 3), (1, -1), (2, 300)])
def test_unknown_alarms_and_actions_never_reach_the_log(action: int, alarm: int) -> None:
    with pytest.raises(errors.InvalidAlarm, match="there is no alarm"):
        encode_change(action, 1, alarm)


GOOD = encode_change(ACTIVATE, 1, NOSPACE)


@pytest.mark.parametrize(
    "data",
    [b"", GOOD[:-1], GOOD + b"\0", b"\2" + GOOD[1:], b"\1\0" + GOOD[2:], b"\1\3" + GOOD[2:], b"\1\1\3" + GOOD[3:],
     b"\1\1\1\1" + GOOD[4:]],
)  # fmt: skip
def test_operations_that_cannot_be_read(data: bytes) -> None:
    with pytest.raises(errors.FormatError, match="alarm operation"):
        decode_change(data)


RECORD = encode_alarms([(1, NOSPACE), (2, CORRUPT)])


@pytest.mark.parametrize(
    "data", [b"", RECORD[:-1], b"\2" + RECORD[1:], RECORD + RECORD[1:], RECORD[:1] + b"\3" + RECORD[2:]]
)
def test_records_that_cannot_be(data: bytes) -> None:
    store = Store(MemoryEngine())
    store.put_meta(b"alarms", data)
    with pytest.raises(errors.DamagedData, match="alarms"):
        Alarms(store)


def test_every_wrong_byte_is_an_error_or_another_alarm() -> None:
    """The bytes around them have a sum. The record itself has a length, and no spare bits."""
    for good, decode, encode in (
        (GOOD, decode_change, lambda change: encode_change(change[0], *change[1])),
        (RECORD, decode_alarms, encode_alarms),
    ):
        decoded = 0
        for at in range(len(good)):
            for bit in range(8):
                wrong = good[:at] + bytes([good[at] ^ (1 << bit)]) + good[at + 1 :]
                try:
                    assert encode(decode(wrong)) == wrong
                except (errors.FormatError, errors.DamagedData):
                    decoded += 1
        assert decoded >= 8 * 3
        for end in range(len(good)):
            if decode is decode_change or end % 12 != 1:
                with pytest.raises((errors.FormatError, errors.DamagedData)):
                    decode(good[:end])


def test_the_number_of_alarms_is_bounded() -> None:
    alarms = Alarms(Store(MemoryEngine()))
    for member in range(MAX_ALARMS):
        assert decode_alarms(alarms.apply(encode_change(ACTIVATE, member, NOSPACE))) == [(member, NOSPACE)]
    with pytest.raises(errors.TooManyRequests):
        alarms.apply(encode_change(ACTIVATE, MAX_ALARMS, NOSPACE))
    assert decode_alarms(alarms.apply(encode_change(ACTIVATE, 3, NOSPACE))) == [(3, NOSPACE)]
    assert len(alarms.raised) == MAX_ALARMS and alarms.kinds == NOSPACE


# ---- applying


def txn(*success: Any, failure: Any = ()) -> bytes:
    request = pb.TxnRequest()
    for kind, branch in (("success", success), ("failure", failure)):
        for one in branch:
            getattr(request, kind).add(**one)
    return request.SerializeToString()


PUT_OP = {"request_put": pb.PutRequest(key=b"a", value=b"1")}
DELETE_OP = {"request_delete_range": pb.DeleteRangeRequest(key=b"a")}
PUT_BODY = pb.PutRequest(key=b"a", value=b"1").SerializeToString()
NESTED = pb.TxnRequest()
NESTED.failure.add(**PUT_OP)
OPERATIONS = [
    (PUT, PUT_BODY, NOSPACE | CORRUPT),
    (TXN, txn(PUT_OP), NOSPACE | CORRUPT),
    (TXN, txn(DELETE_OP, failure=[PUT_OP]), NOSPACE | CORRUPT),
    (TXN, txn({"request_txn": NESTED}), NOSPACE | CORRUPT),
    (TXN, txn(DELETE_OP), CORRUPT),
    (DELETE_RANGE, pb.DeleteRangeRequest(key=b"a").SerializeToString(), CORRUPT),
    (COMPACT, pb.CompactionRequest(revision=2).SerializeToString(), CORRUPT),
]


def run(applier: Applier, *operations: tuple[int, bytes]) -> list[Any]:
    """Return the outcomes of operations in one entry."""
    index = applier.applied_index + 1
    callers = {index * 100 + at: Caller() for at in range(len(operations))}
    applier.waiters.update(callers)
    data = frame([encode_op(kind, ident, body) for ident, (kind, body) in zip(callers, operations, strict=True)])
    applier.apply_images(encode_entry(Entry(1, index, 0, applier.codec.encode(data))))
    applier.commit()
    applier.release()
    return [caller.result for caller in callers.values()]


def make_applier(engine: MemoryEngine) -> Applier:
    return Applier(Store(engine, 3, 4), PayloadCodec(None, 1024, 1 << 20), {})


@pytest.mark.parametrize("kinds", [0, NOSPACE, CORRUPT, NOSPACE | CORRUPT])
def test_what_is_refused_when_it_is_applied(kinds: int) -> None:
    """Operations are refused in the same entry as the alarm already, by the alarm's kind, and again after a restart,
    from the engine."""
    engine = MemoryEngine()
    applier = make_applier(engine)
    assert type(run(applier, (PUT, PUT_BODY))[0]) is bytes
    raising = [(ALARM, encode_change(ACTIVATE, 9, kind)) for kind in (NOSPACE, CORRUPT) if kinds & kind]
    for target in (applier, None):
        target = target or make_applier(engine)
        for kind, body, by in OPERATIONS:
            if kind == COMPACT and target is not applier and not kinds & CORRUPT:
                continue
            expected = errors.Corrupt if kinds & by & CORRUPT else errors.NoSpace if kinds & by & NOSPACE else bytes
            before = target.store.revision
            *_, result = run(target, *raising, (kind, body))
            assert (result if expected is not bytes else type(result)) is expected, (kind, body)
            assert expected is bytes or target.store.revision == before
    clearing = [(ALARM, encode_change(DEACTIVATE, 9, kind)) for kind in (NOSPACE, CORRUPT)]
    *_, result = run(target, *clearing, (PUT, PUT_BODY))
    assert type(result) is bytes and target.alarms.raised == frozenset()


def test_the_last_alarm_of_a_kind_opens_the_store_again() -> None:
    applier = make_applier(MemoryEngine())
    run(applier, *((ALARM, encode_change(ACTIVATE, member, NOSPACE)) for member in (1, 2)))
    cleared, put = run(applier, (ALARM, encode_change(DEACTIVATE, 1, NOSPACE)), (PUT, PUT_BODY))
    assert decode_alarms(cleared) == [(1, NOSPACE)] and put is errors.NoSpace
    nothing, none, last, put = run(
        applier, (ALARM, encode_change(DEACTIVATE, 1, NOSPACE)), (ALARM, encode_change(ACTIVATE, 1, 0)),
        (ALARM, encode_change(DEACTIVATE, 2, NOSPACE)), (PUT, PUT_BODY),
    )  # fmt: skip
    assert (decode_alarms(nothing), decode_alarms(none), decode_alarms(last)) == ([], [], [(2, NOSPACE)])
    assert type(put) is bytes


def test_a_snapshot_brings_its_alarms() -> None:
    source, target = MemoryEngine(), MemoryEngine()
    run(make_applier(source), (ALARM, encode_change(ACTIVATE, 1, NOSPACE)))
    applier = make_applier(target)
    assert type(run(applier, (PUT, PUT_BODY))[0]) is bytes
    target.restore(source.scan(b"", None, False, 0))
    applier.store.reload()
    applier.reload()
    assert run(applier, (PUT, PUT_BODY)) == [errors.NoSpace]


def test_an_alarm_operation_that_cannot_be_read_is_its_own_error() -> None:
    applier = make_applier(MemoryEngine())
    bad, good = run(applier, (ALARM, b"\1\1"), (PUT, PUT_BODY))
    assert bad is errors.FormatError and type(good) is bytes
