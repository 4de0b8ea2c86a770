"""The peer port of live members under attack: they live, serve, keep what was acknowledged, and take bounded memory.

A few seconds here; minutes with --long, hours by `tox -e fuzz`. The seed is in the test's name and in its failure.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.cluster import Cluster
from support.peerfuzz import QUICK, attack

pytestmark = pytest.mark.node_only


@pytest.mark.parametrize("seed", [1, 2])
def test_a_few_seconds(cluster_of: Callable[..., Cluster], seed: int) -> None:
    attack(cluster_of(settings=QUICK), seed, 4.0)
