"""A running member keeps its state small and sound. Each part of this upkeep has a module of its own.

The upkeep belongs to the loop's thread and never holds it for more than a millisecond.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..replica.sweep import Sweep
from .alarms import MemberAlarms
from .busy_engine import BusyEngine
from .compaction import AutoCompaction
from .hash_sums import HashSums
from .quota import Quota
from .reclaim import Reclaim

if TYPE_CHECKING:
    from .._core.engine import Engine
    from ..net.loop import Loop
    from ..replica.driver import Driver
    from .memory_guard import Memory


class Upkeep:
    """The parts of the upkeep. The owner calls `turn` at the end of each turn, and `tick` at each Raft tick.

    `disk_full` tells whether the disk has no room for the log. That shows as an alarm of this member, too.
    """

    def __init__(
        self,
        memory: Memory,
        engine: Engine,
        driver: Driver,
        loop: Loop,
        member: int,
        disk_full: Callable[[], bool],
        history_held: Callable[[], bool],
    ) -> None:
        kv = driver.kv
        self.alarms = MemberAlarms(driver, member, loop.now, disk_full)
        self.reclaim = Reclaim(engine, kv, loop)
        self.quota = Quota(memory, engine, kv, self.alarms, member, self.reclaim.pack)
        self.sums = HashSums(engine, driver, loop, self.reclaim.free)
        self.busy = BusyEngine(memory.config.storage.engine, driver)
        self.compaction = AutoCompaction(memory.config.maintenance, driver, loop)
        self.sweep = Sweep(
            driver,
            lambda delay, call: loop.call_later(delay, call) if delay else loop.call_behind(call),
            lambda: not self.quota.serving or self.quota.tight,
            held=history_held,
            share=loop.share,
            pressed=loop.pressed,
            worked=time.thread_time,
        )

    def turn(self) -> None:
        """Acts on what has changed."""
        self.alarms.turn()

    def tick(self, now: float) -> None:
        """Checks the room that is left, and whether a compaction is due, at `now` (seconds)."""
        self.reclaim.free()
        self.quota.tick(now)
        self.compaction.tick(now, hurry=self.quota.tight)

    def serve(self) -> None:
        """The state is up to date, and clients are served from now on."""
        self.quota.serving = True

    def stop(self) -> None:
        """Begins nothing more, and answers the callers that wait with Stopped."""
        self.quota.stop()
        self.compaction.stop()
        self.sums.stop()
        self.reclaim.stop()

    def stats(self) -> dict[str, float]:
        """Numbers for /metrics."""
        parts = (self.alarms, self.quota, self.reclaim, self.sums, self.busy, self.compaction, self.sweep)
        numbers: dict[str, float] = {}
        for part in parts:
            numbers |= part.stats()
        return numbers
