"""Which run a test belongs to, and how long it may take: both follow from the folder that it lies in."""

from __future__ import annotations

from pathlib import Path

from . import TESTS

#: What lies in each folder of tests. CI runs those without a mark four times: on three Pythons and on a debug build.
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
#: A folder of this name inside of one of these: its tests take minutes to hours, and run with --long only.
LONG = "long"
LONG_IN = ("once", "hostile", "cluster")
#: Seconds that a test without a mark may take.
MOST_SECONDS = 10.0


def marks_of(path: Path) -> list[str]:
    """The marks of the tests in this file; none for a file that is not one of ours."""
    if not path.is_relative_to(TESTS):
        return []
    folders = path.relative_to(TESTS).parts[:-1]
    return [MARKS.get(folder, folder) for folder in folders if folder in MARKS or folder == LONG]


def stalled_seconds() -> float | None:
    """For how long somebody on this machine has waited for a processor, since it was started; None: it does not say."""
    try:
        line = Path("/proc/pressure/cpu").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    return int(line.rpartition("total=")[2]) / 1e6


def takes_too_long(seconds: float, stalled: float, flavour: str) -> bool:
    """Whether a test without a mark that took `seconds`, in `stalled` of which processors were wanting, takes too long.

    A debug build says nothing about it, nor does a machine that has other things to do.
    """
    return flavour == "release" and seconds - stalled > MOST_SECONDS
