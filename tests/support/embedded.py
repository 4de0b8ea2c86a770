"""Nodes inside the process of the test."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metastore import Config, Node

from .ports import free_ports
from .processes import wait_until


def settings(folder: Path, **tables: Any) -> Config:
    """Settings of a node on a free port, with its data in `folder`. Pipelined calls need no quick disk."""
    values: dict[str, Any] = {
        "node": {"data_dir": str(folder)}, "listen": {"client": "127.0.0.1:0"}, "wal": {"sync": "async"},
    }  # fmt: skip
    for name, table in tables.items():
        values[name] = {**values.get(name, {}), **table}
    return Config(**values)


def make(folder: Path, **tables: Any) -> Node:
    """Make a node with these settings; it is not started."""
    return Node(settings(folder, **tables))


@contextlib.contextmanager
def standing(node: Node) -> Iterator[None]:
    """Hold the node's loop inside the body, so nothing is answered before the test is ready for it."""
    held, hold = threading.Event(), threading.Event()

    def stand() -> None:
        held.set()
        hold.wait(60)

    member: Any = node._running()
    member.loop.call_soon_threadsafe(stand)
    assert held.wait(60)
    try:
        yield
    finally:
        hold.set()


def leads(node: Node) -> bool:
    return node._running().driver.is_leader


@contextlib.contextmanager
def members_of(folder: Path, **tables: Any) -> Iterator[list[Node]]:
    """Three members of a cluster that serve: the leader first."""
    names, ports = ["n1", "n2", "n3"], free_ports(3)
    initial = {name: f"127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)}
    nodes = [
        make(
            folder / name,
            **{"node": {"name": name}, "listen": {"peer": initial[name]}, "cluster": {"initial": initial}, **tables},
        )
        for name in names
    ]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(lambda node: node.start(60), nodes))
        wait_until(lambda: any(leads(node) for node in nodes))
        yield sorted(nodes, key=leads, reverse=True)
        list(pool.map(Node.stop, nodes))
