"""Virtual time: one heap of events, one source of randomness, one running sum over all that happens.

Two runs from the same seed do the same, to the bit; the sum (`trace`) is what shows it. Time is in seconds.
"""

from __future__ import annotations

import heapq
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

_STAMP = struct.Struct("<dI")


class Timer:
    """An event that may still be called off."""

    __slots__ = ("args", "call", "live", "when")

    def __init__(self, when: float, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.when = when
        self.call = call
        self.args = args
        self.live = True

    def cancel(self) -> None:
        """It will not happen. Idempotent."""
        self.live = False


class Clock:
    """The scheduler. `random` is the only source of chance in a whole simulation."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.events = 0
        self.trace = 0
        self._heap: list[tuple[float, int, Timer]] = []
        self._number = 0

    def at(self, when: float, call: Callable[..., object], *args: Any) -> Timer:
        """Call `call(*args)` at `when`, or now if that is over; events of the same time keep their order."""
        timer = Timer(max(when, self.now), call, args)
        self._number += 1
        heapq.heappush(self._heap, (timer.when, self._number, timer))
        return timer

    def after(self, delay: float, call: Callable[..., object], *args: Any) -> Timer:
        """Call `call(*args)` in `delay` seconds."""
        return self.at(self.now + delay, call, *args)

    def note(self, what: bytes) -> None:
        """Let the trace say that this happened now."""
        self.trace = zlib.crc32(what, zlib.crc32(_STAMP.pack(self.now, self.events & 0xFFFFFFFF), self.trace))

    def run(self, until: float, done: Callable[[], bool] | None = None) -> bool:
        """Let time pass up to `until`, or until `done()`; whether `done` ended it."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            when, _, timer = heapq.heappop(heap)
            if not timer.live:
                continue
            self.now = when
            self.events += 1
            timer.call(*timer.args)
            if done is not None and done():
                return True
        self.now = max(self.now, until)
        return False
