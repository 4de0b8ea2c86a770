"""A sweep that removes ranges leaves what one leaves that removes record by record, wherever it ends or begins anew."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from support import kvmessages as pb

from metastore import errors
from metastore._core.engine import Engine, MemoryEngine
from metastore._core.mvcc import Store
from metastore._core.mvcc_hash import Hasher
from metastore._core.mvcc_runs import LEAST_RUN
from metastore._core.mvcc_sweep import SWEPT_BY_RANGES, sweep_slice
from metastore._core.mvcc_txn_work import execute
from metastore._core.op import TXN
from metastore._core.ordered_map import OrderedMap

KEYS = 60
LOST_KEY = b"k%03d" % KEYS


class Ranges(MemoryEngine):
    """An engine in memory that removes ranges. `busy` says when it refuses a write, `wrote` is called after each."""

    def __init__(self) -> None:
        self.ranges = 0
        self.removed_one_by_one = 0
        self.flushes = 0
        self.rng: random.Random | None = None

    def refuse(self) -> None:
        if self.rng is not None and self.rng.random() < 0.3:
            raise errors.EngineBusy("later")

    def wrote(self) -> None:
        pass

    def write(self, batch: OrderedMap, index: int, term: int) -> None:
        self.refuse()
        super().write(batch, index, term)
        self.removed_one_by_one += sum(value is None for _, value in batch.items())
        self.wrote()

    def remove_ranges(self, ranges: list[tuple[bytes, bytes]]) -> bool:
        if not ranges:
            return True
        self.refuse()
        batch = OrderedMap()
        for start, end in ranges:
            for key, _ in self.scan(start, end, False, 0):
                batch.set_deleted(key)
        super().write(batch, *self.applied())
        self.ranges += len(ranges)
        self.wrote()
        return True

    def begin_flush(self) -> None:
        self.flushes += 1


def put(store: Store, key: bytes) -> None:
    store.put(pb.PutRequest(key=key, value=b"v%d" % store.revision).SerializeToString())


def delete(store: Store, key: bytes, end: bytes = b"") -> None:
    store.delete_range(pb.DeleteRangeRequest(key=key, range_end=end).SerializeToString())


def compact(store: Store, revision: int) -> None:
    store.compact(pb.CompactionRequest(revision=revision).SerializeToString())


def several(store: Store, keys: list[bytes]) -> None:
    """Put several keys with one revision."""
    requests = [pb.RequestOp(request_put=pb.PutRequest(key=key, value=b"t")) for key in keys]
    execute(store, TXN, pb.TxnRequest(success=requests).SerializeToString())


def live_through(store: Store, rng: random.Random, revisions: int) -> None:
    """Make a history of some keys that change all the time, some that change now and then, and some that end."""
    last = store.revision + revisions
    while store.revision < last:
        key = b"k%03d" % min(rng.randrange(KEYS), rng.randrange(KEYS))
        what = rng.random()
        if what < 0.96:
            put(store, key)
        elif what < 0.98:
            several(store, sorted({b"k%03d" % rng.randrange(KEYS) for _ in range(3)}))
        else:
            delete(store, key, rng.choice([b"", key + b"\xff"]))
    for _ in range(2 * LEAST_RUN):
        put(store, b"k000")
    delete(store, b"k000")  # at the compact revision, where `back` is 0


def written(store: Store, index: int) -> None:
    while True:
        try:
            store.commit(index, 1)
        except errors.EngineBusy:
            continue
        return


def sweep(store: Store, budget: int) -> None:
    while True:
        try:
            if not sweep_slice(store, budget):
                return
        except errors.EngineBusy:
            pass


def history(engine: Engine, seed: int, back: int) -> Store:
    """A store whose last compaction is still to be swept, `back` revisions back. An earlier one was swept."""
    rng = random.Random(seed)
    store = Store(engine)
    put(store, LOST_KEY)
    for index, revisions in enumerate((400, SWEPT_BY_RANGES + 2000), 1):
        live_through(store, rng, revisions)
        written(store, 2 * index)
        compact(store, store.revision - (back if index == 2 else 0))
        written(store, 2 * index + 1)
        if index == 1:
            sweep(store, 100)
    return store


def hash_of(engine: Engine) -> int:
    hasher = Hasher(engine.view())
    while hasher.step(10_000):
        pass
    hasher.close()
    return hasher.hash


def records(engine: Engine) -> list[tuple[bytes, bytes]]:
    return engine.scan(b"", None, False, 0)


@pytest.fixture(params=range(3))
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_the_records_that_stay_are_those_of_a_sweep_one_by_one(seed: int) -> None:
    back = (0, 1, 500)[seed]
    plain, ranged = history(MemoryEngine(), seed, back), history(Ranges(), seed, back)
    assert records(plain.engine) == records(ranged.engine)
    engine = ranged.engine
    assert isinstance(engine, Ranges)
    engine.removed_one_by_one = 0
    engine.rng = random.Random(seed)
    sweep(plain, 500)
    sweep(ranged, (7, 60, 500)[seed])
    assert records(plain.engine) == records(engine)
    # Most of over 20,000 records went with ranges, and their room is asked for.
    assert engine.ranges > 10 and engine.flushes == 1
    assert engine.removed_one_by_one < SWEPT_BY_RANGES // 2


def test_a_sweep_that_ends_anywhere_is_finished_by_another(seed: int) -> None:
    """Each state that a crash can leave has the hash of all others, and a sweep one by one comes to the same end."""
    store = history(Ranges(), seed, 300)
    engine = store.engine
    assert isinstance(engine, Ranges)
    states: list[list[tuple[bytes, bytes]]] = [records(engine)]
    engine.wrote = lambda: states.append(records(engine))  # type: ignore[method-assign]
    sweep(store, 150)
    expected, expected_hash = states[-1], hash_of(engine)
    assert len(states) > 20
    for state in random.Random(seed).sample(states, 12):
        left = MemoryEngine()
        left.restore(iter(state))
        assert hash_of(left) == expected_hash
        again = Store(left)
        sweep(again, 500)
        assert records(left) == expected


def test_writes_between_the_slices_change_nothing(seed: int) -> None:
    plain, ranged = history(MemoryEngine(), seed, 0), history(Ranges(), seed, 0)
    for store in (plain, ranged):
        rng = random.Random(seed)
        for index in range(100, 800):
            sweep_slice(store, 60)
            key = b"k%03d" % rng.randrange(KEYS)
            if rng.random() < 0.2:
                delete(store, key)
            else:
                put(store, key)
            store.commit(index, 1)
        sweep(store, 500)
    assert records(plain.engine) == records(ranged.engine)


def test_rocksdb_knows_what_ranges_have_removed(seed: int, tmp_path: Path) -> None:
    """Its gaps, its numbers of keys and the records that it keeps in memory are those of the records that stay."""
    rocksdb = pytest.importorskip("metastore.storage.engines.rocksdb")
    plain = history(MemoryEngine(), seed, 100)
    engine = rocksdb.RocksEngine(str(tmp_path / "engine"))
    while engine.reclaim():
        pass
    store = history(engine, seed, 100)
    sweep(plain, 500)
    while sweep_slice(store, 200):
        engine.gaps.check(engine._db.iter())
        engine.stretches.check(engine._db.iter())
    assert records(engine) == records(plain.engine)
    engine.gaps.check(engine._db.iter())
    engine.stretches.check(engine._db.iter())
    for key in (b"k000", b"k001", LOST_KEY):
        for change in (delete, put, delete):
            for one in (plain, store):
                change(one, key)
                one.commit(1000, 1)
            engine.stretches.check(engine._db.iter())
    assert records(engine) == records(plain.engine)
    engine.close()
