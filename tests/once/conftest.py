"""Fixtures that several tests share which run once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.memlimits import MIB, Group, LimitedNode


@pytest.fixture
def memory_group(request: pytest.FixtureRequest) -> Iterator[Group]:
    """A bound on memory of 128 MiB, or of what the test asks for."""
    group = Group(getattr(request, "param", 128 * MIB))
    yield group
    group.close()


@pytest.fixture
def limited_node(memory_group: Group, tmp_path: Path) -> Iterator[LimitedNode]:
    """A node in the group, not started. The kernel must not have killed it for lack of memory."""
    node = LimitedNode(tmp_path / "data", memory_group)
    yield node
    node.discard()
    assert memory_group.kills() == 0, "the kernel killed it"
