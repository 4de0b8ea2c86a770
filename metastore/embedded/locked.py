"""Answers whose Future is locked when they come, given by a thread of their own.

`concurrent.futures.wait` and `as_completed` lock all of their Futures one by one. A handler of a signal that raises in
there, as Ctrl-C does, leaves them locked for ever. The loop's thread would wait for such a lock, and all callers for
the loop's thread. What these two wait with has locks of its own, where the same may happen, but far more rarely.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from .. import threads
from ..errors import OutOfResources

log = logging.getLogger("metastore.embedded")

#: Seconds for which the loop's thread waits for a lock. Threads that are well hold one for microseconds.
PATIENCE = 0.005
#: Seconds after which nobody has the lock any more who will release it.
ABANDONED = 10.0
#: Seconds between two looks.
LOOK, LONGEST_LOOK = 0.001, 0.1


class Lockable(Protocol):
    """A Future."""

    def unlocked(self, patience: float) -> bool:
        """Whether its lock was free within so many seconds."""

    def settle(self, result: Any, error: BaseException | None) -> None:
        """Resolve it, with its lock."""

    def force(self, result: Any, error: BaseException | None) -> None:
        """Resolve it without its lock."""


class Locked:
    """The answers that wait for a lock, of all nodes of this process.

    entered, left: called in the thread that gives them, first and last.
    """

    def __init__(self, entered: Callable[[], object], left: Callable[[], object]) -> None:
        self.waiting: list[tuple[float, Lockable, Any, BaseException | None]] = []
        self._entered = entered
        self._left = left
        self._lock = threading.Lock()  # for threads of ours alone, which no signal interrupts
        self._runs = False

    def give(self, future: Lockable, result: Any, error: BaseException | None) -> None:
        """Resolve a Future, at once if it is not locked."""
        if future.unlocked(0 if self.waiting else PATIENCE):
            future.settle(result, error)
            return
        with self._lock:
            self.waiting.append((time.monotonic() + ABANDONED, future, result, error))
            runs, self._runs = self._runs, True
        if not runs:
            try:
                threads.begin("locked-futures", self._run)
            except OutOfResources as failure:  # the next one tries again
                self._runs = False
                log.error("a Future that is locked gets no answer for now: %s", failure)

    def _run(self) -> None:
        self._entered()
        try:
            self._give_all()
        finally:
            self._left()

    def _give_all(self) -> None:
        look = LOOK
        while True:
            with self._lock:
                waiting = list(self.waiting)
                if not waiting:
                    self._runs = False
                    return
            left = [entry for entry in waiting if not _given(*entry)]
            with self._lock:
                self.waiting = left + self.waiting[len(waiting) :]
            look = LOOK if len(left) < len(waiting) else min(2 * look, LONGEST_LOOK)
            time.sleep(look)


def _given(until: float, future: Lockable, result: Any, error: BaseException | None) -> bool:
    """Resolve a Future, if it is not locked, or was so for too long; whether it is done."""
    if future.unlocked(0):
        future.settle(result, error)
    elif time.monotonic() >= until:
        log.warning("a Future is locked by a thread that was interrupted; it is resolved all the same")
        future.force(result, error)
    else:
        return False
    return True
