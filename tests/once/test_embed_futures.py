"""A Future makes its condition when somebody waits, and nobody misses the answer that comes meanwhile."""

from __future__ import annotations

import concurrent.futures
import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.embedded import standing

from metastore import Node, PutResult, errors
from metastore._core.kv_answers import encode_put, resolve
from metastore.embedded.answers import Answer
from metastore.embedded.requests import messages

pytestmark = pytest.mark.node_only


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node.in_memory() as node:
        yield node


def test_nobody_misses_an_answer() -> None:
    """One thread resolves, one waits, one adds callbacks, all at the same moment, again and again."""
    rounds = 2000
    answers = [Answer() for _ in range(rounds)]
    called = [0] * rounds
    together = threading.Barrier(3)

    def count(place: int) -> None:
        called[place] += 1

    def give() -> None:
        for place, answer in enumerate(answers):
            if place % 20 == 0:
                together.wait(60)
            answer.give(place)

    def wait() -> list[int]:
        found = []
        for place, answer in enumerate(answers):
            if place % 20 == 0:
                together.wait(60)
            found.append(answer.result(30))
        return found

    def add() -> None:
        for place, answer in enumerate(answers):
            if place % 20 == 0:
                together.wait(60)
            answer.add_done_callback(lambda _, place=place: count(place))  # type: ignore[misc]

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        tasks = [pool.submit(give), pool.submit(wait), pool.submit(add)]
        assert tasks[1].result(120) == list(range(rounds))
        for task in tasks:
            task.result(120)
    assert called == [1] * rounds


def test_who_waits_or_has_a_callback_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answer, "_resolved_told", True)  # it is said once in a process, and another test looks for it
    waited, called, program = Answer(), Answer(), Answer()
    seen: list[Any] = []
    called.add_done_callback(seen.append)
    with pytest.raises(TimeoutError):
        waited.result(0)
    program.set_result("mine")
    for answer in (waited, called, program):
        assert not resolve(answer.__dict__, 1, None)
        answer.give(1)
    assert (waited.result(0), called.result(0), program.result(0), seen) == (1, 1, "mine", [called])
    alone = Answer()
    assert not alone.done() and alone.running() and not alone.cancel()
    alone = Answer()
    alone.give(None, errors.Stopped())
    assert "_condition" not in alone.__dict__ and alone.done() and isinstance(alone.exception(0), errors.Stopped)
    with pytest.raises(AttributeError, match="no attribute '_other'"):
        _ = alone._other


class Looks:
    """Garbage that looks at a Future's attributes when the collector finds it, as another thread may do then."""

    def __init__(self, answer: Answer, seen: list[Any]) -> None:
        self.me, self.answer, self.seen = self, answer, seen

    def __del__(self) -> None:
        self.seen.append(self.answer.__dict__)


def test_a_future_has_the_same_attributes_for_all_threads() -> None:
    """Python 3.11 makes the dictionary of an object when somebody asks for it, and the collector may run in there."""
    seen: list[Any] = []
    answer, thresholds = Answer(), gc.get_threshold()
    gc.collect()
    gc.disable()
    try:
        Looks(answer, seen)
        kept: list[Any] = [dict.fromkeys((n,)) for n in range(200)]  # all that Python keeps in store for the next ones
        gc.set_threshold(1)
        gc.enable()
        kept.append(answer.__dict__)
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()
    gc.collect()
    assert seen == [kept[-1]] and seen[0] is kept[-1]


def test_futures_of_puts_are_futures(node: Node) -> None:
    puts = [node.futures.put(f"k{n}", b"v" * (n % 300)) for n in range(1000)]
    done, left = concurrent.futures.wait(puts, 60)
    assert len(done) == 1000 and not left
    first = puts[0].result().revision
    assert [one.result() for one in puts] == [PutResult(first + n, None) for n in range(1000)]
    assert {one.result() for one in concurrent.futures.as_completed(puts, 60)} == {one.result() for one in puts}
    assert puts[5].result() is puts[5].result() and puts[5].exception() is None
    with pytest.raises(errors.EmptyKey):
        node.futures.put("", "v").result(30)


def test_writes_keep_their_order(node: Node) -> None:
    """Puts are taken out of the line together, and others one by one."""
    with standing(node):
        calls: list[Any] = []
        for n in range(3):
            calls += [node.futures.put("order", "v"), node.futures.put(f"order{n}", "v")]
            calls += [node.futures.delete("order"), node.futures.delete("order")]
    found = [call.result(60) for call in calls]
    assert [one.deleted for place, one in enumerate(found) if place % 4 > 1] == [1, 0] * 3
    revisions = [one.revision for place, one in enumerate(found) if place % 4 < 3]
    assert revisions == list(range(revisions[0], revisions[0] + 9))


def test_puts_in_line_share_entries(node: Node) -> None:
    """More than one batch usually takes: entries are larger then, and those that are refused stop nobody."""
    applier = node._running().driver.applier
    node.put("before", "v")
    before = applier.applied_index
    with standing(node):
        puts = [node.futures.put("" if n == 7 else f"line{n}", "v") for n in range(600)]
    good = [put.result(60).revision for n, put in enumerate(puts) if n != 7]
    assert good == list(range(good[0], good[0] + 599))
    with pytest.raises(errors.EmptyKey):
        puts[7].result(60)
    assert applier.applied_index - before <= 4


@pytest.mark.parametrize("sizes", [(0, 0), (1, 0), (0, 1), (127, 128), (1, 1 << 21)])
def test_a_request_is_encoded_as_protobuf_does_it(sizes: tuple[int, int]) -> None:
    pb = messages()
    key, value = (bytes(size) for size in sizes)
    assert encode_put(key, value) == pb.PutRequest(key=key, value=value).SerializeToString()
