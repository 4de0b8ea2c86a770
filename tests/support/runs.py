"""Which run a test belongs to, and how long it may take. Both follow from the folder of the test."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from metastore._core import build_info
from metastore.storage import idle_awake

from . import TESTS

#: The contents of each folder of tests. CI runs those without a mark four times: on three Pythons and on a debug build.
FOLDERS = {
    "unit": "a module or a few, in this process; no server",
    "raft": "the Raft core alone",
    "node": "one member, as a process or embedded",
    "once": "what takes long and is the same on every Python",
    "hostile": "attacks on live members",
    "cluster": "whole clusters, and the benches",
    "sim": "simulated clusters",
}
MARKS = {"once": "once", "hostile": "once", "cluster": "cluster", "sim": "cluster"}
#: Tests in a folder of this name inside one of these take minutes to hours, and run with --long only.
LONG = "long"
LONG_IN = ("once", "hostile", "cluster")
#: Seconds that a test without a mark may take: of processors, and by the clock while processors were free.
MOST_SECONDS = 10.0
SYS_ADMIN = 21  # capability that mounting needs (linux/capability.h)


def cannot_poll() -> bool:
    """Whether a node does not poll here."""
    return len(os.sched_getaffinity(0)) < 2 or idle_awake.has_quota()


def cannot_mount() -> bool:
    """Whether this process has no right to mount."""
    status = Path("/proc/self/status").read_text()
    return not int(status.partition("CapEff:")[2].split()[0], 16) >> SYS_ADMIN & 1


#: The tests that may be skipped, and when. Where that is not so, CI among other places, a skip is a failure.
MAY_SKIP: dict[str, Callable[[], bool]] = {
    "test_threads_end": lambda: len(os.sched_getaffinity(0)) < 2,
    "test_a_lone_writer_is_waited_for_awake": cannot_poll,
    "test_progress_on_a_terminal_only": lambda: not Path("/dev/ptmx").exists(),
    "test_an_engine_on_a_full_disk": cannot_mount,
    "test_a_steady_load_lets_nothing_grow": lambda: build_info()["flavour"] != "release",
    "test_stalls_of_rocksdb_itself": lambda: build_info()["flavour"] != "release",
}


def wrongly_skipped(name: str) -> str:
    """Return why the test function `name` may not be skipped here; empty if it may."""
    if name not in MAY_SKIP:
        return f"{name} is skipped, and support/runs.py does not name it in MAY_SKIP."
    return "" if MAY_SKIP[name]() else f"{name} is skipped where it can run."


def marks_of(path: Path) -> list[str]:
    """Return the marks of the tests in this file; none if the file is not one of ours."""
    if not path.is_relative_to(TESTS):
        return []
    folders = path.relative_to(TESTS).parts[:-1]
    return [MARKS.get(folder, folder) for folder in folders if folder in MARKS or folder == LONG]


class Seconds(NamedTuple):
    """The time that a test has taken, or a moment from which such spans are measured.

    wall: by the clock. processors: the time that this process and its ended children ran on a processor. stalled: the
    time in which a process on this machine waited for a processor; 0 if the system does not say.
    """

    wall: float
    processors: float
    stalled: float

    def since(self, before: Seconds) -> Seconds:
        """Return the time that has passed since that moment."""
        return Seconds(*(now - then for now, then in zip(self, before, strict=True)))


def seconds() -> Seconds:
    """Return this moment."""
    return Seconds(time.perf_counter(), sum(os.times()[:4]), _stalled())


def _stalled() -> float:
    try:
        line = Path("/proc/pressure/cpu").read_text().splitlines()[0]
    except (OSError, IndexError):
        return 0.0
    return int(line.rpartition("total=")[2]) / 1e6


def too_long(took: Seconds, flavour: str) -> str:
    """Return why a test without a mark takes too long; empty if it does not.

    The time on processors counts however busy the machine is. The time by the clock, in which a test may also wait,
    counts as far as processors were free. A debug build says nothing about either.
    """
    free = took.wall - took.stalled
    if flavour != "release" or max(took.processors, free) <= MOST_SECONDS:
        return ""
    return (
        f"It took {took.processors:.1f} s of processors, and {took.wall:.1f} s by the clock, of which processors were "
        f"lacking in {took.stalled:.1f} s. A test of this folder may take {MOST_SECONDS:g} s: make it shorter, or move "
        "it to tests/once."
    )
