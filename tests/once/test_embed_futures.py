"""A Future makes its condition when somebody waits, and nobody misses the answer that comes meanwhile."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from metastore import Node, PutResult, errors
from metastore._core.kv_answers import encode_put, resolve, revision_of
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
        assert not resolve(answer.__dict__, "RUNNING", "FINISHED", 1, None)
        answer.give(1)
    assert (waited.result(0), called.result(0), program.result(0), seen) == (1, 1, "mine", [called])
    alone = Answer()
    assert not alone.done() and alone.running() and not alone.cancel()
    alone = Answer()
    alone.give(None, errors.Stopped())
    assert "_condition" not in alone.__dict__ and alone.done() and isinstance(alone.exception(0), errors.Stopped)
    with pytest.raises(AttributeError, match="no attribute '_other'"):
        _ = alone._other


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


@pytest.mark.parametrize("sizes", [(0, 0), (1, 0), (0, 1), (127, 128), (1, 1 << 21)])
def test_a_request_is_encoded_as_protobuf_does_it(sizes: tuple[int, int]) -> None:
    pb = messages()
    key, value = (bytes(size) for size in sizes)
    assert encode_put(key, value) == pb.PutRequest(key=key, value=value).SerializeToString()
    header = pb.ResponseHeader(cluster_id=1 << 63, member_id=5, revision=(1 << 62) + sizes[1], raft_term=3)
    reply = pb.PutResponse(header=header, prev_kv=pb.KeyValue(key=key)).SerializeToString()
    assert revision_of(reply) == header.revision and revision_of(b"") == 0
    with pytest.raises(errors.MalformedRequest):
        revision_of(reply[:5])
