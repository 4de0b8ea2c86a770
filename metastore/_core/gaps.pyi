"""Where an engine in files has nothing but removed records, so that no look-up walks over them."""

from collections.abc import Callable
from typing import Any

from metastore._core.ordered_map import OrderedMap
from metastore._core.work import Detours

LIMIT: int  # removed records after which the iterator of a GapWalk gives up
FEW: int  # ... and the one with which gaps are looked at

class Gaps:
    """The gaps of the present state. A gap is (left, right): two records with none between them, or b"" for the
    beginning or the end. `few()` makes an iterator of rocksdict over the present state that gives up after FEW removed
    records."""

    def __init__(self, detours: Detours | None = None) -> None: ...
    writes: int  # writes that it has followed
    learned: int  # gaps that a walk has found
    faults: int  # gaps that were wrong
    @property
    def detours(self) -> Detours: ...  # of all walks
    def __len__(self) -> int: ...
    def items(self) -> list[tuple[bytes, bytes]]: ...
    def view(self) -> OrderedMap: ...  # the gaps of the present state; they do not follow later writes
    def ahead(self, start: bytes) -> tuple[bytes, bytes | None, bytes | None]:
        """Return (where a walk from `start` on begins, the first gap at which it arrives)."""

    def clear(self) -> None: ...
    def learn(self, left: bytes, right: bytes) -> None: ...
    def plan(self, batch: OrderedMap, walker: Callable[[], GapWalk]) -> list[tuple[bytes, bytes]]: ...  # before a write
    def wrote(
        self,
        batch: OrderedMap,
        planned: list[tuple[bytes, bytes]],
        walker: Callable[[], GapWalk],
        few: Callable[[], Any],
    ) -> None: ...  # after it
    def wiped(self, ranges: list[tuple[bytes, bytes]], walk: GapWalk) -> None: ...  # after the removal of ranges
    def prune(self, few: Callable[[], Any], most: int) -> bool: ...  # drop gaps of few removed records; True: go on
    def check(self, walk: Any) -> None: ...  # for tests: compare all gaps with a walk; raises AssertionError

class GapWalk:
    """An iterator of rocksdict over the present state, which leaps over gaps. `walk` gives up after LIMIT removed
    records; `plain()` is an iterator over the same state that does not. If it `learns`, it is used in the thread that
    writes."""

    leaps: int
    far: int  # how often `plain` was needed
    def __init__(self, walk: Any, gaps: Gaps, plain: Callable[[], Any], learns: bool = True) -> None: ...
    def valid(self) -> bool: ...
    def key(self) -> bytes | None: ...
    def value(self) -> Any: ...
    def status(self) -> None: ...
    def seek(self, key: bytes) -> None: ...
    def seek_for_prev(self, key: bytes) -> None: ...
    def seek_to_last(self) -> None: ...
    def next(self) -> None: ...
    def prev(self) -> None: ...
