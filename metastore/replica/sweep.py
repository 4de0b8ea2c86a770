"""The sweep gives back the room of a compaction: it removes the records that no reader can reach, slice by slice.

This module is pure; `later` brings the next slice. A slice takes less than a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import errors
from .._core.mvcc_sweep import sweep_slice
from .driver import BUSY_RETRY, whole

if TYPE_CHECKING:
    from .driver import Driver

SLICES = 10  # in one turn, when they are urgent
RECORDS = 500  # index records that one slice looks at: less than a millisecond,
RECORDS_SLOWLY = 250  # in an engine in files: up to 4 ms in a slow phase of the machine

ENOUGH = 0.6  # the share of a turn that urgent slices leave for what else it has to do,
PLENTY = 0.9  # and others

SMALLER = 2.5  # a slice is so much smaller, 0.1 ms, where calls come in that it would delay
CALM = 20  # slices without a call until nobody is expected any more


class Sweep:
    """The sweep of one member. The caller calls `turn` at the end of every turn.

    `later(seconds, call)` calls back in this thread. `urgent` says whether several slices in a turn are worth their
    time, because history must not grow faster than it is removed. That is so if there is little room, and in a replay,
    which is faster than the writes were. `records` is the number of index records that one slice looks at.
    `held` says whether records that a sweep may remove are still to be read, and `share` how much is left of the turn
    (from 1.0 down to 0.0). `slices`: so many are done in a turn, if that leaves PLENTY of it, where none is urgent.

    In a member whose clients call now and then, with turns that are short but for the sweep, a slice is all that a
    call can wait for. There is one of a smaller size in each turn then. `later(0, call)` should call when the turn has
    served those who came in: a lone put beside a compaction took 2.6 ms instead of 0.8 while it waited for several
    slices.
    """

    def __init__(
        self, driver: Driver, later: Callable[[float, Callable[[], None]], object], urgent: Callable[[], bool],
        records: int = RECORDS, held: Callable[[], bool] = lambda: False,
        share: Callable[[], float] = whole, slices: int = 1,
    ) -> None:  # fmt: skip
        self._driver = driver
        self._kv = driver.kv
        self._later = later
        self._urgent = urgent
        self._records = records
        self._held = held
        self._share = share
        self._slices = slices
        self._posted = False
        self._calls = 0  # of clients, when the last slice was done
        self._calm = CALM  # slices since the last call

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
        urgent = self._urgent()
        slices, enough = (SLICES, ENOUGH) if urgent else (self._slices, PLENTY)
        records = self._records
        if self._awaits_calls() and not urgent and self._share() >= PLENTY:
            slices, records = 1, int(records / SMALLER)
        while slices and self._kv.sweep_pending:
            slices -= 1
            sweep_slice(self._kv.store, records)
            if self._share() < enough:
                break

    def _awaits_calls(self) -> bool:
        """Whether clients have called lately, so that another one may be under way."""
        calls = sum(self._kv.calls)
        self._calm = self._calm + 1 if calls == self._calls else 0
        self._calls = calls
        return self._calm < CALM

    def stats(self) -> dict[str, float]:
        """Numbers for /metrics."""
        return {"sweep_pending": int(self._kv.sweep_pending)}
