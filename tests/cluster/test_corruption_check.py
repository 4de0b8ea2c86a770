"""The members of a cluster compare their data now and then, and one whose data differs is named."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.ports import free_ports
from support.processes import wait_until

from metastore import Config, Node, errors
from metastore._core.ordered_map import OrderedMap
from metastore.replica.alarms import CORRUPT

pytestmark = pytest.mark.node_only

ENGINES = ("memory", "rocksdb", "memory")


def members(folder: Path) -> list[Node]:
    """Return three nodes of one cluster, which are not started."""
    ports = free_ports(3)
    initial = {f"n{number}": f"127.0.0.1:{port}" for number, port in enumerate(ports)}
    return [
        Node(
            Config(
                node={"name": f"n{number}", "data_dir": str(folder / f"n{number}")},
                listen={"client": "127.0.0.1:0", "peer": f"127.0.0.1:{port}"},
                cluster={"initial": initial},
                storage={"engine": engine},
                wal={"segment_size": "1MiB"},
                maintenance={"corruption_check_interval": 0.3},
            )
        )
        for number, (port, engine) in enumerate(zip(ports, ENGINES, strict=True))
    ]


def rounds(nodes: list[Node]) -> float:
    return sum(node.stats()["corruption_checks_total"] for node in nodes)


def alarmed(node: Node, member: int) -> bool:
    """Whether a node knows that this member, and no other one, is corrupt."""
    running: Any = node._running()
    return bool(running.upkeep.alarms.raised == {(member, CORRUPT)})


def spoil(node: Node) -> int:
    """Change a value in a member's engine, and return the member's id."""
    running: Any = node._running()

    def change() -> None:
        engine = running.state.engine
        key, value = engine.seek_le(b"r\xff")
        batch = OrderedMap()
        batch.set(key, value[:-1] + b"!")
        engine.write(batch, *engine.applied())

    running.loop.call_soon_threadsafe(change)
    return int(running.disk.identity.member_id)


def test_a_member_whose_data_differs_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes = members(tmp_path)
    with contextlib.ExitStack() as stack:
        for node in nodes:
            stack.callback(node.stop)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda node: node.start(), nodes))
        for number in range(300):
            nodes[0].put(b"k%03d" % (number % 100), b"value %d" % number)
        nodes[1].compact(nodes[0].put("last", "one").revision - 50)
        before = rounds(nodes)
        wait_until(lambda: rounds(nodes) >= before + 3, what="three checks of members that agree")
        assert sum(node.stats()["corruption_found_total"] + node.stats()["alarms_corrupt"] for node in nodes) == 0
        leader = next(node for node in nodes if node._running().driver.is_leader)
        victim = next(node for node in nodes if node is not leader)
        wrong = spoil(victim)
        for node in nodes:
            wait_until(partial(alarmed, node, wrong), what="the alarm")
        with pytest.raises(errors.Corrupt):
            leader.put("k", "v")
        assert f"({wrong:016x})" in caplog.text and "differs from that of the others at revision" in caplog.text
