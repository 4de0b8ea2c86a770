"""Callbacks of an embedded node's Futures: none of them stops the store, and all callers are answered."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.embedded import make, standing

from metastore import Node, errors

pytestmark = pytest.mark.node_only


class Odd(BaseException):
    """A program's own exception that is no Exception."""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with make(tmp_path / "data") as node:
        yield node


def raising(error: BaseException) -> Callable[[Any], None]:
    def callback(_future: Any) -> None:
        raise error

    return callback


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, Odd, ValueError])
def test_no_callback_stops_the_store(node: Node, kind: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []
    with standing(node):
        first = node.futures.put("a", "b")
        first.add_done_callback(raising(kind("thrown by the program")))
        first.add_done_callback(seen.append)
        failing = node.futures.put("", "an empty key")
        failing.add_done_callback(raising(kind("thrown by the program")))
        rest = node.futures.put_many([(f"k{n}", "v") for n in range(100)])
    assert [future.result(30).revision for future in rest] == list(range(3, 103))
    assert seen == [first], "the callback behind the one that raised was not called"
    with pytest.raises(errors.EmptyKey):
        failing.result(30)
    assert node.put("after", "it").revision == 103
    told = [record for record in caplog.records if record.exc_info and record.exc_info[0] is kind]
    assert len(told) == 2 and {record.levelno for record in told} == {logging.ERROR}
    assert {record.name.partition(".")[0] for record in told} == {"metastore"}


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_callback_of_a_future_that_is_done_raises_where_it_is_added(node: Node, kind: type[BaseException]) -> None:
    future = node.futures.put("a", "b")
    future.result(30)
    with pytest.raises(kind):
        future.add_done_callback(raising(kind("thrown by the program")))


def test_a_future_that_the_program_resolved_is_left_alone(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    with standing(node):
        ours = [node.futures.put(f"k{n}", "v") for n in range(4)] + [node.futures.put("", "v")]
        for future in ours:
            future.set_exception(TimeoutError())
        rest = node.futures.put_many([(f"r{n}", "v") for n in range(10)])
    assert [future.result(30).revision for future in rest] == list(range(6, 16))
    for future in ours:
        with pytest.raises(TimeoutError):
            future.result(30)
    assert len([record for record in caplog.records if "resolved by the program" in record.getMessage()]) == 1


def test_a_blocking_call_in_a_callback_is_refused_at_once(node: Node) -> None:
    """Otherwise it would wait for the very thread that it runs in."""
    outcome: dict[str, Any] = {}
    pending: list[Any] = []
    calls: dict[str, Callable[[], Any]] = {
        "put": lambda: node.put("k", "v"),
        "put_many": lambda: node.put_many([("k", "v")]),
        "get": lambda: node.get("k"),
        "range": lambda: node.range("k", "l"),
        "get_prefix": lambda: node.get_prefix("k"),
        "delete": lambda: node.delete("k"),
        "delete_prefix": lambda: node.delete_prefix("k"),
        "txn": lambda: node.txn(),
        "compact": lambda: node.compact(1),
        "wait": lambda: node.wait(),
        "result": lambda: pending[0].result(),
        "exception": lambda: pending[0].exception(),
    }

    def callback(_future: Any) -> None:
        pending.append(node.futures.put("later", "v"))
        for name, call in calls.items():
            try:
                outcome[name] = call()
            except RuntimeError as error:
                outcome[name] = error

    with standing(node):
        node.futures.put("a", "b").add_done_callback(callback)
    assert node.put("b", "c", timeout=30).revision
    assert {name: type(found) for name, found in outcome.items()} == dict.fromkeys(calls, RuntimeError)
    assert all("loop's thread" in str(found) for found in outcome.values())
    pending[0].result(30)
    assert node.revision == 4 and node.get("k") is None, "a refused call was carried out"


def test_callbacks_of_two_nodes_may_stop_the_other_one(node: Node, tmp_path: Path) -> None:
    """Each would wait for the end of the other one's thread, in which the other callback runs."""
    with make(tmp_path / "other") as other:
        both = threading.Barrier(2, timeout=30)

        def stops(one: Node) -> Callable[[Any], None]:
            def callback(_future: Any) -> None:
                both.wait()
                one.stop()

            return callback

        with standing(node), standing(other):
            node.futures.put("a", "b").add_done_callback(stops(other))
            other.futures.put("a", "b").add_done_callback(stops(node))
        assert node.wait(30) and other.wait(30)


def test_a_callback_starts_no_node(node: Node, tmp_path: Path) -> None:
    outcome: list[BaseException] = []
    other = make(tmp_path / "other")

    def callback(_future: Any) -> None:
        try:
            other.start()
        except RuntimeError as error:
            outcome.append(error)

    with standing(node):
        node.futures.put("a", "b").add_done_callback(callback)
    assert node.put("b", "c", timeout=30).revision == 3
    assert len(outcome) == 1 and "loop's thread" in str(outcome[0])
    with other:
        assert other.put("a", "b").revision == 2, "the start that was refused is none"


def test_a_callback_may_stop_the_node_and_ask_for_more(tmp_path: Path) -> None:
    node = make(tmp_path)
    node.start()
    done, more = threading.Event(), []

    def callback(_future: Any) -> None:
        more.append(node.futures.put("more", "v"))
        node.stop()
        done.set()

    with standing(node):
        node.futures.put("a", "b").add_done_callback(callback)
    assert done.wait(30) and node.wait(30)
    assert not concurrent.futures.wait(more, 30).not_done
