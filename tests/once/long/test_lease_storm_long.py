"""100,000 leases end at the same moment, with each engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import leasestorm
from support.processes import Server

Make = Callable[..., Server]
pytestmark = pytest.mark.node_only


@pytest.mark.parametrize("engine", ["memory", "rocksdb"])
def test_100000_leases_end_at_once(fresh: Make, engine: str) -> None:
    storm = leasestorm.run(fresh(settings={"storage.engine": f'"{engine}"'}).start(), 100_000, 120)
    assert storm.slow_turns == 0
    assert storm.seconds < 30, storm
