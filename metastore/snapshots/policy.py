"""Decides when a snapshot is due. Pure.

A snapshot of an engine in memory costs the whole state, however little of it changed. A snapshot after a fixed number
of entries would write a large state again and again. Therefore the log since the last snapshot must also be worth half
of the next snapshot's cost: all snapshots together then write at most twice as much as the clients wrote.

Where a codec makes files small, that rule alone would still walk and compress the whole state after few bytes. At a
sixth of the size this cost 11 times what clients wrote, and 50 us of CPU for a put of 1 KB (measured). Therefore a
quarter of the state must have been written too. A start replays at most that much of the log, or half a snapshot's
size, or the counts below; a replay is as fast as a restore.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..settings import MaintenanceTable

#: Bytes that a snapshot may cost for each byte that clients wrote.
AMPLIFICATION = 2.0
#: Bytes of the state that may be walked for each byte that clients wrote.
WALKED = 4.0
#: Bytes of each operation in the log that no client wrote.
OPERATION_OVERHEAD = 12
#: The assumed file bytes per engine byte before the first file shows the real ratio: raw, and compressed.
RAW_RATIO, COMPRESSED_RATIO = 1.0, 0.4


class Policy:
    """Counts what was applied since the last snapshot.

    count: entries; min_size: bytes that clients wrote. Both must be reached, and the cost rule above must hold. ratio:
    file bytes per engine byte, used until the first file shows the real ratio.
    """

    def __init__(self, count: int, min_size: int, ratio: float = RAW_RATIO) -> None:
        self.count = count
        self.min_size = min_size
        self.index = 0  # index of the last snapshot
        self.size = 0  # bytes of its file
        self.ratio = ratio
        self.debt = 0.0  # bytes that past snapshots cost over what was allowed
        self._counted = 0

    def taken(self, index: int, counted: int, file_size: int, engine_size: int) -> None:
        """A snapshot at `index` is complete. `counted` is what clients had written when it was begun. Sizes are in
        bytes."""
        allowed = AMPLIFICATION * max(0, counted - self._counted)
        self.debt = max(0.0, self.debt + file_size - allowed)
        self.restored(index, counted, file_size, engine_size)

    def restored(self, index: int, counted: int, file_size: int, engine_size: int) -> None:
        """Begins to count at a snapshot that already existed or was installed, so it cost nothing now."""
        self.index = index
        self.size = file_size
        if file_size and engine_size:
            self.ratio = min(2.0, file_size / engine_size)
        self._counted = counted

    def failed(self, counted: int) -> None:
        """An attempt failed. The bytes that it may have written count as well, so the next attempt comes later."""
        self._counted = counted

    def due(self, index: int, counted: int, engine_size: int) -> bool:
        """Whether to take a snapshot at `index`, with `counted` bytes of log applied so far."""
        if index - self.index < self.count:
            return False
        fresh = counted - self._counted
        if fresh < self.min_size:
            return False
        if WALKED * fresh < engine_size:
            return False
        return AMPLIFICATION * fresh >= engine_size * self.ratio + self.debt


def policy_of(table: MaintenanceTable) -> Policy:
    """Make the policy that a configuration asks for."""
    ratio = COMPRESSED_RATIO if table.enable_snapshot_compression else RAW_RATIO
    return Policy(table.snapshot_count, table.snapshot_min_size, ratio)


def client_bytes(nbytes: int, operations: int) -> int:
    """Compute the bytes that clients wrote from the decompressed bytes of the applied batches and their number of
    operations."""
    return max(0, nbytes - OPERATION_OVERHEAD * operations)
