"""History that goes: automatic compaction, and the sweep that gives back the room of any compaction.

Belongs to the loop's thread; nothing here holds the loop for more than a millisecond, but where room is urgent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import errors
from .._core.mvcc_sweep import sweep_slice
from ..api import pb
from ..replica.autocompact import AutoCompactor
from ..replica.driver import BUSY_RETRY
from .waiters import Reply

if TYPE_CHECKING:
    from .._core.kv_server import KVServer
    from ..net.loop import Loop
    from ..replica.driver import Driver
    from ..settings import MaintenanceTable

log = logging.getLogger("metastore.upkeep")

SWEEP_SLICES = 10  # of them in a turn where they are urgent
SWEEP_ITEMS = 500  # index records one slice of compaction looks at: less than a millisecond


class AutoCompaction:
    """Asks for the compactions that the configuration wants, while this member leads."""

    def __init__(self, wanted: MaintenanceTable, driver: Driver, loop: Loop) -> None:
        self._compactor = AutoCompactor(
            wanted.auto_compaction_mode, wanted.auto_compaction_retention, wanted.auto_compaction_revisions
        )
        self._driver = driver
        self._kv = driver.kv
        self._loop = loop
        self._asking = False
        self._stopped = False
        self._compacted = self._failed = 0

    def tick(self, now: float, hurry: bool) -> None:
        """Look whether history is to be compacted; `now` in seconds. `hurry`: there is little room."""
        if not self._driver.is_leader:
            self._compactor.follow()
        elif not self._asking and not self._stopped:
            store = self._kv.store
            revision = self._compactor.lead(now, store.revision, store.compact_revision, hurry=hurry)
            if revision:
                self._compact(revision, now)

    def stop(self) -> None:
        """Ask for nothing more."""
        self._stopped = True

    def _compact(self, revision: int, now: float) -> None:
        self._asking = True
        body = pb.CompactionRequest(revision=revision).SerializeToString()

        def done(_reply: bytes, error: errors.MetaStoreError | None) -> None:
            self._asking = False
            if error is None or isinstance(error, errors.Compacted):
                self._compactor.compacted(self._loop.now())
                self._compacted += error is None
                log.info("compacted history before revision %d by itself", revision)
            else:
                self._failed += 1
                log.warning("history before revision %d could not be compacted, tried again: %s", revision, error)

        self._kv.call("Compaction", body, Reply(done), now)

    def stats(self) -> dict[str, float]:
        """Numbers for /metrics."""
        return {
            "auto_compactions_total": self._compacted,
            "auto_compactions_failed_total": self._failed,
            "compact_revision": max(0, self._kv.store.compact_revision),
        }


class Sweep:
    """The physical part of compactions, slice by slice. `turn` is to be called at the end of every turn of the loop.

    urgent: whether several slices in a turn are worth it. History must not grow faster than it is removed where there
    is little room, nor in a replay, which is faster than the writes were.
    """

    def __init__(self, kv: KVServer, driver: Driver, loop: Loop, urgent: Callable[[], bool]) -> None:
        self._kv = kv
        self._driver = driver
        self._loop = loop
        self._urgent = urgent
        self._posted = False

    def turn(self) -> None:
        """Have the next slice swept, if there is one."""
        if self._kv.sweep_pending and not self._posted:
            self._posted = True
            self._loop.call_later(0, self._sweep)

    def _sweep(self) -> None:
        self._posted = False
        try:
            # Nothing is swept while the engine is busy or an entry half applied; to ask again and again would be a busy
            # loop.
            busy = not self._driver.whole
            if not busy:
                self._sweep_some()
        except errors.EngineBusy:
            busy = True
        if busy:
            self._posted = True
            self._loop.call_later(BUSY_RETRY, self._sweep)
        else:
            self._kv.swept()

    def _sweep_some(self) -> None:
        slices = SWEEP_SLICES if self._urgent() else 1
        while slices and self._kv.sweep_pending:
            slices -= 1
            sweep_slice(self._kv.store, SWEEP_ITEMS)

    def stats(self) -> dict[str, float]:
        """Numbers for /metrics."""
        return {"sweep_pending": int(self._kv.sweep_pending)}
