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


def make_applier(on_member: Callable[[bytes], bytes] = no_members) -> Applier:
    return Applier(Store(MemoryEngine(), 3, 4), PayloadCodec(None, 1024, 1 << 20), {}, on_member)


def test_replies_come_after_the_commit_and_in_order() -> None:
    applier = make_applier()
    applier.store.raft_term = 6
    first, second = waiting(applier, 10, 2**64 - 1)
    images = entry(applier, 1, encode_op(PUT, 10, put(b"a")), encode_op(PUT, 2**64 - 1, put(b"b")))
    assert applier.apply_images(images) == len(images)
    assert first.result is None and applier.store.engine.applied() == (0, 0) and applier.waiters == {}
    applier.commit()
    assert first.result is None and applier.store.engine.applied() == (1, 2)
    assert applier.release() == 2
    header = pb.PutResponse.FromString(first.result).header
    assert (header.cluster_id, header.member_id, header.revision, header.raft_term) == (3, 4, 2, 6)
    assert pb.PutResponse.FromString(second.result).header.revision == 3
    assert applier.release() == 0


def test_an_operations_error_is_its_own() -> None:
    applier = make_applier()
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
    callers = waiting(applier, *range(1, len(ops) + 1))
    applier.apply_images(entry(applier, 1, *(encode_op(kind, n + 1, body) for n, (kind, body, _) in enumerate(ops))))
    applier.commit()
    assert applier.release() == len(ops)
    for caller, (kind, _, expected) in zip(callers, ops, strict=True):
        assert isinstance(caller.reply, bytes) if expected is None else isinstance(caller.error, expected), kind
    assert applier.store.revision == 3 and applier.rejected == 6 and applier.undecodable == 0
    reply = pb.RangeResponse.FromString(applier.store.range_reply(pb.RangeRequest(key=b"a").SerializeToString()))
    assert reply.kvs[0].value == b"v"


def test_what_a_failed_operation_has_written_is_dropped() -> None:
    """The deletion "from key on" is done before the put that keeps a value finds none."""
    applier = make_applier()
    half_way = pb.TxnRequest()
    half_way.success.add(request_put=pb.PutRequest(key=b"0", value=b"lost"))
    half_way.success.add(request_delete_range=pb.DeleteRangeRequest(key=b"a", range_end=b"\0"))
    half_way.success.add(request_put=pb.PutRequest(key=b"a", ignore_value=True))
    (caller,) = waiting(applier, 2)
    ops = [(PUT, put(b"a", b"1")), (TXN, half_way.SerializeToString()), (PUT, put(b"b", b"2"))]
    applier.apply_images(entry(applier, 1, *(encode_op(kind, n + 1, body) for n, (kind, body) in enumerate(ops))))
    applier.commit()
    applier.release()
    assert isinstance(caller.error, errors.KeyNotFound)
    reply = pb.RangeRequest(key=b"\0", range_end=b"\0").SerializeToString()
    response = pb.RangeResponse.FromString(applier.store.range_reply(reply))
    assert [(kv.key, kv.value, kv.mod_revision) for kv in response.kvs] == [(b"a", b"1", 2), (b"b", b"2", 3)]


@pytest.mark.parametrize("junk", [b"", b"\1", b"\2" + bytes(30), b"\1\x63" + bytes(30), b"\1\1\xf0" + bytes(30)])
def test_what_cannot_be_read_is_counted_and_passed_over(junk: bytes) -> None:
    applier = make_applier()
    (zero,) = waiting(applier, 0)
    applier.apply_images(entry(applier, 1, encode_op(PUT, 1, put(b"a")), junk, encode_op(PUT, 2, put(b"b"))))
    applier.commit()
    applier.release()
    assert applier.undecodable == 1 and applier.store.revision == 3
    assert zero.result is None if len(junk) < 12 else isinstance(zero.error, errors.FormatError)


def test_entries_already_applied_and_empty_ones_are_passed_over() -> None:
    applier = make_applier()
    images = entry(applier, 1, encode_op(PUT, 1, put(b"a"))) + encode_entry(Entry(2, 2, 0, b""))
    applier.apply_images(images)
    applier.apply_images(images)
    applier.commit()
    assert applier.store.revision == 2 and (applier.applied_index, applier.applied_term) == (2, 2)
    again = Applier(Store(applier.store.engine), applier.codec, {})
    again.apply_images(images + entry(applier, 3, encode_op(PUT, 1, put(b"a"))))
    assert again.store.revision == 3 and again.applied_index == 3


def test_it_stops_in_front_of_a_membership_change() -> None:
    applier = make_applier()
    before, change = entry(applier, 1, encode_op(PUT, 1, put(b"a"))), encode_entry(Entry(2, 2, 2, b"change"))
    images = before + change + entry(applier, 3, encode_op(PUT, 2, put(b"a")))
    for _ in range(2):
        assert applier.apply_images(images) == len(before)
        assert applier.applied_index == 1 and applier.store.revision == 2
    applier.passed(2, 2)
    assert applier.apply_images(images, len(before) + len(change)) == len(images)
    assert applier.applied_index == 3 and applier.store.revision == 3


def test_it_stops_behind_an_entry_that_wants_it() -> None:
    def stop(_request: bytes) -> bytes:
        applier.pause = True
        return b""

    applier = make_applier(stop)
    first = entry(applier, 1, encode_op(MEMBER, 1, b""), encode_op(PUT, 2, put(b"a")))
    images = first + entry(applier, 2, encode_op(PUT, 3, put(b"a")))
    assert applier.apply_images(images) == len(first)
    assert applier.applied_index == 1 and applier.store.revision == 2
    assert applier.apply_images(images, len(first)) == len(images) and applier.applied_index == 2


def test_answers_of_the_caller_keep_their_place() -> None:
    order: list[int] = []

    class Noting(Caller):
        def complete(self, reply: bytes) -> None:
            super().complete(reply)
            order.append(ident[self])

    applier = make_applier()
    callers = [Noting() for _ in range(3)]
    ident = {caller: number for number, caller in enumerate(callers)}
    applier.waiters.update(enumerate(callers))
    applier.apply_images(entry(applier, 1, encode_op(PUT, 0, put(b"a"))))
    applier.answer(1, b"")
    applier.answer(77, b"nobody waits for this")
    applier.passed(2, 2)
    applier.apply_images(entry(applier, 3, encode_op(PUT, 2, put(b"a"))))
    assert not order
    applier.commit()
    applier.release()
    assert order == [0, 1, 2]


def test_damage_is_this_nodes_trouble() -> None:
    applier = make_applier()
    images = entry(applier, 1, encode_op(PUT, 1, put(b"a")))
    with pytest.raises(errors.FormatError):
        applier.apply_images(images[:-1])
    with pytest.raises(errors.FormatError):
        applier.apply_images(encode_entry(Entry(1, 1, 0, b"\x63unknown codec")))
    assert applier.applied_index == 0


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
    for waited_for, size in [(True, 1), (False, 1), (True, 50), (False, 600)]:
        applier = make_applier()
        for index, at in enumerate(range(0, len(ops), size)):
            if waited_for:
                waiting(applier, *range(at, at + size))
            applier.apply_images(entry(applier, index + 1, *ops[at : at + size]))
            if index % 3 == 0:
                applier.commit()
                applier.release()
        applier.commit()
        applier.release()
        contents = [pair for pair in applier.store.engine.scan(b"", None, False, 0) if pair[0] != b"mapplied"]
        states.append((contents, applier.store.revision, applier.rejected))
    assert states[1:] == states[:-1]
    assert states[0][1] > 200 and states[0][2] > 5


def test_an_engine_that_fails_stops_the_applying() -> None:
    class Broken(MemoryEngine):
        def write(self, batch: Any, index: int, term: int) -> None:
            raise errors.DiskFailed("no")

    applier = Applier(Store(Broken()), PayloadCodec(None, 1024, 1 << 20), {})
    applier.apply_images(entry(applier, 1, encode_op(PUT, 1, put(b"a"))))
    with pytest.raises(errors.DiskFailed):
        applier.commit()


class Broken(Caller):
    """Raises, which no waiter must."""

    def complete(self, reply: bytes) -> None:
        super().complete(reply)
        raise MemoryError

    def fail(self, error: errors.MetaStoreError) -> None:
        super().fail(error)
        raise SystemExit


def test_a_waiter_that_raises_keeps_no_other_from_its_answer() -> None:
    applier = make_applier()
    callers = [Broken(), *waiting(applier, 2), Broken(), *waiting(applier, 4, 5)]
    applier.waiters.update({1: callers[0], 3: callers[2]})
    bad = put(b"k", ignore_value=True)
    applier.apply_images(
        entry(applier, 1, *(encode_op(PUT, n, bad if n in (3, 5) else put(b"k")) for n in range(1, 6)))
    )
    applier.commit()
    with pytest.raises(MemoryError):
        applier.release()
    assert [caller.told for caller in callers] == [True] * 5 and callers[4].result is errors.ValueProvided
    assert applier.release() == 0


def test_all_are_failed_whichever_of_them_raises() -> None:
    callers = [Broken(), Caller(), Broken(), Caller()]
    with pytest.raises(SystemExit):
        fail_each(list(callers), errors.caused(errors.Timeout, cause := ValueError()))
    assert [caller.result for caller in callers] == [errors.Timeout] * 4
    assert len({id(caller.error) for caller in callers}) == 4
    assert all(caller.error.__cause__ is cause for caller in callers)


class Reversing:
    """A codec plug-in."""

    name, flag = "reversing", 42

    def compress(self, data: bytes) -> bytes:
        return data[::-1][1:]

    def decompress(self, data: bytes, max_size: int) -> bytes:
        raise KeyError("of its own")


def test_an_entry_that_needs_a_codec_says_which() -> None:
    """The node stops there: skipping the entry would lose acknowledged writes."""
    written = PayloadCodec(Reversing(), 0, 1 << 20)
    writer = Applier(Store(MemoryEngine(), 3, 4), written, {})
    image = entry(writer, 7, encode_op(PUT, 1, put(b"k", b"v" * 100)))
    for decoders, kind, text in (
        ([], errors.CodecMissing, "entry 7 needs the codec with flag 42 (not installed)"),
        ([Reversing()], errors.CodecFailed,
         "entry 7: codec 'reversing' (flag 42): decompress() raised KeyError: 'of its own'"),
    ):  # fmt: skip
        applier = Applier(Store(MemoryEngine(), 3, 4), PayloadCodec(None, 0, 1 << 20, decoders), {})
        with pytest.raises(kind) as failure:
            applier.apply_images(image)
        assert failure.value.text == text and applier.applied_index == 0
