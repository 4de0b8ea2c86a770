"""What a service does about long ranges. A turn of the loop answers only so much, and single keys do not wait."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import kvmessages as pb
from support.caller import Caller
from support.longranges import MANY

from metastore import errors
from metastore._core.batch import BatchProposer
from metastore._core.engine import Engine
from metastore._core.kv_server import KVServer
from metastore._core.mvcc import Store
from metastore.storage.engines.memory import MemoryEngine
from metastore.storage.engines.rocksdb import RocksEngine


class Uncounted(MemoryEngine):
    """An engine that does not know how many keys it has, so that counting takes long."""

    def count(self, start: bytes, end: bytes | None) -> None:
        return None


def server(most: int = 1000, engine: Engine | None = None, keys: int = MANY) -> KVServer:
    """Make a KV service over so many keys, by default in an engine that does not count them."""
    store = Store(engine or Uncounted())
    for number in range(keys):
        store.put(pb.PutRequest(key=b"k%06d" % number, value=b"v").SerializeToString())
    store.commit(1, 1)
    limits = SimpleNamespace(
        max_request_bytes=1 << 20, max_txn_ops=128, max_key_bytes=0, max_txn_walk=10**6, max_inflight_requests=most
    )
    return KVServer(store, BatchProposer(50, 1 << 22, 0.002, 1000, 1 << 24, True), {}, 1, limits)


def answer(caller: Caller) -> Any:
    return pb.RangeResponse.FromString(caller.reply)


def ask(kv: KVServer, key: bytes, end: bytes = b"", **more: Any) -> Caller:
    caller = Caller()
    body = pb.RangeRequest(key=key, range_end=end, serializable=True, **more).SerializeToString()
    kv.call("Range", body, caller, 0.0)
    return caller


def test_a_turn_does_only_so_much_and_single_keys_do_not_wait() -> None:
    kv = server()
    counts = [ask(kv, b"k", b"l", count_only=True) for _ in range(10)]
    full = ask(kv, b"k", b"l")
    assert not [one for one in [*counts, full] if one.reply]
    assert kv.late == 11
    assert answer(ask(kv, b"k000007")).kvs[0].value == b"v"
    done, turns = [], 1
    while kv.serve_late():
        turns += 1
        done.append(sum(one.reply is not None for one in counts))
        assert answer(ask(kv, b"k000007")).count == 1
    # A turn counts 32,768 keys where nobody says that somebody waits for the next one.
    assert turns >= 10 * MANY // 32768
    assert done == sorted(done) and done[0] <= 1, "one after the other"
    assert {answer(one).count for one in counts} == {MANY}
    assert [kv.key for kv in answer(full).kvs] == [b"k%06d" % number for number in range(MANY)]
    assert not kv.serve_late()
    assert answer(ask(kv, b"k", b"k0001")).count == 100, "a short one is answered at once"


@pytest.mark.parametrize("pressed", [False, True])
def test_pieces_are_small_while_somebody_waits_for_the_next_turn(pressed: bool) -> None:
    kv, asked, turns = server(), [0], 1

    def presses() -> bool:
        asked[0] += 1
        return pressed

    kv.pressed = presses
    full = ask(kv, b"k", b"l")
    first = asked[0]
    while kv.serve_late():
        turns += 1
        assert not pressed or answer(ask(kv, b"k000007")).count == 1
    units = 5 * MANY  # to look at a pair, and to collect it
    if pressed:
        assert first == 1 and turns >= units // 2048 * 0.8
    else:
        assert first == 3 and turns <= units // 8192 * 1.2, "a piece is not all that a turn does"
    assert asked[0] >= units // 2048 * 0.8
    assert [kv.key for kv in answer(full).kvs] == [b"k%06d" % number for number in range(MANY)]


def test_what_waits_is_bounded_and_answered_at_a_stop() -> None:
    kv = server(most=3)
    late = [ask(kv, b"k", b"l", count_only=True) for _ in range(6)]
    assert [type(one.error) for one in late] == [type(None)] * 3 + [errors.TooManyRequests] * 3
    kv.abandon_late(errors.Stopped)
    assert [type(one.error) for one in late[:3]] == [errors.Stopped] * 3
    assert not kv.serve_late()


def test_nothing_waits_without_end_for_its_turn() -> None:
    """A range that is begun goes on. A range that is not begun has a deadline, and so has a transaction that is still
    to be checked."""
    kv = server()
    counts = [ask(kv, b"k", b"l", count_only=True) for _ in range(3)]
    put = [pb.RequestOp(request_put=pb.PutRequest(key=b"new%d" % number)) for number in range(100)]
    writes: list[Caller] = []

    def write(now: float) -> None:
        writes.append(Caller())
        kv.call("Txn", pb.TxnRequest(success=put).SerializeToString(), writes[-1], now)

    while kv.late == len(counts):
        write(1.0)  # write until this turn has checked as many as it may
    write(2.0)
    checked = len(kv.waiters)
    kv.expire(6.9, 7.0)
    assert kv.late == len(counts) + 2
    kv.expire(7.9, 7.0)
    assert [type(one.error) for one in counts] == [type(None), errors.Timeout, errors.Timeout] and kv.late == 3
    kv.expire(8.5, 7.0)
    assert isinstance(writes[-2].error, errors.Timeout) and kv.late == 2
    while kv.serve_late():
        pass
    assert answer(counts[0]).count == MANY
    assert len(kv.waiters) == checked + 1, "the other one is on its way to the log"
    assert [one.error for one in writes if one is not writes[-2]] == [None] * (len(writes) - 1)


@pytest.mark.parametrize(
    ("company", "limit", "waits"), [("get", 500, True), ("put", 500, True), ("get", 64, False), ("", 500, False)]
)
def test_a_page_lets_the_answers_of_others_leave_before_it_is_made(company: str, limit: int, waits: bool) -> None:
    """The member sends what is answered before it goes on with the queue (test_replica_turn.py)."""
    kv = server(engine=MemoryEngine(), keys=1000)
    body = pb.RangeRequest(key=b"k", range_end=b"l", limit=limit).SerializeToString()
    for _ in range(2):
        page, single = Caller(), Caller()
        kv.call("Range", body, page, 0.0)
        if company == "get":
            kv.call("Range", pb.RangeRequest(key=b"k000007").SerializeToString(), single, 0.0)
        elif company == "put":
            kv.call("Put", pb.PutRequest(key=b"other").SerializeToString(), single, 0.0)
        kv.serve_reads(kv.take_reads())
        assert (page.reply is None) is waits
        assert single.reply is not None or company != "get"
        kv.serve_late()
        assert len(answer(page).kvs) == limit


def test_a_read_that_waited_for_its_index_has_no_more_time_in_line_than_others() -> None:
    kv = server()
    count = ask(kv, b"k", b"l", count_only=True)
    reads = [Caller(), Caller()]
    for now, caller in enumerate(reads, 1):
        body = pb.RangeRequest(key=b"k", range_end=b"l", count_only=True).SerializeToString()
        kv.call("Range", body, caller, float(now))
    kv.expire(6.0, 7.0)
    kv.serve_reads(kv.take_reads())
    assert kv.late == 3
    kv.expire(8.5, 7.0)
    assert [type(one.error) for one in (count, *reads)] == [type(None), errors.Timeout, type(None)]


def test_ranges_that_were_begun_are_bounded_too() -> None:
    """Each begun range holds a view and a part of its reply. One more is begun in every turn."""
    kv = server(most=3)
    callers = []
    for _ in range(15):
        callers.append(ask(kv, b"k", b"l"))
        kv.serve_late()
        assert kv.late <= 3
    refused = [one for one in callers if one.error]
    assert refused and all(isinstance(one.error, errors.TooManyRequests) for one in refused)
    while kv.serve_late():
        pass
    assert all(one.error or answer(one).count == MANY for one in callers)


def test_a_range_that_cannot_be_begun_fails_alone() -> None:
    """Its revision was compacted while it waited."""
    kv = server()
    first = [ask(kv, b"k", b"l", count_only=True) for _ in range(5)]
    old = ask(kv, b"k", b"l", revision=2, count_only=True)
    kv.store.compact(pb.CompactionRequest(revision=MANY).SerializeToString())
    kv.store.commit(2, 1)
    while kv.serve_late():
        pass
    assert {answer(one).count for one in first} == {MANY}
    assert isinstance(old.error, errors.Compacted)


class Asked(RocksEngine):
    """An engine in files, which says how often it has counted keys."""

    asked = 0

    def count(self, start: bytes, end: bytes | None) -> int | None:
        self.asked += 1
        return super().count(start, end)


@pytest.mark.parametrize("together", [False, True], ids=["ranges", "one transaction"])
def test_a_turn_makes_few_counts_of_an_engine_in_files(tmp_path: Path, together: bool) -> None:
    """Each walks over a part of two stretches. With 50 of them in one transaction a turn took 33 ms."""
    engine = Asked(str(tmp_path))
    kv = server(engine=engine, keys=2000)
    while engine.reclaim():
        pass  # until all keys are counted
    counts = []
    request = pb.RangeRequest(key=b"k", range_end=b"l", count_only=True, serializable=True)
    if together:
        callers = [Caller()]
        whole = pb.TxnRequest(success=[pb.RequestOp(request_range=request)] * 100)
        kv.call("Txn", whole.SerializeToString(), callers[0], 0.0)
    else:
        callers = [Caller() for _ in range(100)]
        for caller in callers:
            kv.call("Range", request.SerializeToString(), caller, 0.0)
    counts.append(engine.asked)
    while kv.late:
        kv.serve_late()
        counts.append(engine.asked)
    assert all(caller.error is None and caller.reply for caller in callers)
    assert counts[-1] == 100, "each was counted once, by the engine"
    most = max(behind - before for before, behind in itertools.pairwise([0, *counts]))
    assert most <= 8, f"{most} counts in one turn"
    engine.close()
