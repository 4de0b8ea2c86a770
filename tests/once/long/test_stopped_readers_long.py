"""100 readers of watches that have stopped, through ten minutes of writes at full speed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import stopped
from support.attack import MIB
from support.processes import Server

pytestmark = pytest.mark.node_only


@pytest.mark.parametrize("engine", ["memory", "rocksdb"])
def test_readers_that_have_stopped_cost_next_to_nothing(fresh: Callable[..., Server], engine: str) -> None:
    # The threads that poll would count as work.
    settings = {"storage.engine": f'"{engine}"', "performance.busy_poll": '"0s"'}
    one, other = (fresh(name, settings=settings).start() for name in ("one", "other"))
    cost = stopped.run(one, other, rounds=10, seconds=60)
    print(cost.summary)
    assert max(cost.ratio, cost.possible) >= 0.95, cost.summary
    assert cost.more <= 64 * MIB, cost.summary
