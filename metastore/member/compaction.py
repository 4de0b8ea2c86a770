"""A leader compacts the history by itself, as the configuration says. This belongs to the loop's thread."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .. import errors
from ..api import pb
from ..replica.autocompact import AutoCompactor
from .waiters import Reply

if TYPE_CHECKING:
    from ..net.loop import Loop
    from ..replica.driver import Driver
    from ..settings import MaintenanceTable

log = logging.getLogger("metastore.upkeep")


class AutoCompaction:
    """Requests the compactions that the configuration asks for, while this member leads."""

    def __init__(self, maintenance: MaintenanceTable, driver: Driver, loop: Loop) -> None:
        self._compactor = AutoCompactor(
            maintenance.auto_compaction_mode, maintenance.auto_compaction_retention,
            maintenance.auto_compaction_revisions,
        )  # fmt: skip
        self._driver = driver
        self._kv = driver.kv
        self._loop = loop
        self._asking = False
        self._stopped = False
        self._compacted = self._failed = 0

    def tick(self, now: float, hurry: bool) -> None:
        """Checks whether a compaction is due, at `now` (seconds). `hurry` says that there is little room."""
        if not self._driver.is_leader:
            self._compactor.follow()
        elif not self._asking and not self._stopped:
            store = self._kv.store
            revision = self._compactor.lead(now, store.revision, store.compact_revision, hurry=hurry)
            if revision:
                self._compact(revision, now)

    def stop(self) -> None:
        """Requests nothing more."""
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
