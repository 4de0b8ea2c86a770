"""Watching keys in asyncio: `async for event in node.aio.watch("/jobs/", prefix=True)`. It takes no thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from .. import errors
from .answered import rung
from .arguments import seconds
from .results import WatchBatch, WatchEvent
from .watch import Watching, no_event

T = TypeVar("T")


class AsyncWatch(Watching):
    """A watch for asyncio: `node.aio.watch(...)`, iterated with `async for`, in any event loop.

    Events, errors and calls are those of `Watch`. A task that is cancelled while it waits has taken nothing. Other
    tasks run between any two of the messages that the node has sent. `async with` closes the watch at the end.
    """

    async def __aenter__(self) -> AsyncWatch:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> AsyncIterator[WatchEvent]:
        return self

    async def __anext__(self) -> WatchEvent:
        try:
            return await self._taken(self._taker.event, None)
        except errors.Canceled:
            raise StopAsyncIteration from None

    async def batches(self) -> AsyncIterator[WatchBatch]:
        """All events of one revision together, again and again."""
        with contextlib.suppress(errors.Canceled):
            while True:
                yield await self._taken(self._taker.batch, None)

    async def next(self, timeout: float | None = None) -> WatchEvent:
        """As `Watch.next`."""
        return await self._taken(self._taker.event, seconds(timeout))

    async def next_batch(self, timeout: float | None = None) -> WatchBatch:
        """As `Watch.next_batch`."""
        return await self._taken(self._taker.batch, seconds(timeout))

    async def _taken(self, take: Callable[[], T | None], timeout: float | None) -> T:
        """What `take` gives, as soon as it gives something. Raises Timeout."""
        loop = asyncio.get_running_loop()
        until = None if timeout is None else loop.time() + timeout
        while True:
            found = take()
            if found is not None:
                return found
            if self._taker.decode():
                await asyncio.sleep(0)
            elif not await rung(self._mailbox.bell, self._taker.waits, until):
                raise no_event(timeout)
