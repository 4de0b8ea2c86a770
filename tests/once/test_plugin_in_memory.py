"""A node on a plug-in's engine that keeps nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support import messages as m
from support.cluster import EAGER
from support.plugins import install_in_memory
from support.processes import Server, metric, wait_until

Make = Callable[..., Server]

pytestmark = pytest.mark.node_only


def test_an_engine_in_memory_is_filled_again_after_a_kill(tmp_path: Path, fresh: Make) -> None:
    node = fresh(settings={"storage.engine": '"volatile"', **EAGER}, env=install_in_memory(tmp_path)).start()
    with node.client(timeout=60) as client:
        for first in range(0, 5000, 500):
            requests = [m.PutRequest(key=b"k%05d" % n, value=b"v" * 64) for n in range(first, first + 500)]
            puts = [client.future(put, 60) for put in requests]
            for put in puts:
                put.result()
    wait_until(lambda: metric(node, "metastore_wal_first_index") > 1, what="a log that was cut")
    node.kill()
    node.start()
    with node.client() as client:
        assert client.prefix(b"k") == {b"k%05d" % n: b"v" * 64 for n in range(5000)}
    assert node.stop() == 0
