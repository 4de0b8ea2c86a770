"""The calls of an embedded node: transactions made of `Compare` and `Op`, ranges, deletions, and refused calls."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metastore import (
    Compare,
    Config,
    DeleteResult,
    Futures,
    KeyValue,
    Node,
    Op,
    PutResult,
    RangeResult,
    SortOrder,
    SortTarget,
    TxnResult,
    errors,
)
from metastore.failpoints import Failpoints

pytestmark = pytest.mark.node_only


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("embedded")
    config = Config(node={"data_dir": str(folder)}, listen={"client": "127.0.0.1:0"}, wal={"segment_size": "1MiB"})
    with Node(config) as node:
        yield node


@pytest.fixture
def node(running: Node) -> Node:
    """A node without keys."""
    running.delete_prefix("")
    return running


def test_every_kind_of_operation_has_its_result(node: Node) -> None:
    node.put_many([("a", "1"), ("b/1", "2"), ("b/2", "3"), ("c", "4")])
    before = node.revision
    done = node.txn(
        compare=[Compare.exists("a"), Compare.missing("z")],
        success=[
            Op.put("a", "new", prev_kv=True),
            Op.range("b/", "b0", keys_only=True, limit=1),
            Op.delete("c", prev_kv=True),
            Op.delete_prefix("b/"),
            Op.txn([Compare.missing("a")], failure=[Op.put("d", b"5")]),
        ],
        failure=[Op.put("never", "")],
    )
    assert done.succeeded and done.revision == before + 1 == node.revision
    put, found, deleted, more, nested = done.results
    assert isinstance(put, PutResult) and put.prev is not None and put.prev.value == b"1"
    assert isinstance(found, RangeResult) and (found.count, found.more) == (2, True)
    assert [(item.key, item.value) for item in found.kvs] == [(b"b/1", b"")]
    assert isinstance(deleted, DeleteResult) and [item.value for item in deleted.prevs] == [b"4"]
    assert isinstance(more, DeleteResult) and (more.deleted, more.prevs) == (2, ())
    assert isinstance(nested, TxnResult) and not nested.succeeded and len(nested.results) == 1
    assert [one.revision for one in done.results] == [done.revision] * 5
    assert {item.key: item.value for item in node.get_prefix("").kvs} == {b"a": b"new", b"d": b"5"}


def test_every_kind_of_condition_is_asked(node: Node) -> None:
    created = node.put("k", "one").revision
    changed = node.put("k", "two").revision
    holds = [
        Compare.value("k", "=", "two"), Compare.value("k", ">", b"twn"), Compare.version("k", "=", 2),
        Compare.create_revision("k", "=", created), Compare.mod_revision("k", "=", changed),
        Compare.mod_revision("k", ">", created), Compare.lease("k", "=", 0), Compare.exists("k"),
        Compare.missing("l"), Compare.version("k", "<", 3, range_end="l"), Compare.value("k", "!=", "one"),
    ]  # fmt: skip
    fails = [
        Compare.value("k", "!=", "two"), Compare.value("l", "=", ""), Compare.version("k", ">", 2),
        Compare.create_revision("k", "=", changed), Compare.mod_revision("k", "<", changed),
        Compare.lease("k", ">", 0), Compare.missing("k"), Compare.exists("l"),
    ]  # fmt: skip
    assert node.txn(holds).succeeded
    assert [node.txn([one]).succeeded for one in fails] == [False] * len(fails)
    node.put("k2", "x")
    assert not node.txn([Compare.version("k", "=", 2, range_end="l")]).succeeded, "one of the two has version 1"


def test_prefixes_are_deleted_and_nothing_else(node: Node) -> None:
    keys = [b"a", b"b", b"b\x00", b"b\xff", b"b\xff\xff", b"c", b"\xff", b"\xff\xff"]
    node.put_many([(key, b"v") for key in keys])
    assert node.delete_prefix("b\0", prev_kv=True).prevs[0].key == b"b\x00"
    assert node.futures.delete_prefix(b"b\xff").result(30).deleted == 2
    assert node.delete_prefix("none") == DeleteResult(node.revision, 0, ())
    assert [item.key for item in node.get_prefix("").kvs] == [b"a", b"b", b"c", b"\xff", b"\xff\xff"]
    assert node.delete_prefix(b"\xff").deleted == 2
    assert node.delete_prefix("").deleted == 3 and node.get_prefix("", count_only=True).count == 0


def test_ranges_are_sorted_bounded_and_of_old_revisions(node: Node) -> None:
    node.put_many([("k1", "c"), ("k2", "a"), ("k3", "b")])
    old = node.revision
    node.delete("k2")
    found = node.range("k", "l", sort_order=SortOrder.DESCEND, sort_target=SortTarget.VALUE, revision=old, limit=2)
    assert [item.value for item in found.kvs] == [b"c", b"b"] and (found.count, found.more) == (3, True)
    assert node.get("k2") is None
    past = node.get("k2", revision=old)
    assert past == KeyValue(b"k2", b"a", old - 1, old - 1, 1, 0)
    bounded = node.range("k", "l", min_mod_revision=old)
    assert [item.key for item in bounded.kvs] == [b"k3"] and bounded.count == 2
    assert [item.key for item in node.get_prefix("k", sort_order=SortOrder.DESCEND).kvs] == [b"k3", b"k1"]
    node.compact(node.revision, physical=True)
    for refused in (lambda: node.get("k2", revision=old), lambda: node.compact(old)):
        with pytest.raises(errors.Compacted):
            refused()
    with pytest.raises(errors.FutureRevision):
        node.compact(node.revision + 1)


def test_puts_keep_what_they_are_told_to_keep(node: Node) -> None:
    node.put("k", "kept")
    assert node.put("k", b"", ignore_value=True, prev_kv=True).prev is not None
    found = node.get("k")
    assert found is not None and (found.value, found.version) == (b"kept", 2)
    with pytest.raises(errors.KeyNotFound):
        node.put("other", b"", ignore_value=True)
    with pytest.raises(errors.ValueProvided):
        node.put("k", b"v", ignore_value=True)
    with pytest.raises(errors.LeaseNotFound):
        node.put("k", b"v", lease=7)


def test_wrong_arguments_never_reach_the_node(node: Node) -> None:
    revision = node.revision
    wrong: Any = node
    for call in (
        lambda: wrong.put(1, "v"),
        lambda: wrong.range("k", 2),
        lambda: wrong.delete_prefix(None),
        lambda: wrong.put("k", "v", leese=1),
        lambda: wrong.futures.range("k", limit=1, timeout=3),
        lambda: Compare.value("k", "=", wrong),
    ):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(ValueError, match="relation '==' is none of =, >, <, !="):
        Compare.version("k", "==", 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="out of range"):
        node.range("k", limit=1 << 63)
    with pytest.raises(errors.EmptyKey):
        node.get("")
    with pytest.raises(errors.TooManyOps):
        node.txn(success=[Op.range("k")] * 129)
    with pytest.raises(errors.RequestTooLarge):
        node.put("k", bytes(1_600_000))
    with pytest.raises(errors.DuplicateKey):
        node.txn(success=[Op.put("k", "1"), Op.put("k", "2")])
    assert node.revision == revision


def test_a_call_that_takes_too_long_says_so_and_is_done_all_the_same(tmp_path: Path) -> None:
    """The `timeout` of a call belongs to the caller. The disk stands still here."""
    failpoints = Failpoints()
    config = Config(node={"data_dir": str(tmp_path / "data")}, listen={"client": "127.0.0.1:0"})
    with Node(config, failpoints=failpoints) as node:
        failpoints.set("wal.before_sync", "block")
        with pytest.raises(TimeoutError):
            node.put("k", "v", timeout=0.05)
        failpoints.clear()
        assert node.put("l", "w", timeout=30).revision == 3
        assert [item.key for item in node.get_prefix("").kvs] == [b"k", b"l"]


def test_a_node_that_does_not_run_says_so(tmp_path: Path) -> None:
    node = Node(Config(node={"data_dir": str(tmp_path / "data")}, listen={"client": "127.0.0.1:0"}))
    for call in (lambda: node.get("k"), lambda: node.futures.txn(), lambda: node.revision, node.stats):
        with pytest.raises(errors.Stopped):
            call()


def test_the_three_forms_take_the_same_arguments() -> None:
    """A call of `Node` has a `timeout` besides the arguments of the Future and of the operation."""

    def given(call: Any) -> list[tuple[str, Any, Any, Any]]:
        parameters = inspect.signature(call).parameters.values()
        return [(one.name, one.kind, one.default, one.annotation) for one in parameters if one.name != "self"]

    for name in ("put", "range", "delete", "delete_prefix", "txn", "compact"):
        blocking = given(getattr(Node, name))
        assert blocking.pop() == ("timeout", inspect.Parameter.KEYWORD_ONLY, None, "float | None"), name
        assert given(getattr(Futures, name)) == blocking, name
        if name != "compact":
            assert given(getattr(Op, name)) == blocking, name
