"""Many leases end at the same moment: all keys go, and nobody else is held up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import leasestorm
from support.processes import Server
from support.turns import FEW, SOMEWHAT

Make = Callable[..., Server]
pytestmark = pytest.mark.node_only


def test_many_leases_end_at_once(fresh: Make) -> None:
    storm = leasestorm.run([fresh().start()], 3000, 4, rate=400, lasting=3.0)
    assert storm.slow_turns <= FEW and storm.longest < SOMEWHAT and storm.terms == 0, storm.summary
    assert storm.told < 30, storm.summary
