"""When a snapshot is due. Pure.

A snapshot of an engine in memory costs the whole state, however little of it changed. If one were taken every so many
entries, a large state would be written over and over. So the log since the last one must also be worth half of what the
next one will cost: all snapshots together then write at most twice what the clients wrote. Where a codec makes files
small, that would still walk and compress the state for every few bytes (at a sixth of the size: 11 times what clients
wrote, and 50 us of CPU for a put of 1 KB, measured), so a quarter of the state must have been written too. A start
replays at most that much of log, or half a snapshot's size, or the counts below; it replays as fast as it restores.
"""

from __future__ import annotations

#: Bytes a snapshot may cost for each byte that clients wrote.
AMPLIFICATION = 2.0
#: Bytes of the state that may be walked for each byte that clients wrote.
WALKED = 4.0
#: Of an operation in the log: bytes that no client wrote.
OPERATION_OVERHEAD = 12
#: What a file is taken to need for a byte of the engine before the first one has told: raw, and compressed.
RAW_RATIO, COMPRESSED_RATIO = 1.0, 0.4


class Policy:
    """Counts what was applied since the last snapshot.

    count: entries; min_size: bytes that clients wrote. Both must have passed, and the amortisation must hold. ratio:
    bytes of a file for a byte of the engine, as long as no file has told.
    """

    def __init__(self, count: int, min_size: int, ratio: float = RAW_RATIO) -> None:
        self.count = count
        self.min_size = min_size
        self.index = 0  # of the last snapshot
        self.size = 0  # of its file, in bytes
        self.ratio = ratio
        self.debt = 0.0  # bytes that past snapshots cost over what was allowed
        self._counted = 0

    def taken(self, index: int, counted: int, file_size: int, engine_size: int) -> None:
        """A snapshot at `index` is complete. `counted`: what clients had written when it was begun; sizes in bytes."""
        allowed = AMPLIFICATION * max(0, counted - self._counted)
        self.debt = max(0.0, self.debt + file_size - allowed)
        self.restored(index, counted, file_size, engine_size)

    def restored(self, index: int, counted: int, file_size: int, engine_size: int) -> None:
        """Begin to count at a snapshot that was there before (or was installed): it cost nothing now."""
        self.index = index
        self.size = file_size
        if file_size and engine_size:
            self.ratio = min(2.0, file_size / engine_size)
        self._counted = counted

    def failed(self, counted: int) -> None:
        """An attempt failed: what it may have written counts as well, the next one comes as much later."""
        self._counted = counted

    def due(self, index: int, counted: int, engine_size: int) -> bool:
        """Whether to take one at `index`, with `counted` bytes of log applied so far."""
        if index - self.index < self.count:
            return False
        fresh = counted - self._counted
        if fresh < self.min_size:
            return False
        if WALKED * fresh < engine_size:
            return False
        return AMPLIFICATION * fresh >= engine_size * self.ratio + self.debt


def client_bytes(nbytes: int, operations: int) -> int:
    """Bytes that clients wrote, out of those of the batches applied (decompressed) and the operations in them."""
    return max(0, nbytes - OPERATION_OVERHEAD * operations)
