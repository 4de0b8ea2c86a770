"""The calls of a node for asyncio: `await node.aio.put(key, value)`, and `async with Node(config) as node:`.

No call takes a thread. It is handed to the node's loop as all calls are, and the answer wakes the task that waits for
it. A large reply is decoded in the thread of asyncio, in pieces of a millisecond or so, between which other tasks run.
Only the start and the stop of a node take a thread while they last, for they wait for disks and for other members.

A task that is cancelled waits no longer. What it has handed over is not taken back: a write is done all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .. import errors
from .aio_leases import AsyncLease
from .aio_locks import AsyncElection, AsyncLock
from .aio_watch import AsyncWatch
from .answered import answered, post
from .arguments import Key, Pairs, seconds
from .bulk import Bulk, source_of
from .calls import Futures
from .leases import KeptAlive, LeaseCalls
from .locks import QueueCalls
from .outcome import overdue
from .requests import SortOrder, SortTarget, prefix_range
from .results import (
    CompactResult,
    DeleteResult,
    GrantResult,
    KeyValue,
    LeaseInfo,
    PutManyResult,
    PutResult,
    RangeResult,
    TxnResult,
)
from .transactions import Compare, Op
from .watch import Watchable

if TYPE_CHECKING:
    from .keeping import Keeper
    from .mailbox import Mailbox
    from .queues import Queues

T = TypeVar("T")


class Lives(Protocol):
    """What is started and stopped by calls that block."""

    def start(self) -> None:
        """Returns when it runs."""

    def stop(self) -> None:
        """Returns when it has ended; never raises."""


async def start(node: Lives) -> None:
    """Start a node in a thread of its own. A task that is cancelled meanwhile stops the node before it ends."""
    starting = asyncio.ensure_future(_aside(node.start, "metastore-start"))
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await stop(node)
        with contextlib.suppress(Exception):
            await _to_its_end(starting)
        raise


async def stop(node: Lives) -> None:
    """Stop a node in a thread of its own. A task that is cancelled meanwhile waits on, and is cancelled then."""
    await _to_its_end(asyncio.ensure_future(_aside(node.stop, "metastore-stop")))


async def _to_its_end(task: asyncio.Future[None]) -> None:
    """Wait for a task, whoever cancels the waiting; that is raised at the end."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()


async def _aside(call: Callable[[], None], name: str) -> None:
    """Have a thread make a call, and wait for it."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 it is raised where the call is waited for
            done.set_exception(error)
        else:
            done.set_result(None)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        await answered(done, None)
    finally:
        if done.done():
            thread.join()


class Waiting:
    """The task that waits in `put_many`, for `timeout` seconds in all."""

    def __init__(self, timeout: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._until = None if timeout is None else self._loop.time() + timeout
        self._news = asyncio.Event()

    async def hand_over(self, bulk: Bulk) -> None:
        """Hand over what was gathered, as soon as there is room for it. Raises the error that was met meanwhile, and
        Timeout."""
        while bulk.crowded():
            await self.settle(bulk)
        error = bulk.error
        if error is not None:
            raise error
        if self._until is not None and self._loop.time() >= self._until:
            raise overdue(self._timeout)
        bulk.hand_over(lambda: post(self._loop, self._news.set))
        await asyncio.sleep(0)

    async def settle(self, bulk: Bulk) -> None:
        """Wait for the oldest piece. Raises the error that was met meanwhile, Timeout."""
        if not await self._wait(bulk.settled):
            raise overdue(self._timeout)
        error = bulk.error
        if error is not None:
            raise error
        bulk.settle()

    async def see_the_end(self, bulk: Bulk) -> None:
        """Wait until all that was handed over has an outcome, or the time is over."""
        await self._wait(bulk.ended)

    async def _wait(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition that comes with news; whether it came in time."""
        try:
            async with asyncio.timeout_at(self._until):
                while True:
                    self._news.clear()
                    if condition():
                        return True
                    await self._news.wait()
        except TimeoutError:
            return condition()


#: What is awaited for a result.
Awaited = Coroutine[Any, Any, T]


class AsyncKV(
    Watchable[AsyncWatch],
    QueueCalls[AsyncLock, AsyncElection],
    LeaseCalls[Awaited[GrantResult], Awaited[None], Awaited[int], Awaited[LeaseInfo | None], Awaited[tuple[int, ...]]],
):
    """The calls of a node, to be awaited in any event loop of asyncio: `node.aio`.

    Arguments, results and errors are those of the calls of the same names of `Node`, and so is `timeout`, in seconds. A
    call is handed over when it is awaited. Cancelling it ends the wait and takes nothing back.
    """

    def __init__(
        self,
        futures: Futures,
        mailbox: Callable[[bytes], Mailbox],
        keeper: Callable[[], Keeper],
        queues: Callable[[], Queues],
    ) -> None:
        """`mailbox` begins a watch with an encoded request, `keeper` gives who keeps leases alive, and `queues` the
        steps of locks and elections."""
        self.futures = self._futures = futures
        self._mailbox = mailbox
        self._keeper = keeper
        self._queues = queues

    async def _outcome(self, call: Callable[[], Future[T]], timeout: float | None) -> T:
        bound = seconds(timeout)
        return await answered(call(), bound)

    def _lock_of(self, name: bytes, ttl: int, lease: KeptAlive | None, timeout: float | None) -> AsyncLock:
        return AsyncLock(self._queues(), name, ttl, lease, timeout)

    def _election_of(self, name: bytes) -> AsyncElection:
        return AsyncElection(self._queues(), name, self.watch)

    def lease(self, ttl: int, *, timeout: float | None = None) -> AsyncLease:
        """As `Node.lease`; it is granted by `async with`, or by awaiting it. `timeout` is for that."""
        return AsyncLease(self._futures, self._keeper, ttl, timeout)

    def _begun(self, request: bytes, start_revision: int) -> AsyncWatch:
        return AsyncWatch(self._mailbox(request), start_revision)

    async def put(
        self,
        key: Key,
        value: Key,
        *,
        lease: int = 0,
        prev_kv: bool = False,
        ignore_value: bool = False,
        ignore_lease: bool = False,
        timeout: float | None = None,
    ) -> PutResult:
        """As `Node.put`."""
        bound = seconds(timeout)
        future = self._futures.put(
            key, value, lease=lease, prev_kv=prev_kv, ignore_value=ignore_value, ignore_lease=ignore_lease
        )
        return await answered(future, bound)

    async def put_many(
        self, pairs: Pairs | AsyncIterable[tuple[Key, Key]], *, timeout: float | None = None
    ) -> PutManyResult:
        """As `Node.put_many`; `pairs` may be an asynchronous iterable too. Other tasks run between the pieces."""
        waiting, bulk = Waiting(seconds(timeout)), self._futures.bulk()
        given = None if isinstance(pairs, AsyncIterable) else source_of(pairs)
        try:
            if given is not None:
                while bulk.fill(given):
                    await waiting.hand_over(bulk)
            elif isinstance(pairs, AsyncIterable):
                async for pair in pairs:
                    bulk.fill(iter((pair,)))
                    if bulk.full:
                        await waiting.hand_over(bulk)
            if bulk.gathered:
                await waiting.hand_over(bulk)
            while bulk.window:
                await waiting.settle(bulk)
        except Exception as reason:
            if isinstance(reason, errors.Timeout):
                bulk.withdraw()
            await waiting.see_the_end(bulk)
            raise bulk.failure(reason) from reason
        except BaseException:
            bulk.withdraw()
            raise
        return bulk.result()

    async def range(
        self,
        key: Key,
        range_end: Key | None = None,
        *,
        limit: int = 0,
        revision: int = 0,
        sort_order: SortOrder = SortOrder.NONE,
        sort_target: SortTarget = SortTarget.KEY,
        serializable: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        min_mod_revision: int = 0,
        max_mod_revision: int = 0,
        min_create_revision: int = 0,
        max_create_revision: int = 0,
        timeout: float | None = None,
    ) -> RangeResult:
        """As `Node.range`."""
        bound = seconds(timeout)
        future = self._futures.range(
            key,
            range_end,
            limit=limit,
            revision=revision,
            sort_order=sort_order,
            sort_target=sort_target,
            serializable=serializable,
            keys_only=keys_only,
            count_only=count_only,
            min_mod_revision=min_mod_revision,
            max_mod_revision=max_mod_revision,
            min_create_revision=min_create_revision,
            max_create_revision=max_create_revision,
        )
        return await answered(future, bound)

    async def get(
        self,
        key: Key,
        *,
        revision: int = 0,
        serializable: bool = False,
        keys_only: bool = False,
        timeout: float | None = None,
    ) -> KeyValue | None:
        """As `Node.get`."""
        found = await self.range(
            key, revision=revision, serializable=serializable, keys_only=keys_only, timeout=timeout
        )
        return found.kvs[0] if found.kvs else None

    async def get_prefix(
        self,
        prefix: Key,
        *,
        limit: int = 0,
        revision: int = 0,
        sort_order: SortOrder = SortOrder.NONE,
        sort_target: SortTarget = SortTarget.KEY,
        serializable: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        timeout: float | None = None,
    ) -> RangeResult:
        """As `Node.get_prefix`."""
        return await self.range(
            *prefix_range(prefix),
            limit=limit,
            revision=revision,
            sort_order=sort_order,
            sort_target=sort_target,
            serializable=serializable,
            keys_only=keys_only,
            count_only=count_only,
            timeout=timeout,
        )

    async def delete(
        self, key: Key, range_end: Key | None = None, *, prev_kv: bool = False, timeout: float | None = None
    ) -> DeleteResult:
        """As `Node.delete`."""
        bound = seconds(timeout)
        return await answered(self._futures.delete(key, range_end, prev_kv=prev_kv), bound)

    async def delete_prefix(self, prefix: Key, *, prev_kv: bool = False, timeout: float | None = None) -> DeleteResult:
        """As `Node.delete_prefix`."""
        bound = seconds(timeout)
        return await answered(self._futures.delete_prefix(prefix, prev_kv=prev_kv), bound)

    async def txn(
        self,
        compare: Sequence[Compare] = (),
        success: Sequence[Op] = (),
        failure: Sequence[Op] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        """As `Node.txn`."""
        bound = seconds(timeout)
        return await answered(self._futures.txn(compare, success, failure), bound)

    async def compact(self, revision: int, *, physical: bool = False, timeout: float | None = None) -> CompactResult:
        """As `Node.compact`."""
        bound = seconds(timeout)
        return await answered(self._futures.compact(revision, physical=physical), bound)
