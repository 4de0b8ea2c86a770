"""What the RocksDB engine knows of the number of keys, over writes, refusals, restarts and installed states."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import kvmessages as pb

from metastore import errors
from metastore._core.engine import Engine
from metastore._core.mvcc import Store
from metastore._core.mvcc_range import known_count, sliced_reply
from metastore._core.mvcc_sweep import sweep_slice
from metastore._core.stretches import MOST_KEYS, SPLIT_AT
from metastore.settings import RocksdbTable
from metastore.storage.engines.rocksdb import RocksEngine

pytestmark = pytest.mark.node_only

SMALL = RocksdbTable(cache_size=1 << 20, write_buffer_size=64 << 10, recent_keys_size=16 << 10)


def opened(path: Path) -> RocksEngine:
    engine = RocksEngine(str(path / "engine"), SMALL)
    assert engine.index_state[0] is False and engine.count(b"k", b"l") is None
    return engine


def counted(engine: RocksEngine) -> None:
    while engine.reclaim():
        pass
    assert engine.index_state[0] is True
    engine.stretches.check(engine._db.iter())


def change(store: Store, rng: random.Random, index: int) -> None:
    for _ in range(rng.randint(1, 60)):
        first = rng.randrange(2000)
        if rng.random() < 0.2:
            end = b"k%06d" % (first + rng.choice([0, 1, 100]))
            store.delete_range(pb.DeleteRangeRequest(key=b"k%06d" % first, range_end=end).SerializeToString())
        for number in range(first, first + rng.choice([1, 1, 40])):
            store.put(pb.PutRequest(key=b"k%06d" % number, value=b"v").SerializeToString())
    if rng.random() < 0.2 and store.revision > store.compact_revision + 1:
        store.compact(pb.CompactionRequest(revision=store.revision - 1).SerializeToString())
    written(lambda: store.commit(index, 1))
    while rng.random() < 0.9 and written(lambda: sweep_slice(store, 200)):
        pass


def written(call: Any) -> Any:
    """Try a write again until the engine is not busy."""
    while True:
        try:
            return call()
        except errors.EngineBusy:
            pass


def agree(store: Store, rng: random.Random) -> None:
    """A count that is known is the one that a walk finds."""
    revision = rng.choice([0, rng.randint(max(1, store.compact_revision), store.revision)])
    key, end = b"k%06d" % rng.randrange(2100), rng.choice([b"\0", b"l", b"k%06d" % rng.randrange(2100)])
    body = pb.RangeRequest(key=key, range_end=end, revision=revision, count_only=True).SerializeToString()
    known, found = known_count(store, body), pb.RangeResponse.FromString(store.range_reply(body)).count
    assert known == found or (known is None and (store.engine.index_state[0] is False or revision))


@pytest.mark.parametrize("seed", range(2))
def test_counts_hold_over_writes_restarts_and_installed_states(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    engine = opened(tmp_path)
    store = Store(engine)
    for index in range(1, 25):
        change(store, rng, index)
        agree(store, rng)
        if index % 4 == 1:
            engine.reclaim()
            agree(store, rng)
        if index % 8 == 3:
            counted(engine)
        if index % 8 == 7:
            engine.close()
            engine = opened(tmp_path)
            store = Store(engine)
        if index == 20:
            staged = engine.stage()
            staged.restore(iter(list(engine.iterate(b""))))
            staged.seal()
            engine.adopt(staged)
            assert engine.index_state[0] is False
            store.reload()
        for _ in range(4):
            agree(store, rng)
    counted(engine)
    agree(store, rng)
    assert engine.index_state[2] == 0
    engine.close()


class Refusing:
    """A database that refuses writes as one that is stalled does."""

    def __init__(self, db: Any) -> None:
        self._db = db
        self.refuse = False

    def write(self, *args: Any) -> None:
        if self.refuse:
            raise Exception("Result incomplete: Write stall")
        self._db.write(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


def test_a_write_that_was_refused_and_tried_again_counts_once(tmp_path: Path) -> None:
    engine = opened(tmp_path)
    counted(engine)
    store = Store(engine)
    engine._db = db = Refusing(engine._db)
    for index in range(1, 4):
        for number in range(10):
            store.put(pb.PutRequest(key=b"k%d%d" % (index, number)).SerializeToString())
        db.refuse = True
        for _ in range(3):
            with pytest.raises(errors.EngineBusy):
                store.commit(index, 1)
        assert engine.count(b"k", b"l") == 10 * (index - 1)
        body = pb.RangeRequest(key=b"k", range_end=b"l", count_only=True).SerializeToString()
        assert known_count(store, body) == 10 * index
        db.refuse = False
        store.commit(index, 1)
        assert engine.count(b"k", b"l") == known_count(store, body) == 10 * index
        counted(engine)
    engine.close()


def test_a_wrong_number_is_logged_and_mended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = opened(tmp_path)
    store = Store(engine)
    store.put(pb.PutRequest(key=b"a").SerializeToString())
    store.commit(1, 1)
    counted(engine)
    engine.stretches.note([(next(iter(keys_of(engine))), 1, 0)])
    assert engine.count(b"k", b"l") == 2
    # So many keys make a walk over the whole stretch as soon as nobody writes.
    for number in range(1000, 0, -1):
        store.put(pb.PutRequest(key=b"A%06d" % number).SerializeToString())
    store.commit(2, 1)
    assert "a number" not in caplog.text
    while engine.reclaim() and not engine.index_state[2]:
        pass
    assert "a number of living keys was wrong" in caplog.text
    assert engine.index_state[0] is False and engine.index_state[2] == 1
    counted(engine)
    assert engine.count(b"k", b"l") == 1001
    engine.close()


def test_stretches_are_split_when_nobody_writes(tmp_path: Path) -> None:
    """A burst of writes makes large stretches, and the calls of `reclaim` between them change nothing. A quiet moment
    after it leaves none behind that has more than SPLIT_AT keys."""
    engine = opened(tmp_path)
    counted(engine)
    names = [b"k%06d" % number for number in range(6000)]
    random.Random(1).shuffle(names)
    store = Store(engine)
    for index, name in enumerate(names):
        store.put(pb.PutRequest(key=name, value=b"v").SerializeToString())
        if index % 40 == 39:
            written(lambda: store.commit(index, 1))  # noqa: B023
        if index % 2000 == 1999:
            assert not engine.reclaim()
            # One part of the fewest keys for each so many beyond the limit.
            assert engine.stretches.due and len(engine.stretches) <= 1 + (6000 - MOST_KEYS) // 64
    assert engine.reclaim()
    store.put(pb.PutRequest(key=b"k").SerializeToString())
    written(lambda: store.commit(6000, 1))
    assert not engine.reclaim() and engine.stretches.due  # somebody writes again
    counted(engine)
    assert engine.stretches.due == 0 and len(engine.stretches) > 6000 // SPLIT_AT
    assert engine.count(b"k", b"l") == 6001
    engine.close()


def keys_of(engine: Engine) -> Iterator[bytes]:
    return (key[:-12] for key, _ in engine.iterate(b"k") if key[:1] == b"k")


def test_a_page_costs_its_keys(tmp_path: Path) -> None:
    engine = opened(tmp_path)
    store = Store(engine)
    for number in range(3000):
        store.put(pb.PutRequest(key=b"k%06d" % number, value=b"v").SerializeToString())
    store.commit(1, 1)
    counted(engine)
    pieces: list[int] = []
    body = pb.RangeRequest(key=b"k", range_end=b"l", limit=5).SerializeToString()
    reply = pb.RangeResponse.FromString(sliced_reply(store, body, 10, lambda: pieces.append(1)))
    assert reply.count == 3000 and reply.more and len(pieces) < 20
    engine.close()


class Counted:
    """A database that counts where its iterators are moved to."""

    def __init__(self, db: Any) -> None:
        self.db = db
        self.moves = 0

    def iter(self, *options: Any) -> Any:
        return CountedWalk(self, self.db.iter(*options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.db, name)


class CountedWalk:
    def __init__(self, counted: Counted, walk: Any) -> None:
        self.counted, self.walk = counted, walk

    def __getattr__(self, name: str) -> Any:
        if name in ("next", "prev", "seek", "seek_for_prev"):

            def move(*key: bytes) -> None:
                self.counted.moves += 1
                getattr(self.walk, name)(*key)

            return move
        return getattr(self.walk, name)


def test_a_page_leaps_over_old_versions(tmp_path: Path) -> None:
    """Three moves for a key and its count, besides those for its value: one to its second version, one to its newest,
    and one to the next key."""
    engine = RocksEngine(str(tmp_path / "engine"))
    store = Store(engine)
    for index in range(30):
        for number in range(600):
            store.put(pb.PutRequest(key=b"k%05d" % number, value=b"v").SerializeToString())
        store.commit(index + 1, 1)
    engine.forget()  # it would know the newest versions
    while engine.reclaim():
        pass
    db = engine._db
    for start, end in ((b"k", b"l"), (b"k00130", b"k00430")):
        reply = pb.RangeResponse()
        body = pb.RangeRequest(key=start, range_end=end, limit=200, keys_only=True).SerializeToString()
        engine._db = counted = Counted(db)
        engine._rest()
        reply.ParseFromString(sliced_reply(store, body, 1 << 30))
        engine._db = db
        assert len(reply.kvs) == 200 and reply.count == (600 if start == b"k" else 300)
        # A range that does not begin where keys do is counted from the fences before and behind it, up to 512 keys.
        assert counted.moves < 200 * 3 + 100 + (0 if start == b"k" else 3 * 512)
    engine._rest()
    engine.close()
