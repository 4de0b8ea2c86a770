"""The signals of the program, as numbers that its main thread waits for.

Python runs a signal's handler in the main thread only, and only when that thread runs Python code. The system however
gives a signal to any thread that does not block it; a main thread that waits for a lock would then sleep on, and the
signal would be lost. So the main thread waits for nothing but the pipe that the handler in C writes to, in whichever
thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Final, Self

#: What `Signals.wait` gives for a `wake`; no signal has this number.
WOKEN: Final = 0
#: Signals that tell of a fault in the very thread that gets them, and those of profilers: no thread may block these.
NEVER_BLOCKED: Final = frozenset({
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGSYS,
    signal.SIGPROF, signal.SIGVTALRM,
})  # fmt: skip


def _noted(_number: int, _frame: FrameType | None) -> None:
    """Nothing to do: the number is in the pipe."""


class Signals:
    """Catches the signals `numbers` from `with` to its end, where the former handlers come back.

    For the main thread; ValueError in any other.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = tuple(numbers)
        self._before: dict[int, Any] = {}
        self._former_descriptor = -1
        self._read = self._write = -1

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        # A full pipe holds 65,536 signals that nobody looked at yet: one more changes nothing.
        self._former_descriptor = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in self._numbers:
            self._before[number] = signal.signal(number, _noted)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._former_descriptor)
        os.close(self._read)
        os.close(self._write)

    def ignore_afterwards(self) -> None:
        """Leave the signals ignored at the end of `with`: the process ends, and they could ask for nothing else."""
        self._before = dict.fromkeys(self._numbers, signal.SIG_IGN)

    def wait(self) -> list[int]:
        """Sleep until something comes; the numbers of the signals in their order, and WOKEN for each `wake`."""
        return list(os.read(self._read, 256))

    def wake(self) -> None:
        """End a `wait`; from any thread, before the end of `with`."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, bytes([WOKEN]))


@contextlib.contextmanager
def kept_away() -> Iterator[None]:
    """Threads that are started inside get no signals, and neither do the threads that these start.

    The caller's own mask is the same again afterwards; what came meanwhile is delivered to it then.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        # This call may raise KeyboardInterrupt when it has changed the mask.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - NEVER_BLOCKED)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
