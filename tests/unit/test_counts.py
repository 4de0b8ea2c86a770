"""Counts without a walk: what the memory engine tells about a range is what a walk over all of its keys finds."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import kvmessages as pb
from support.longranges import KEYS, Writer

from metastore._core.mvcc import Store
from metastore._core.mvcc_keys import encode_index_key
from metastore._core.mvcc_range import range_cost, sliced_reply
from metastore._core.mvcc_sweep import sweep_slice
from metastore._core.ordered_map import OrderedMap
from metastore._core.ordered_map_check import check, check_counts
from metastore.plugin import Engine
from metastore.storage.engines.memory import MemoryEngine

EDGES = st.sampled_from([b"\0", *KEYS, b"a\0\0", b"a\xff\xff", b"c", b"\xff\xff"])
STEPS = st.lists(st.sampled_from(["change", "much", "sweep", "view"]), min_size=1, max_size=30)


class Walked(MemoryEngine):
    """The same engine, which does not tell what it knows."""

    def count(self, start: bytes, end: bytes | None) -> None:
        return None


def told(store: Store, key: bytes, end: bytes, limit: int, count_only: bool) -> pb.RangeResponse:
    body = pb.RangeRequest(key=key, range_end=end, limit=limit, count_only=count_only).SerializeToString()
    return pb.RangeResponse.FromString(sliced_reply(store, body, 10**6))


def walked(store: Store, key: bytes, end: bytes, limit: int, count_only: bool) -> pb.RangeResponse:
    body = pb.RangeRequest(key=key, range_end=end, limit=limit, count_only=count_only).SerializeToString()
    return pb.RangeResponse.FromString(store.range_reply(body))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), STEPS, EDGES, EDGES, st.integers(0, 5), st.booleans())
def test_what_is_told_is_what_a_walk_finds(
    seed: int, steps: list[str], key: bytes, end: bytes, limit: int, only: bool
) -> None:
    writer = Writer(seed)
    store, views = writer.store, []
    for step in steps:
        if step == "sweep":
            sweep_slice(store, 3)
        elif step == "view":
            views.append((store.engine.view(), alive_by_walk(store.engine)))
        else:
            (writer.change if step == "change" else writer.change_much)()
        check_counts(store.engine)
        assert told(store, key, end, limit, only) == walked(store, key, end, limit, only)
    for view, alive in views:
        assert view.count(b"", None) == alive, "a view keeps the counts of its time"
        check_counts(view)


def alive_by_walk(engine: MemoryEngine) -> int:
    newest = {key[:-12]: value for key, value in engine.scan(b"k", b"l", False, 0)}
    return sum(not value[1] & 1 for value in newest.values())


@pytest.mark.parametrize("order", ["ascending", "descending", "scattered"])
def test_large_trees(order: str) -> None:
    """Leaves and nodes split, join and vanish. Every fifth key is deleted, and each has two versions."""
    tree = OrderedMap(True)
    keys = list(range(6000))
    if order != "ascending":
        keys = keys[::-1] if order == "descending" else [key * 7919 % 6000 for key in keys]
    for revision in (1, 2):
        for key in keys:
            dead = revision == 2 and key % 5 == 0
            tree.set(encode_index_key(b"%05d" % key, revision), b"\1\1" if dead else b"\1\0\1\1")
    view = tree.view()
    check(tree)
    edges = [b"", *(encode_index_key(b"%05d" % key, 0) for key in (0, 1, 777, 3000, 5999)), b"l"]
    for low in edges:
        for high in edges:
            found = [key for key in range(6000) if key % 5 and low <= encode_index_key(b"%05d" % key, 2) < high]
            assert tree.alive(low, high) == len(found)
    for key in keys:
        assert tree.delete(encode_index_key(b"%05d" % key, 1))
    check(tree)
    assert tree.alive() == 4800
    for key in keys[:5990]:
        tree.delete(encode_index_key(b"%05d" % key, 2))
    check(tree)
    check(view)
    assert view.alive() == 4800 and tree.alive() == sum(key % 5 > 0 for key in keys[5990:])


@pytest.mark.parametrize("seed", range(12))
def test_versions_come_and_go(seed: int) -> None:
    """New versions, sweeps from the oldest on, entries that are taken back from the newest on, and views between."""
    rng = random.Random(seed)
    tree, versions, views = OrderedMap(True), dict[int, list[tuple[int, bytes]]](), []
    for revision in range(1, 1500):
        key, choice = rng.randrange(8), rng.random()
        mine = versions.setdefault(key, [])
        if choice < 0.6 or not mine:
            mine.append((revision, b"\1\1" if rng.random() < 0.3 else b"\1\0\1\1"))
            tree.set(encode_index_key(b"%d" % key, revision), mine[-1][1])
        else:
            for _ in range(rng.randrange(len(mine) + 1)):
                gone = mine.pop() if choice < 0.8 else mine.pop(0)
                assert tree.delete(encode_index_key(b"%d" % key, gone[0]))
        if rng.random() < 0.02:
            views.append(tree.view())
        alive = sum(bool(mine) and not mine[-1][1][1] & 1 for mine in versions.values())
        assert tree.alive() == alive
    check(tree)
    for view in views:
        check(view)


def filled(engine: Engine, count: int) -> Store:
    """Return a store with so many keys, from k000000 on."""
    store = Store(engine)
    for number in range(count):
        store.put(pb.PutRequest(key=b"k%06d" % number, value=b"v").SerializeToString())
    store.commit(1, 1)
    return store


def test_a_page_does_not_walk_over_what_follows_it() -> None:
    """A page of five keys of a thousand costs those five keys."""
    engines = {"told": MemoryEngine(), "walked": Walked()}
    steps = {}
    for name, engine in engines.items():
        store = filled(engine, 1000)
        body = pb.RangeRequest(key=b"k", range_end=b"l", limit=5).SerializeToString()
        pieces: list[int] = []
        reply = pb.RangeResponse.FromString(sliced_reply(store, body, 1, lambda pieces=pieces: pieces.append(1)))
        assert reply.count == 1000 and reply.more and len(reply.kvs) == 5
        steps[name] = len(pieces)
    assert steps["told"] < 20 < 900 < steps["walked"]


def test_a_page_does_not_walk_over_deleted_keys() -> None:
    """A thousand keys were deleted and not compacted before the first one that lives."""
    engines = {"told": MemoryEngine(), "walked": Walked()}
    steps = {}
    for name, engine in engines.items():
        store = Store(engine)
        for number in range(1010):
            store.put(pb.PutRequest(key=b"k%06d" % number, value=b"v").SerializeToString())
        for part in (b"k000000", b"k000500"), (b"k000500", b"k001000"):
            store.delete_range(pb.DeleteRangeRequest(key=part[0], range_end=part[1]).SerializeToString())
        store.commit(1, 1)
        body = pb.RangeRequest(key=b"k", range_end=b"l", limit=5).SerializeToString()
        pieces: list[int] = []
        reply = pb.RangeResponse.FromString(sliced_reply(store, body, 1, lambda pieces=pieces: pieces.append(1)))
        assert [pair.key for pair in reply.kvs] == [b"k%06d" % number for number in range(1000, 1005)]
        assert reply.count == 10 and reply.more
        steps[name] = len(pieces)
    assert steps["told"] < 20 and steps["walked"] < 20


def test_changes_that_are_not_in_the_engine_yet_are_walked_over() -> None:
    """The engine does not know them. This is so while it is busy, and between the parts of a long entry."""
    store = Store(MemoryEngine())
    for number in range(10):
        store.put(pb.PutRequest(key=b"k%d" % number, value=b"v").SerializeToString())
    assert store.engine.count(b"", None) == 0
    assert told(store, b"k", b"l", 0, True).count == 10
    store.commit(1, 1)
    assert store.engine.count(b"", None) == 10
    assert told(store, b"k", b"l", 0, True).count == 10


def test_an_older_revision_is_walked_over() -> None:
    store = Store(MemoryEngine())
    for number in range(10):
        store.put(pb.PutRequest(key=b"k%d" % number, value=b"v").SerializeToString())
    store.commit(1, 1)
    body = pb.RangeRequest(key=b"k", range_end=b"l", revision=5, count_only=True).SerializeToString()
    assert pb.RangeResponse.FromString(sliced_reply(store, body, 100)).count == 4


@pytest.mark.parametrize("kept", range(10, 100, 3))
def test_a_new_version_may_begin_a_leaf(kept: int) -> None:
    """Versions that split a leaf were taken back. The next one stands behind the separator that they left, and the
    version before it stands in another leaf."""
    tree = OrderedMap(True)
    for number in range(40):
        tree.set(encode_index_key(b"l%02d" % number, 1), b"\1\0\1\1")
    for revision in range(2, 102):
        tree.set(encode_index_key(b"k", revision), b"\1\0\1\1")
    for revision in range(101, kept, -1):
        assert tree.delete(encode_index_key(b"k", revision))
    assert tree.alive() == 41
    tree.set(encode_index_key(b"k", 102), b"\1\0\1\1")
    check(tree)
    assert tree.alive() == 41


@pytest.mark.parametrize("order", [0, 2])
@pytest.mark.parametrize("limit", [1, 5, 200])
def test_a_piece_ends_with_the_last_pair_of_the_page(limit: int, order: int) -> None:
    """However much a piece may cost, it does not go on to keys that are counted already."""
    engines = {"told": MemoryEngine(), "walked": Walked()}
    costs = {}
    for name, engine in engines.items():
        store = filled(engine, 3000)
        body = pb.RangeRequest(key=b"k", range_end=b"l", limit=limit, sort_order=order).SerializeToString()
        costs[name], reply = range_cost(store, body, 10**6)
        assert reply == store.range_reply(body)
    assert costs["told"] < 6 * limit + 20 < 3000 < costs["walked"]
