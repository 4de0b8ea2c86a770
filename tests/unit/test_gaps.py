"""Look-ups of RocksDB leap over removed records, whatever was removed and in whichever order."""

from __future__ import annotations

import itertools
import random
from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import Any

import pytest
from support import messages as m

from metastore._core.engine import APPLIED_KEY, Engine
from metastore._core.gaps import LIMIT
from metastore._core.leases import encode_grant, encode_revoke
from metastore._core.mvcc import Store
from metastore._core.mvcc_hash import Hasher
from metastore._core.mvcc_lease import execute_revoke
from metastore._core.mvcc_range import sliced_reply
from metastore._core.mvcc_sweep import sweep_slice
from metastore._core.op import LEASE_GRANT
from metastore._core.ordered_map import OrderedMap

rocksdict = pytest.importorskip("rocksdict")
rocksdb = pytest.importorskip("metastore.storage.engines.rocksdb")
KEYS = 3000
FAR = 8 * LIMIT  # of RocksDB's own records; a run of removed ones is noticed before it is so long
APART = 50  # keys from one that stays to the next one that does, and with them the gap between
BUDGET = 100  # units of a piece; a detour costs 16
#: Of a piece, with one for its beginning. Unknown removed records count as four.
MOST_DETOURS = {"up": 9, "down": 40, "unknown": 14, "counted": 50}
STRIDE = 1277  # has no divisor in common with KEYS


class Watched:
    """A database all of whose iterators fail where they would walk over many removed records."""

    def __init__(self, db: Any) -> None:
        self.db = db
        self.bounded = rocksdict.ReadOptions()
        self.bounded.set_max_skippable_internal_keys(FAR)

    def iter(self, options: Any = None) -> Any:
        return self.db.iter(options or self.bounded)

    def items(self, from_key: bytes, read_opt: Any = None) -> Any:
        return self.db.items(from_key=from_key, read_opt=read_opt or self.bounded)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.db, name)


class Model:
    """An engine, and the records that it must have."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.engine = rocksdb.RocksEngine(str(folder))
        self.records: dict[bytes, bytes] = {}
        self.position = 0

    def key(self) -> bytes:
        return b"%c%05d" % (self.random.choice(b"akr"), self.random.randrange(KEYS))

    def write(self, changes: dict[bytes, bytes | None]) -> None:
        batch = OrderedMap()
        for key, value in changes.items():
            if value is None:
                batch.set_deleted(key)
                self.records.pop(key, None)
            else:
                batch.set(key, value)
                self.records[key] = value
        self.position += 1
        self.engine.write(batch, self.position, 1)

    def remove_some(self) -> None:
        """Remove what is there, in order or not, of a stretch or of all, and what is not there."""
        low, high = sorted((self.key(), self.key()))
        there = [*sorted(key for key in self.records if low <= key < high), self.key()]
        if self.random.random() < 0.5:
            self.random.shuffle(there)
        there = there[: self.random.choice((1, 100, KEYS))]
        for first in range(0, len(there), step := self.random.choice((7, 100, 1000))):
            self.write(dict.fromkeys(there[first : first + step]))

    def put_some(self) -> None:
        if self.random.random() < 0.5:
            low, high = sorted((self.key(), self.key()))
            keys = [b"%c%05d" % (table, n) for table in b"akr" for n in range(KEYS)]
            keys = [key for key in keys if low <= key < high]
        else:
            keys = [self.key() for _ in range(self.random.choice((1, 5, 300)))]
        for first in range(0, len(keys), step := self.random.choice((7, 1000))):
            some = keys[first : first + step]
            if self.random.random() < 0.2:
                self.write(dict.fromkeys(some, b"") | dict.fromkeys(self.random.sample(some, len(some) // 2)))
            self.write(dict.fromkeys(some, b"%d" % self.position))

    def look(self, engine: Engine, records: dict[bytes, bytes]) -> None:
        keys = sorted(records)
        for _ in range(12):
            key = self.key()
            at, behind = bisect_left(keys, key), bisect_right(keys, key)
            expected = [(one, records[one]) for one in keys[at : at + 20]]
            walk = [pair for pair in engine.scan(key, None, False, 21) if pair[0] != APPLIED_KEY][:20]
            assert walk == expected
            steps = (pair for pair in engine.iterate(key) if pair[0] != APPLIED_KEY)
            assert [pair for pair, _ in zip(steps, expected, strict=False)] == expected
            down = [pair for pair in engine.scan(b"", key, True, 21) if pair[0] != APPLIED_KEY][:20]
            assert down == [(one, records[one]) for one in keys[max(0, at - 20) : at]][::-1]
            last = engine.seek_le(key)
            assert last is None or last[0] == APPLIED_KEY or last[0] == keys[behind - 1]
        everything = [pair for pair in engine.scan(b"", None, True, 0) if pair[0] != APPLIED_KEY]
        assert everything == sorted(records.items(), reverse=True)


@pytest.mark.parametrize("seed", range(3))
def test_look_ups_show_what_is_there(tmp_path: Path, seed: int) -> None:
    """Views too, which later writes do not change."""
    model = Model(tmp_path, seed)
    engine, most = model.engine, 0
    views: list[tuple[Engine, dict[bytes, bytes]]] = []
    for _ in range(40):
        model.random.choice((model.put_some, model.remove_some, model.remove_some))()
        if model.random.random() < 0.2:
            views.append((engine.view(), dict(model.records)))
        if model.random.random() < 0.1:
            engine.flush()
        if model.random.random() < 0.3:
            engine.reclaim()
        if model.random.random() < 0.1:
            engine.gaps.clear()  # as after a start: walks find them again
        most = max(most, len(engine.gaps))
        engine.gaps.check(engine._db.iter())
        model.look(engine, model.records)
        engine.gaps.check(engine._db.iter())
    for view, records in views:
        model.look(view, records)
        view.close()
    while engine.reclaim():
        pass
    engine.gaps.check(engine._db.iter())
    model.look(engine, model.records)
    assert most > 1 and engine.gaps.faults == 0
    engine.close()


def put(key: bytes, lease: int = 0) -> bytes:
    return m.PutRequest(key=key, value=b"value", lease=lease).SerializeToString()


class Removed:
    """A store of which very much is removed, and which is then looked at."""

    def __init__(self, folder: Path) -> None:
        self.engine = rocksdb.RocksEngine(str(folder))
        self.engine._db = Watched(self.engine._db)
        self.store = Store(self.engine)
        self.index = 0
        self.store.put(put(b"j"))
        self.store.put(put(b"l"))
        self.commit()

    def commit(self) -> None:
        self.index += 1
        self.store.commit(self.index, 1)

    def grant(self, lease: int) -> None:
        self.store.execute(LEASE_GRANT, encode_grant(lease, 100))
        self.commit()

    def fill(self, order: list[int], lease: int = 0) -> None:
        for n, number in enumerate(order):
            self.store.put(put(b"k%05d" % number, lease))
            if n % 100 == 99:
                self.commit()
        self.commit()

    def sweep(self) -> None:
        self.store.compact(m.CompactionRequest(revision=self.store.revision).SerializeToString())
        self.commit()
        while sweep_slice(self.store, 200):
            pass

    def range(self, **fields: Any) -> Any:
        return m.RangeResponse.FromString(self.store.range_reply(m.RangeRequest(**fields).SerializeToString()))

    def look(self) -> None:
        """Look from all sides, at every table."""
        for start in (b"a", b"j", b"k00000", b"k%05d" % (KEYS // 2), b"k99999"):
            self.range(key=start)
            self.range(key=start, range_end=b"\0", limit=3)
            self.range(key=start, range_end=b"\0", count_only=True)
            self.range(key=start, range_end=b"k99999", sort_order=2, limit=1)
        for table in (b"a", b"k", b"l", b"m", b"r", b"s"):
            self.engine.scan(table, None, False, 2)
            self.engine.scan(b"", table, True, 2)
            self.engine.seek_le(table)
        hasher = Hasher(self.engine.view(), 0, True)
        while hasher.step(500):
            pass
        hasher.close()
        self.store.put(put(b"k%05d" % (KEYS // 3)))
        self.store.put(put(b"i", 0))
        self.commit()
        self.store.reload()


@pytest.mark.parametrize("what", ["swept", "swept in another order", "revoked", "many leases", "overwritten"])
def test_no_look_up_walks_over_what_was_removed(tmp_path: Path, what: str) -> None:
    """Each of these walked over thousands of removed records in one call."""
    made = Removed(tmp_path)
    order = [n * STRIDE % KEYS for n in range(KEYS)] if what.endswith("order") else list(range(KEYS))
    if what == "many leases":
        for n in order:
            made.grant(n + 1)
        for n in order:
            execute_revoke(made.store, encode_revoke(n + 1, False))
            made.commit()
    elif what == "overwritten":
        made.fill([7] * KEYS)
        made.store.delete_range(m.DeleteRangeRequest(key=b"k00007").SerializeToString())
    elif what == "revoked":
        for lease in range(1, 12):
            made.grant(lease)
        for lease in range(1, 11):
            made.fill(order[lease - 1 :: 10], lease)
        for lease in range(1, 11):
            execute_revoke(made.store, encode_revoke(lease, False))
            made.commit()
        made.store.put(put(b"x", 11))
    else:
        made.fill(order)
        made.store.delete_range(m.DeleteRangeRequest(key=b"k", range_end=b"l").SerializeToString())
    made.commit()
    made.look()
    made.sweep()
    made.look()
    made.engine.gaps.check(made.engine._db.db.iter())
    made.engine.close()


def test_what_a_walk_has_found_is_known_to_the_next_one(tmp_path: Path) -> None:
    """As after a start, which knows no gaps. Nothing is written between the looks."""
    model = Model(tmp_path, 1)
    engine = model.engine
    model.write({b"a": b"", b"s": b""} | {b"r%05d" % n: b"" for n in range(KEYS)})
    model.write(dict.fromkeys(b"r%05d" % n for n in range(KEYS)))
    while engine.reclaim():
        pass
    for look in (
        lambda: engine.scan(b"n", None, False, 1)[0][0] == b"s",
        lambda: engine.scan(b"b", b"rr", True, 1)[0][0] == APPLIED_KEY,
        lambda: engine.seek_le(b"rr")[0] == APPLIED_KEY,
        lambda: [key for key, _ in engine.iterate(b"n")] == [b"s"],
    ):
        engine.gaps.clear()
        engine.reclaim()
        learned = engine.gaps.learned
        assert all(look() for _ in range(3)) and engine.gaps.learned == learned + 1
        engine.gaps.check(engine._db.iter())
    engine.close()


@pytest.mark.parametrize("kind", ["up", "down", "unknown", "counted"])
def test_a_piece_pays_for_its_detours(tmp_path: Path, kind: str) -> None:
    """A detour takes as long as to look at a dozen keys. A piece between many gaps took 6 ms."""
    made = Removed(tmp_path)
    made.fill(list(range(KEYS)))
    for first in range(0, KEYS, APART):
        start, end = b"k%05d" % (first + 1), b"k%05d" % (first + APART)
        made.store.delete_range(m.DeleteRangeRequest(key=start, range_end=end).SerializeToString())
        made.commit()
    made.sweep()
    made.engine.reclaim()
    made.engine.detours.count = 0
    at = [0]
    note = lambda: at.append(made.engine.detours.count)  # noqa: E731
    if kind in ("unknown", "counted"):
        made.engine.gaps.clear()
    if kind == "counted":
        made.engine.stretches.restart()
        while made.engine.reclaim():
            note()
    else:
        request = m.RangeRequest(key=b"k", range_end=b"l", sort_order=2 if kind == "down" else 0)
        reply = sliced_reply(made.store, request.SerializeToString(), BUDGET, note)
        assert m.RangeResponse.FromString(reply).count == KEYS // APART
    note()
    detours = [after - before for before, after in itertools.pairwise(at)]
    assert sum(detours) >= KEYS // APART - 1 and max(detours) <= MOST_DETOURS[kind], detours
    made.engine.close()
