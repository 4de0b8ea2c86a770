"""The thread that reads log entries which have left memory. `readahead.py` decides what it reads."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..threads import begin

if TYPE_CHECKING:
    from .reading import Reading

Done = Callable[["Reading", "bytes | Exception"], object]


class ReadThread:
    """The thread starts with the first read. `post` runs a call in the thread that asks for the read."""

    def __init__(self, post: Callable[[Callable[[], object]], object]) -> None:
        self._post = post
        self._jobs: queue.SimpleQueue[tuple[Reading, Done] | None] = queue.SimpleQueue()
        self._done: deque[tuple[Reading, bytes | Exception, Done]] = deque()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def read(self, reading: Reading, done: Done) -> None:
        """Read in the thread. `done` gets `reading` and its images, or the error, in the thread that asked."""
        if self._thread is None:
            self._thread = begin("wal-read", self._run)
        self._jobs.put((reading, done))

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._stopped:
            reading, done = job
            outcome: bytes | Exception
            try:
                outcome = reading.read()
            except Exception as error:  # noqa: BLE001 whatever it is, it stops the node and not only this thread
                outcome = error
            self._done.append((reading, outcome, done))
            self._post(self._take)

    def _take(self) -> None:
        while self._done and not self._stopped:
            reading, outcome, done = self._done.popleft()
            done(reading, outcome)

    def close(self, timeout: float = 1.0) -> None:
        """End the thread. A read that takes longer than `timeout` seconds is left to end by itself."""
        self._stopped = True
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                logging.getLogger("metastore.wal").warning("closing without waiting any longer for a read of the log")
