"""A node whose stop never ends."""

from __future__ import annotations

import os
import signal
import threading
import time


class Stuck:
    """A node whose stop() never ends, as with a disk that hangs. SIGTERM comes again `later` seconds later."""

    told = gave_up = False

    def __init__(self, later: float) -> None:
        self.later = later
        self.stopping = threading.Event()
        self.ended = threading.Event()

    def start(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def wait(self) -> None:
        assert self.stopping.wait(10)
        until = time.monotonic() + self.later
        while (left := until - time.monotonic()) > 0:
            self.ended.wait(left)
        os.kill(os.getpid(), signal.SIGTERM)
        self.ended.wait(2)

    def stop(self) -> None:
        self.stopping.set()
        if threading.current_thread().name == "stop":
            self.ended.wait(20)
