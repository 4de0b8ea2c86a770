"""The applier: entries to replies, one engine write, errors that belong to their operation alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from support import kvmessages as pb
from support.applying import Caller, entry, put, waiting

from metastore import errors
from metastore._core.codec import PayloadCodec
from metastore._core.entry import Entry, encode_entry
from metastore._core.kv_server import fail_each
from metastore._core.mvcc import Store
from metastore._core.mvcc_apply import Applier, no_members
from metastore._core.op import COMPACT, DELETE_RANGE, MEMBER, PUT, TXN, encode_op
from metastore.storage.engines.memory import MemoryEngine


def applier(on_member: Callable[[bytes], bytes] = no_members) -> Applier:
    return Applier(Store(MemoryEngine(), 3, 4), PayloadCodec(None, 1024, 1 << 20), {}, on_member)


def test_replies_come_after_the_commit_and_in_order() -> None:
    made = applier()
    made.store.raft_term = 6
    first, second = waiting(made, 10, 2**64 - 1)
    images = entry(made, 1, encode_op(PUT, 10, put(b"a")), encode_op(PUT, 2**64 - 1, put(b"b")))
    assert made.apply_images(images) == len(images)
    assert first.result is None and made.store.engine.applied() == (0, 0) and made.waiters == {}
    made.commit()
    assert first.result is None and made.store.engine.applied() == (1, 2)
    assert made.release() == 2
    header = pb.PutResponse.FromString(first.result).header
    assert (header.cluster_id, header.member_id, header.revision, header.raft_term) == (3, 4, 2, 6)
    assert pb.PutResponse.FromString(second.result).header.revision == 3
    assert made.release() == 0


def test_an_operations_error_is_its_own() -> None:
    made = applier()
    bad_range = pb.TxnRequest()
    bad_range.success.add(request_put=pb.PutRequest(key=b"a", value=b"lost"))
    bad_range.success.add(request_range=pb.RangeRequest(key=b"a", revision=1000))
    ops = [
        (PUT, put(b"a"), None),
        (TXN, bad_range.SerializeToString(), errors.FutureRevision),
        (PUT, put(b"b", lease=9), errors.LeaseNotFound),
        (PUT, put(b"", b"x"), errors.EmptyKey),
        (PUT, b"\xff\xff", errors.MalformedRequest),
        (DELETE_RANGE, b"", errors.EmptyKey),
        (COMPACT, pb.CompactionRequest(revision=99).SerializeToString(), errors.FutureRevision),
        (COMPACT, pb.CompactionRequest(revision=2).SerializeToString(), None),
        (TXN, b"\x12\x00", None),
        (PUT, put(b"c"), None),
    ]
    callers = waiting(made, *range(1, len(ops) + 1))
    made.apply_images(entry(made, 1, *(encode_op(kind, n + 1, body) for n, (kind, body, _) in enumerate(ops))))
    made.commit()
    assert made.release() == len(ops)
    for caller, (kind, _, wanted) in zip(callers, ops, strict=True):
        assert isinstance(caller.reply, bytes) if wanted is None else isinstance(caller.error, wanted), kind
    assert made.store.revision == 3 and made.rejected == 6 and made.undecodable == 0
    reply = pb.RangeResponse.FromString(made.store.range_reply(pb.RangeRequest(key=b"a").SerializeToString()))
    assert reply.kvs[0].value == b"v"


def test_what_a_failed_operation_has_written_is_dropped() -> None:
    """The deletion "from key on" is done before the put that keeps a value finds none."""
    made = applier()
    half_way = pb.TxnRequest()
    half_way.success.add(request_put=pb.PutRequest(key=b"0", value=b"lost"))
    half_way.success.add(request_delete_range=pb.DeleteRangeRequest(key=b"a", range_end=b"\0"))
    half_way.success.add(request_put=pb.PutRequest(key=b"a", ignore_value=True))
    (caller,) = waiting(made, 2)
    ops = [(PUT, put(b"a", b"1")), (TXN, half_way.SerializeToString()), (PUT, put(b"b", b"2"))]
    made.apply_images(entry(made, 1, *(encode_op(kind, n + 1, body) for n, (kind, body) in enumerate(ops))))
    made.commit()
    made.release()
    assert isinstance(caller.error, errors.KeyNotFound)
    reply = pb.RangeRequest(key=b"\0", range_end=b"\0").SerializeToString()
    found = pb.RangeResponse.FromString(made.store.range_reply(reply))
    assert [(kv.key, kv.value, kv.mod_revision) for kv in found.kvs] == [(b"a", b"1", 2), (b"b", b"2", 3)]


@pytest.mark.parametrize("junk", [b"", b"\1", b"\2" + bytes(30), b"\1\x63" + bytes(30), b"\1\1\xf0" + bytes(30)])
def test_what_cannot_be_read_is_counted_and_passed_over(junk: bytes) -> None:
    made = applier()
    (zero,) = waiting(made, 0)
    made.apply_images(entry(made, 1, encode_op(PUT, 1, put(b"a")), junk, encode_op(PUT, 2, put(b"b"))))
    made.commit()
    made.release()
    assert made.undecodable == 1 and made.store.revision == 3
    assert zero.result is None if len(junk) < 12 else isinstance(zero.error, errors.FormatError)


def test_entries_already_applied_and_empty_ones_are_passed_over() -> None:
    made = applier()
    images = entry(made, 1, encode_op(PUT, 1, put(b"a"))) + encode_entry(Entry(2, 2, 0, b""))
    made.apply_images(images)
    made.apply_images(images)
    made.commit()
    assert made.store.revision == 2 and (made.applied_index, made.applied_term) == (2, 2)
    again = Applier(Store(made.store.engine), made.codec, {})
    again.apply_images(images + entry(made, 3, encode_op(PUT, 1, put(b"a"))))
    assert again.store.revision == 3 and again.applied_index == 3


def test_it_stops_in_front_of_a_membership_change() -> None:
    made = applier()
    before, change = entry(made, 1, encode_op(PUT, 1, put(b"a"))), encode_entry(Entry(2, 2, 2, b"change"))
    images = before + change + entry(made, 3, encode_op(PUT, 2, put(b"a")))
    for _ in range(2):
        assert made.apply_images(images) == len(before)
        assert made.applied_index == 1 and made.store.revision == 2
    made.passed(2, 2)
    assert made.apply_images(images, len(before) + len(change)) == len(images)
    assert made.applied_index == 3 and made.store.revision == 3


def test_it_stops_behind_an_entry_that_wants_it() -> None:
    def stop(_request: bytes) -> bytes:
        made.pause = True
        return b""

    made = applier(stop)
    first = entry(made, 1, encode_op(MEMBER, 1, b""), encode_op(PUT, 2, put(b"a")))
    images = first + entry(made, 2, encode_op(PUT, 3, put(b"a")))
    assert made.apply_images(images) == len(first)
    assert made.applied_index == 1 and made.store.revision == 2
    assert made.apply_images(images, len(first)) == len(images) and made.applied_index == 2


def test_answers_of_the_caller_keep_their_place() -> None:
    told: list[int] = []

    class Noting(Caller):
        def complete(self, reply: bytes) -> None:
            super().complete(reply)
            told.append(ident[self])

    made = applier()
    callers = [Noting() for _ in range(3)]
    ident = {caller: number for number, caller in enumerate(callers)}
    made.waiters.update(enumerate(callers))
    made.apply_images(entry(made, 1, encode_op(PUT, 0, put(b"a"))))
    made.answer(1, b"")
    made.answer(77, b"nobody waits for this")
    made.passed(2, 2)
    made.apply_images(entry(made, 3, encode_op(PUT, 2, put(b"a"))))
    assert not told
    made.commit()
    made.release()
    assert told == [0, 1, 2]


def test_damage_is_this_nodes_trouble() -> None:
    made = applier()
    images = entry(made, 1, encode_op(PUT, 1, put(b"a")))
    with pytest.raises(errors.FormatError):
        made.apply_images(images[:-1])
    with pytest.raises(errors.FormatError):
        made.apply_images(encode_entry(Entry(1, 1, 0, b"\x63unknown codec")))
    assert made.applied_index == 0


def test_nobody_waiting_gives_the_same_state() -> None:
    """The engine contents are the same with and without waiters, in one Ready or in many."""
    rng = random.Random(5)
    ops = []
    for number in range(600):
        key = bytes(rng.choices(b"ab\0", k=2))
        what = rng.random()
        if what < 0.6:
            ops.append(encode_op(PUT, number, put(key, b"%d" % number, prev_kv=True, ignore_value=False)))
        elif what < 0.7:
            body = pb.DeleteRangeRequest(key=key, range_end=b"b", prev_kv=True).SerializeToString()
            ops.append(encode_op(DELETE_RANGE, number, body))
        elif what < 0.75:
            ops.append(encode_op(COMPACT, number, pb.CompactionRequest(revision=number // 2).SerializeToString()))
        else:
            req = pb.TxnRequest(compare=[pb.Compare(key=key, target=0, result=1, version=1)])
            req.success.add(request_put=pb.PutRequest(key=key, ignore_value=True, prev_kv=True))
            req.success.add(request_range=pb.RangeRequest(key=key, revision=number // 3))
            req.failure.add(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=b"\0", prev_kv=True))
            req.failure.add(request_put=pb.PutRequest(key=key + b"x", ignore_value=number % 3 == 0))
            ops.append(encode_op(TXN, number, req.SerializeToString()))
    states = []
    for heard, size in [(True, 1), (False, 1), (True, 50), (False, 600)]:
        made = applier()
        for index, at in enumerate(range(0, len(ops), size)):
            if heard:
                waiting(made, *range(at, at + size))
            made.apply_images(entry(made, index + 1, *ops[at : at + size]))
            if index % 3 == 0:
                made.commit()
                made.release()
        made.commit()
        made.release()
        contents = [pair for pair in made.store.engine.scan(b"", None, False, 0) if pair[0] != b"mapplied"]
        states.append((contents, made.store.revision, made.rejected))
    assert states[1:] == states[:-1]
    assert states[0][1] > 200 and states[0][2] > 5


def test_an_engine_that_fails_stops_the_applying() -> None:
    class Broken(MemoryEngine):
        def write(self, batch: Any, index: int, term: int) -> None:
            raise errors.DiskFailed("no")

    made = Applier(Store(Broken()), PayloadCodec(None, 1024, 1 << 20), {})
    made.apply_images(entry(made, 1, encode_op(PUT, 1, put(b"a"))))
    with pytest.raises(errors.DiskFailed):
        made.commit()


class Broken(Caller):
    """Raises, which no waiter must."""

    def complete(self, reply: bytes) -> None:
        super().complete(reply)
        raise MemoryError

    def fail(self, error: errors.MetaStoreError) -> None:
        super().fail(error)
        raise SystemExit


def test_a_waiter_that_raises_keeps_no_other_from_its_answer() -> None:
    made = applier()
    callers = [Broken(), *waiting(made, 2), Broken(), *waiting(made, 4, 5)]
    made.waiters.update({1: callers[0], 3: callers[2]})
    bad = put(b"k", ignore_value=True)
    made.apply_images(entry(made, 1, *(encode_op(PUT, n, bad if n in (3, 5) else put(b"k")) for n in range(1, 6))))
    made.commit()
    with pytest.raises(MemoryError):
        made.release()
    assert [caller.told for caller in callers] == [True] * 5 and callers[4].result is errors.ValueProvided
    assert made.release() == 0


def test_all_are_failed_whichever_of_them_raises() -> None:
    callers = [Broken(), Caller(), Broken(), Caller()]
    with pytest.raises(SystemExit):
        fail_each(list(callers), errors.caused(errors.Timeout, cause := ValueError()))
    assert [caller.result for caller in callers] == [errors.Timeout] * 4
    assert len({id(caller.error) for caller in callers}) == 4
    assert all(caller.error.__cause__ is cause for caller in callers)
