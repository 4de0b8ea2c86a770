"""The threads of a node: how they are named, and the error when the system starts no more of them.

The name of a thread begins with that of its node, so the threads of several nodes in one process can be told apart.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from .errors import OutOfResources

#: This stands between the node's name and the task of the thread.
SEPARATOR = "/"
#: Seconds for which the handler of a signal may be late in a main thread that waits at a gate.
LOOK_UP = 0.5


def loop_thread(node: str, run: Callable[[], object]) -> threading.Thread:
    """Make the thread of the node with this name that will start all others. It is not started."""
    return threading.Thread(target=run, name=f"metastore-{node}{SEPARATOR}loop", daemon=True)


def begin(role: str, run: Callable[..., object], *arguments: object) -> threading.Thread:
    """Start a daemon thread of the node whose thread calls this. `role` names its task. Raises OutOfResources."""
    node, found, _ = threading.current_thread().name.partition(SEPARATOR)
    name = f"{node}{SEPARATOR}{role}" if found else role
    thread = threading.Thread(target=run, args=arguments, name=name, daemon=True)
    start(thread)
    return thread


def start(thread: threading.Thread) -> None:
    """Start a thread. Raises OutOfResources."""
    try:
        thread.start()
    except RuntimeError as error:
        raise OutOfResources(
            f"the thread {thread.name} cannot be started ({error}): see ulimit -u, the limits of the container, memory"
        ) from error


def is_no_fault(error: BaseException) -> bool:
    """Whether an exception that comes out of a plug-in is none of its own: lack of memory, or the user's Ctrl-C, which
    comes out of whatever the main thread does at that moment. SystemExit and its like are the plug-in's own: in a
    thread of the node they would end that thread without a word."""
    if isinstance(error, KeyboardInterrupt):
        return threading.current_thread() is threading.main_thread()
    return isinstance(error, MemoryError)


class Gate:
    """Closed until `open` is called, and open from then on: a threading.Event that the handlers of signals may use.

    A handler runs in the middle of what its thread does. Where that was `wait` or `set` of an Event, the thread may
    hold the Event's lock, and a handler that uses the same Event waits for itself. Nothing here is done under a lock.
    """

    def __init__(self) -> None:
        self._closed = threading.Lock()
        self._closed.acquire()
        #: Whether `open` was called: what `is_open` gives, without a call.
        self.opened = False

    def open(self) -> None:
        """Let pass whoever waits or will wait. Idempotent."""
        if not self.opened:
            self.opened = True
            with contextlib.suppress(RuntimeError):  # two threads at once
                self._closed.release()

    def is_open(self) -> bool:
        """Whether `open` was called."""
        return self.opened

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is open, for so many seconds at most; whether it is."""
        until = None if timeout is None else time.monotonic() + timeout
        # A signal that comes just before the main thread falls asleep does not wake it, and its handler would run late.
        # Other threads run no handlers. The program's second one woke twice a second, a tenth of its time when idle.
        longest = LOOK_UP if threading.current_thread() is threading.main_thread() else threading.TIMEOUT_MAX
        while not self.opened:
            left = longest if until is None else until - time.monotonic()
            if left <= 0:
                break
            if self._closed.acquire(timeout=min(left, longest)):
                with contextlib.suppress(RuntimeError):
                    self._closed.release()
        return self.opened
