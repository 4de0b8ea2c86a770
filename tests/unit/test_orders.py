"""Ranges in an explicit order, in pieces. Each reply is byte for byte that of a range which collects all pairs and
sorts them. Downwards a range walks from its end, and with a limit other orders keep only what it lets through."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from support import kvmessages as pb

from metastore._core import work
from metastore._core.engine import Engine
from metastore._core.engine_guard import GuardedEngine
from metastore._core.mvcc import Store
from metastore._core.mvcc_range import sliced_reply
from metastore._core.mvcc_sweep import sweep_slice
from metastore._core.ordered_map import OrderedMap
from metastore.storage.engines.memory import MemoryEngine


class Plain(Engine):
    """An engine with the methods of a plug-in only."""

    def __init__(self, inner: Engine) -> None:
        self.inner = inner

    def get(self, key: bytes) -> bytes | None:
        return self.inner.get(key)

    def scan(self, start: bytes, end: bytes | None, reverse: bool, limit: int) -> list[tuple[bytes, bytes]]:
        return self.inner.scan(start, end, reverse, limit)

    def write(self, batch: OrderedMap, index: int, term: int) -> None:
        self.inner.write(batch, index, term)

    def applied(self) -> tuple[int, int]:
        return self.inner.applied()

    def view(self) -> Engine:
        return Plain(self.inner.view())


ENGINES: dict[str, Callable[[], Engine]] = {
    "memory": MemoryEngine,
    "a plug-in": lambda: Plain(MemoryEngine()),
    "a guarded plug-in": lambda: GuardedEngine(Plain(MemoryEngine()), "plain"),
}
KEYS = [b"k%02d" % n for n in range(30)] + [b"k", b"k\0", b"k\0\0", b"k\xff", b"k\xff\xff"]


def changed(store: Store, rng: random.Random, changes: int) -> None:
    """Put and delete keys. Some get many versions, so that a walk jumps over them."""
    for _ in range(changes):
        key = rng.choice(KEYS if rng.random() < 0.5 else KEYS[:4])
        if rng.random() < 0.25:
            store.delete_range(pb.DeleteRangeRequest(key=key).SerializeToString())
        else:
            value = b"%d" % rng.randrange(9) * rng.choice([1, 1, 300])
            store.put(pb.PutRequest(key=key, value=value).SerializeToString())


def asked(store: Store, rng: random.Random) -> bytes:
    some = lambda: rng.randint(1, store.revision) if rng.random() < 0.15 else 0  # noqa: E731
    return pb.RangeRequest(
        key=rng.choice(KEYS),
        range_end=rng.choice([*KEYS, b"\0", b"l"]),
        limit=rng.choice([0, 1, 2, 3, 7, 20, 100]),
        revision=rng.choice([0, rng.randint(max(1, store.compact_revision), store.revision)]),
        sort_order=rng.choice([0, 1, 2, 2]),
        sort_target=rng.randrange(5),
        keys_only=rng.random() < 0.2,
        count_only=rng.random() < 0.1,
        min_mod_revision=some(),
        max_mod_revision=some(),
        min_create_revision=some(),
        max_create_revision=some(),
    ).SerializeToString()


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("seed", range(20))
def test_an_order_in_pieces_is_that_of_a_sort(name: str, seed: int) -> None:
    rng = random.Random(seed)
    store = Store(ENGINES[name](), 1, 2)
    for index in range(1, 16):
        changed(store, rng, rng.randint(1, 20))
        if rng.random() < 0.2:
            store.compact(pb.CompactionRequest(revision=store.revision - 1).SerializeToString())
        if rng.random() < 0.7:
            store.commit(index, 1)
            while sweep_slice(store, 10):
                pass
        for _ in range(12):
            body = asked(store, rng)
            assert sliced_reply(store, body, rng.choice([1, 10, 1000])) == store.range_reply(body)


def pieces(store: Store, **fields: Any) -> tuple[Any, int]:
    """Return the reply to a range, and into how many pieces of one unit it falls."""
    body = pb.RangeRequest(key=b"k", range_end=b"l", **fields).SerializeToString()
    count: list[int] = []
    reply = pb.RangeResponse.FromString(sliced_reply(store, body, 1, lambda: count.append(1)))
    return reply, len(count)


def test_the_last_keys_cost_no_walk_over_those_before() -> None:
    """Five hundred keys at the end were deleted and not compacted."""
    store = Store(MemoryEngine())
    for number in range(2000):
        store.put(pb.PutRequest(key=b"k%06d" % number, value=b"v").SerializeToString())
    store.delete_range(pb.DeleteRangeRequest(key=b"k001500", range_end=b"k002000").SerializeToString())
    store.commit(1, 1)
    reply, steps = pieces(store, limit=3, sort_order=2)
    assert [pair.key for pair in reply.kvs] == [b"k001499", b"k001498", b"k001497"]
    assert reply.count == 1500 and reply.more and steps < 20
    reply, steps = pieces(store, limit=3, sort_order=2, max_mod_revision=3)
    assert [pair.key for pair in reply.kvs] == [b"k000001", b"k000000"] and not reply.more


def test_filtered_pages_end_when_they_are_full() -> None:
    store = Store(MemoryEngine())
    for number in range(2000):
        store.put(pb.PutRequest(key=b"k%06d" % number, value=b"v").SerializeToString())
    store.commit(1, 1)
    for order, first in ((0, b"k000009"), (1, b"k000009"), (2, b"k001999")):
        reply, steps = pieces(store, limit=3, sort_order=order, min_mod_revision=11)
        assert reply.kvs[0].key == first and reply.count == 2000 and reply.more and steps < 100


def test_a_filter_gives_back_what_it_drops() -> None:
    """A range that lets few pairs through is not refused for the memory of the others."""
    store = Store(MemoryEngine())
    for number in range(300):
        store.put(pb.PutRequest(key=b"k%06d" % number, value=b"v" * 1000).SerializeToString())
    store.commit(1, 1)
    work.set_held_most(30_000, 30_000)
    try:
        for fields in ({"max_mod_revision": 3}, {"limit": 2}):
            reply, _ = pieces(store, sort_target=4, sort_order=1, **fields)
            assert len(reply.kvs) == 2 and reply.count == 300
    finally:
        work.set_held_most(512 << 20, 256 << 20)


def test_a_version_below_many_newer_ones() -> None:
    """The walk jumps to it, whatever its revision is."""
    store = Store(MemoryEngine())
    for number in range(40):
        key = b"k2" if number % 2 else b"k1"
        store.put(pb.PutRequest(key=key, value=b"%d" % number).SerializeToString())
    store.commit(1, 1)
    for revision in range(1, store.revision + 1):
        fields = {"key": b"k", "range_end": b"l", "revision": revision, "sort_order": 2}
        body = pb.RangeRequest(**fields).SerializeToString()
        assert sliced_reply(store, body, 10) == store.range_reply(body)
