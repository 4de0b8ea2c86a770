"""Random traffic on the client port of a live node, most of it wrong: the node lives, serves, and takes bounded memory.

A few seconds here; minutes with --long, hours by `tox -e fuzz`. The seed is in the test's name and in its failure.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.clientfuzz import SETTINGS, attack
from support.processes import Server

pytestmark = pytest.mark.node_only


@pytest.mark.parametrize("seed", [1, 2])
def test_a_few_seconds(fresh: Callable[..., Server], seed: int) -> None:
    attack(fresh(settings=SETTINGS).start(), seed, 4.0)
