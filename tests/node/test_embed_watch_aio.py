"""`node.aio.watch`: events for tasks, without a thread; cancelling, closing, and event loops that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.processes import wait_until

from metastore import AsyncWatch, EventKind, Node, Op, errors
from metastore.embedded import forks

pytestmark = pytest.mark.node_only


@pytest.fixture
def node() -> Iterator[Node]:
    with Node.in_memory() as node:
        yield node


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks and threads run until the condition holds."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def waits(watch: AsyncWatch) -> bool:
    return bool(watch._mailbox.bell.waiters)


async def first(watch: AsyncWatch, count: int) -> list[int]:
    return [(await watch.next(30)).revision for _ in range(count)]


def test_a_task_is_told_what_a_thread_is_told(node: Node) -> None:
    async def program() -> None:
        before = set(threading.enumerate())
        async with node.aio.watch("/a/", prefix=True, prev_kv=True) as watch:
            await node.aio.put("/a/1", "x")
            await node.aio.put("/b", "x")
            await node.aio.txn(success=[Op.put("/a/2", "y"), Op.delete("/a/1")])
            async for event in watch:
                assert (event.kind, event.key, event.revision) == (EventKind.PUT, b"/a/1", 2)
                break
            batch = await watch.next_batch(30)
            assert batch.revision == watch.revision == 4
            assert [(one.kind.value, one.prev_kv and one.prev_kv.value) for one in batch.events] == [
                ("put", None),
                ("delete", b"x"),
            ]
            with pytest.raises(errors.Timeout, match=r"no event within 0\.01 s"):
                await watch.next(0.01)
            with pytest.raises(errors.Timeout):
                await watch.next_batch(0)
            assert not waits(watch)
            last = (await node.aio.put_many((f"/a/{n}", "v") for n in range(50))).last_revision
            async for one in watch.batches():
                assert len(one.events) == 1
                if one.revision == last:
                    break
        assert [event async for event in watch] == []
        assert set(threading.enumerate()) <= before, "a watch took a thread"
        await until(lambda: node.stats()["watchers"] == 0)

    asyncio.run(program())


def test_cancelling_loses_nothing_and_closing_ends_the_wait(node: Node) -> None:
    async def program() -> None:
        watch = node.aio.watch("k")
        found: list[int] = []
        for round_ in range(40):
            waiting = asyncio.ensure_future(watch.next())
            while not (waits(watch) or waiting.done()):
                await asyncio.sleep(0.001)
            if round_ % 2:
                node.futures.put("k", str(round_))  # it may come before the end of the task, or after
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                found.append((await waiting).revision)
            assert not waits(watch)
        last = (await node.aio.put("k", "last")).revision
        found += await first(watch, last - 1 - len(found))
        assert found == list(range(2, last + 1)) and last == 22
        reader = asyncio.ensure_future(watch.next())
        counts = asyncio.ensure_future(all_of(watch))
        await until(lambda: len(watch._mailbox.bell.waiters) == 2)
        threading.Thread(target=watch.close).start()
        assert await asyncio.wait_for(counts, 30) == 0
        with pytest.raises(errors.Canceled, match="closed"):
            await reader

    async def all_of(watch: AsyncWatch) -> int:
        return len([event async for event in watch])

    asyncio.run(program())


def test_event_loops_come_and_go(node: Node) -> None:
    """One watch serves several event loops, one after the other and at the same time, and outlives them."""
    watch = node.aio.watch("k")

    async def give_up() -> None:
        waiting = asyncio.ensure_future(watch.next())
        await until(lambda: waits(watch))
        del waiting  # the loop ends while it waits, and cancels it

    asyncio.run(give_up())
    node.put("k", "v")
    assert asyncio.run(first(watch, 1)) == [2]

    async def some() -> list[int]:
        return [event.revision async for event in watch]

    with ThreadPoolExecutor() as pool:
        parts = [pool.submit(lambda: asyncio.run(some())) for _ in range(3)]
        last = node.put_many(("k", "v") for _ in range(500)).last_revision
        wait_until(lambda: watch.revision == last)
        watch.close()
        found = [part.result(30) for part in parts]
    assert sorted(itertools.chain(*found)) == list(range(3, last + 1))


def test_other_tasks_run_while_much_is_decoded(node: Node) -> None:
    turns = 0

    async def program() -> None:
        nonlocal turns

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        for _ in range(3):
            node.txn(success=[Op.put(f"k{n:03}", "x" * 10_000) for n in range(100)])
        watch = node.aio.watch("k", prefix=True, start_revision=2)
        busy = asyncio.ensure_future(other())
        await until(lambda: bool(watch._mailbox.messages))
        turns = 0
        await watch.next_batch(30)
        assert turns >= 8, "a megabyte was decoded at one go"
        for revision in (3, 4):
            batch = await watch.next_batch(30)
            assert (batch.revision, len(batch.events)) == (revision, 100)
        busy.cancel()

    asyncio.run(program())


def test_the_end_of_the_node_and_of_history(node: Node) -> None:
    async def program() -> None:
        for _ in range(5):
            await node.aio.put("k", "v")
        await node.aio.compact(4)
        with pytest.raises(errors.WatchCompacted) as raised:
            await node.aio.watch("k", start_revision=2).next(30)
        assert raised.value.compact_revision == 4
        watch = node.aio.watch("k", start_revision=6)
        found: list[int] = []

        async def read() -> None:
            async for event in watch:
                found.append(event.revision)

        reading = asyncio.ensure_future(read())
        await until(lambda: waits(watch) and found == [6])
        await asyncio.to_thread(node.stop)
        with pytest.raises(errors.Stopped):
            await reading
        with pytest.raises(errors.Stopped):
            node.aio.watch("k")

    asyncio.run(program())


def test_a_fork_may_not_take(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    async def program() -> None:
        watch: Any = node.aio.watch("k")
        monkeypatch.setattr(forks, "process", -1)
        with pytest.raises(errors.Forked):
            await watch.next()
        monkeypatch.undo()

    asyncio.run(program())
