"""This module finds out how much memory this process may use on Linux, and how much it uses now.

The limits are the machine's memory, those of the process's memory cgroup (v1 and v2) and of the groups around it,
RLIMIT_AS and RLIMIT_DATA. A process that reaches a cgroup's limit is killed, and one that reaches a resource limit gets
no more memory. A process that wants to go on must therefore stay below them.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: The number of the process that counts against a limit.
RESIDENT, ADDRESSES, DATA = "resident", "addresses", "data"

#: The kernel and other processes keep this part of the machine's memory, and at least so many bytes.
SYSTEM_PART, SYSTEM_BYTES = 8, 128 << 20
#: A cgroup of version 1 without a limit has a number close to 2^63.
UNLIMITED = 1 << 60
#: Bytes of address space that future threads reserve for their stacks (8 MiB each, never used up).
STACKS = 64 << 20

M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -8, -3, -1  # malloc.h

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound on this process's memory, in bytes. `source` names it for people; `kind` says what counts against it."""

    nbytes: int
    source: str
    kind: str = RESIDENT

    def left(self) -> int:
        """The bytes that may still be taken before the limit is reached; negative beyond it."""
        return self.nbytes - used(self.kind) - (0 if self.kind == RESIDENT else STACKS)

    def whole(self) -> int:
        """The bound as resident memory. Addresses and data also include stacks, most of which are never used."""
        return self.nbytes if self.kind == RESIDENT else max(0, self.left() + used(RESIDENT))


def used(kind: str = RESIDENT, proc: Path = Path("/proc")) -> int:
    """The bytes of this process that count against a limit of that kind: resident memory, addresses, or data.

    Resident pages of files do not count, because the kernel can take them back.
    """
    # Ten times a second, so without what pathlib and text files do.
    with open(f"{proc}/self/statm", "rb", buffering=0) as file:
        fields = file.read(256).split()
    size, resident, shared, data = int(fields[0]), int(fields[1]), int(fields[2]), int(fields[5])
    pages = {RESIDENT: resident - shared, ADDRESSES: size, DATA: data}[kind]
    return pages * _PAGE


def limits(root: Path = Path("/"), configured: int = 0) -> list[Limit]:
    """All bounds that apply. `configured` is the one of the configuration, 0 for none. `root` is the folder in which
    proc is mounted, and where the paths in it begin.
    """
    bounds = [Limit(configured, "limits.memory_bytes")] if configured else []
    bounds += _machine(root)
    bounds += _groups(root)
    for name, which, kind in (
        ("RLIMIT_AS", resource.RLIMIT_AS, ADDRESSES),
        ("RLIMIT_DATA", resource.RLIMIT_DATA, DATA),
    ):
        soft, _hard = resource.getrlimit(which)
        if soft != resource.RLIM_INFINITY:
            bounds.append(Limit(soft, name, kind))
    return bounds


def tightest(bounds: list[Limit]) -> Limit | None:
    """The bound that will be reached first, by what is used now."""
    return min(bounds, key=Limit.left, default=None)


def _machine(root: Path) -> list[Limit]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
            return [Limit(total - max(SYSTEM_BYTES, total // SYSTEM_PART), "this machine's memory")]
    return []


def _groups(root: Path) -> Iterator[Limit]:
    """The limits of the memory cgroup, from the group itself up to the outermost visible one."""
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
    """(whether it has version 1, the mounted group, the mount point) of each hierarchy that limits memory."""
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
        # In version 1 this file has the limits of groups that cannot be seen from here.
        name, _, number = line.partition(" ")
        if name == "hierarchical_memory_limit" and int(number) < UNLIMITED:
            yield Limit(int(number), f"the cgroup's limit {group / 'memory.stat'} (hierarchical)")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def settle_malloc() -> None:
    """Makes malloc give back as much as it can. A program calls this for itself, before it has threads.

    There is one arena instead of eight for each processor, so memory that one thread frees serves all others. Large
    pieces (values, chunks, batches) always get pages of their own. By default malloc takes them from the heap once one
    was freed, and there they keep what lies before them from being given back.
    """
    libc = ctypes.CDLL(None)
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is not None:  # glibc
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, 256 << 10)
        mallopt(M_TRIM_THRESHOLD, 1 << 20)
