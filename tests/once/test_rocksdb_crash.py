"""kill -9 of a node on RocksDB: it goes on from its last flush, and the log has the rest."""

from __future__ import annotations

import random

import pytest
from support.load import History, Load
from support.rocksdbkills import SMALL, Make, killed_at, killed_behind_a_flush

pytestmark = pytest.mark.node_only


def test_killed_under_load(fresh: Make) -> None:
    node, history, rng = fresh(settings=SMALL), History(), random.Random(5)
    for _ in range(3):
        node.start()
        with node.client() as client:
            history.check(client)
            load = Load(client, history).start()
            load.wait_acks(rng.choice([1, 50, rng.randint(0, 900)]))
            node.kill()
            load.join()
    node.start()
    with node.client() as client:
        history.check(client)
    assert history.acks > 100


@pytest.mark.parametrize("point", ["apply.after@60"])
def test_killed_at_a_failpoint(point: str, fresh: Make) -> None:
    killed_at(point, fresh)


@pytest.mark.parametrize("point", ["snapshot.release@1"])
def test_killed_when_the_log_was_cut_behind_a_flush(point: str, fresh: Make) -> None:
    killed_behind_a_flush(point, fresh)
