"""The main thread of the program waits for signals, which it gets as numbers.

Python runs a signal's handler only in the main thread, and only while that thread runs Python code. The system however
gives a signal to any thread that does not block it. A main thread that waits for a lock would then go on sleeping, and
the signal would be lost. Therefore the main thread waits for nothing but a pipe. Python's handler in C writes to this
pipe, whichever thread gets the signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Final, Self

#: `Signals.wait` returns this number for a `wake`. No signal has it.
WOKEN: Final = 0
#: No thread may block these signals: they report a fault in the thread that gets them, or belong to profilers.
NEVER_BLOCKED: Final = frozenset({
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGSYS,
    signal.SIGPROF, signal.SIGVTALRM,
})  # fmt: skip


def _noted(_number: int, _frame: FrameType | None) -> None:
    """Does nothing, because the number is in the pipe already."""


class Signals:
    """Catches the signals `numbers` within a `with` statement. At its end the former handlers come back.

    Only the main thread may use it; any other thread gets ValueError.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = tuple(numbers)
        self._before: dict[int, Any] = {}
        self._former_descriptor = -1
        self._read = self._write = -1

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        # A full pipe holds 65,536 signals that were not read yet. One more changes nothing.
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
        """Leaves the signals ignored at the end of `with`, because the process ends then anyway."""
        self._before = dict.fromkeys(self._numbers, signal.SIG_IGN)

    def wait(self) -> list[int]:
        """Sleeps until a signal comes. Returns the numbers of the signals in their order, and WOKEN for each `wake`."""
        return list(os.read(self._read, 256))

    def wake(self) -> None:
        """Ends a `wait`. Any thread may call this before the end of `with`."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, bytes([WOKEN]))


@contextlib.contextmanager
def kept_away() -> Iterator[None]:
    """Threads that are started within this context get no signals, and neither do the threads that these start.

    Afterwards the caller has its former mask again, and gets the signals that came meanwhile.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        # This call may raise KeyboardInterrupt when it has changed the mask.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - NEVER_BLOCKED)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
