"""Wrong arguments of a program are refused by name before anything is done, and all timeouts are of one class."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import gc
import inspect
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metastore import Compare, Config, Node, Op, SortOrder, SortTarget, errors
from metastore.embedded.outcome import Outcome
from metastore.failpoints import Failpoints

pytestmark = pytest.mark.node_only


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("embedded")
    config = Config(node={"data_dir": str(folder)}, listen={"client": "127.0.0.1:0"}, wal={"segment_size": "1MiB"})
    with Node(config) as node:
        node.put("a", "1")
        yield node
        assert node.revision == 2, "something was done"


# How to make the call, and the beginning of the error's text.
WRONG: list[tuple[Callable[[Any], object], type[Exception], str]] = [
    (lambda node: node.put(1, "v"), TypeError, "key must be bytes or str, not int"),
    (lambda node: node.put("k", None), TypeError, "value must be bytes or str, not None"),
    (lambda node: node.put("\ud800", ""), ValueError, "key: UTF-8 cannot encode it"),
    (lambda node: node.put("k", "v", prev_kv="yes"), TypeError, "prev_kv must be True or False, not str"),
    (lambda node: node.put("k", "v", prev_kv=None), TypeError, "prev_kv must be True or False, not None"),
    (lambda node: node.put("k", "v", ignore_value=1), TypeError, "ignore_value must be True or False, not int"),
    (lambda node: node.put("k", "v", ignore_lease=0), TypeError, "ignore_lease must be True or False, not int"),
    (lambda node: node.put("k", "v", lease="7"), TypeError, "lease must be an int, not str"),
    (lambda node: node.put("k", "v", lease=False), TypeError, "lease must be an int, not bool"),
    (lambda node: node.put("k", "v", leese=1), TypeError, "got an unexpected keyword argument 'leese'"),
    (lambda node: node.range("k", 2), TypeError, "range_end must be bytes or str, not int"),
    (lambda node: node.range("k", limit="3"), TypeError, "limit must be an int, not str"),
    (lambda node: node.range("k", limit=None), TypeError, "limit must be an int, not None"),
    (lambda node: node.range("k", limit=2.0), TypeError, "limit must be an int, not float"),
    (lambda node: node.range("k", limit=1 << 63), ValueError, "limit is out of range"),
    (lambda node: node.range("k", revision=-(1 << 63) - 1), ValueError, "revision is out of range"),
    (lambda node: node.range("k", sort_order="descend"), TypeError, "sort_order must be a SortOrder, not str"),
    (lambda node: node.range("k", sort_target=9), ValueError, "sort_target must be a SortTarget, and 9 is none"),
    (lambda node: node.range("k", serializable=[]), TypeError, "serializable must be True or False, not list"),
    (lambda node: node.range("k", max_mod_revision="1"), TypeError, "max_mod_revision must be an int"),
    (lambda node: node.get("k", keys_only="no"), TypeError, "keys_only must be True or False, not str"),
    (lambda node: node.get("k", count_only=True), TypeError, "got an unexpected keyword argument 'count_only'"),
    (lambda node: node.get("a", range_end="z"), TypeError, "got an unexpected keyword argument 'range_end'"),
    (lambda node: node.get_prefix(None), TypeError, "prefix must be bytes or str, not None"),
    (lambda node: node.delete("k", prev_kv=1), TypeError, "prev_kv must be True or False, not int"),
    (lambda node: node.delete_prefix(5), TypeError, "prefix must be bytes or str, not int"),
    (lambda node: node.compact(None), TypeError, "revision must be an int, not None"),
    (lambda node: node.compact("2"), TypeError, "revision must be an int, not str"),
    (lambda node: node.compact(2, physical="yes"), TypeError, "physical must be True or False, not str"),
    (lambda node: node.txn(success=Op.put("k", "v")), TypeError, "success must be a sequence of Op, not Op"),
    (lambda node: node.txn(Compare.exists("k")), TypeError, "compare must be a sequence of Compare, not Compare"),
    (lambda node: node.txn(failure=["k"]), TypeError, r"failure\[0\] must be of Op, not str"),
    (lambda node: node.txn([Op.put("k", "v")]), TypeError, r"compare\[0\] must be of Compare, not Op"),
    (lambda node: node.txn(success="put"), TypeError, "success must be a sequence of Op, not str"),
    (lambda node: node.futures.txn(success=None), TypeError, "success must be a sequence of Op, not None"),
    (lambda node: Op.txn(success=Op.put("k", "v")), TypeError, "success must be a sequence of Op, not Op"),
    (lambda node: Op.put("k", "v", prev_kv="yes"), TypeError, "prev_kv must be True or False, not str"),
    (lambda node: Op.range("k", limit="3"), TypeError, "limit must be an int, not str"),
    (lambda node: Compare.version("k", "=", "1"), TypeError, "version must be an int, not str"),
    (lambda node: Compare.mod_revision("k", "=", None), TypeError, "revision must be an int, not None"),
    (lambda node: Compare.lease("k", "=", True), TypeError, "lease must be an int, not bool"),
    (lambda node: Compare.value("k", "=", 1), TypeError, "value must be bytes or str, not int"),
    (lambda node: Compare.value("k", 1, "v"), TypeError, "relation must be a str, not int"),
    (lambda node: Compare.version("k", "==", 1), ValueError, "relation '==' is none of =, >, <, !="),
    (lambda node: Node({"node": {"name": "n1"}}), TypeError, "config must be a Config, not dict"),
    (lambda node: Node("/x"), TypeError, "config must be a Config, not str"),
    (lambda node: Node(Path("/x")), TypeError, "config must be a Config, not PosixPath"),
    (lambda node: Config(node={1: 2}), ValueError, r"Config\(\): node.1: a key must be text, not int"),
    (lambda node: Config.from_dict({1: {}}), ValueError, "Config.from_dict: 1: the name of a table must be text"),
    (lambda node: Config.from_dict([("node", {})]), TypeError, "tables must be a mapping, not list"),
    (lambda node: Node.in_memory({}), TypeError, "config must be a Config, not dict"),
    (lambda node: node.lock("l", ttl="3"), TypeError, "ttl must be an int, not str"),
    (lambda node: node.lock("l", lease=7), TypeError, "lease must be what `node.lease` gives, or None, not int"),
    (lambda node: node.aio.lock("l", ttl=3.5), TypeError, "ttl must be an int, not float"),
    (lambda node: node.election("e").campaign("v", lease=7), TypeError, "lease must be what `node.lease` gives"),
    (lambda node: node.election("e").campaign(7), TypeError, "value must be bytes or str, not int"),
    (lambda node: node.watch("k").call(None), TypeError, "callback must be callable, and None is not"),
    (lambda node: Config(nod={}), ValueError, "nod: unknown table; did you mean 'node'"),
    (lambda node: Config(node={"nam": "n1"}), ValueError, "node.nam: unknown key; did you mean 'name'"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "text"), WRONG, ids=[text for _, _, text in WRONG])
def test_a_wrong_argument_is_named(node: Any, call: Callable[[Any], object], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call(node)


@pytest.mark.parametrize("wrong", [math.inf, math.nan, -1, -0.001, 1e300, "1", True, [2]], ids=repr)
def test_a_wrong_timeout_is_named_before_anything_is_done(node: Any, wrong: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: node.put("k", "v", timeout=wrong),
        lambda: node.put_many([("k", "v")], timeout=wrong),
        lambda: node.range("k", timeout=wrong),
        lambda: node.get("k", timeout=wrong),
        lambda: node.get_prefix("k", timeout=wrong),
        lambda: node.delete("k", timeout=wrong),
        lambda: node.delete_prefix("k", timeout=wrong),
        lambda: node.txn(success=[Op.put("k", "v")], timeout=wrong),
        lambda: node.compact(2, timeout=wrong),
        lambda: node.start(timeout=wrong),
        lambda: node.wait(wrong),
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError), match="timeout must be"):
            call()


@pytest.mark.parametrize("wrong", [math.inf, math.nan, "1", True, [2]], ids=repr)
def test_a_wrong_timeout_of_a_future_is_named(wrong: Any) -> None:
    """A time that is over already is none, as in other Futures."""
    for call in (Outcome().result, Outcome().exception):
        with pytest.raises((TypeError, ValueError), match="timeout must be"):
            call(wrong)
        with pytest.raises(errors.Timeout):
            call(-1)


class Bytes(bytes):
    """NumPy's strings are of such a class."""


def test_kinds_of_bytes_are_keys_and_values(tmp_path: Path) -> None:
    key, value = Bytes(b"a"), Bytes(b"1")
    with Node.in_memory() as node:
        node.put(key, value)
        node.put(key, value, prev_kv=True)
        node.put_many([(key, value)])
        assert node.futures.put_many({key: value})[0].result(30).revision == 5
        assert node.txn([Compare.value(key, "=", value)], [Op.put(key, value)]).succeeded
        assert node.get(key) == node.get_prefix(key).kvs[0] == node.range(key, timeout=30).kvs[0]
        found = node.get(key)
        assert found is not None and type(found.key) is type(found.value) is bytes


def test_what_belongs_to_a_node_cannot_be_copied() -> None:
    """A copy of a Node stopped the node when it was collected, and a copy of a Future was never answered."""
    with Node.in_memory() as node:
        lock = node.lock("j")
        for one in (node, node.futures.txn(), node.watch("k"), node.aio.watch("k"), node.lease(60), lock):
            for copied in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match="cannot be copied or pickled"):
                    copied(one)
        gc.collect()
        assert node.put("k", "v").revision == 2


def test_right_arguments_of_other_types_are_taken(node: Any) -> None:
    assert node.get(bytearray(b"a"), timeout=30).value == node.get(memoryview(b"a"), timeout=None).value == b"1"
    assert node.range("a", sort_order=1, sort_target=SortTarget.MOD).count == 1
    assert node.range("a", sort_order=SortOrder.NONE, limit=-1, timeout=30.5).count == 1
    assert node.txn((one for one in [Compare.exists("a")]), success=(Op.range("a"),)).succeeded


def test_a_time_that_is_over_is_of_one_class(tmp_path: Path) -> None:
    """The class is Python's own and the store's: a program that catches either catches all timeouts."""
    failpoints = Failpoints()
    config = Config(
        node={"data_dir": str(tmp_path)}, listen={"client": "127.0.0.1:0"}, limits={"request_timeout": "300ms"}
    )
    with Node(config, failpoints=failpoints) as node:
        failpoints.set("wal.before_sync", "block")
        with pytest.raises(errors.Timeout, match=r"no answer within 0.05 s; a write may be done all the same") as ours:
            node.put("k", "v", timeout=0.05)
        with pytest.raises(TimeoutError) as nodes:
            node.put("l", "v")
        future = node.futures.put("m", "v")
        with pytest.raises(concurrent.futures.TimeoutError) as asked:
            future.result(0.01)
        with pytest.raises(TimeoutError) as exception:
            future.exception(0.01)
        failpoints.clear()
        for caught in (ours, nodes, asked, exception):
            error = caught.value
            assert isinstance(error, errors.Timeout) and isinstance(error, asyncio.TimeoutError) and str(error)
            again = pickle.loads(pickle.dumps(error))
            assert (type(again), str(again), again.code) == (errors.Timeout, str(error), errors.UNAVAILABLE)
            assert errors.reason(error) == str(error)
    for name in ("TimeoutDueToLeaderFail", "TimeoutDueToConnectionLost", "TimeoutWaitAppliedIndex", "PutManyTimeout"):
        assert issubclass(getattr(errors, name), errors.Timeout) and issubclass(getattr(errors, name), TimeoutError)


def test_a_node_that_was_not_started_says_so(tmp_path: Path) -> None:
    node = Node(Config(node={"data_dir": str(tmp_path / "data")}, listen={"client": "127.0.0.1:0"}))
    calls: list[Callable[[], object]] = [
        lambda: node.get("k"), lambda: node.futures.txn(), lambda: node.revision, node.stats,
        lambda: node.client_addresses, lambda: node.put_many([("k", "v")]), lambda: node.put_many([]),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(errors.NotStarted, match="has not been started"):
            call()
    with node:
        pass
    for call in calls:
        with pytest.raises(errors.Stopped) as stopped:
            call()
        assert not isinstance(stopped.value, errors.NotStarted)


def test_every_error_pickles_and_copies() -> None:
    for kind in vars(errors).values():
        if (
            inspect.isclass(kind)
            and issubclass(kind, errors.MetaStoreError)
            and not issubclass(kind, errors.PutManyFailed | errors.WatchCompacted)
        ):
            again = pickle.loads(pickle.dumps(kind("why")))
            assert (type(again), again.text, str(again), again.args) == (kind, "why", "why", ("why",))
    compacted = pickle.loads(pickle.dumps(errors.WatchCompacted(7)))
    assert (type(compacted), compacted.compact_revision) == (errors.WatchCompacted, 7)
