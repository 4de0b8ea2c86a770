"""Whoever waits for an embedded node is answered, whatever ends it; and the answer says what that was."""

from __future__ import annotations

import concurrent.futures
import ctypes
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.embedded import make, standing
from support.processes import wait_until

from metastore import Node, Op, PutResult, errors
from metastore._core.kv_answers import FuturePut, encode_put
from metastore.embedded.outcome import Outcome
from metastore.member import server

pytestmark = pytest.mark.node_only


def throw(error: BaseException) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


def hit_from_outside(node: Node) -> None:
    """As debuggers and libraries for timeouts do it: an exception between any two instructions of the thread."""
    ident = next(thread.ident for thread in threading.enumerate() if "loop" in thread.name)
    assert ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(SystemExit))


#: What ends the node, and what it has ended with then.
ENDS: dict[str, tuple[Callable[[Node], object], type[BaseException]]] = {
    "a disk": (lambda node: node.failpoints.set("apply.before", "error"), errors.DiskFailed),
    "a bug": (lambda node: loop_of(node).call_soon_threadsafe(throw(ZeroDivisionError("a bug"))), ZeroDivisionError),
    "memory": (lambda node: loop_of(node).call_soon_threadsafe(throw(MemoryError())), errors.OutOfMemory),
    "outside": (hit_from_outside, SystemExit),
    "SystemExit": (lambda node: loop_of(node).call_soon_threadsafe(throw(SystemExit(3))), SystemExit),
}


def loop_of(node: Node) -> Any:
    return node._running().loop


@pytest.mark.parametrize("end", ENDS)
def test_whoever_waits_is_answered(end: str, tmp_path: Path) -> None:
    node = make(tmp_path, limits={"max_inflight_requests": 400}, raft={"batch_max_size": 50})
    node.start()
    node.put_many([(f"old{n % 3}", "v") for n in range(300)])
    bring_about, ended_with = ENDS[end]
    blocked: dict[str, errors.ApiError] = {}

    def block(name: str, call: Callable[[], object]) -> None:
        try:
            call()
        except errors.ApiError as error:
            blocked[name] = error

    with standing(node):
        many: list[Any] = node.futures.put_many([(f"m{n}", "v") for n in range(500)])
        for n in range(50):
            many += [node.futures.put(f"k{n}", "v"), node.futures.range("k", "l"), node.futures.delete(f"k{n}")]
        many += [node.futures.compact(200, physical=True), node.futures.txn()]
        calls: dict[str, Callable[[], object]] = {
            "put": lambda: node.put("k", "v"), "get": lambda: node.get("k"),
            "put_many": lambda: node.put_many([(f"b{n}", "v") for n in range(20_000)]),
        }  # fmt: skip
        threads = [threading.Thread(target=block, args=call) for call in calls.items()]
        for thread in threads:
            thread.start()
        bring_about(node)
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a blocking call waits for ever"
    assert not concurrent.futures.wait(many, 30).not_done
    node.stop()
    with pytest.raises(errors.Stopped) as refused:
        node.get("k")
    assert isinstance(refused.value.__cause__, ended_with)
    failed = [future.exception() for future in many if future.exception() is not None]
    assert failed and {type(error) for error in failed} <= {errors.Stopped, errors.Timeout}
    assert {type(error.__cause__) for error in failed if error is not None} == {ended_with}
    assert "put_many" in blocked


def test_a_compaction_that_waits_for_its_space_is_answered_at_a_stop(tmp_path: Path) -> None:
    node = make(tmp_path)
    node.start()
    node.put_many([("k", "v")] * 30_000)
    compaction = node.futures.compact(30_000, physical=True)
    node.stop()
    assert isinstance(compaction.exception(30), errors.Stopped | None)
    assert compaction.done()


def test_a_stop_that_gives_up_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop's own thread stands still, as it does in a call of an engine whose disk does not answer."""
    monkeypatch.setattr(server, "CLOSE_TIMEOUT", 0.2)
    node = make(tmp_path, limits={"drain_timeout": "50ms"})
    node.start()
    node.failpoints.set("apply.before", "block")
    futures = [node.futures.put("a", "v"), *node.futures.put_many([(f"m{n}", "v") for n in range(300)])]
    futures += [node.futures.txn(success=[Op.put("k", "v")]), node.futures.compact(1)]
    read = node.futures.range("a")
    blocked: list[Exception] = []

    def put_many() -> None:
        try:
            node.put_many([(f"b{n}", "v") for n in range(1000)])
        except errors.PutManyFailed as error:
            blocked.append(error.reason)

    thread = threading.Thread(target=put_many)
    thread.start()
    node.stop()
    assert node.gave_up and not concurrent.futures.wait([*futures, read], 30).not_done
    assert {type(future.exception()) for future in futures} <= {errors.Timeout, errors.Stopped}
    thread.join(30)
    assert not thread.is_alive() and isinstance(blocked[0], errors.Timeout | errors.Stopped)
    node.failpoints.clear()
    wait_until(lambda: not any("/loop" in one.name for one in threading.enumerate()))
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]
    assert "resolved by the program" not in caplog.text


def test_a_call_that_is_handed_over_when_the_node_has_stopped(tmp_path: Path) -> None:
    """The caller has found the node running, and then it stopped. The second call finds a wake-up that never comes."""
    with make(tmp_path) as node:
        assert node._life is not None
        inbox = node._life.inbox
    futures = [Outcome() for _ in range(2)]
    for future in futures:
        inbox.put([("Put", encode_put(b"key", b"value"), FuturePut(future, PutResult))])
    assert [type(future.exception(30)) for future in futures] == [errors.Stopped] * 2
