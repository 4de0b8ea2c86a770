"""Work on the state that clients ask for: defragmentation, sums, snapshots for backups. In the loop's thread."""

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
        """Give back the room that is held and not needed."""
        self._reclaim.defragment(done)

    def hash_kv(self, revision: int, whole: bool, gone: Callable[[], bool], done: HashDone) -> None:
        """Sum up the state at `revision` (0: now), with all in it that was acknowledged before. Then members that are
        asked after a compaction have all carried it out, and their sums can be compared. Who knows no leader tells what
        it has."""

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
    """What calls back with a snapshot that holds all that was acknowledged before, made by `fresh`."""

    def ask(done: Callable[[Result], object]) -> None:
        def confirmed(error: errors.MetaStoreError | None) -> None:
            if error is not None:
                done(error)
            else:
                # Not here: a view must be taken between two applies.
                loop.call_later(0, lambda: fresh(done))

        reads.confirm_read(confirmed)

    return ask
