"""The sweep gives back the room of a compaction: it removes the records that no reader can reach, slice by slice.

This module is pure; `later` brings the next slice, and `worked` is the clock. A slice takes about 0.1 ms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import errors
from .._core.driver_budgets import whole
from .._core.mvcc_sweep import sweep_slice
from .driver import BUSY_RETRY

if TYPE_CHECKING:
    from .driver import Driver

SLICES = 10  # in one turn, when they are urgent
RECORDS, FEWEST = 1000, 60  # index records that one slice looks at
SHORT, LONG = 0.00006, 0.00015  # seconds that a slice takes at least and at most

ENOUGH = 0.6  # the share of a turn that urgent slices leave for what else it has to do,
PLENTY = 0.9  # and others


class Sweep:
    """The sweep of one member. The caller calls `turn` at the end of every turn.

    `later(seconds, call)` calls back in this thread. `urgent` says whether several slices in a turn are worth their
    time, because history must not grow faster than it is removed. That is so if there is little room, and in a replay,
    which is faster than the writes were. `records` is the number of index records that one slice looks at, at most. A
    slice that took long halves the next one: how long a record takes depends on the engine and on the value. `worked`
    tells how long this thread has worked (seconds), so what other processes take of the machine does not count. `held`
    says whether records that a sweep may remove are still to be read, and `share` how much is left of the turn (from
    1.0 down to 0.0).

    A slice is all that a call can wait for. `later(0, call)` should call when the turn has served those who came in,
    and `pressed` says whether others wait for the next one. If nobody does, slice follows slice, until PLENTY of the
    turn is no longer left. A lone put beside a compaction in memory takes 1.1 times as long as alone.

    400,000 versions of 1 KB in memory take 1.4 us of CPU each (`bench/lists.py compact`). Turns are not what costs
    most: fewer slices in a turn take as much.
    """

    def __init__(
        self, driver: Driver, later: Callable[[float, Callable[[], None]], object], urgent: Callable[[], bool],
        records: int = RECORDS, held: Callable[[], bool] = lambda: False,
        share: Callable[[], float] = whole, pressed: Callable[[], bool] = lambda: True,
        worked: Callable[[], float] = lambda: 0.0,
    ) -> None:  # fmt: skip
        self._driver = driver
        self._kv = driver.kv
        self._later = later
        self._urgent = urgent
        self._most = self._records = records
        self._held = held
        self._share = share
        self._pressed = pressed
        self._worked = worked
        self._posted = False

    def turn(self) -> None:
        """Sweep the next slice, if there is one."""
        if self._kv.sweep_pending and not self._posted:
            self._posted = True
            self._later(0, self._sweep)

    def _sweep(self) -> None:
        self._posted = False
        try:
            # Nothing can be swept while the engine is busy or an entry is half applied. Asking again at once would be a
            # busy loop.
            busy = not self._driver.whole or self._held()
            if not busy:
                self._sweep_some()
        except errors.EngineBusy:
            busy = True
        if busy:
            self._posted = True
            self._later(BUSY_RETRY, self._sweep)
        else:
            self._kv.swept()

    def _sweep_some(self) -> None:
        urgent, slices = self._urgent(), SLICES
        while self._kv.sweep_pending:
            self._slice()
            slices -= 1
            if (not slices or self._share() < ENOUGH) if urgent else (self._share() < PLENTY or self._pressed()):
                break

    def _slice(self) -> None:
        began = self._worked()
        sweep_slice(self._kv.store, self._records)
        took = self._worked() - began
        if took > LONG:
            self._records = max(self._records // 2, min(FEWEST, self._most))
        elif took < SHORT:
            self._records = min(self._records * 2, self._most)

    def stats(self) -> dict[str, float]:
        """Numbers for /metrics."""
        return {"sweep_pending": int(self._kv.sweep_pending)}
