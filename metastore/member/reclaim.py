"""The engine may hold room that it does not need. Defragmentation gives it back, and so does the end of a view.

This belongs to the loop's thread and never holds it for more than a millisecond.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .. import errors

if TYPE_CHECKING:
    from .._core.engine import Engine
    from .._core.kv_server import KVServer
    from ..net.loop import Loop
    from ..ports import Done

MAX_DEFRAGMENTS = 64  # callers that may wait for the defragmentation under way
PLENTY = 0.9  # the share of a turn that slices leave
SWEEP_WAIT = 0.005  # seconds between two checks whether a compaction has given back its room


class Reclaim:
    """Gives back room in slices."""

    def __init__(self, engine: Engine, kv: KVServer, loop: Loop) -> None:
        self._engine = engine
        self._kv = kv
        self._loop = loop
        self._waiting: list[Done] = []
        self._reclaiming = False
        self._stopped = False
        self._defragmented = 0

    def defragment(self, done: Done) -> None:
        """Gives back the room that the engine does not need, and that of a compaction under way. Then calls `done`.

        Callers that ask meanwhile share one defragmentation. Raises TooManyRequests (MAX_DEFRAGMENTS) and Stopped.
        """
        if self._stopped:
            raise errors.Stopped()
        if len(self._waiting) >= MAX_DEFRAGMENTS:
            raise errors.TooManyRequests()
        self._waiting.append(done)
        if len(self._waiting) == 1:
            self._defragment()

    def pack(self) -> None:
        """Begins a defragmentation that nobody waits for, unless one is under way."""
        if not self._waiting and not self._stopped:
            self.defragment(lambda _error: None)

    def _defragment(self) -> None:
        if not self._waiting:
            return
        again = SWEEP_WAIT if self._kv.sweep_pending else self._engine.defragment()
        if again is not None:
            self._loop.call_later(again, self._defragment)
            return
        self._defragmented += 1
        self._answer(None)

    def _answer(self, error: errors.MetaStoreError | None) -> None:
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done(error)

    def free(self) -> None:
        """Frees in slices what only a closed view held."""
        if not self._reclaiming:
            self._free_some()

    def _free_some(self) -> None:
        """Slice follows slice for a millisecond, or until somebody waits for the next turn.

        A thread that never sleeps keeps its processor for milliseconds, also from the client that has just been
        answered. While RocksDB counted eight million keys, a tenth of the puts took 1.3 ms instead of 0.6 for that.
        """
        more = not self._stopped
        while more:
            more = self._engine.reclaim()
            os.sched_yield()
            if self._loop.share() < PLENTY or self._loop.pressed():
                break
        self._reclaiming = more
        if more:
            self._loop.call_behind(self._free_some)

    def stop(self) -> None:
        """Begins nothing more, and answers the callers that wait with Stopped."""
        self._stopped = True
        self._answer(errors.Stopped())

    def stats(self) -> dict[str, float]:
        """Numbers for /metrics."""
        numbers: dict[str, float] = {"defragments_total": self._defragmented}
        state = self._engine.index_state
        if state is not None:
            ready, keys, faults = state
            numbers |= {"engine_counted": ready, "engine_counted_keys": keys, "engine_count_faults_total": faults}
        return numbers
