"""`put_many` reports the outcome of every pair, the calling thread decodes large replies, and the loop gets one slice
at a time."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metastore import Config, Node, PutManyResult, errors
from metastore._core.kv_pieces import NOT_WRITTEN, OPEN, Piece, PiecePut
from metastore.embedded import bulk, requests
from metastore.embedded.node import INBOX_SLICE
from metastore.embedded.outcome import FutureCall
from metastore.failpoints import Failpoints

pytestmark = pytest.mark.node_only

NARROW = {"max_inflight_requests": 100, "max_inflight_bytes": "256KiB"}


def make(folder: Path, failpoints: Failpoints | None = None, **limits: Any) -> Node:
    # Pipelined calls need no quick disk.
    config = Config(
        node={"data_dir": str(folder)}, listen={"client": "127.0.0.1:0"},
        limits={"max_request_bytes": "64KiB", **limits},
        wal={"sync": "always" if failpoints else "async"}, raft={"batch_max_size": 50, "batch_max_bytes": "128KiB"},
    )  # fmt: skip
    return Node(config, failpoints=failpoints)


def positions(spans: tuple[range, ...]) -> set[int]:
    return set(itertools.chain(*spans))


def check(failure: errors.PutManyFailed, node: Node, total: int) -> None:
    """Check that the exception tells the truth: key `k<n>` is that of pair n."""
    there = {int(item.key[1:]): item.mod_revision for item in node.get_prefix("k").kvs}
    written, refused, unknown = map(positions, (failure.written, failure.not_written, failure.open))
    assert written | refused | unknown == set(range(failure.taken)) and failure.taken <= total
    assert len(written) + len(refused) + len(unknown) == failure.taken, "each position is in one of the three"
    assert written <= set(there) <= written | unknown
    if written:
        assert (failure.first_revision, failure.last_revision) == (there[min(written)], there[max(written)])
    else:
        assert (failure.first_revision, failure.last_revision) == (0, 0)


def test_the_result_says_what_is_stored(tmp_path: Path) -> None:
    with make(tmp_path) as node:
        assert node.put_many([]) == PutManyResult(0, 0, 0)
        assert node.put_many({"a1": "b", b"c": b"d"}) == PutManyResult(2, 2, 3)
        assert node.put_many([["x", "y"]]) == PutManyResult(1, 4, 4)
        assert [(item.key, item.value) for item in node.get_prefix("").kvs] == [
            (b"a1", b"b"), (b"c", b"d"), (b"x", b"y"),
        ]  # fmt: skip


def test_an_error_in_the_middle_says_which_pairs_are_there(tmp_path: Path) -> None:
    with make(tmp_path) as node:
        given = []

        def pairs() -> Iterator[tuple[str, str]]:
            for n in range(100_000):
                given.append(n)
                yield ("" if n == 700 else f"k{n}"), "v"

        with pytest.raises(errors.PutManyFailed, match="key is not provided") as caught:
            node.put_many(pairs())
        failure = caught.value
        assert len(given) < 20_000, "it went on after the error"
        assert isinstance(failure.reason, errors.EmptyKey) and failure.__cause__ is failure.reason
        assert failure.code == errors.INVALID_ARGUMENT and not failure.open
        assert 700 in positions(failure.not_written) and set(range(700)) <= positions(failure.written)
        check(failure, node, 100_000)
        again = pickle.loads(pickle.dumps(failure))
        assert (type(again), str(again)) == (errors.PutManyFailed, str(failure))
        assert (again.written, again.taken, again.code) == (failure.written, failure.taken, failure.code)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (("k", 1), r"pairs\[600\]: value must be bytes or str, not int"),
        ((None, "v"), r"pairs\[600\]: key must be bytes or str, not None"),
        (("\ud800", "v"), r"pairs\[600\]: key: UTF-8 cannot encode it"),
        ("kv", r"pairs\[600\] must be a tuple \(key, value\), not str"),
        (("k", "v", "w"), r"pairs\[600\] must be a tuple \(key, value\), not tuple of 3"),
    ],
)
def test_a_wrong_pair_is_named_and_what_was_before_is_told(tmp_path: Path, wrong: Any, text: str) -> None:
    with make(tmp_path) as node:
        pairs: list[Any] = [(f"k{n}", "v") for n in range(600)]
        with pytest.raises(errors.WrongPair, match=text) as caught:
            node.put_many([*pairs, wrong, ("never", "")])
        assert isinstance(caught.value, TypeError) and isinstance(caught.value, ValueError)
        assert caught.value.written == (range(500),), "the slice that was complete"
        assert caught.value.not_written == (range(500, 600),) and caught.value.taken == 600
        check(caught.value, node, 601)


def test_an_error_of_the_iterator_is_the_reason(tmp_path: Path) -> None:
    class Gone(Exception):
        pass

    def pairs() -> Iterator[tuple[str, str]]:
        for n in range(1200):
            yield f"k{n}", "v"
        raise Gone("the source is gone")

    with make(tmp_path) as node:
        with pytest.raises(errors.PutManyFailed, match="the source is gone") as caught:
            node.put_many(pairs())
        assert isinstance(caught.value.reason, Gone) and caught.value.taken == 1200
        assert (caught.value.written, caught.value.not_written) == ((range(1000),), (range(1000, 1200),))
        check(caught.value, node, 1200)


def test_what_is_no_iterable_of_pairs_is_refused_at_once(tmp_path: Path) -> None:
    with make(tmp_path) as node:
        for wrong in ("kv", b"kv", 5, None):
            for call in (node.put_many, node.futures.put_many):
                with pytest.raises(TypeError, match="pairs must be an iterable of"):
                    call(wrong)  # type: ignore[arg-type]
        assert node.revision == 1


def test_one_timeout_is_for_all_pairs(tmp_path: Path) -> None:
    """The disk stands still after the first slices. The outcome of the slices that it holds up is open, and the timeout
    does not start again."""
    failpoints = Failpoints()
    with make(tmp_path, failpoints, **NARROW) as node:
        taken = 0

        def pairs() -> Iterator[tuple[str, str]]:
            nonlocal taken
            for taken in range(1, 60_001):
                if taken == 5000:
                    failpoints.set("wal.before_sync", "block")
                yield f"k{taken - 1}", "v"

        with pytest.raises(errors.PutManyTimeout, match="request timed out: no answer within 2 s") as caught:
            node.put_many(pairs(), timeout=2)
        failpoints.clear()
        node.put("done", "", timeout=30)
        failure = caught.value
        assert isinstance(failure, TimeoutError) and isinstance(failure, errors.Timeout)
        assert failure.open and taken <= 5000 + bulk.WINDOW + bulk.SLICE
        check(failure, node, 60_000)


def test_the_time_is_over_also_where_every_slice_is_quick(tmp_path: Path) -> None:
    """Nothing ever waits for room, for the pairs come no faster than they are stored."""
    begun = time.monotonic()

    def endless() -> Iterator[tuple[str, str]]:
        stored = node.revision
        for n in itertools.count():
            if n % bulk.SLICE == 0:
                while node.revision < stored + n:
                    node.get("key")
            if time.monotonic() > begun + 20:
                raise AssertionError("the time is not looked at")
            yield f"k{n}", "v"

    with make(tmp_path) as node:
        with pytest.raises(errors.PutManyTimeout) as caught:
            node.put_many(endless(), timeout=0.3)
        node.put("done", "")
        check(caught.value, node, 1 << 62)

        async def awaited() -> None:
            await node.aio.put_many(endless(), timeout=0.3)

        begun = time.monotonic()
        with pytest.raises(errors.PutManyTimeout):
            asyncio.run(awaited())


def test_what_the_node_gave_up_is_open(tmp_path: Path) -> None:
    failpoints = Failpoints()
    with make(tmp_path, failpoints, request_timeout=0.3) as node:

        def pairs() -> Iterator[tuple[str, str]]:
            for n in range(1200):
                if n == 500:
                    failpoints.set("wal.before_sync", "block")
                yield f"k{n}", "v"

        with pytest.raises(errors.PutManyTimeout, match="request timed out") as caught:
            node.put_many(pairs())
        failpoints.clear()
        node.put("done", "", timeout=30)
        assert caught.value.open and node.get("k600") is not None
        check(caught.value, node, 1200)


def test_what_still_waits_in_line_is_taken_back(tmp_path: Path) -> None:
    """A hundred puts may be in flight. The others were handed over, and are never done once the time is over."""
    failpoints = Failpoints()
    with make(tmp_path, failpoints, **NARROW) as node:
        failpoints.set("wal.before_sync", "block")
        with pytest.raises(errors.PutManyTimeout) as caught:
            node.put_many(((f"k{n}", "v") for n in range(60_000)), timeout=0.3)

        async def awaited() -> None:
            await node.aio.put_many({f"l{n}": "v" for n in range(2000)}, timeout=0.3)

        with pytest.raises(errors.PutManyTimeout) as late:
            asyncio.run(awaited())
        failpoints.clear()
        node.put("done", "", timeout=30)
        for failure in (caught.value, late.value):
            assert sum(map(len, failure.open)) <= NARROW["max_inflight_requests"], failure
            assert sum(map(len, failure.not_written)) >= 1500
        check(caught.value, node, 60_000)
        stored = node.get_prefix("", count_only=True).count
        assert stored == 1 + sum(map(len, (*caught.value.open, *late.value.open)))


def test_a_put_has_one_outcome_whoever_comes_second(tmp_path: Path) -> None:
    """The node may end while the caller takes back what waits."""
    news: list[bool] = []
    failpoints, admitted = Failpoints(), threading.Event()
    with make(tmp_path, failpoints) as node:
        failpoints.set("wal.before_sync", "block")
        running: Any = node._running()
        piece = Piece(10)
        piece.fill(iter([(b"k", b"v")] * 3), bulk.checked)
        piece.news = lambda: news.append(piece.done)
        running.loop.call_soon_threadsafe(lambda: (running.put_piece(piece, 1), admitted.set()))
        assert admitted.wait(30) and piece.next == 1
        piece.withdraw()
        assert piece.next == 3 and not piece.done and not piece.failed and news == []
        (waiter,) = [one for one in running.kv.waiters.values() if isinstance(one, PiecePut)]
        waiter.fail(errors.Stopped())
        assert piece.done and piece.failed and news == [True]
        piece.withdraw()
        piece.refuse(errors.Canceled())
        waiter.complete(b"late")
        assert news == [True] and isinstance(piece.error, errors.Stopped) and piece.first_revision == 0
        assert piece.spans() == [(OPEN, 10, 11), (NOT_WRITTEN, 11, 13)]
        failpoints.clear()
        node.put("done", "", timeout=30)
        assert piece.spans() == [(OPEN, 10, 11), (NOT_WRITTEN, 11, 13)]


@pytest.mark.parametrize("at", range(8))
def test_a_handler_of_a_signal_stops_the_node_in_the_middle_of_it(tmp_path: Path, at: int) -> None:
    """The signal comes wherever the thread is in `put_many` by then."""
    node = make(tmp_path)
    node.start()
    handled = signal.signal(signal.SIGALRM, lambda *_: node.stop())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.002 + at * 0.007)
        with pytest.raises(errors.ApiError) as caught:
            for turn in itertools.count():
                node.put_many((f"k{n % 7}", str(turn)) for n in range(3000))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handled)
    error = caught.value
    reason = error.reason if isinstance(error, errors.PutManyFailed) else error
    assert isinstance(reason, errors.Stopped | errors.Timeout) and node.wait(0)


def test_an_error_ends_it_soon_where_little_may_be_in_flight(tmp_path: Path) -> None:
    """What waits in line does not wait for its own time to be over: only a hundred puts have to be answered."""
    failpoints = Failpoints()
    with make(tmp_path, failpoints, request_timeout=0.3, **NARROW) as node:
        failpoints.set("wal.before_sync", "block")
        given = time.monotonic()
        with pytest.raises(errors.PutManyTimeout, match="request timed out") as caught:
            node.put_many(((f"k{n}", "v") for n in range(3000)), timeout=20)
        # One after the other their times would take nine seconds and more.
        assert time.monotonic() - given < 8
        failpoints.clear()
        node.put("done", "", timeout=30)
        assert sum(map(len, caught.value.not_written)) >= 1500
        check(caught.value, node, 3000)


def test_a_stop_leaves_nobody_in_doubt_about_what_is_stored(tmp_path: Path) -> None:
    node = make(tmp_path, **NARROW)
    node.start()
    caught: list[errors.PutManyFailed] = []
    begun = threading.Event()

    def pairs() -> Iterator[tuple[str, str]]:
        for n in itertools.count():
            if n == 6000:
                begun.set()
            yield f"k{n}", "v"

    def write() -> None:
        try:
            node.put_many(pairs())
        except errors.PutManyFailed as failure:
            caught.append(failure)

    writer = threading.Thread(target=write)
    writer.start()
    assert begun.wait(30)
    node.stop()
    writer.join(30)
    (failure,) = caught
    assert isinstance(failure.reason, errors.Stopped) and sum(map(len, failure.written)) >= 1000
    assert failure.not_written and sum(map(len, failure.open)) <= INBOX_SLICE, "what waited was never handed on"
    with make(tmp_path) as again:
        check(failure, again, 1 << 62)


def test_a_get_overtakes_what_waits(tmp_path: Path) -> None:
    """Counted in puts that are taken in before it is answered, while 20,000 of them wait."""
    with make(tmp_path, **NARROW) as node:
        running: Any = node._running()
        node.put("key", "value")
        futures = node.futures.put_many([(f"b{n}", "v") for n in range(20_000)])
        taken = []
        while not futures[-1].done() and len(taken) < 20:
            before = running.kv.call_counts["Put"]
            assert node.get("key") is not None
            taken.append(running.kv.call_counts["Put"] - before)
        # It waits for the turn under way and for what is in flight, and for no more than a turn or two of others.
        assert taken and max(taken) <= 2 * INBOX_SLICE, taken
        assert futures[-1].result(60).revision == 20_002


def test_a_reply_is_decoded_by_who_asks_for_it(tmp_path: Path) -> None:
    with make(tmp_path) as node:
        node.put_many((f"k{n}", "v") for n in range(9000))
        threads: list[str] = []
        decode = requests.decoder("Range", requests.range_result)

        def watched(reply: bytes) -> Iterator[Any]:
            for step in decode(reply):
                threads.append(threading.current_thread().name)
                yield step

        request = requests.range_request("k", "l")
        call = FutureCall(watched)
        node._submit([("Range", request.SerializeToString(), call)])
        found = call.future.result(30)
        assert found == node.range("k", "l") and len(found.kvs) == found.count == 9000
        assert len(threads) > 2, "in pieces"
        assert set(threads) == {threading.current_thread().name}
        assert call.future.result() is found, "it is decoded once"
        assert node.futures.range("k", "l").result(30) == found


@pytest.mark.parametrize("size", [1, 7, 100, 5000, 1 << 20])
def test_pieces_of_a_reply_say_what_it_says(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pb = requests.messages()
    kvs = [pb.KeyValue(key=b"k%d" % n, value=bytes(n % 300), mod_revision=n, version=1, lease=-1) for n in range(200)]
    reply = pb.RangeResponse(header=pb.ResponseHeader(revision=77, cluster_id=1 << 63), kvs=kvs, count=900, more=True)
    data = reply.SerializeToString()
    pieces = list(requests.split(data, size))
    assert b"".join(pieces) == data and all(len(piece) <= size + 400 for piece in pieces)
    monkeypatch.setattr(requests, "PIECE", size)
    *steps, found = requests.decoder("Range", requests.range_result)(data)
    assert found == requests.range_result(reply) and steps == [None] * (len(pieces) if size < len(data) else 0)
    assert list(requests.split(b"", 5)) == []
