"""News for threads and tasks that wait for something.

No lock is taken here, for a signal's handler may ring in the middle of any step. Whoever waits registers first and
looks for news after that, so none is missed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable

from ..threads import LOOK_UP
from .answers import may_block


class Bell:
    """Rings for all who wait, from any thread.

    waiters: whoever waits, and what tells them. Each is told once.
    """

    def __init__(self) -> None:
        self.waiters: dict[Hashable, Callable[[], object]] = {}

    def ring(self) -> None:
        """There is news."""
        while self.waiters:
            try:
                _, told = self.waiters.popitem()
            except KeyError:
                return
            told()

    def wait(self, quiet: Callable[[], bool], until: float | None) -> bool:
        """Block this thread while there is nothing new, until a time (monotonic) at most; whether there is something.
        Raises RuntimeError in a loop's thread, which would bring the news."""
        news = threading.Lock()
        news.acquire()
        self.waiters[news] = news.release
        try:
            while quiet():
                may_block()
                # A signal that comes just before a thread falls asleep does not wake it (`threads.Gate`).
                left = LOOK_UP if until is None else until - time.monotonic()
                if left <= 0:
                    return False
                if news.acquire(timeout=min(left, LOOK_UP)):
                    self.waiters[news] = news.release
            return True
        finally:
            self.waiters.pop(news, None)
