"""A node that compacts by itself keeps its size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import messages as m
from support.client import Failure
from support.processes import Node, Server, wait_until

Make = Callable[..., Server]


def compacted_by(server: Server, revision: int) -> bool:
    with server.client() as client:
        try:
            client.range(b"a", revision=revision)
        except Failure as failure:
            assert failure.text == "etcdserver: mvcc: required revision has been compacted"
            return True
    return False


@pytest.mark.node_only
@pytest.mark.parametrize(
    "settings",
    [
        {"auto_compaction_mode": "periodic", "auto_compaction_retention": "1s"},
        {"auto_compaction_mode": "revision", "auto_compaction_revisions": "100"},
    ],
    ids=lambda settings: settings["auto_compaction_mode"],
)
def test_a_node_compacts_by_itself(settings: dict[str, str], fresh: Make) -> None:
    node = fresh(settings={f"maintenance.{key}": value for key, value in settings.items()}).start()
    with node.client() as client:
        for number in range(300):
            client.put(b"a", b"%d" % number)
        wait_until(lambda: compacted_by(node, 2), what="history is compacted")
        wait_until(lambda: client.status().dbSize < 30_000, what="its room is given back")
        assert client.get(b"a") == b"299"


@pytest.mark.node_only
def test_the_same_data_written_again_and_again_takes_no_more_room(fresh: Make) -> None:
    """300 keys of 8 KiB are overwritten 15 times with a compaction after each round. Neither the engine's size nor the
    process grows after the first rounds."""
    node = fresh(settings={"maintenance.snapshot_count": "1000000"}).start()
    assert isinstance(node, Node)
    sizes, memory = [], []
    with node.client() as client:
        for number in range(15):
            puts = [client.future(put_request(key, number)) for key in range(300)]
            for put in puts:
                put.result()
            client.compact(client.revision(), physical=True)
            client.defragment()
            sizes.append(client.status().dbSize)
            memory.append(node.running().rss())
    assert max(sizes) <= min(sizes) * 1.01 < 2_600_000
    assert memory[-1] <= memory[4] + 6_000_000, memory


def put_request(key: int, number: int) -> object:
    return m.PutRequest(key=b"%06d" % key, value=b"%02d" % number * 4096)
