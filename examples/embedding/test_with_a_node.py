"""How a project tests code that uses a node: one node in memory for the whole run, and an empty store for each test.

python -m pytest examples/embedding/test_with_a_node.py
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from metastore import Compare, Node, Op


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """A node without files. It takes some 30 ms to start."""
    with Node.in_memory() as node:
        yield node


@pytest.fixture
def store(node: Node) -> Node:
    """The node with an empty store."""
    node.delete_prefix("")
    return node


def reserve(store: Node, seat: str, who: str) -> bool:
    """The code under test: a seat has one owner."""
    return store.txn([Compare.missing(seat)], success=[Op.put(seat, who)]).succeeded


def test_a_seat_is_reserved_once(store: Node) -> None:
    assert reserve(store, "/seats/12", "ann")
    assert not reserve(store, "/seats/12", "bob")
    found = store.get("/seats/12")
    assert found is not None and found.value == b"ann"


def test_each_test_begins_with_nothing(store: Node) -> None:
    assert store.get_prefix("").count == 0
