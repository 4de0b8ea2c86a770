"""Logs a warning when a disk takes long over a write or a sync.

A thread of its own does this, because the thread that waits for the disk cannot, and may be the loop's thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from ..threads import begin

#: A sync that takes this many seconds is logged and makes a member unready.
SLOW: Final = 1.0
# Seconds to the next look while the disk works, and while it does not. A sync that takes SLOW is found within 1.5 s.
_LOOK: Final = 0.5
_IDLE: Final = 1.0
_AGAIN: Final = 10.0  # seconds between two lines about syncs that did end


class SlowDisk:
    """A thread that watches one disk.

    `pending_since` returns when the operation under way was requested (seconds, monotonic), or None. `take_longest`
    returns how long the longest operation took that ended since the previous call (seconds).
    """

    def __init__(
        self, name: str, pending_since: Callable[[], float | None], take_longest: Callable[[], float], log: Any
    ) -> None:
        self._name = name
        self._pending_since = pending_since
        self._take_longest = take_longest
        self._log = log
        self._next = SLOW  # seconds that the operation under way must take before the next line about it
        self._told_at = -_AGAIN
        self._over = threading.Event()
        self._thread = begin("wal-slow-disk", self._run)

    def _run(self) -> None:
        wait = _LOOK
        while not self._over.wait(wait):
            wait = self.look(time.monotonic())

    def look(self, now: float) -> float:
        """Write the lines that are due at `now` (seconds, monotonic): after 1, 2, 4... seconds, and at the end. Return
        the seconds to the next look."""
        longest = self._take_longest()
        if longest >= SLOW and (self._next > SLOW or now - self._told_at >= _AGAIN):
            self._log.warning("%s: the disk took %.1f s for a sync", self._name, longest)
            self._told_at, self._next = now, SLOW
        since = self._pending_since()
        if since is None:
            self._next = SLOW
        elif now - since >= self._next:
            self._log.warning("%s: the disk has not finished a sync for %.1f s", self._name, now - since)
            while now - since >= self._next:
                self._next *= 2
        return _IDLE if since is None else _LOOK

    def stop(self) -> None:
        """End the thread without waiting for it, because it has nothing to finish."""
        self._over.set()
