"""The hash of the logical records: what it depends on, and what not."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from support import kvmessages as pb

from metastore import errors
from metastore._core.engine import Engine
from metastore._core.mvcc import Store
from metastore._core.mvcc_hash import Hasher
from metastore._core.mvcc_sweep import sweep_slice
from metastore._core.mvcc_txn_work import execute_txn
from metastore._core.ordered_map import OrderedMap
from metastore.storage.engines.memory import MemoryEngine


class ListEngine(Engine):
    """An engine written in Python, as plug-ins are. Its contents are a dict, which is sorted at each access."""

    def __init__(self, data: dict[bytes, bytes] | None = None, where: tuple[int, int] = (0, 0)) -> None:
        self.data = data or {}
        self.where = where

    def get(self, key: bytes) -> bytes | None:
        return self.data.get(key)

    def scan(self, start: bytes, end: bytes | None, reverse: bool, limit: int) -> list[tuple[bytes, bytes]]:
        pairs = sorted((k, v) for k, v in self.data.items() if k >= start and (end is None or k < end))
        pairs = pairs[::-1] if reverse else pairs
        return pairs[: limit or None]

    def write(self, batch: OrderedMap, index: int, term: int) -> None:
        for key, value in batch.items():
            if value is None:
                self.data.pop(key, None)
            else:
                self.data[key] = value
        self.where = (index, term)

    def applied(self) -> tuple[int, int]:
        return self.where

    def view(self) -> Engine:
        return ListEngine(dict(self.data), self.where)

    def size(self) -> int:
        return sum(len(k) + len(v) for k, v in self.data.items())


def history(seed: int, count: int = 150) -> Iterable[tuple[str, bytes]]:
    """Yield puts, deletes and transactions over few keys, among these one that needs the escape."""
    rng = random.Random(seed)
    keys = [b"a", b"a\0", b"a\0b", b"b", b"bb", b"\xff"]
    for _ in range(count):
        key = rng.choice(keys)
        what = rng.random()
        if what < 0.6:
            yield "put", pb.PutRequest(key=key, value=rng.randbytes(rng.choice([0, 5, 2000]))).SerializeToString()
        elif what < 0.9:
            yield "delete_range", pb.DeleteRangeRequest(key=key, range_end=rng.choice([b"", b"b"])).SerializeToString()
        else:
            request = pb.TxnRequest()
            for one in rng.sample(keys, 3):
                request.success.add(request_put=pb.PutRequest(key=one, value=b"t"))
            yield "txn", request.SerializeToString()


def filled(engine: Engine, seed: int, count: int = 150) -> Store:
    store = Store(engine)
    for number, (method, body) in enumerate(history(seed, count), 1):
        if method == "txn":
            execute_txn(store, body)
        else:
            getattr(store, method)(body)
        store.commit(number, 1)
    return store


def compact(store: Store, revision: int) -> None:
    store.compact(pb.CompactionRequest(revision=revision).SerializeToString())
    store.commit(store.engine.applied()[0] + 1, 1)


def sum_of(engine: Engine, revision: int = 0, whole: bool = False, budget: int = 7) -> int:
    hasher = Hasher(engine.view(), revision, whole)
    while hasher.step(budget):
        pass
    hasher.close()
    return hasher.hash


@pytest.mark.parametrize("seed", range(4))
def test_equal_however_far_the_sweep_is_and_on_every_engine(seed: int) -> None:
    """Two compactions run on two engines, and the hash is compared after every slice of their sweeps. The size of the
    slices does not matter."""
    memory, other = filled(MemoryEngine(), seed), filled(ListEngine(), seed)
    last = memory.revision
    assert last == other.revision
    for at in (last // 3, 2 * last // 3):
        sums = [sum_of(memory.engine, revision) for revision in range(at, last + 1)]
        before = sum_of(memory.engine)
        for store in (memory, other):
            compact(store, at)
        expected = [sum_of(other.engine, revision) for revision in range(at, last + 1)]
        assert sum_of(memory.engine) != before, "what was cut off must not count"
        assert len(set(expected)) == len(expected) and not set(expected) & set(sums)
        steps = 0
        while sweep_slice(memory, 5):
            steps += 1
            where = steps % len(expected)
            assert sum_of(memory.engine, at + where, budget=10**9) == expected[where]
            assert sum_of(memory.engine) == expected[-1]
        assert steps > 10
        assert [sum_of(memory.engine, revision) for revision in range(at, last + 1)] == expected
        # From here on the sweep of the other engine is a compaction behind.


def test_a_sweep_cut_short_by_the_next_compaction() -> None:
    one, two = filled(MemoryEngine(), 9), filled(MemoryEngine(), 9)
    compact(one, 30)
    for _ in range(3):
        assert sweep_slice(one, 5)
    for store in (one, two):
        compact(store, 90)
    assert sum_of(one.engine) == sum_of(two.engine)
    while sweep_slice(one, 5):
        assert sum_of(one.engine) == sum_of(two.engine)


def test_every_bit_counts() -> None:
    """If one byte of any record of the history changes, or one record is gone, the hash differs."""
    engine = ListEngine()
    store = filled(engine, 3, 40)
    right = sum_of(engine)
    for key, value in list(engine.data.items()):
        if key[:1] == b"r":
            engine.data[key] = value[:-1] + bytes([value[-1] ^ 1])
            assert sum_of(engine) != right
            del engine.data[key]
            assert sum_of(engine) != right
            engine.data[key] = value
        elif key[:1] == b"k":
            del engine.data[key]
            assert sum_of(engine) != right
            engine.data[key] = value
    assert sum_of(engine) == right and store.revision == Hasher(engine.view()).current


def test_revisions_that_cannot_be_had() -> None:
    store = filled(MemoryEngine(), 1)
    assert sum_of(store.engine, -1) == sum_of(MemoryEngine())
    with pytest.raises(errors.FutureRevision):
        Hasher(store.engine.view(), store.revision + 1)
    compact(store, 20)
    with pytest.raises(errors.Compacted):
        Hasher(store.engine.view(), 19)
    hasher = Hasher(store.engine.view(), 20)
    assert (hasher.compact_revision, hasher.revision, hasher.current) == (20, 20, store.revision)
    hasher.close()
    hasher.close()
    assert hasher.done and not hasher.step(5)


def test_the_whole_state() -> None:
    """Hash also covers replicated meta records, but not the log position and the progress of the sweep."""
    one, two = filled(MemoryEngine(), 5), filled(MemoryEngine(), 5)
    for store in (one, two):
        compact(store, 50)
    one.commit(500, 7)
    while sweep_slice(one, 5):
        pass
    assert sum_of(one.engine, whole=True) == sum_of(two.engine, whole=True) != sum_of(one.engine)
    two.put_meta(b"alarms", b"\1")
    two.commit(600, 7)
    assert sum_of(one.engine) == sum_of(two.engine)
    assert sum_of(one.engine, whole=True) != sum_of(two.engine, whole=True)


def test_what_is_written_meanwhile_does_not_count() -> None:
    store = filled(MemoryEngine(), 6)
    right = sum_of(store.engine)
    hasher = Hasher(store.engine.view())
    while hasher.step(3):
        store.put(pb.PutRequest(key=b"a", value=b"later").SerializeToString())
        store.commit(1000, 1)
    assert hasher.hash == right
    hasher.close()
