"""The log needs room on its disk. While the disk is nearly full, this module bounds what clients may write, and lets
another member lead.

The room that is set aside on the disk bounds what clients write, before it enters any queue. When this room is used up,
puts are refused. Deletes, compaction, the disarming of alarms and membership changes have a reserve, because they make
room. The snapshots then have the log cut. This belongs to the loop's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .._core.member_turn import SpaceTurn
from ..errors import DiskFailed, NoSpace

if TYPE_CHECKING:
    from .._core.engine import Engine
    from ..net.loop import Loop
    from ..replica.driver import Driver
    from ..settings import LimitsTable
    from ..storage.wal import Wal

log = logging.getLogger("metastore.node")

ENTRY_OVERHEAD: Final = 128  # bytes: record header, entry header, flag byte, padding
RETRY: Final = 0.5  # seconds between attempts to make room after the disk was full
MEASURE: Final = 0.5  # seconds between two looks at the disk's free bytes
# Seconds within which a storage engine must go on by itself when its disk has room again. RocksDB looks for room every
# five seconds, and first flushes what it has in memory (up to 128 MiB).
PATIENCE: Final = 30.0
ASK: Final = 30.0  # seconds until a leader without room hands over to the same member again


class Space(SpaceTurn):
    """The room of one member's log. `full` says that puts are refused. The owner calls `turn` at the end of each turn
    of the loop and `tick` at each Raft tick.

    segment_size: the bytes of a segment of the log.
    engine_path: the folder of the engine's files.
    hand_over: hands leadership to a member that is not among those given, and returns its id, 0 if there is none.
    """

    def __init__(
        self,
        limits: LimitsTable,
        segment_size: int,
        wal: Wal,
        engine: Engine,
        engine_path: Path,
        driver: Driver,
        loop: Loop,
        hand_over: Callable[[Container[int]], int],
    ) -> None:
        # Everything that may be in flight at once must fit. The overhead is largest if each operation is an entry.
        super().__init__(wal, limits.max_inflight_bytes + limits.max_inflight_requests * ENTRY_OVERHEAD)
        self._engine = engine
        self._engine_path = engine_path
        self._driver = driver
        self._kv = driver.kv
        self._loop = loop
        self._hand_over = hand_over
        # With less room than for the largest request, puts are refused.
        self._least = min(limits.max_request_bytes, segment_size // 4)
        self._asked: dict[int, float] = {}  # when we handed leadership to which member, because of our disk
        self._measure_at = 0.0
        self._room_since = 0.0  # the time since which an engine that is full has had room
        self._has_files = engine.headroom is not None  # whether the engine needs room on the same disk
        self._applied = 0  # the bytes that had been applied at the last measurement of the disk

    @property
    def disk_full(self) -> bool:
        """Whether puts are refused because the disk lacks room, and not because the process lacks descriptors."""
        return self.full and (self._wal.refusal is NoSpace or bool(self._tight))

    def _tell(self, left: int | None) -> None:
        """Tells the KV server how much clients may write until the next turn. `left`: see `Wal.room`."""
        wal, kv, proposer = self._wal, self._kv, self._kv.proposer
        if self._tight:
            left = 0 if left is None else min(left, 0)
        if left is None:
            if self._limited:
                kv.limit_log(None, None)
                self._limited = False
                self._over()
            return
        self._limited = True
        waiting, nbytes = proposer.queued, proposer.queued_bytes
        if not self._driver.is_leader:
            # The operations that the leader has are not in this log yet.
            waiting, nbytes = waiting + proposer.inflight, nbytes + proposer.inflight_bytes
        left -= nbytes + nbytes // 8 + waiting * ENTRY_OVERHEAD
        if not self.full and left < self._least:
            self._begin(left)
        elif self.full and left >= 2 * self._least:
            self._over()
        # A quarter of the reserve is only for votes and the like. An engine without room takes nothing at all.
        most = -1 if self._engine.full else left + wal.reserve * 3 // 4
        kv.limit_log(min(left, 0) if self.full else left, most, NoSpace if self._tight else wal.refusal)

    def _begin(self, left: int) -> None:
        self.full = True
        wal = self._wal
        numbers = f"{left + wal.reserve} bytes are set aside and {wal.free} free on the disk"
        lack = self._tight or wal.lack or f"{wal.path}: {numbers}"
        log.error("no room for the log: %s: puts are refused, deletes, compaction and disarming are not", lack)
        self.lead_no_more()
        self._loop.call_later(RETRY, self._retry)

    def _over(self) -> None:
        if self.full:
            self.full = False
            log.warning("there is room for the log again: puts are accepted")

    def _retry(self) -> None:
        if self.full:
            self._wal.retry_room()
            self.lead_no_more()
            self._loop.call_later(RETRY, self._retry)

    def tick(self, now: float) -> None:
        """Measures the disk now and then, at `now` (seconds)."""
        self._tight = self._engine_lacks(now)
        if now >= self._measure_at or self._much_written():
            self._measure_at = now + MEASURE
            self._applied = self._driver.applier.nbytes
            self._wal.measure(self._engine.headroom or 0)

    def _much_written(self) -> bool:
        """Whether so much was applied since the last measurement that the engine may lack room by now.

        What was applied is in memory, which counts twice, or in a file that may be rewritten.
        """
        written = self._driver.applier.nbytes - self._applied
        return self._has_files and 2 * written > max(0, self._wal.free - self._needed())

    def _needed(self) -> int:
        """The bytes that must be free on the disk for an engine with files.

        The number is a little less if there were enough before. Otherwise puts would be refused and accepted in turn.
        Segments that are made in advance leave the larger number free.
        """
        spare = self._wal.spare
        return spare if self._tight else spare - min(self._least, spare // 20)

    def _engine_lacks(self, now: float) -> str:
        """The reason why an engine with files may find too little room; empty if it has enough.

        Raises DiskFailed if an engine that found too little room still takes no writes although there is room now.
        Such an engine must be opened again.
        """
        wal, engine = self._wal, self._engine
        needed = self._needed()
        # There may never be more than half of the room, because the log cannot be cut meanwhile.
        if not engine.full or wal.free < needed // 2:
            self._room_since = now
        elif now - self._room_since >= PATIENCE:
            raise DiskFailed(
                f"{self._engine_path}: there is room for the storage engine again ({wal.free} bytes), and "
                "it goes on only after a restart"
            )
        if engine.full:
            return f"{self._engine_path}: the storage engine has no room, {wal.free} bytes are free"
        if not self._has_files or wal.free >= needed:
            return ""
        return f"{self._engine_path}: {needed} bytes are needed on the disk, {wal.free} are free"

    def lead_no_more(self) -> None:
        """Hands leadership to another member, because this one has no room or its disk does not answer.

        No member is asked more often than once in ASK seconds.
        """
        driver, now = self._driver, self._loop.now()
        self._asked = {ident: when for ident, when in self._asked.items() if now - when < ASK}
        if driver.is_leader and not driver.raw.status().lead_transferee:
            self._asked[self._hand_over(self._asked)] = now

    def declines(self, leader: int) -> bool:
        """Whether this member has no room, and so does not take leadership from `leader`, which hands it over.

        Where all members are full, leadership therefore stays where it is.
        """
        if not self.full:
            return False
        log.info("there is no room for the log here, so this member does not take leadership from %016x", leader)
        return True
