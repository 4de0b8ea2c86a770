"""Decides whether, and on which processors, idle-class threads may poll while a lone writer waits for the disk.

`_core/idle_poll.pyx` explains the benefit. The threads do not poll under a quota of processor time (cgroups), because
the node would later lack every microsecond that was spent on polling. They do not poll on a machine with a single
processor either, because polling there could wake no thread but the waiting one.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from .._core.idle_poll import IdlePollers
from ..errors import OutOfResources
from ..threads import begin

_CGROUP = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def has_quota(cgroup: Path = _CGROUP, mount: Path = _MOUNT) -> bool:
    """Whether this process, or a group that it is in, may use only so much processor time (cgroup v1 and v2)."""
    try:
        lines = cgroup.read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mount / controllers if controllers else mount
        group = root / name.lstrip("/")
        # A container sees its own group as the root, whatever /proc says.
        for folder in (root, *(parent for parent in (group, *group.parents) if root in parent.parents)):
            if _limited(folder):
                return True
    return False


def _limited(folder: Path) -> bool:
    for name, free in (("cpu.max", "max"), ("cpu.cfs_quota_us", "-1")):
        try:
            if not (folder / name).read_text().startswith(free):
                return True
        except OSError:
            continue
    return False


class Awake:
    """The polling threads of one log. `pollers` is passed to the log's DiskThread; it is None where no thread polls.

    `linger` is how long the threads poll after a lone write, in seconds; 0 switches polling off.
    """

    def __init__(self, linger: float) -> None:
        cpus = tuple(sorted(os.sched_getaffinity(0)))
        self.pollers: IdlePollers | None = None
        self._threads: list[threading.Thread] = []
        if linger <= 0 or len(cpus) < 2 or has_quota():
            return
        # On a machine with two processors, the client, or the disk's interrupt, waits on the other one. With more
        # nobody knows.
        self.pollers = IdlePollers(linger, cpus if len(cpus) == 2 else ())
        try:
            for which in range(self.pollers.count):
                self._threads.append(begin(f"awake-{which}", self.pollers.run, which))
        except OutOfResources:
            self.close()
            raise

    @property
    def seconds(self) -> float:
        """The processor time that the threads have used."""
        return self.pollers.seconds if self.pollers is not None else 0.0

    def close(self) -> None:
        """End the threads."""
        if self.pollers is not None:
            self.pollers.stop()
        for thread in self._threads:
            thread.join()
