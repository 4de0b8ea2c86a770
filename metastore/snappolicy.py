"""When a snapshot is due. Pure.

A snapshot of an engine in memory costs the whole state, however little of it changed. If one were taken every so many
entries, a large state would be written over and over. So the log since the last one must also be worth half of what the
next one will cost: all snapshots together then write at most twice what the clients wrote, and a start replays at most
half a snapshot's size of log (or the counts below, where they are more).
"""

from __future__ import annotations

#: Bytes a snapshot may cost for each byte that clients wrote.
AMPLIFICATION = 2.0
#: Of an entry and of an operation: bytes that no client wrote.
ENTRY_OVERHEAD = 32
OPERATION_OVERHEAD = 12


class Policy:
    """Counts what was applied since the last snapshot.

    count: entries; min_size: bytes of log. Both must have passed, and the amortisation must hold.
    """

    def __init__(self, count: int, min_size: int) -> None:
        self.count = count
        self.min_size = min_size
        self.index = 0  # of the last snapshot
        self.size = 0  # of its file, in bytes
        self.ratio = 1.0  # bytes of its file for a byte of the engine
        self.debt = 0.0  # bytes that past snapshots cost over what was allowed
        self._counted = 0
        self._needed = 0.0

    def taken(self, index: int, counted: int, file_size: int, engine_size: int) -> None:
        """A snapshot at `index` is complete. `counted`: bytes of log when it was begun; sizes in bytes."""
        allowed = AMPLIFICATION * max(0, counted - self._counted)
        self.debt = max(0.0, self.debt + file_size - allowed)
        self.restored(index, counted, file_size, engine_size)

    def restored(self, index: int, counted: int, file_size: int, engine_size: int) -> None:
        """Begin to count at a snapshot that was there before (or was installed): it cost nothing now."""
        self.index = index
        self.size = file_size
        self.ratio = min(2.0, file_size / engine_size) if engine_size else 1.0
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
        return AMPLIFICATION * fresh >= engine_size * self.ratio + self.debt


def log_bytes(images: int, entries: int, operations: int) -> int:
    """Bytes that clients wrote, out of the bytes of entry images, their number and that of the operations in them."""
    return max(0, images - ENTRY_OVERHEAD * entries - OPERATION_OVERHEAD * operations)
