from collections.abc import Callable, Iterator
from typing import Any

from metastore._core.engine import Engine
from metastore._core.ordered_map import OrderedMap

class RecentEngine(Engine):
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

def find_each(keys: list[bytes], walk: Any, get: Callable[[bytes], bytes | None] | None) -> list[bytes | None]:
    """The values of many keys; `walk` is an iterator of rocksdict."""

class SharedWalk:
    """An iterator of rocksdict, which several walks use by turns."""

    def __init__(self, walk: Any, fault: Callable[[Exception], Exception]) -> None: ...
    def pairs(self, start: bytes) -> Iterator[tuple[bytes, bytes]]: ...
