"""Room for the log: what clients may write while the disk is nearly full, and who leads then.

What clients write is bounded by what is set aside on the disk, before it enters any queue. When that is used up puts
are refused, and what makes room is not: deletes, compaction, the disarming of alarms, the membership have a reserve.
The snapshots are asked to have the log cut. Belongs to the loop's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .._core.raft_types import MsgTimeoutNow
from ..errors import DiskFailed, NoSpace

if TYPE_CHECKING:
    from .._core.engine import Engine
    from .._core.raft_types import Message
    from ..net.loop import Loop
    from ..replica.driver import Driver
    from ..settings import LimitsTable
    from ..storage.wal import Wal

log = logging.getLogger("metastore.node")

ENTRY_OVERHEAD: Final = 128  # bytes: record header, entry header, flag byte, padding
RETRY: Final = 0.5  # seconds between attempts to make room after the disk was full
MEASURE: Final = 0.5  # seconds between two looks at the disk's free bytes
# Seconds that a storage engine has to go on by itself when its disk has room again. RocksDB looks every five seconds,
# and flushes what it has in memory first (up to 128 MiB).
PATIENCE: Final = 30.0
ASK: Final = 30.0  # seconds until such a leader hands over to the same member again


class Space:
    """The room of one member's log. full: puts are refused. `turn` and `tick` come with each turn and each tick.

    segment_size: bytes of a segment of the log. engine_path: where the engine has its files. hand_over: gives
    leadership to another member but those that it gets, and tells to whom, 0 for nobody.
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
        self._wal = wal
        self._engine = engine
        self._engine_path = engine_path
        self._driver = driver
        self._kv = driver.kv
        self._loop = loop
        self._hand_over = hand_over
        # All that may be in flight at once must fit, with the largest overhead: every operation an entry of its own.
        self._wanted = limits.max_inflight_bytes + limits.max_inflight_requests * ENTRY_OVERHEAD
        # Less than the largest request, and nothing more is begun with.
        self._least = min(limits.max_request_bytes, segment_size // 4)
        self.full = False
        self._limited = False
        self._asked: dict[int, float] = {}  # member that we handed leadership to for our disk's sake -> when
        self._measure_at = 0.0
        self._room_since = 0.0  # since when there is room for an engine that was full
        self._has_files = engine.headroom is not None  # whether the engine needs room on the same disk
        self._tight = ""  # why the storage engine may run out of room, with the numbers
        self._applied = 0  # bytes that were applied when the disk was looked at

    @property
    def disk_full(self) -> bool:
        """Whether it is the disk that lacks room, and not the process that lacks descriptors."""
        return self.full and (self._wal.refusal is NoSpace or bool(self._tight))

    def turn(self) -> None:
        """Tell the KV server how much may be written until the next turn."""
        wal, kv, proposer = self._wal, self._kv, self._kv.proposer
        left = wal.room(self._wanted)
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
            # What the leader has of them is not in this log yet.
            waiting, nbytes = waiting + proposer.inflight, nbytes + proposer.inflight_bytes
        left -= nbytes + nbytes // 8 + waiting * ENTRY_OVERHEAD
        if not self.full and left < self._least:
            self._begin(left)
        elif self.full and left >= 2 * self._least:
            self._over()
        # A quarter of the reserve is for votes and the like alone. An engine without room takes nothing at all.
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
        """Have the disk looked at now and then; `now` in seconds."""
        self._tight = self._engine_lacks(now)
        if now >= self._measure_at or self._much_written():
            self._measure_at = now + MEASURE
            self._applied = self._driver.applier.nbytes
            self._wal.measure(self._engine.headroom or 0)

    def _much_written(self) -> bool:
        """Whether so much was applied since the disk was looked at that the engine may lack room by now: it is in
        memory, which counts twice, or in a file that may be rewritten."""
        written = self._driver.applier.nbytes - self._applied
        return self._has_files and 2 * written > max(0, self._wal.free - self._needed())

    def _needed(self) -> int:
        """Bytes that must be free on the disk for an engine with files; a little less where there were enough before,
        so that puts are not refused and taken in turn. Segments made beforehand leave the larger number alone."""
        spare = self._wal.spare
        return spare if self._tight else spare - min(self._least, spare // 20)

    def _engine_lacks(self, now: float) -> str:
        """Why an engine with files may find too little room; empty if it has enough. Raises DiskFailed when one that
        has found too little goes on to take nothing although there is room: it must be opened anew."""
        wal, engine = self._wal, self._engine
        needed = self._needed()
        # More room than half may never come, for the log cannot be cut meanwhile.
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
        """Without room, or with a disk that stands still, let somebody else lead who may be better off; each is asked
        once in a while only."""
        driver, now = self._driver, self._loop.now()
        self._asked = {ident: when for ident, when in self._asked.items() if now - when < ASK}
        if driver.is_leader and not driver.raw.status().lead_transferee:
            self._asked[self._hand_over(self._asked)] = now

    def declines(self, message: Message) -> bool:
        """Whether `message` is a leader's request to lead, and there is no room for that: where all members are full
        leadership stays where it is."""
        if message.type != MsgTimeoutNow or not self.full:
            return False
        log.info("there is no room for the log here, so this member does not take leadership from %016x", message.from_)
        return True
