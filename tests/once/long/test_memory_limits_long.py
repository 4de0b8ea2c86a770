"""Nodes that may use little memory, with other sizes of values and for longer."""

from __future__ import annotations

import pytest
from support.limitedmemory import full_and_the_way_out, overwritten_for_ever
from support.memlimits import LimitedNode

pytestmark = pytest.mark.node_only


@pytest.mark.parametrize("size", [20, 300, 500_000])
def test_full_before_killed_and_the_way_out(size: int, limited_node: LimitedNode) -> None:
    full_and_the_way_out(limited_node, size)


@pytest.mark.parametrize("puts", [4_000_000])
def test_overwriting_for_ever(puts: int, limited_node: LimitedNode) -> None:
    overwritten_for_ever(limited_node, puts)
