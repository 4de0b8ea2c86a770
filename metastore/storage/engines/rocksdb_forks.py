"""RocksDB's threads, and forks of the process that they are in.

RocksDB starts threads that write its files in the background, and joins them at the end of the process. A fork copies
none of them, and RocksDB does not notice that. In the new process it waits for them for ever when it flushes or closes,
and as soon as that process has started threads of its own, joining the others ends it with SIGABRT or SIGSEGV (tried
with rocksdict 0.3.29). So these threads are ended before a fork, which takes about a millisecond, and are started again
behind it in the process that had them.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

from ...errors import Forked
from .rocksdb_options import rocksdict

#: Seconds for which a fork waits at most until the threads have ended. One that writes a file ends after that.
PATIENCE = 0.1
#: Seconds between two looks whether they have.
LOOK = 0.0005

#: The process in which RocksDB runs, once it was used.
_process = 0
#: How many databases of this module's users are open.
_open = 0
#: Held over a fork.
_lock = threading.RLock()
#: The threads that a fork has ended, by their pools.
_ended: dict[str, int] = {}
_quiet = False


def opens() -> None:
    """A database is about to be opened; `closed` is called also where that fails. Raises Forked where this process was
    forked from one while a database was open there."""
    global _process, _open
    if _process not in (0, os.getpid()):
        raise Forked(
            f"storage.engine: RocksDB was used in process {_process}, which process {os.getpid()} was forked from, and "
            'its threads are only there: start a fresh process (exec, or multiprocessing\'s "spawn")'
        )
    with _lock:
        _process = os.getpid()
        _open += 1


def closed() -> None:
    """A database was closed."""
    global _open
    with _lock:
        _open -= 1


def _threads() -> dict[str, int]:
    """How many threads of each pool there are."""
    found = {"low": 0, "high": 0, "bottom": 0}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            owner, _, pool = (task / "comm").read_text().strip().partition(":")
            if owner == "rocksdb" and pool in found:
                found[pool] += 1
    return found


def _have(threads: dict[str, int]) -> None:
    pools = rocksdict.Env()
    pools.set_low_priority_background_threads(threads["low"])
    pools.set_high_priority_background_threads(threads["high"])
    pools.set_bottom_priority_background_threads(threads["bottom"])


def _before() -> None:
    global _ended, _quiet
    _lock.acquire()
    _ended, _quiet = {}, False
    if _process != os.getpid():
        return
    _ended, until = _threads(), time.monotonic() + PATIENCE
    _have(dict.fromkeys(_ended, 0))
    while not _quiet and time.monotonic() < until:
        _quiet = not any(_threads().values())
        if not _quiet:
            time.sleep(LOOK)


def _in_the_parent() -> None:
    if _ended:
        _have(_ended)
    _lock.release()


def _in_the_child() -> None:
    global _process, _open, _lock
    _lock = threading.RLock()
    if _quiet and not _open:
        _process = 0
    _open = 0


os.register_at_fork(before=_before, after_in_parent=_in_the_parent, after_in_child=_in_the_child)
