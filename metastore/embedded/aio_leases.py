"""Leases in asyncio: `async with node.aio.lease(10) as lease:`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from .. import errors
from . import forks
from .answered import answered, rung
from .arguments import seconds
from .leases import KeptAlive, leave, unwanted

if TYPE_CHECKING:
    from .calls import Futures
    from .keeping import Keeper


class AsyncLease(KeptAlive):
    """A lease that the node keeps alive, for asyncio: `node.aio.lease(ttl)`. It is granted by `async with`, or by
    awaiting it; the rest is as in `Lease`."""

    def __init__(self, futures: Futures, keeper: Callable[[], Keeper], ttl: int, timeout: float | None) -> None:
        super().__init__(None)
        self._futures = futures
        self._keeper = keeper
        self._asked_ttl = ttl
        self._timeout = seconds(timeout)

    def __await__(self) -> Generator[Any, None, AsyncLease]:
        return self._grant().__await__()

    async def _grant(self) -> AsyncLease:
        if self._kept_alive is None:
            asked, keeper, future = time.monotonic(), self._keeper(), self._futures.grant(self._asked_ttl)
            try:
                result = await answered(future, self._timeout)
            except BaseException:
                unwanted(self._futures, future)
                raise
            self._kept_alive = keeper.keep(result, asked)
        return self

    async def __aenter__(self) -> AsyncLease:
        return await self._grant()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        kept = self._kept
        if kept.process != forks.process:
            return
        if kind is None:
            kept.check()
            await self.revoke()
            return
        kept.close()
        leave(self._futures, kept.ident)

    async def revoke(self, timeout: float | None = None) -> None:
        """As `Lease.revoke`."""
        bound = seconds(timeout)
        self.close()
        try:
            await answered(self._futures.revoke(self.id), bound)
        except errors.LeaseNotFound:
            return

    async def wait_lost(self, timeout: float | None = None) -> bool:
        """As `Lease.wait_lost`."""
        bound, kept = seconds(timeout), self._kept
        until = None if bound is None else asyncio.get_running_loop().time() + bound
        await rung(kept.bell, kept.quiet, until)
        return kept.lost
