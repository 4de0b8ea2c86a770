"""A caller that is interrupted anywhere, by the handler of a signal that raises or at the recursion limit, harms nobody
else: others are answered, and nothing is held that nobody has."""

from __future__ import annotations

import concurrent.futures
import gc
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from support.embedded import standing
from support.processes import wait_until

from metastore import Node, errors
from metastore._core.kv_pieces import Piece
from metastore.embedded import answers, locked

pytestmark = pytest.mark.node_only


class Interrupt(BaseException):
    """What the handler of a signal raises."""


class Alarm(Exception):
    """The same, where the program took an Exception for it."""


@pytest.fixture
def node() -> Iterator[Node]:
    with Node.in_memory() as node:
        yield node


@pytest.mark.parametrize("done", [False, True])
def test_a_hand_over_that_is_interrupted(node: Node, monkeypatch: pytest.MonkeyPatch, done: bool) -> None:
    loop: Any = node._running().loop
    post = loop.call_soon_threadsafe

    def interrupted(call: Callable[[], object]) -> None:
        if done:
            post(call)
        raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "call_soon_threadsafe", interrupted)
        with pytest.raises(Interrupt):
            node.put("a", "b")
    assert node.put("c", "d", timeout=30).revision and node.range("c", timeout=30).count == 1


def test_the_recursion_limit_in_a_call(node: Node) -> None:
    def deep(left: int, call: Callable[[], object]) -> object:
        return deep(left - 1, call) if left else call()

    most = sys.getrecursionlimit() - len(inspect.stack())
    met = 0
    for left in range(most - 60, most):
        try:
            deep(left, lambda: node.futures.put("a", "b"))
        except RecursionError:
            met += 1
        assert node.put("c", "d", timeout=30).revision
    assert met


def interrupted_at_a_lock(call: Callable[[], object], *files: str | None) -> None:
    """Interrupt a call where code of these files has just taken a lock."""

    def interrupt(frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event == "return" and code.co_name == "__enter__" and code.co_filename in files:
            raise Interrupt

    sys.setprofile(interrupt)
    try:
        with pytest.raises(Interrupt):
            call()
    finally:
        sys.setprofile(None)


def test_a_wait_that_is_interrupted_leaves_the_future_to_others(node: Node) -> None:
    """The loop's thread takes the Future's lock as well, when it has the answer."""
    with standing(node):
        future = node.futures.put("a", "b")
        interrupted_at_a_lock(lambda: future.result(30), threading.__file__, answers.__file__)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(future.result, 30).result(60).revision == 2
    assert node.put("c", "d", timeout=30).revision == 3


def test_futures_that_stay_locked_hold_up_nobody(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules of Python that wait for many Futures leave all of them locked when they are interrupted."""
    monkeypatch.setattr(locked, "ABANDONED", 0)
    called = threading.Event()
    with standing(node):
        puts = node.futures.put_many([(f"k{n}", "v") for n in range(20)])
        puts[7].add_done_callback(lambda _: called.set())
        interrupted_at_a_lock(lambda: concurrent.futures.wait(puts, 30), concurrent.futures._base.__file__)
    assert node.put("c", "d", timeout=30).revision
    wait_until(lambda: all(one.done() for one in puts), what="they are done all the same")
    first = puts[0].result(30).revision
    assert called.wait(30) and [one.result(30).revision for one in puts] == list(range(first, first + 20))
    wait_until(lambda: not any(one.name.endswith("locked-futures") for one in threading.enumerate()), what="it ends")
    assert len(answers._loops) == 1, "a thread with the same number must be able to wait"


def test_futures_that_are_locked_for_a_while_are_answered_then(node: Node) -> None:
    with standing(node):
        future = node.futures.put("a", "b")
        future._condition.acquire()
    assert node.put("c", "d", timeout=30).revision == 3 and not future.done()
    future._condition.release()
    assert future.result(30).revision == 2


@pytest.mark.parametrize("done", [False, True])
def test_put_many_tells_the_truth_after_an_interruption(
    node: Node, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    """A piece that may be in the member's hands is not called surely not written."""
    submit = node.futures._submit_patient

    def interrupted(pieces: list[Piece]) -> None:
        if done or not pieces:
            submit(pieces)
        if pieces:
            wait_until(lambda: not done or pieces[0].done, what="the member has it")
            raise Alarm

    monkeypatch.setattr(node.futures, "_submit_patient", interrupted)
    with pytest.raises(errors.PutManyFailed) as caught:
        node.put_many([(f"k{n}", "v") for n in range(10)])
    failure = caught.value
    assert isinstance(failure.reason, Alarm) and failure.taken == 10 and not failure.open
    assert (failure.written, failure.not_written) == (((range(10),), ()) if done else ((), (range(10),)))
    assert node.get_prefix("k", timeout=30).count == (10 if done else 0)


def test_a_lease_that_never_reached_its_program_ends(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = node._keeper()
    begin, begun = keeper.begin, []

    def interrupted(kept: Any) -> None:
        begin(kept)
        begun.append(kept.ident)
        raise Interrupt

    monkeypatch.setattr(keeper, "begin", interrupted)
    for call in (lambda: node.lease(60), lambda: node.lock("j", ttl=60).acquire()):
        with pytest.raises(Interrupt):
            call()  # type: ignore[no-untyped-call]
    gc.collect()
    assert len(begun) == 2
    wait_until(lambda: all(kept() is None for _, _, kept in keeper._heap), what="nobody keeps them alive")


def test_a_lock_that_is_interrupted_before_it_stands_in_line(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise Interrupt

    monkeypatch.setattr(node.futures, "queued", interrupted)
    for call in (node.lock("j", ttl=60).acquire, node.election("e").campaign):
        with pytest.raises(Interrupt):
            call()
    wait_until(lambda: node.leases() == (), what="its lease is revoked")
