"""What all parts of the engine contract use: folders, bounds of time, threads, batches."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from metastore._core.engine import APPLIED_KEY
from metastore._core.ordered_map import OrderedMap

if TYPE_CHECKING:
    from metastore._core.engine import Engine

__all__ = ["ContractBase", "TookTooLong", "batch_of", "contents", "raises", "walked"]

T = TypeVar("T")


class TookTooLong(BaseException):
    """A test of the contract did not end in time. This is no Exception, so no engine takes it for an error of its own
    library."""


def batch_of(changes: dict[bytes, bytes | None]) -> OrderedMap:
    """The batch that stores these pairs; None deletes a key."""
    batch = OrderedMap()
    for key, value in changes.items():
        if value is None:
            batch.set_deleted(key)
        else:
            batch.set(key, value)
    return batch


def contents(engine: Engine) -> dict[bytes, bytes]:
    """Return all pairs except the engine's own record of the log position."""
    return {key: value for key, value in engine.scan(b"", None, False, 0) if key != APPLIED_KEY}


def walked(engine: Engine, start: bytes = b"") -> list[tuple[bytes, bytes]]:
    """Return the pairs that `iterate` gives, without the engine's own record."""
    return [(key, value) for key, value in engine.iterate(start) if key != APPLIED_KEY]


@contextlib.contextmanager
def raises(kind: type[Exception], what: str) -> Iterator[None]:
    """Fail unless the block raises an exception of this class."""
    try:
        yield
    except kind:
        return
    raise AssertionError(f"{what} does not raise {kind.__name__}")


class ContractBase:
    """The part of `EngineContract` that tests nothing."""

    #: Seconds that one test may take. Raise it for an engine behind a network.
    patience = 120.0

    def open_engine(self, folder: str) -> Engine:
        """Open the engine in `folder`: a new one if the folder does not exist or is empty, else the one that is there.
        It is also called in another process, on an object of this class that no fixture has touched."""
        raise NotImplementedError

    def setup_method(self) -> None:
        """Called by pytest before each test."""
        self._folders = tempfile.mkdtemp(prefix="engine-contract-")
        self._folder_count = 0
        self._alarm: tuple[Any, tuple[float, float]] | None = None
        if threading.current_thread() is threading.main_thread():
            handler = signal.signal(signal.SIGALRM, self._too_long)
            self._alarm = handler, signal.setitimer(signal.ITIMER_REAL, self.patience)

    def teardown_method(self) -> None:
        """Called by pytest after each test."""
        if self._alarm is not None:
            handler, before = self._alarm
            signal.setitimer(signal.ITIMER_REAL, *before)
            signal.signal(signal.SIGALRM, handler)
        shutil.rmtree(self._folders, ignore_errors=True)

    def _too_long(self, number: int, frame: FrameType | None) -> None:
        raise TookTooLong(f"the test has not ended after {self.patience:g} s: a call of the engine never returns")

    def new_folder(self) -> str:
        """Return the path of a folder that does not exist."""
        self._folder_count += 1
        return os.path.join(self._folders, str(self._folder_count))

    def make_engine(self) -> Engine:
        """A new, empty engine."""
        return self.open_engine(self.new_folder())

    def in_thread(self, what: str, work: Callable[[], T]) -> T:
        """Return what `work` returns in another thread, or raise its exception. `what` names the call in failures."""
        results: list[T] = []
        failures: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:  # noqa: BLE001
                failures.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(self.patience)
        assert not thread.is_alive(), f"{what} does not return in another thread"
        if failures:
            raise AssertionError(f"{what} fails in another thread: {failures[0]!r}") from failures[0]
        return results[0]
