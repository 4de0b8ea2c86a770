"""The sparse index of living keys: whatever is written, and whenever it is built, each count is that of a walk."""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

import pytest

from metastore._core.engine import Engine
from metastore._core.mvcc_keys import encode_index_key
from metastore._core.stretches import MOST_KEYS, SPLIT_AT, Stretches
from metastore.storage.engines.memory import MemoryEngine
from metastore.testing.engine_base import batch_of

ALIVE, DEAD = b"\1\0\1\1", b"\1\1"


class Walk:
    """What an iterator of rocksdict does, over the contents of the moment in which it was made. All count `steps`."""

    steps = 0

    def __init__(self, engine: MemoryEngine) -> None:
        self.pairs = engine.scan(b"", None, False, 0)
        self.keys = [key for key, _ in self.pairs]
        self.at = 0

    def seek(self, key: bytes) -> None:
        self.at = bisect_left(self.keys, key)

    def seek_for_prev(self, key: bytes) -> None:
        self.at = bisect_right(self.keys, key) - 1

    def next(self) -> None:
        self.at += 1
        Walk.steps += 1

    def key(self) -> bytes | None:
        return self.keys[self.at] if 0 <= self.at < len(self.keys) else None

    def value(self) -> bytes:
        return self.pairs[self.at][1]

    def status(self) -> None:
        pass


class Table:
    """An engine with an index, and beside it the versions of each key: (revision, whether it is alive)."""

    def __init__(self, seed: int, keys: int = 3000) -> None:
        self.rng = random.Random(seed)
        self.engine = MemoryEngine()
        self.engine.write(batch_of({b"a": b"1", b"l": b"1", b"r": b"1", b"k": b"short"}), 1, 1)
        self.index = Stretches()
        self.versions: dict[bytes, list[tuple[int, bool]]] = {}
        self.names = [b"%05d" % n for n in range(keys)] + [b"\0", b"00", b"0\xff", b"\xff\xff"]
        self.revision = 1

    def write(self, refused: bool = False) -> None:
        """Make some changes in one batch: puts, deletions, a sweep's removals, and an entry that is taken back."""
        rng, changes = self.rng, dict[bytes, bytes | None]()
        after = {key: list(versions) for key, versions in self.versions.items()}
        first = rng.randrange(len(self.names))
        some = rng.choice([self.names[first : first + 400], rng.choices(self.names, k=rng.randint(1, 300))])
        style = rng.random()
        for key in some:
            mine = after.setdefault(key, [])
            if style < 0.6 or not mine:
                self.revision += 1
                # Only a living key is deleted.
                dies = bool(mine) and mine[-1][1] and style >= 0.2 and rng.random() <= 0.25
                mine.append((self.revision, not dies))
                changes[encode_index_key(key, self.revision)] = ALIVE if mine[-1][1] else DEAD
            elif style < 0.8:
                self.remove(mine, key, changes, 0, len(mine) - (1 if mine[-1][1] else 0))
            else:
                self.remove(mine, key, changes, rng.randrange(len(mine)), len(mine))
        told = self.index.changes(batch_of(changes), self.engine)
        if refused:
            return
        self.engine.write(batch_of(changes), 1, 1)
        self.versions = {key: mine for key, mine in after.items() if mine}
        for fence in self.index.note(told):
            assert self.index.split(fence, Walk(self.engine))
        while rng.random() < 0.3:
            assert self.index.settle(Walk(self.engine))

    @staticmethod
    def remove(
        mine: list[tuple[int, bool]], key: bytes, changes: dict[bytes, bytes | None], first: int, last: int
    ) -> None:
        for revision, _ in mine[first:last]:
            changes[encode_index_key(key, revision)] = None
        del mine[first:last]

    def alive(self, start: bytes, end: bytes | None) -> int:
        newest = [encode_index_key(key, mine[-1][0]) for key, mine in self.versions.items() if mine[-1][1]]
        return sum(start <= one and (end is None or one < end) for one in newest)

    def look(self) -> int:
        """Compare a count. Return whether there was one."""
        edges = [b"", b"k", b"l", encode_index_key(self.rng.choice(self.names), self.rng.choice([0, 1, self.revision]))]
        start, end = self.rng.choice(edges), self.rng.choice([*edges, None])
        known = self.index.count(start, end, Walk(self.engine))
        assert known in (None, self.alive(start, end))
        assert known is not None or self.index.border is not None
        return known is not None


@pytest.mark.parametrize("seed", range(4))
def test_a_count_is_that_of_a_walk(seed: int) -> None:
    """The index is built while the engine is written to, and begun anew now and then. Some writes are refused first."""
    table = Table(seed)
    known = 0
    for turn in range(70):
        table.write(refused=table.rng.random() < 0.1)
        while table.rng.random() < 0.4:
            table.index.build(lambda: Walk(table.engine), table.rng.choice([1, 50, 300]))
            if table.rng.random() < 0.2:
                table.index.release()
            if table.rng.random() < 0.03:
                table.index.restart()
        for _ in range(3):
            known += table.look()
        if turn % 20 == 0:
            table.index.check(Walk(table.engine))
    while table.index.build(lambda: Walk(table.engine), 300):
        table.write()
    table.index.check(Walk(table.engine))
    settle(table.engine, table.index)
    assert table.index.count(b"", None, Walk(table.engine)) == table.alive(b"", None)
    assert table.index.faults == 0 and known > 5 and len(table.index) > 4


@pytest.mark.parametrize(("born", "kept"), [(True, 30), (False, 250)])
def test_a_walk_that_counts_is_kept_over_writes(born: bool, kept: int) -> None:
    """A new one takes longer than what it counts. It is renewed after some writes, or changes that it does not see."""
    engine, index = MemoryEngine(), Stretches()
    engine.write(batch_of({encode_index_key(b"%06d" % n, 2): ALIVE for n in range(0, 6000, 2)}), 1, 1)
    walks = []

    def walker() -> Walk:
        walks.append(Walk(engine))
        return walks[-1]

    names = [b"%06d" % n for n in range(born, 6000, 2)]
    random.Random(2).shuffle(names)
    writes = 0
    while index.build(walker, 5):
        write(engine, index, {encode_index_key(names[writes], 3): ALIVE if born else b"\1\0\1\2"})
        writes += 1
        if writes % 50 == 0:
            index.check(Walk(engine))
    index.check(Walk(engine))
    assert index.count(b"", None, Walk(engine)) == 3000 + (writes if born else 0)
    assert writes > 2 * kept and 2 <= len(walks) <= writes // kept + 1


def test_a_walk_that_fails_begins_again() -> None:
    """What was written before it failed is counted once, on both sides of the border."""
    engine, index = MemoryEngine(), Stretches()
    engine.write(batch_of({encode_index_key(b"%06d" % n, 2): ALIVE for n in range(0, 2000, 2)}), 1, 1)
    walk = Walk(engine)
    assert index.build(lambda: walk, 100)
    write(engine, index, {encode_index_key(b"%06d" % n, 2): ALIVE for n in range(1, 2000, 50)})

    def fail() -> None:
        raise OSError("damaged")

    end = bisect_left(walk.keys, encode_index_key(b"001000", 0))
    walk.keys[end:] = []
    walk.status = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="damaged"):
        index.build(lambda: walk, 1000)
    index.check(Walk(engine))
    while index.build(lambda: Walk(engine), 100):
        pass
    index.check(Walk(engine))
    assert index.count(b"", None, Walk(engine)) == 1040


def filled(keys: int, at_once: int) -> tuple[MemoryEngine, Stretches]:
    engine, index = MemoryEngine(), Stretches()
    while index.build(lambda: Walk(engine), 100):
        pass
    for first in range(0, keys, at_once):
        changes = {encode_index_key(b"%06d" % n, 2): ALIVE for n in range(first, min(keys, first + at_once))}
        write(engine, index, changes)
    return engine, index


def write(engine: MemoryEngine, index: Stretches, changes: dict[bytes, bytes | None]) -> list[bool]:
    told = index.changes(batch_of(changes), engine)
    engine.write(batch_of(changes), 1, 1)
    return [index.split(fence, Walk(engine)) for fence in index.note(told)]


def settle(engine: MemoryEngine, index: Stretches) -> int:
    """Split all that is due. Return the most steps that one piece took."""
    most = 0
    while index.due:
        Walk.steps = 0
        assert index.settle(Walk(engine))
        most = max(most, Walk.steps)
    index.check(Walk(engine))
    return most


def test_stretches_are_split_and_joined() -> None:
    engine, index = filled(5000, 50)
    settle(engine, index)
    assert 5000 // SPLIT_AT < len(index) < 5000 // SPLIT_AT * 4
    index.check(Walk(engine))
    for first in range(0, 4900, 100):
        write(engine, index, {encode_index_key(b"%06d" % n, 2): None for n in range(first, first + 100)})
        settle(engine, index)
    assert len(index) <= 2 and index.keys == 100


def test_a_batch_larger_than_many_stretches() -> None:
    """A stretch that got very many keys at once is split until none is too large."""
    for keys in (5000, 20000):
        engine, index = filled(keys, keys)
        index.check(Walk(engine))
        assert index.due and keys // MOST_KEYS < len(index)
        assert settle(engine, index) <= SPLIT_AT
        assert index.count(b"", None, Walk(engine)) == keys
        assert keys // SPLIT_AT < len(index)


def shuffled(keys: int) -> Iterator[tuple[MemoryEngine, Stretches]]:
    """Put new keys in any order, 40 a batch."""
    engine, index = filled(0, 1)
    names = [b"%06d" % n for n in range(keys)]
    random.Random(3).shuffle(names)
    Walk.steps = 0
    for first in range(0, keys, 40):
        assert all(write(engine, index, {encode_index_key(one, 2): ALIVE for one in names[first : first + 40]}))
        yield engine, index


class Deaf(Engine):
    """An engine that answers no question."""

    def seek_le(self, key: bytes) -> tuple[bytes, bytes] | None:
        raise AssertionError(f"asked for {key!r}")


def test_who_puts_or_deletes_asks_the_engine_nothing() -> None:
    index, names = Stretches(), [b"%04d" % n for n in range(1000)]
    while index.build(lambda: Walk(MemoryEngine()), 100):
        pass

    for revision, value, left in [(1, ALIVE, 1000), (2, b"\1\0\1\2", 1000), (3, DEAD, 0)]:
        batch = batch_of({encode_index_key(key, revision): value for key in names})
        index.note(index.changes(batch, Deaf()))
        assert index.count(b"k", b"l", Walk(MemoryEngine())) == left


def test_a_write_walks_over_few_keys() -> None:
    """Where nobody rests, a write splits no stretch before it must, and then as little of it as it can."""
    steps = 0
    for at, (engine, index) in enumerate(shuffled(16000)):
        steps, Walk.steps = steps + Walk.steps, 0
        assert steps == 0 or at * 40 > MOST_KEYS - 80
        if at % 50 == 0:
            index.check(Walk(engine))
            Walk.steps = 0
    assert 0 < steps < 16000 * 0.4 and 0 < index.due <= len(index)
    assert settle(engine, index) <= SPLIT_AT and 16000 // SPLIT_AT < len(index)


def test_a_count_splits_what_it_walks_over() -> None:
    *_, (engine, index) = shuffled(4000)
    assert len(index) == 1 and index.due == 1
    edges = encode_index_key(b"001000", 0), encode_index_key(b"003000", 0)
    taken = []
    for _ in range(2):
        Walk.steps = 0
        assert index.count(*edges, Walk(engine)) == 2000
        taken.append(Walk.steps)
    assert taken[0] >= 4000 and taken[1] <= 2 * SPLIT_AT and index.due == 0
    index.check(Walk(engine))


def test_a_count_of_all_splits_nothing() -> None:
    *_, (engine, index) = shuffled(4000)
    Walk.steps = 0
    assert index.count(b"", None, Walk(engine)) == 4000
    assert Walk.steps == 0 and len(index) == 1


def test_a_count_finds_a_wrong_number() -> None:
    *_, (engine, index) = shuffled(4000)
    engine.write(batch_of({encode_index_key(b"000500-", 2): ALIVE}), 1, 1)
    edges = encode_index_key(b"001000", 0), encode_index_key(b"003000", 0)
    assert index.count(*edges, Walk(engine)) is None and index.faults == 1 and index.due == 0
    while index.build(lambda: Walk(engine), 100):
        pass
    assert index.count(*edges, Walk(engine)) == 2000
    index.check(Walk(engine))


def test_a_stretch_that_is_split_while_the_index_is_built() -> None:
    """The split ends where the border stands, and what lies behind that is counted once."""
    engine, index = MemoryEngine(), Stretches()
    engine.write(batch_of({encode_index_key(b"%06d" % n, 2): ALIVE for n in range(0, 20000, 10)}), 1, 1)
    assert index.build(lambda: Walk(engine), 350)
    for first in range(0, 3400, 100):
        changes = {encode_index_key(b"%06d" % n, 3): ALIVE for n in range(first, first + 100) if n % 10}
        assert all(write(engine, index, changes))
    settle(engine, index)
    assert len(index) > 5
    while index.build(lambda: Walk(engine), 100):
        pass
    index.check(Walk(engine))
    assert index.count(b"", None, Walk(engine)) == 2000 + 34 * 90


@pytest.mark.parametrize("ascending", [True, False])
def test_a_wrong_number_is_noticed_and_all_is_counted_anew(ascending: bool) -> None:
    """Some writes go past the index. What is split is compared, and so is one in eight of the stretches that ascending
    keys begin."""
    engine, index = filled(300, 300)
    names = [b"x%06d" % n for n in range(6000)]
    if not ascending:
        random.Random(1).shuffle(names)
    results: list[bool] = []
    while not results or results[-1]:
        engine.write(batch_of({encode_index_key(names[0] + b"-", 2): ALIVE}), 1, 1)
        assert not write(engine, index, {encode_index_key(names.pop(0), 2): ALIVE for _ in range(10)})
        results += [index.settle(Walk(engine))]
    assert len(names) > 6000 - 9 * SPLIT_AT
    assert index.faults == 1 and index.count(b"k", b"l", Walk(engine)) is None
    while index.build(lambda: Walk(engine), 100):
        pass
    index.check(Walk(engine))


def test_keys_in_ascending_order_are_not_walked_over() -> None:
    """The stretch that they fill is ended without a look at it, but for one in eight."""
    engine, index = MemoryEngine(), Stretches()
    engine.write(batch_of({encode_index_key(b"%06d" % n, 2): ALIVE for n in range(0, 3000, 10)}), 1, 1)
    while index.build(lambda: Walk(engine), 100):
        pass
    for first in range(3000, 11000, 20):
        changes = {encode_index_key(b"%06d" % n, 2): ALIVE for n in range(first, first + 20)}
        assert not write(engine, index, changes)
    assert 0 < index.due <= 8000 // (SPLIT_AT // 2) // 8 + 1
    index.check(Walk(engine))
    assert index.count(b"", None, Walk(engine)) == 8300 and len(index) > 8000 // SPLIT_AT


def test_the_last_keys_go_and_others_come() -> None:
    rng = random.Random(5)
    engine, index = filled(2000, 10)
    there = [b"%06d" % n for n in range(2000)]
    for turn in range(30):
        gone = there[-rng.randint(1, 300) :] if turn % 3 else rng.sample(there, min(len(there) // 2, 200))
        write(engine, index, {encode_index_key(name, 2): None for name in gone})
        there = sorted(set(there) - set(gone))
        first = max(int(there[-1][:6]) + rng.choice([-100, 1]), 0) if there else 0
        new = [b"%06d-%02d" % (n, turn) for n in range(first, first + rng.randint(1, 400))]
        for at in range(0, len(new), 50):
            assert all(write(engine, index, {encode_index_key(name, 2): ALIVE for name in new[at : at + 50]}))
        there = sorted(there + new)
        index.check(Walk(engine))
        if turn % 4 == 0:
            settle(engine, index)
    assert index.count(b"", None, Walk(engine)) == len(there)


def test_a_key_with_many_versions_is_jumped_over() -> None:
    engine, index = MemoryEngine(), Stretches()
    for key, first, last in ((b"a", DEAD, ALIVE), (b"b", ALIVE, DEAD)):
        engine.write(batch_of({encode_index_key(key, n): first for n in range(4999)}), 1, 1)
        engine.write(batch_of({encode_index_key(key, 4999): last}), 1, 1)
    assert not index.build(lambda: Walk(engine), 100)
    assert (index.keys, index.count(b"", None, Walk(engine))) == (2, 1)
    assert index.count(encode_index_key(b"a", 10), encode_index_key(b"a", 20), Walk(engine)) == 0
    assert index.count(encode_index_key(b"a", 10), encode_index_key(b"a", 5000), Walk(engine)) == 1
