"""How the engine "rocksdb" reads many records: those that follow each other in one run."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support import kvmessages as pb
from support.longranges import Writer, outcome

from metastore._core.engine_guard import GuardedEngine
from metastore._core.file_reads import Finder
from metastore._core.gaps import GapWalk
from metastore._core.mvcc import Store
from metastore._core.mvcc_range import range_cost, sliced_reply
from metastore._core.mvcc_stream import FIRST, chunks
from metastore.testing.engine_base import batch_of

rocksdb = pytest.importorskip("metastore.storage.engines.rocksdb")

Pairs = dict[bytes, bytes]


class Counting:
    """A database that counts how often it is asked."""

    def __init__(self, db: Any) -> None:
        self.db, self.began, self.got = db, 0, 0
        self.seen: list[bytes] = []  # of `items`

    def __getattr__(self, name: str) -> Any:
        return getattr(self.db, name)

    def items(self, **options: Any) -> Any:
        self.began += 1
        return self.watched(self.db.items(**options))

    def watched(self, items: Any) -> Iterator[tuple[bytes, bytes]]:
        for pair in items:
            self.seen.append(pair[0])
            yield pair

    def get(self, key: bytes) -> Any:
        self.got += 1
        return self.db.get(key)


def at(number: int, sub: int = 0) -> bytes:
    """Return the key of a revision."""
    return b"r" + number.to_bytes(8, "big") + sub.to_bytes(4, "big")


def write(engine: Any, pairs: dict[bytes, bytes | None]) -> None:
    engine.write(batch_of(pairs), engine.applied()[0] + 1, 1)


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    one = rocksdb.RocksEngine(str(tmp_path / "engine"))
    yield one
    one.close()


def filled(engine: Any, numbers: range) -> Pairs:
    pairs = {at(number): b"%d" % number for number in numbers}
    write(engine, dict(pairs))
    return pairs


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("view", [False, True])
def test_values_behind_each_other_are_read_in_one_run(engine: Any, view: bool, once: bool) -> None:
    pairs = filled(engine, range(1, 501))
    keys = list(pairs)
    engine._db = db = Counting(engine._db)
    engine.read_once(once)
    reader = engine.view() if view else engine
    for first in range(0, 500, 50):
        part = keys[first : first + 50]
        assert reader.find_many(part) == [pairs[key] for key in part]
    # The run is taken up where the last call has left it.
    assert engine.detours.runs == 500
    assert (db.began, db.got) == (1, 0)
    # Before the place where the run stands, another one begins.
    assert reader.find_many(keys[100:200]) == [pairs[key] for key in keys[100:200]]
    assert (db.began, db.got) == (2, 0)


def test_runs_far_from_each_other_bring_the_index_of_their_file_into_the_cache(engine: Any) -> None:
    """Else each run that is read once would read and unpack the index."""
    pairs = filled(engine, range(1, 140_001))
    keys = list(pairs)
    seen: list[bytes] = []

    class Noting:
        """An iterator that notes where it was placed."""

        def __init__(self) -> None:
            self.one = engine._db.iter()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.one, name)

        def seek(self, key: bytes) -> None:
            seen.append(key)
            self.one.seek(key)

    for first in [*range(0, 140_000, 5000), 100]:
        filling = GapWalk(Noting(), engine.gaps, engine._db.iter)
        finder = Finder(engine._walker(), lambda key: engine._db.items(from_key=key), None, engine.detours, filling)
        assert finder.find(keys[first : first + 50]) == [pairs[key] for key in keys[first : first + 50]]
    assert seen == [at(1), at(70_001), at(101)]


def test_values_far_from_each_other_are_looked_up(engine: Any) -> None:
    pairs = filled(engine, range(1, 501))
    keys = list(pairs)[::7]
    engine._db = db = Counting(engine._db)
    assert engine.find_many(keys) == [pairs[key] for key in keys]
    assert engine.detours.runs == 0
    assert (db.began, db.got) == (0, len(keys))


@pytest.mark.parametrize("once", [False, True])
def test_any_keys_in_any_order(engine: Any, once: bool) -> None:
    """Some are missing, some were removed (many together), some are asked for twice."""
    random = Random(7)
    pairs: Pairs = {}
    for number in range(1, 1500):
        for sub in range(random.choice((1, 1, 1, 4))):
            pairs[at(number, sub)] = random.randbytes(random.choice((0, 9, 300)))
    write(engine, dict(pairs))
    gone = [key for key in pairs if at(400) <= key < at(700) or random.random() < 0.1]
    write(engine, dict.fromkeys(gone))
    for key in gone:
        del pairs[key]
    candidates = [at(number, sub) for number in range(1500) for sub in range(4)] + [b"r", b"s", b"k"]
    engine.read_once(once)
    view = engine.view()
    for _ in range(150):
        if random.random() < 0.7:
            first = random.randrange(len(candidates))
            keys = candidates[first : first + random.randrange(1, 80) : random.choice((1, 1, 2, 4, 5))]
        else:
            keys = [random.choice(candidates) for _ in range(random.randrange(20))]
        for reader in (engine, view):
            assert reader.find_many(keys) == [pairs.get(key) for key in keys]
    for start in random.sample(candidates, 10):
        expected = sorted(pair for pair in pairs.items() if pair[0] >= start)
        for reader in (engine, view):
            assert [pair for pair in reader.iterate(start) if pair[0] < b"s"] == expected or start <= b"m"


def test_a_key_of_another_table_is_no_part_of_a_run(engine: Any) -> None:
    pairs = filled(engine, range(1, 10))
    others = {b"k": b"first", b"s": b"last"}
    write(engine, dict(others))
    for keys in ([b"k", *list(pairs)[1:]], [*pairs, b"s", b"t"], [b"a", *list(pairs)[1:5], b"s"]):
        assert engine.find_many(keys) == [(pairs | others).get(key) for key in keys]


@pytest.mark.parametrize("view", [False, True])
def test_a_run_ends_before_a_gap(engine: Any, view: bool) -> None:
    """When `items` gives the record before a gap, it goes over all that was removed behind it."""
    pairs = filled(engine, range(1, 1001))
    engine.remove_ranges([(at(101), at(601))])
    pairs = {key: value for key, value in pairs.items() if not at(101) <= key < at(601)}
    keys = [at(number) for number in [*range(1, 101), 300, 301, *range(601, 700)]]
    engine._db = db = Counting(engine._db)
    reader = engine.view() if view else engine
    assert reader.find_many(keys) == [pairs.get(key) for key in keys]
    assert set(db.seen) == {key for key in keys if key in pairs} - {at(100)}
    assert db.began == 2
    db.seen.clear()
    for start in at(50), at(100), at(101), at(600), at(601):
        assert list(reader.iterate(start)) == [pair for pair in pairs.items() if pair[0] >= start]
    assert at(99) in db.seen and at(100) not in db.seen and at(601) in db.seen


def test_a_view_does_not_show_what_is_written_later(engine: Any) -> None:
    old = filled(engine, range(1, 301))
    keys = list(old)
    begun, fresh = engine.view(), engine.view()
    walk = begun.iterate(b"r")
    assert next(walk) == (keys[0], old[keys[0]])
    for reader in (begun, engine):
        assert reader.find_many(keys[:50]) == [old[key] for key in keys[:50]]
    write(engine, dict.fromkeys(keys[::2], b"new") | dict.fromkeys(keys[1::2]) | {at(301): b"new"})
    assert engine.find_many(keys[50:]) == [b"new", None] * 125
    for view in (begun, fresh):
        assert view.find_many([*keys[50:], at(301)]) == [*(old[key] for key in keys[50:]), None]
        assert list(view.iterate(b"r")) == list(old.items())
    assert list(walk) == list(old.items())[1:]


def test_another_database_has_the_same_counter(tmp_path: Path, engine: Any) -> None:
    """The guard around an engine has it, too."""
    guarded = GuardedEngine(engine, "rocksdb")
    view = engine.view()
    old = filled(engine, range(1, 20))
    staged = engine.stage()
    staged.restore(iter([(b"mapplied", bytes(16)), *((at(number), b"new") for number in range(1, 20))]))
    staged.seal()
    engine.adopt(staged)
    assert guarded.find_many(list(old)) == [b"new"] * 19
    assert guarded.detours.runs == 19
    assert guarded.detours is engine.gaps.detours
    assert view.find_many(list(old)) == [None] * 19
    view.close()


def stored(engine: Any, numbers: list[int], size: int) -> tuple[Store, bytes]:
    """Return a store with a key for each number, put in this order, and the request for all of them."""
    store = Store(engine)
    for number in numbers:
        store.put(pb.PutRequest(key=b"%06d" % number, value=bytes(size)).SerializeToString())
    store.commit(1, 1)
    return store, pb.RangeRequest(key=b"0", range_end=b"\0").SerializeToString()


def test_pairs_of_a_run_cost_their_bytes(tmp_path: Path) -> None:
    """Others cost more: a look-up anywhere takes ten times as long."""
    costs, replies = [], []
    for name, numbers in ("run", list(range(2000))), ("far", Random(2).sample(range(2000), 2000)):
        engine = rocksdb.RocksEngine(str(tmp_path / name))
        store, body = stored(engine, numbers, 250)
        cost, reply = range_cost(store, body, 700)
        costs.append((cost - len(reply) // 256) / 2000)  # without the joining of the reply
        replies.append(pb.RangeResponse.FromString(reply))
        assert sliced_reply(store, body, 700) == reply
        engine.close()
    assert 1.9 < costs[0] < 2.5 and costs[1] > 4.9, costs
    assert [(one.key, one.value) for one in replies[0].kvs] == [(one.key, one.value) for one in replies[1].kvs]


def test_a_chunk_of_a_run_takes_no_more_than_it_may(engine: Any) -> None:
    store, body = stored(engine, list(range(2000)), 200)
    sizes = [len(part) for part in chunks(store, body, 1 << 20, 10**6, seconds=10)]
    assert all(FIRST <= size < FIRST + 2 * 300 for size in sizes[:-1]), sizes


def test_the_pieces_of_a_range_go_on_with_one_walk(engine: Any) -> None:
    """A walk that begins takes as long as forty of its steps."""
    store, body = stored(engine, list(range(3000)), 250)
    engine._db = db = Counting(engine._db)
    assert sliced_reply(store, body, 100) == store.range_reply(body)
    whole = db.began
    made = chunks(store, body, 1 << 20, 100)
    assert whole <= 6 and db.began - whole <= 4 * len(made), (whole, db.began, len(made))
    assert len(db.seen) < 3 * 2.2 * 3000


def test_large_values_behind_small_ones_are_not_fetched_by_the_dozen(engine: Any) -> None:
    store = Store(engine)
    for number in range(1200):
        value = bytes(100 if number < 1000 else 100_000)
        store.put(pb.PutRequest(key=b"%06d" % number, value=value).SerializeToString())
    store.commit(1, 1)
    body = pb.RangeRequest(key=b"0", range_end=b"\0").SerializeToString()
    engine._db = db = Counting(engine._db)
    read = [0]
    assert sliced_reply(store, body, 200, lambda: read.append(len(db.seen))) == store.range_reply(body)
    pieces = [after - before for before, after in pairwise(read) if after > before]  # the reply is joined at the end
    assert max(pieces[:20]) > 100 and max(pieces[-100:]) <= 2, "each key has two records"


def test_pieces_make_the_same_reply(tmp_path: Path) -> None:
    """Writes, deletions, compactions and sweeps go on meanwhile."""
    rng = Random(17)
    for seed in range(30):
        engine = rocksdb.RocksEngine(str(tmp_path / str(seed)))
        writer = Writer(seed, engine=engine)
        for _ in range(rng.randint(1, 40)):
            writer.change()
        for _ in range(5):
            body = pb.RangeRequest(
                key=rng.choice([b"\0", b"a"]), range_end=rng.choice([b"\0", b"b"]), limit=rng.choice([0, 0, 3]),
                revision=rng.choice([0, max(1, writer.store.compact_revision), writer.store.revision]),
            ).SerializeToString()  # fmt: skip
            expected = outcome(lambda body=body, store=writer.store: store.range_reply(body))
            budget, between = rng.randint(1, 9), writer.change_much
            assert outcome(lambda: sliced_reply(writer.store, body, budget, between)) == expected  # noqa: B023
        engine.close()
