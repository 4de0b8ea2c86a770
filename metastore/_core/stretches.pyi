"""A sparse index for engines that do not have their keys in memory: how many keys are alive between any two."""

from collections.abc import Callable
from typing import Any

from metastore._core.engine import Engine
from metastore._core.ordered_map import OrderedMap
from metastore._core.work import Detours

SPLIT_AT: int  # keys present that a stretch has at most when nothing is due
MOST_KEYS: int  # and after each write

Change = bytes | tuple[bytes, int, int]  # a key that is born, or by how much more of a key are alive and present

class Stretches:
    """`walk` is an iterator of rocksdict, or has its methods seek, seek_for_prev, next, key, value and status."""

    border: bytes | None  # keys below it are counted; None: all are
    keys: int  # keys present that are counted
    due: int  # stretches that `settle` is to look at
    faults: int  # how often a walk found other numbers
    def __len__(self) -> int: ...  # stretches
    def restart(self) -> None: ...  # forget everything, and be built anew
    def release(self) -> None: ...  # let go of the iterator that `build` keeps
    def build(  # True while there is more
        self, walker: Callable[[], Any], records: int, detours: Detours | None = None
    ) -> bool: ...
    def changes(self, batch: OrderedMap, engine: Engine) -> list[Change]: ...  # before a write
    def note(self, changes: list[Change]) -> list[bytes]: ...  # after it; what is to be split at once
    def split(self, fence: bytes, walk: Any) -> bool: ...  # False: its numbers were wrong, and the index begins anew
    def settle(self, walk: Any) -> bool: ...  # a piece of what is due; returns the same
    def count(self, start: bytes, end: bytes | None, walk: Any) -> int | None: ...
    def check(self, walk: Any) -> None: ...  # for tests: compare all numbers with a walk; raises AssertionError
