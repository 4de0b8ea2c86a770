"""Locks and elections in asyncio: `async with node.aio.lock("jobs") as lock:`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import Any, TypeVar

from .. import errors
from .answered import answered
from .arguments import Key, as_bytes, seconds
from .leases import KeptAlive
from .locks import Held, Observing
from .outcome import overdue
from .queues import TTL, Queues, Steps, Watches
from .results import KeyValue
from .watch import no_event

T = TypeVar("T")


async def run(steps: Steps[T], timeout: float | None) -> T:
    """Take steps in this task. Raises Timeout."""
    bound, loop = seconds(timeout), asyncio.get_running_loop()
    until = None if bound is None else loop.time() + bound
    outcome: Any = None
    error: BaseException | None = None
    while True:
        try:
            future = steps.send(outcome) if error is None else steps.throw(error)
        except StopIteration as end:
            return end.value
        outcome, error = None, None
        try:
            outcome = await answered(future, None if until is None else max(0.0, until - loop.time()))
        except errors.Timeout as late:
            error = late if future.done() else overdue(bound)
        except BaseException as raised:  # noqa: BLE001 - raised in the steps, which clean up
            error = raised


class AsyncLock(Held):
    """As `Lock`, for tasks: `node.aio.lock(name)`. A task that is cancelled while it waits leaves the line."""

    def __init__(self, queues: Queues, name: bytes, ttl: int, lease: KeptAlive | None, timeout: float | None) -> None:
        super().__init__(queues)
        self._name, self._ttl, self._lease, self._timeout = name, ttl, lease, timeout

    async def acquire(self, timeout: float | None = None) -> None:
        """As `Lock.acquire`."""
        self._free()
        self._entered(await run(self._queues.lock(self._name, self._ttl, self._lease), timeout))

    async def release(self, timeout: float | None = None) -> None:
        """As `Lock.release`."""
        await run(self._queues.release(self._left()), timeout)

    async def __aenter__(self) -> AsyncLock:
        await self.acquire(self._timeout)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        place = self._leaves(kind)
        if place is not None:
            await run(self._queues.release(place), None)


class AsyncLeadership(Held):
    """As `Leadership`, for tasks."""

    async def proclaim(self, value: Key, timeout: float | None = None) -> None:
        """As `Leadership.proclaim`."""
        await run(self._queues.proclaim(self._place, as_bytes(value, "value")), timeout)

    async def resign(self, timeout: float | None = None) -> None:
        """As `Leadership.resign`."""
        await run(self._queues.release(self._left()), timeout)

    async def __aenter__(self) -> AsyncLeadership:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        place = self._leaves(kind)
        if place is not None:
            await run(self._queues.release(place), None)


class AsyncElection:
    """As `Election`, for tasks: `node.aio.election(name)`."""

    def __init__(self, queues: Queues, name: bytes, watch: Watches) -> None:
        self._queues = queues
        self._name = name
        self._watch = watch

    async def campaign(
        self, value: Key = b"", *, ttl: int = TTL, lease: KeptAlive | None = None, timeout: float | None = None
    ) -> AsyncLeadership:
        """As `Election.campaign`."""
        place = await run(self._queues.campaign(self._name, value, ttl, lease), timeout)
        leadership = AsyncLeadership(self._queues)
        leadership._entered(place)
        return leadership

    async def leader(self, timeout: float | None = None) -> KeyValue | None:
        """As `Election.leader`."""
        return await run(self._queues.leader(self._name), timeout)

    def observe(self) -> AsyncObservation:
        """As `Election.observe`."""
        return AsyncObservation(self._queues.observe(self._name, self._watch))


class AsyncObservation(Observing):
    """As `Observation`, for one task."""

    async def __aenter__(self) -> AsyncObservation:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> AsyncIterator[KeyValue]:
        return self

    async def __anext__(self) -> KeyValue:
        try:
            return await self.next()
        except errors.Canceled:
            raise StopAsyncIteration from None

    async def next(self, timeout: float | None = None) -> KeyValue:
        """As `Observation.next`."""
        bound, loop = seconds(timeout), asyncio.get_running_loop()
        until = None if bound is None else loop.time() + bound
        while True:
            found = self._leader()
            if found is not None:
                return found
            left = None if until is None else max(0.0, until - loop.time())
            wanted: Any = self._wanted
            try:
                outcome = await (answered(wanted, left) if isinstance(wanted, Future) else wanted.next(left))
            except errors.Canceled:
                raise
            except errors.Timeout as late:
                if isinstance(wanted, Future) and wanted.done():
                    raise
                raise (no_event(bound) if bound is not None else overdue(None)) from late
            except errors.ApiError as error:
                self._go_on(None, error)
            else:
                self._go_on(outcome)
