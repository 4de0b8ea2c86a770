"""The part of the engine contract about what is written and read, and about the room that it takes."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from metastore._core.engine import APPLIED_KEY
from metastore._core.ordered_map import OrderedMap
from metastore.storage import check_declared

from .engine_base import ContractBase, batch_of, contents, walked

__all__ = ["Contents"]

MANY = 5_003  # pairs of one batch: more than a library takes at once
VALUE = 2 << 20  # bytes of a long value: above the 1.5 MiB that a request may have by default
KEY = 100_000  # bytes of a long key, where the engine declares no smaller `max_key`
SLICES = 100_000  # calls of reclaim() or defragment() for some thousand small records


class Contents(ContractBase):
    """Writes and reads in one thread."""

    def test_new_engine_is_empty(self) -> None:
        engine = self.make_engine()
        assert engine.applied() == (0, 0)
        assert contents(engine) == {} and walked(engine) == []
        assert engine.get(b"a") is None
        assert (engine.seek_ge(b"") or (APPLIED_KEY,))[0] == APPLIED_KEY
        assert engine.seek_le(b"a") is None
        assert engine.durable_applied() == 0
        engine.close()

    def test_write_is_seen_and_moves_the_log_position(self) -> None:
        engine = self.make_engine()
        engine.write(batch_of({b"a": b"1", b"b": b"", b"\0": b"\0\xff", b"\xff": b"x" * 70_000}), 5, 2)
        assert engine.applied() == (5, 2)
        assert engine.get(b"a") == b"1" and engine.get(b"b") == b"" and engine.get(b"\0") == b"\0\xff"
        assert engine.get(b"\xff") == b"x" * 70_000 and engine.get(b"aa") is None
        engine.write(batch_of({b"a": b"2", b"b": None, b"never": None}), 2**40, 2**33)
        assert engine.applied() == (2**40, 2**33)
        assert contents(engine) == {b"a": b"2", b"\0": b"\0\xff", b"\xff": b"x" * 70_000}
        assert engine.get(b"b") is None and engine.seek_le(b"b") == (b"a", b"2")
        engine.write(OrderedMap(), 2**40 + 1, 2**33)
        assert engine.applied() == (2**40 + 1, 2**33)
        engine.close()

    def test_batch_is_left_as_it_was(self) -> None:
        engine = self.make_engine()
        batch = batch_of({b"a": b"1", b"b": None})
        engine.write(batch, 1, 1)
        assert batch.scan() == [(b"a", b"1"), (b"b", None)]
        engine.close()

    def test_a_large_batch_is_stored_to_its_last_pair(self) -> None:
        engine = self.make_engine()
        pairs = {b"k%06d" % n: b"%d" % n for n in range(MANY)}
        engine.write(batch_of(dict(pairs)), 1, 1)
        assert contents(engine) == pairs, f"pairs of a batch of {MANY} are missing"
        assert engine.get(max(pairs)) == pairs[max(pairs)]
        engine.write(batch_of(dict.fromkeys(list(pairs)[1:])), 2, 1)
        assert contents(engine) == {b"k000000": b"0"}, f"deletions of a batch of {MANY} are missing"
        engine.close()

    def test_long_keys_and_values_are_whole(self) -> None:
        """Up to what the engine declares, or else up to what a request may hold."""
        engine = self.make_engine()
        key_size = getattr(engine, "max_key", None) or KEY
        value_size = min(getattr(engine, "max_value", None) or VALUE, VALUE)
        rng = random.Random(5)
        sizes = sorted({size for size in (1, 255, 256, 510, 511, 512, 1024, 65_536, key_size) if size <= key_size})
        pairs = {rng.randbytes(size - 1) + b"\xff": b"%d" % size for size in sizes}
        values = [size for size in (99_999, 100_000, 100_001, 1 << 20, value_size) if size <= value_size]
        pairs |= {b"value%d" % size: rng.randbytes(size) for size in values}
        engine.write(batch_of(dict(pairs)), 1, 1)
        for key, value in pairs.items():
            found = engine.get(key)
            assert found == value, f"a value of {len(value)} bytes under a key of {len(key)} bytes came back otherwise"
        assert contents(engine) == pairs == dict(walked(engine))
        near = max(pairs, key=len)
        assert engine.get(near[:-1] + b"\xfe") is None, "keys that only differ in their last byte are mixed up"
        engine.close()

    def test_order_and_scans(self) -> None:
        engine = self.make_engine()
        keys = sorted({bytes(key) for key in self._keys()})
        engine.write(batch_of({key: b"v" + key for key in keys}), 1, 1)
        everything = sorted([*keys, APPLIED_KEY])
        for low in (b"", b"a", b"a\0", b"ab", b"b", b"m", b"\xff\xff"):
            for high in (None, b"a", b"b", b"b\0", b"z"):
                inside = [key for key in everything if key >= low and (high is None or key < high)]
                assert [key for key, _ in engine.scan(low, high, False, 0)] == inside
                assert [key for key, _ in engine.scan(low, high, True, 0)] == inside[::-1]
                assert [key for key, _ in engine.scan(low, high, False, 3)] == inside[:3]
                assert [key for key, _ in engine.scan(low, high, True, 3)] == inside[::-1][:3]
            above = [key for key in everything if key >= low]
            below = [key for key in everything if key <= low]
            assert (engine.seek_ge(low) or (None,))[0] == (above[0] if above else None)
            assert (engine.seek_le(low) or (None,))[0] == (below[-1] if below else None)
        engine.close()

    def _keys(self) -> Iterator[bytes]:
        rng = random.Random(3)
        for _ in range(600):
            yield bytes(rng.choices(b"\0ab\xff", k=rng.randrange(1, 6)))

    def test_iterate_gives_what_scan_gives(self) -> None:
        engine = self.make_engine()
        engine.write(batch_of({b"k%05d" % n: b"v%d" % n for n in range(1200)}), 1, 1)
        view = engine.view()
        for source in (engine, view):
            for start in (b"", b"k00099", b"k00100", b"k00500x", b"z"):
                assert list(source.iterate(start)) == source.scan(start, None, False, 0), f"iterate({start!r})"
        view.close()
        engine.close()

    def test_the_optional_reads_agree_with_the_others(self) -> None:
        """`count` and `find_many`, where this version of MetaStore knows them. Each key has the versions 1 to 3, and
        every third key was deleted last. Only keys of the table `k` whose newest version is no tombstone count."""
        engine = self.make_engine()
        contents = {b"k%05d\0\1%012d" % (n, version): b"\1\1" if version == 3 and n % 3 == 0 else b"\1\0\2\1"
                    for n in range(300) for version in (1, 2, 3)}  # fmt: skip
        for version in (1, 2, 3):
            part: dict[bytes, bytes | None] = {
                key: value for key, value in contents.items() if key.endswith(b"%012d" % version)
            }
            engine.write(batch_of(part | {b"r%04d" % version: b"a change"}), version, 1)
        count, find_many = getattr(engine, "count", None), getattr(engine, "find_many", None)
        for start, end in ((b"", None), (b"k00010", b"k00020"), (b"k00020", b"k00010"), (b"x", None)):
            if count is not None and (number := count(start, end)) is not None:
                newest = {key[:-12]: value for key, value in engine.scan(start, end, False, 0) if key[:1] == b"k"}
                alive = sum(not value[1] & 1 for value in newest.values())
                assert number == alive, f"count({start!r}, {end!r})"
        if find_many is not None:
            keys = [*list(contents)[7:9], b"no", list(contents)[-1], b"", *list(contents)[:8]]
            assert list(find_many(keys)) == [engine.get(key) for key in keys], "find_many differs from get"
            assert list(find_many([])) == []
        engine.close()

    def test_many_look_ups_of_revisions(self) -> None:
        """`find_many` is asked for the revisions of a page of keys: runs of them, some of which are gone."""
        engine = self.make_engine()
        if getattr(engine, "find_many", None) is None:
            engine.close()
            return
        keys = [b"r" + (number // 2).to_bytes(8, "big") + (number % 2).to_bytes(4, "big") for number in range(400)]
        there = {key: b"%d" % number for number, key in enumerate(keys) if number % 50 < 40 and number % 11 != 3}
        engine.write(batch_of(dict(there)), 1, 1)
        view = engine.view()
        engine.write(batch_of(dict.fromkeys(there)), 2, 1)
        engine.write(batch_of(dict.fromkeys(keys[::3], b"later")), 3, 1)
        asked = [*keys[100:], *keys[:200], keys[7], b"no", *random.Random(5).sample(keys, 90), *keys[::10]]
        assert list(view.find_many(asked)) == [there.get(key) for key in asked], "find_many of a view"
        later = dict.fromkeys(keys[::3], b"later")
        assert list(engine.find_many(asked)) == [later.get(key) for key in asked], "find_many"
        view.close()
        engine.close()

    def test_removed_ranges_are_gone(self) -> None:
        """`remove_ranges`, where the engine has it: nothing of a range is left, and nothing else is changed."""
        engine = self.make_engine()
        there = {b"k%05d" % number: b"%d" % number for number in range(2000)}
        engine.write(batch_of(dict(there)), 7, 3)
        remove = getattr(engine, "remove_ranges", None)
        if remove is None or not remove([]):
            assert contents(engine) == there, "remove_ranges without a range changes something"
            engine.close()
            return
        view = engine.view()
        for start, end in ((b"k00100", b"k00900"), (b"k00905x", b"k00907"), (b"k01999", b"k02")):
            assert remove([(start, end)]), "remove_ranges"
            there = {key: value for key, value in there.items() if not start <= key < end}
            assert contents(engine) == there and walked(engine) == sorted(there.items()), (
                f"without {start!r} to {end!r}"
            )
            assert engine.seek_le(end) == max(pair for pair in there.items() if pair[0] <= end)
        assert remove([(b"k00905", b"k00910"), (b"k01000", b"k01500")])
        assert not engine.scan(b"k01000", b"k01500", False, 0) and engine.get(b"k00905") is None
        assert engine.applied() == (7, 3), "remove_ranges moves the log position"
        assert len(contents(view)) == 2000, "a view shows what remove_ranges has removed since"
        view.close()
        engine.write(batch_of({b"k01200": b"again"}), 8, 3)
        assert engine.scan(b"k01000", b"k01500", False, 0) == [(b"k01200", b"again")], "a put into a removed range"
        engine.close()

    def test_sizes_follow_the_contents(self) -> None:
        engine = self.make_engine()
        empty = engine.size()
        assert empty >= 0
        rng = random.Random(6)  # values that no engine can compress
        for index in range(1, 11):
            engine.write(batch_of({b"k%04d/%d" % (n, index): rng.randbytes(1000) for n in range(200)}), index, 1)
            self._check_sizes(engine)
        engine.flush()
        self._check_sizes(engine)
        assert engine.size() >= empty + 200_000, "size() ignores most of the 2 MB that were written"
        engine.write(batch_of({b"k%04d/%d" % (n, index): None for n in range(200) for index in range(1, 11)}), 11, 1)
        self._check_sizes(engine)
        engine.close()

    @staticmethod
    def _check_sizes(engine: object) -> None:
        size, in_use, data = (getattr(engine, name)() for name in ("size", "size_in_use", "data_size"))
        assert {type(number) for number in (size, in_use, data)} == {int}, "sizes are whole numbers"
        assert 0 <= in_use <= size, f"size_in_use() is {in_use}, and size() is {size}"
        assert data >= 0

    def test_reclaim_and_flush_end(self) -> None:
        engine = self.make_engine()
        engine.write(batch_of({b"k%04d" % n: b"v" for n in range(2000)}), 1, 1)
        engine.write(batch_of({b"k%04d" % n: None for n in range(2000)}), 2, 1)
        engine.flush()
        engine.begin_flush()
        slices = 0
        while engine.reclaim():
            slices += 1
            assert slices < SLICES, "reclaim() never ends"
        assert 0 <= engine.durable_applied() <= 2
        assert contents(engine) == {}
        engine.close()

    def test_defragment_ends(self) -> None:
        """It gives room back in slices. Writes go on between these."""
        engine = self.make_engine()
        engine.write(batch_of({b"k%04d" % n: b"v" * 100 for n in range(2000)}), 1, 1)
        engine.write(batch_of({b"k%04d" % n: None for n in range(1, 2000)}), 2, 1)
        engine.flush()
        slices, deadline = 0, time.monotonic() + self.patience / 2
        while (again := engine.defragment()) is not None:
            slices += 1
            assert 0 <= again <= 60, f"defragment() returned {again!r}: it returns None, or seconds until the next call"
            assert slices < SLICES and time.monotonic() < deadline, "defragment() never ends"
            engine.write(batch_of({b"more": b"%d" % slices}), 2 + slices, 1)
            time.sleep(again)
        assert contents(engine) == {b"k0000": b"v" * 100} | ({b"more": b"%d" % slices} if slices else {})
        engine.close()

    def test_it_says_what_room_it_needs(self) -> None:
        engine = self.make_engine()
        assert engine.full is False
        assert engine.headroom is None or engine.headroom >= 0
        engine.close()

    def test_it_says_what_it_is(self) -> None:
        """The version of the contract, and limits that a key and a value of our own fit into."""
        engine = self.make_engine()
        assert engine.CONTRACT == 1, "CONTRACT = 1 says which contract an engine was written for"
        assert type(engine.FORMAT) is int
        assert engine.max_key is None or engine.max_key > 64, "records of MetaStore's own have keys of up to 64 bytes"
        assert engine.max_value is None or engine.max_value > 1 << 20, "records of MetaStore's own have up to 1 MiB"
        engine.close()

    def test_it_says_whether_it_lasts(self) -> None:
        engine = self.make_engine()
        check_declared(engine, type(engine).__name__)
        engine.close()

    def test_opened_again(self) -> None:
        """A persistent engine has everything; of another one nothing is left."""
        folder = self.new_folder()
        engine = self.open_engine(folder)
        engine.write(batch_of({b"a": b"1", b"gone": b"x", b"late": b"x"}), 3, 2)
        engine.flush()
        engine.write(batch_of({b"gone": None, b"b": b"2"}), 4, 2)
        engine.flush()
        engine.write(batch_of({b"late": None}), 5, 2)
        engine.flush()
        engine.close()
        again = self.open_engine(folder)
        if again.persistent:
            assert contents(again) == {b"a": b"1", b"b": b"2"}, "what was deleted is there again, or other things are"
            assert again.applied() == (5, 2) and again.get(b"gone") is None
            again.flush()
            assert again.durable_applied() == 5, "flush() does not move durable_applied() on"
            again.write(batch_of({b"a": None}), 6, 2)
            assert contents(again) == {b"b": b"2"}
        else:
            assert again.applied() == (0, 0) and contents(again) == {}
            assert again.durable_applied() == 0
        again.close()
