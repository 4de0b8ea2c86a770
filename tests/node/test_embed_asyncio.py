"""The calls of an embedded node for `await`: no thread for a call, other tasks go on, and what cancelling means."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metastore import AsyncKV, Compare, Config, Node, Op, PutManyResult, SortOrder, errors
from metastore.embedded import bulk
from metastore.embedded.aio import answered
from metastore.failpoints import Failpoints

pytestmark = pytest.mark.node_only


def make(folder: Path, failpoints: Failpoints | None = None, **limits: Any) -> Node:
    sync = "always" if failpoints else "async"
    config = Config(
        node={"data_dir": folder}, listen={"client": "127.0.0.1:0"}, wal={"sync": sync}, limits=limits
    )  # fmt: skip
    return Node(config, failpoints=failpoints)


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks and threads run until the condition holds."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def test_every_call_is_awaited_and_takes_no_thread(tmp_path: Path) -> None:
    async def program() -> None:
        async with make(tmp_path) as node:
            kv = node.aio
            await kv.put("warm", "up")  # threads that a member begins late have begun
            before = set(threading.enumerate())
            put = await kv.put("a", "1", timeout=30)
            assert put.revision == node.revision
            assert (await kv.put("a", "2", prev_kv=True)).prev == await kv.get("a", revision=put.revision)
            assert await kv.put_many({"b/1": "x", "b/2": "y"}) == PutManyResult(2, put.revision + 2, put.revision + 3)
            found = await kv.get_prefix("b/", sort_order=SortOrder.DESCEND, limit=1)
            assert [item.key for item in found.kvs] == [b"b/2"] and found.more
            assert (await kv.range("a", "b", count_only=True)).count == 1
            done = await kv.txn([Compare.exists("a")], [Op.delete("a")], [Op.put("never", "")])
            assert done.succeeded and await kv.get("a") is None
            assert (await kv.delete("b/1")).deleted == 1
            assert (await kv.delete_prefix("b/", prev_kv=True)).prevs[0].value == b"y"
            assert (await kv.compact(node.revision, physical=True)).revision == node.revision
            values = await asyncio.gather(*(kv.put(f"c{n}", "v") for n in range(500)))
            assert len({one.revision for one in values}) == 500
            assert set(threading.enumerate()) <= before, "a call took a thread"
        with pytest.raises(errors.Stopped):
            await kv.get("a")

    asyncio.run(program())


def test_errors_and_arguments_are_those_of_the_blocking_calls(tmp_path: Path) -> None:
    async def program() -> None:
        node = make(tmp_path)
        with pytest.raises(errors.NotStarted):
            await node.aio.get("k")
        async with node:
            kv: Any = node.aio
            calls: list[tuple[Callable[[], Awaitable[object]], type[Exception], str]] = [
                (lambda: kv.get(""), errors.EmptyKey, "key is not provided"),
                (lambda: kv.compact(1 << 40), errors.FutureRevision, "future revision"),
                (lambda: kv.put("k", 1), TypeError, "value must be bytes or str"),
                (lambda: kv.put("k", "v", timeout=float("inf")), ValueError, "timeout must be between"),
                (lambda: kv.put_many("kv"), TypeError, "pairs must be an iterable"),
                (lambda: kv.put_many([("k", 1)]), errors.WrongPair, r"pairs\[0\]: value must be"),
                (lambda: kv.txn(success=Op.put("k", "v")), TypeError, "success must be a sequence of Op"),
            ]
            for call, kind, text in calls:
                with pytest.raises(kind, match=text):
                    await call()
            assert node.revision == 1

    asyncio.run(program())


def test_the_two_forms_take_the_same_arguments() -> None:
    names = [name for name in vars(AsyncKV) if not name.startswith("_")]
    assert set(names) == {
        "put", "put_many", "range", "get", "get_prefix", "delete", "delete_prefix", "txn", "compact", "lease",
    }  # fmt: skip
    for name in names:
        blocking, awaited = (inspect.signature(getattr(kind, name)) for kind in (Node, AsyncKV))
        if name != "lease":  # which gives an AsyncLease, to be awaited or entered
            assert inspect.iscoroutinefunction(getattr(AsyncKV, name))
            assert blocking.return_annotation == awaited.return_annotation, name
        if name != "put_many":
            assert blocking.parameters == awaited.parameters, name


def test_a_cancelled_task_waits_no_longer_and_its_write_is_done(tmp_path: Path) -> None:
    failpoints = Failpoints()

    async def program() -> None:
        async with make(tmp_path, failpoints) as node:
            failpoints.set("wal.before_sync", "block")
            task = asyncio.create_task(node.aio.put("k", "v"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(errors.Timeout, match=r"no answer within 0.01 s; a write may be done all the same"):
                await node.aio.put("l", "w", timeout=0.01)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await node.aio.put("m", "x")
            failpoints.clear()
            await node.aio.put("n", "y", timeout=30)
            assert [item.key for item in (await node.aio.get_prefix("")).kvs] == [b"k", b"l", b"m", b"n"]

    asyncio.run(program())


def test_answers_for_a_loop_that_is_closed_harm_nobody(tmp_path: Path) -> None:
    failpoints = Failpoints()
    with make(tmp_path, failpoints) as node:
        failpoints.set("wal.before_sync", "block")

        async def program() -> None:
            tasks = [asyncio.create_task(node.aio.put("k", "v")), asyncio.create_task(node.aio.put_many({"l": "w"}))]
            await until(lambda: node.stats()["inflight_requests"] == 2)
            assert not any(task.done() for task in tasks)

        asyncio.run(program())
        failpoints.clear()
        assert node.put("m", "x", timeout=30).revision == 4 and not node.wait(0)


def test_many_puts_leave_other_tasks_their_turn(tmp_path: Path) -> None:
    """Counted in turns of asyncio's loop, and in what is taken out of the iterator meanwhile."""

    async def program() -> None:
        async with make(tmp_path) as node:
            given, turns, most, last = 0, 0, 0, 0

            async def source() -> AsyncIterator[tuple[str, str]]:
                nonlocal given
                for given in range(1, 12_001):
                    yield f"k{given % 7}", str(given)

            def generated() -> Iterator[tuple[str, str]]:
                nonlocal given
                for given in range(1, 12_001):
                    yield f"k{given % 7}", str(given)

            async def watch() -> None:
                nonlocal turns, most, last
                while True:
                    turns, most, last = turns + 1, max(most, given - last), given
                    await asyncio.sleep(0)

            for pairs in (source, generated):
                given = turns = most = last = 0
                watcher = asyncio.create_task(watch())
                before = node.revision
                stored = await node.aio.put_many(pairs())
                watcher.cancel()
                assert stored == PutManyResult(12_000, before + 1, before + 12_000)
                assert turns >= 24 and most <= bulk.SLICE, "the loop stood still for more than a slice"

    asyncio.run(program())


def test_a_large_reply_is_decoded_between_other_tasks(tmp_path: Path) -> None:
    async def program() -> None:
        async with make(tmp_path) as node:
            await node.aio.put_many((f"k{n:05}", b"v" * 20) for n in range(20_000))
            turns: list[int] = [0]

            async def count() -> None:
                while True:
                    turns[0] += 1
                    await asyncio.sleep(0)

            future = node.futures.range("k", "l")
            await until(future.done)
            counter = asyncio.create_task(count())
            await asyncio.sleep(0)
            begun = turns[0]
            found = await answered(future, 30)
            counter.cancel()
            assert len(found.kvs) == 20_000 and turns[0] - begun >= 10, "in one piece"

    asyncio.run(program())


def test_put_many_tells_what_became_of_its_pairs(tmp_path: Path) -> None:
    failpoints = Failpoints()

    async def program() -> None:
        async with make(tmp_path, failpoints) as node:
            with pytest.raises(errors.PutManyFailed, match="key is not provided") as caught:
                await node.aio.put_many((f"k{n}" if n != 600 else "", "v") for n in range(1200))
            assert 600 in caught.value.not_written[0] and caught.value.written[0] == range(600)

            async def blocked() -> AsyncIterator[tuple[str, str]]:
                for n in range(60_000):
                    if n == 2000:
                        failpoints.set("wal.before_sync", "block")
                    yield f"l{n}", "v"

            with pytest.raises(errors.PutManyTimeout, match="no answer within 1 s") as late:
                await node.aio.put_many(blocked(), timeout=1)
            failpoints.clear()
            await node.aio.put("done", "", timeout=30)
            assert late.value.open and late.value.taken < 60_000
            there = {int(item.key[1:]) for item in (await node.aio.get_prefix("l")).kvs}
            for span in late.value.written:
                assert there.issuperset(span)

    asyncio.run(program())


def test_a_start_that_is_cancelled_leaves_nothing_behind(tmp_path: Path) -> None:
    """It waits for a quorum that does not come."""
    config = Config(
        node={"data_dir": tmp_path}, listen={"client": "127.0.0.1:0", "peer": "127.0.0.1:0"},
        cluster={"initial": {"n1": "127.0.0.1:1", "n2": "127.0.0.1:2", "n3": "127.0.0.1:3"}},
    )  # fmt: skip

    async def program() -> None:
        node = Node(config)
        begun = asyncio.Event()

        async def use() -> None:
            begun.set()
            async with node:
                raise AssertionError("it serves")

        task = asyncio.create_task(use())
        await until(lambda: (tmp_path / "LOCK").exists())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert node.wait(0)

    before = set(threading.enumerate())
    asyncio.run(program())
    assert set(threading.enumerate()) <= before
    with make(tmp_path / "other"):
        pass


def test_an_error_of_the_start_is_raised(tmp_path: Path) -> None:
    async def program() -> None:
        async with make(tmp_path):
            with pytest.raises(errors.DataDirInUse):
                async with make(tmp_path):
                    raise AssertionError("it serves")

    asyncio.run(program())
