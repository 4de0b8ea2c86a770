from collections.abc import Callable

from metastore._core.file_reads import WalkedEngine
from metastore._core.ordered_map import OrderedMap

class RecentEngine(WalkedEngine):
    """Base of engines whose look-ups are slow. It keeps the newest index records of recently used keys in memory.
    Subclasses call `remember` after each write and `forget` when their contents are replaced."""

    @property
    def budget(self) -> int: ...  # bytes
    @property
    def hits(self) -> int: ...  # look-ups answered here
    @property
    def misses(self) -> int: ...  # look-ups that the engine answered
    def set_budget(self, nbytes: int) -> None: ...  # 0 keeps none
    def remember(self, batch: OrderedMap) -> None: ...
    def forget(self) -> None: ...
    def forget_ranges(self, ranges: list[tuple[bytes, bytes]]) -> None: ...  # from start on, and before end
    def feed(self, batch: OrderedMap, put: Callable[[bytes, bytes], object], delete: Callable[[bytes], object]) -> None:
        """Call put(key, value) or delete(key) for each record of a batch, in order."""
