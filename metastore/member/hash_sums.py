"""A member computes sums over its state, one sum at a time and in slices. This belongs to the loop's thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import errors
from .._core.engine import MemoryEngine
from .._core.mvcc_hash import Hasher
from ..replica.driver import BUSY_RETRY

if TYPE_CHECKING:
    from .._core.engine import Engine
    from ..net.loop import Loop
    from ..replica.driver import Driver

HASH_SLICE = 1500  # records of the memory engine in one slice, which takes half a millisecond
HASH_SLICE_DISK = 200  # records of other engines in one slice; their cursors are slower
MAX_HASHES = 16  # sums that may wait on one member

HashDone = Callable[[Hasher | None, errors.MetaStoreError | None], object]


@dataclass
class _Sum:
    """A request for a sum."""

    revision: int
    whole: bool
    gone: Callable[[], bool]
    done: HashDone
    pause: float


class HashSums:
    """The requested sums. `freed` is called when a view of the engine was closed, since the view may have held room."""

    def __init__(self, engine: Engine, driver: Driver, loop: Loop, freed: Callable[[], object]) -> None:
        self._engine = engine
        self._driver = driver
        self._loop = loop
        self._freed = freed
        self._sums: deque[_Sum] = deque()
        self._stopped = False
        self._done = 0

    def hash_kv(self, revision: int, whole: bool, gone: Callable[[], bool], done: HashDone, pause: float = 0.0) -> None:
        """Computes the sum of the state at `revision` (0: the present one); see `_core/mvcc_hash.pyx`.

        `done` gets the finished hasher or the error. It is not called any more once `gone` returns true. `pause` is the
        time between two slices while nobody else waits (seconds). Raises TooManyRequests (MAX_HASHES) and Stopped.
        """
        if self._stopped:
            raise errors.Stopped()
        if len(self._sums) >= MAX_HASHES:
            raise errors.TooManyRequests()
        self._sums.append(_Sum(revision, whole, gone, done, pause))
        if len(self._sums) == 1:
            self._next_sum()

    def stop(self) -> None:
        """Begins nothing more, and answers the callers that wait with Stopped."""
        self._stopped = True
        sums, self._sums = self._sums, deque()
        for one in sums:
            one.done(None, errors.Stopped())

    def _next_sum(self) -> None:
        """Begins with the oldest request, as soon as the engine has everything that is applied."""
        while self._sums:
            if not self._driver.whole:
                self._loop.call_later(BUSY_RETRY, self._next_sum)
                return
            one = self._sums[0]
            if not one.gone():
                view = self._engine.view()
                try:
                    hasher = Hasher(view, one.revision, one.whole)
                except errors.ApiError as error:
                    view.close()
                    one.done(None, error)
                else:
                    self._sum_slice(one, hasher)
                    return
            self._sums.popleft()

    def _sum_slice(self, one: _Sum, hasher: Hasher) -> None:
        current = bool(self._sums) and self._sums[0] is one and not one.gone()
        size = HASH_SLICE if isinstance(self._engine, MemoryEngine) else HASH_SLICE_DISK
        if current and hasher.step(size):
            pause = one.pause if len(self._sums) == 1 else 0.0
            self._loop.call_later(pause, lambda: self._sum_slice(one, hasher))
            return
        hasher.close()
        self._freed()
        if self._stopped:
            return
        self._sums.popleft()
        if current:
            self._done += 1
            one.done(hasher, None)
        self._next_sum()

    def stats(self) -> dict[str, float]:
        """Numbers for /metrics."""
        return {"hashes_total": self._done}
