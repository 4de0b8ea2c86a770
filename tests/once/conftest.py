"""Fixtures that several tests share which run once."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT
from support.memlimits import MIB, Group, LimitedNode


@pytest.fixture
def memory_group(request: pytest.FixtureRequest) -> Iterator[Group]:
    """A bound on memory of 128 MiB, or of what the test asks for."""
    group = Group(getattr(request, "param", 128 * MIB))
    yield group
    group.close()


@contextlib.contextmanager
def outside_memory(folder: Path) -> Iterator[Path]:
    """A folder whose files do not count as memory of the group: this one, or if it is in memory itself (as /tmp is on
    Debian 13) one beside the program."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True).stdout.strip()
    if kind not in ("tmpfs", "ramfs"):
        yield folder
        return
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as name:
        yield Path(name)


@pytest.fixture
def limited_node(memory_group: Group, tmp_path: Path) -> Iterator[LimitedNode]:
    """A node in the group, not started. The kernel must not have killed it for lack of memory."""
    with outside_memory(tmp_path) as folder:
        node = LimitedNode(folder / "data", memory_group)
        yield node
        node.discard()
    assert memory_group.kills() == 0, "the kernel killed it"
