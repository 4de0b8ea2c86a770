"""How much memory this process may use, and how much it uses now. Linux.

The limits: the machine's memory, the limits of the process's memory cgroup (v1 and v2) and of the groups which that
one is in, RLIMIT_AS and RLIMIT_DATA. A process that reaches a cgroup's limit is killed, and one that reaches a resource
limit gets no more memory, so whoever wants to go on must stop before.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Which of the process's numbers counts against a limit.
RESIDENT, ADDRESSES, DATA = "resident", "addresses", "data"

#: Of the machine's memory, what is left to the kernel and to others: this part of it, and so many bytes at least.
SYSTEM_PART, SYSTEM_BYTES = 8, 128 << 20
#: A cgroup of version 1 without a limit says a number next to 2^63.
UNLIMITED = 1 << 60
#: Bytes of address space that threads still to come reserve for their stacks (8 MiB each, never used up).
STACKS = 64 << 20

M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -8, -3, -1  # malloc.h

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound on this process's memory. nbytes: the bound. source: words for people. kind: what counts against it."""

    nbytes: int
    source: str
    kind: str = RESIDENT

    def left(self) -> int:
        """Bytes from what is used now to the limit; negative beyond it."""
        return self.nbytes - used(self.kind) - (0 if self.kind == RESIDENT else STACKS)

    def whole(self) -> int:
        """What the bound comes to as resident memory: addresses and data go to stacks too, mostly unused."""
        return self.nbytes if self.kind == RESIDENT else max(0, self.left() + used(RESIDENT))


def used(kind: str = RESIDENT, proc: Path = Path("/proc")) -> int:
    """Bytes of this process that count against a limit of that kind: memory of its own that is resident (pages of files
    are not counted, for the kernel takes those back), addresses, or data."""
    fields = (proc / "self/statm").read_text().split()
    size, resident, shared, data = int(fields[0]), int(fields[1]), int(fields[2]), int(fields[5])
    pages = {RESIDENT: resident - shared, ADDRESSES: size, DATA: data}[kind]
    return pages * _PAGE


def limits(root: Path = Path("/"), given: int = 0) -> list[Limit]:
    """All bounds that there are. `given`: that of the configuration, 0 for none. `root`: where proc is mounted, and
    where the paths in it begin."""
    found = [Limit(given, "limits.memory_bytes")] if given else []
    found += _machine(root)
    found += _groups(root)
    for name, which, kind in (
        ("RLIMIT_AS", resource.RLIMIT_AS, ADDRESSES),
        ("RLIMIT_DATA", resource.RLIMIT_DATA, DATA),
    ):
        soft, _hard = resource.getrlimit(which)
        if soft != resource.RLIM_INFINITY:
            found.append(Limit(soft, name, kind))
    return found


def tightest(found: list[Limit]) -> Limit | None:
    """The limit that is reached first, by what is used now."""
    return min(found, key=Limit.left, default=None)


def _machine(root: Path) -> list[Limit]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
            return [Limit(total - max(SYSTEM_BYTES, total // SYSTEM_PART), "this machine's memory")]
    return []


def _groups(root: Path) -> Iterator[Limit]:
    """The limits of the memory cgroup, from the group itself up to the outermost one that can be seen."""
    own = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            own[bool(controllers)] = group
    for old, top, mount in _mounts(root):
        if old not in own:
            continue
        # A container may see its own group as the root of the mount, whatever its name is outside.
        inside = own[old][len(top) :] if f"{own[old]}/".startswith(f"{top.rstrip('/')}/") else ""
        folder = mount / inside.lstrip("/")
        for place in (folder, *folder.parents):
            yield from _limits_of(place)
            if place == mount:
                break


def _mounts(root: Path) -> Iterator[tuple[bool, str, Path]]:
    """(whether it is of version 1, the group that is mounted, where) of each hierarchy that limits memory."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = [*after.split(" "), "", ""][:3]
        _, _, _, top, where, *_ = before.split(" ")
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
            yield kind == "cgroup", top, root / where.lstrip("/")


def _limits_of(group: Path) -> Iterator[Limit]:
    for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
        for line in _lines(group / name):
            if line.isdecimal() and int(line) < UNLIMITED:
                yield Limit(int(line), f"the cgroup's limit {group / name}")
    for line in _lines(group / "memory.stat"):
        # Version 1: the limits of groups that cannot be seen from here are in it.
        name, _, number = line.partition(" ")
        if name == "hierarchical_memory_limit" and int(number) < UNLIMITED:
            yield Limit(int(number), f"the cgroup's limit {group / 'memory.stat'} (hierarchical)")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def settle_malloc() -> None:
    """Have malloc give back what it can: for a program of its own, before it has threads.

    One arena instead of eight for each processor: what a thread frees serves all others. Large pieces (values, chunks,
    batches) are pages of their own for good; by default malloc takes them from the heap once one was freed, and there
    they hold on to what lies before them.
    """
    libc = ctypes.CDLL(None)
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is not None:  # glibc
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, 256 << 10)
        mallopt(M_TRIM_THRESHOLD, 1 << 20)
