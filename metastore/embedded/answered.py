"""How a task of asyncio waits for what another thread brings: no thread waits in its place."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from .bell import Bell
from .outcome import Outcome, overdue

T = TypeVar("T")


async def answered(future: Future[T], timeout: float | None) -> T:
    """The result of a Future. Raises its error, and Timeout after `timeout` seconds."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waiting.done():
            waiting.set_result(None)

    future.add_done_callback(lambda _: post(loop, wake))
    timer = None if timeout is None else loop.call_later(timeout, wake)
    try:
        await waiting
    finally:
        if timer is not None:
            timer.cancel()
    if not future.done():
        raise overdue(timeout)
    if isinstance(future, Outcome):
        for _ in future.steps():
            await asyncio.sleep(0)
    return future.result()


def post(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    """Have a loop of asyncio make a call; from any thread. One that is closed has nobody left who waits."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call)


async def rung(bell: Bell, quiet: Callable[[], bool], until: float | None) -> bool:
    """As `Bell.wait`; `until` is a time of the running loop."""
    loop = asyncio.get_running_loop()
    while quiet():
        news: asyncio.Future[None] = loop.create_future()
        wake = partial(_wake, news)
        bell.waiters[news] = partial(post, loop, wake)
        timer = None if until is None else loop.call_at(until, wake)
        try:
            if quiet():
                if until is not None and loop.time() >= until:
                    return False
                await news
        finally:
            bell.waiters.pop(news, None)
            if timer is not None:
                timer.cancel()
    return True


def _wake(news: asyncio.Future[None]) -> None:
    if not news.done():
        news.set_result(None)
