"""Clients may request work on the state: defragmentation, sums, and snapshots for backups. This belongs to the loop's
thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import errors

if TYPE_CHECKING:
    from ..net.loop import Loop
    from ..ports import Done
    from ..replica.driver import Driver
    from ..snapshots.backup_stream import Result
    from .hash_sums import HashDone, HashSums
    from .reads import MemberReads
    from .reclaim import Reclaim

Fresh = Callable[[Callable[["Result"], object]], object]


class Maintenance:
    """The `api.ports.Upkeep` of a member."""

    def __init__(self, driver: Driver, reads: MemberReads, sums: HashSums, reclaim: Reclaim) -> None:
        self._driver = driver
        self._reads = reads
        self._sums = sums
        self._reclaim = reclaim

    def defragment(self, done: Done) -> None:
        """Gives back the room that the engine holds and does not need."""
        self._reclaim.defragment(done)

    def hash_kv(self, revision: int, whole: bool, gone: Callable[[], bool], done: HashDone) -> None:
        """Computes the sum of the state at `revision` (0: now) when everything acknowledged before is applied.

        Members that are asked after a compaction have therefore all carried it out, and their sums can be compared. A
        member that knows no leader uses the state that it has.
        """

        def current(error: errors.MetaStoreError | None) -> None:
            if error is None:
                try:
                    self._sums.hash_kv(revision, whole, gone, done)
                except errors.ApiError as refused:
                    error = refused
            if error is not None:
                done(None, error)

        if self._driver.leader_id:
            self._reads.confirm_read(current)
        else:
            current(None)


def fresh_snapshot(reads: MemberReads, loop: Loop, fresh: Fresh) -> Fresh:
    """Returns a function like `fresh` whose snapshot holds everything that was acknowledged before the call."""

    def ask(done: Callable[[Result], object]) -> None:
        def confirmed(error: errors.MetaStoreError | None) -> None:
            if error is not None:
                done(error)
            else:
                # This must happen between two applies, because it takes a view.
                loop.call_later(0, lambda: fresh(done))

        reads.confirm_read(confirmed)

    return ask
