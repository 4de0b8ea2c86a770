"""Processes that may use only so much memory. They run in a cgroup of their own if this user may make one, else under
RLIMIT_DATA, which refuses memory where a cgroup kills. METASTORE_NO_CGROUPS in the environment forces the latter."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping
from pathlib import Path

from .processes import Node

MIB = 1 << 20
#: The part of a limit on data that stays free for the stacks of present and future threads
#: (metastore/member/memory_limit.py). In a cgroup they do not count.
STACKS = 128 * MIB

_numbers = itertools.count()
# version -> (folder in which groups are made, the file with the limit)
_PLACES = {1: (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), 2: (Path("/sys/fs/cgroup"), "memory.max")}


class Group:
    """A bound of `nbytes`. `kind` is "cgroup" or "RLIMIT_DATA"."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.folder: Path | None = None
        self.stacks = STACKS
        name = f"metastore-test-{os.getpid()}-{next(_numbers)}"
        for place, file in _PLACES.values() if "METASTORE_NO_CGROUPS" not in os.environ else ():
            folder = place / name
            try:
                folder.mkdir()
            except OSError:
                continue
            try:
                (folder / file).write_text(str(nbytes))
            except OSError:
                folder.rmdir()
                continue
            self.folder, self._file = folder, file
            break
        self.kind = "RLIMIT_DATA" if self.folder is None else "cgroup"

    def wrap(self, argv: list[str]) -> list[str]:
        """Return the command that runs within the bound."""
        if self.folder is None:
            return ["prlimit", f"--data={self.nbytes + self.stacks}", *argv]
        return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.folder), *argv]

    def change(self, nbytes: int) -> None:
        """Set another bound for the next process."""
        self.nbytes = nbytes
        if self.folder is not None:
            (self.folder / self._file).write_text(str(nbytes))

    def kills(self) -> int:
        """Return how often the kernel killed a process in the group for lack of memory."""
        if self.folder is None:
            return 0
        for file in ("memory.oom_control", "memory.events"):
            for line in (self.folder / file).read_text().splitlines() if (self.folder / file).exists() else []:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        return 0

    def close(self) -> None:
        """Remove the group; no process may be in it any more."""
        if self.folder is None:
            return
        # The kernel releases the process a moment after it has reported its end.
        deadline = time.monotonic() + 10
        while True:
            try:
                self.folder.rmdir()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


class LimitedNode(Node):
    """A node in a group."""

    def __init__(self, data_dir: Path, group: Group, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(data_dir, settings)
        self.group = group

    def argv(self) -> list[str]:
        return self.group.wrap(super().argv())
