from collections.abc import Callable

from metastore._core.engine import Engine
from metastore._core.ordered_map import OrderedMap

class RecentEngine(Engine):
    budget: int
    hits: int
    misses: int
    def set_budget(self, nbytes: int) -> None: ...
    def remember(self, batch: OrderedMap) -> None: ...
    def forget(self) -> None: ...
    def feed(
        self, batch: OrderedMap, put: Callable[[bytes, bytes], object], delete: Callable[[bytes], object]
    ) -> None: ...
