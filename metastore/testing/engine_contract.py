"""The contract that every storage engine keeps, as a test-suite for pytest; a plug-in's author runs it too:

    from metastore.testing.engine_contract import EngineContract

    class TestMyEngine(EngineContract):
        def open_engine(self, folder):
            return MyEngine(folder)

Each test gets new, empty engines, each in a folder of its own. What the class declares as `persistent` decides what is
expected of one that is opened again, and of one whose process was killed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from metastore._core.engine import APPLIED_KEY
from metastore._core.mvcc import Store
from metastore._core.mvcc_hash import Hasher
from metastore._core.mvcc_sweep import sweep_slice
from metastore._core.mvcc_txn_work import execute
from metastore._core.op import encode_op
from metastore._core.ordered_map import OrderedMap
from metastore.errors import ApiError
from metastore.storage import check_declared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from metastore._core.engine import Engine

__all__ = ["EngineContract"]


def batch_of(changes: dict[bytes, bytes | None]) -> OrderedMap:
    """The batch that stores these pairs; None deletes a key."""
    batch = OrderedMap()
    for key, value in changes.items():
        if value is None:
            batch.set_deleted(key)
        else:
            batch.set(key, value)
    return batch


def contents(engine: Engine) -> dict[bytes, bytes]:
    """Return all pairs except the engine's own record of the log position."""
    return {key: value for key, value in engine.scan(b"", None, False, 0) if key != APPLIED_KEY}


def written_by(index: int) -> dict[bytes, bytes]:
    """Return what `EngineContract.write_and_die` has stored after that many writes."""
    pairs: dict[bytes, bytes] = {}
    for number in range(1, index + 1):
        pairs |= {b"key%d" % (number % 7): b"%d" % number, b"only%d" % number: b""}
    return pairs


# The killed process runs this: the test module again, in a process of its own.
KILLED_PROGRAM = """
import importlib, operator, sys
sys.path[:] = sys.argv[4:]
found = operator.attrgetter(sys.argv[2])(importlib.import_module(sys.argv[1]))
found().write_and_die(sys.argv[3])
"""
FLUSHED, WRITTEN = 40, 60  # writes of the killed process: before its flush, and in all


class EngineContract:
    """Subclass it at the top of a module, under a name that pytest collects, and define `open_engine`."""

    def open_engine(self, folder: str) -> Engine:
        """Open the engine in `folder`: a new one if the folder does not exist or is empty, else the one that is there.
        It is also called in another process, on an object of this class that no fixture has touched."""
        raise NotImplementedError

    def setup_method(self) -> None:
        """Called by pytest before each test."""
        self._folders = tempfile.mkdtemp(prefix="engine-contract-")
        self._folder_count = 0

    def teardown_method(self) -> None:
        """Called by pytest after each test."""
        shutil.rmtree(self._folders, ignore_errors=True)

    def new_folder(self) -> str:
        """Return the path of a folder that does not exist."""
        self._folder_count += 1
        return os.path.join(self._folders, str(self._folder_count))

    def make_engine(self) -> Engine:
        """A new, empty engine."""
        return self.open_engine(self.new_folder())

    def test_new_engine_is_empty(self) -> None:
        engine = self.make_engine()
        assert engine.applied() == (0, 0)
        assert contents(engine) == {}
        assert engine.get(b"a") is None
        assert (engine.seek_ge(b"") or (APPLIED_KEY,))[0] == APPLIED_KEY
        assert engine.seek_le(b"a") is None
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
        engine.write(OrderedMap(), 2**40 + 1, 2**33)
        assert engine.applied() == (2**40 + 1, 2**33)
        engine.close()

    def test_batch_is_left_as_it_was(self) -> None:
        engine = self.make_engine()
        batch = batch_of({b"a": b"1", b"b": None})
        engine.write(batch, 1, 1)
        assert batch.scan() == [(b"a", b"1"), (b"b", None)]
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

    def test_view_is_not_disturbed(self) -> None:
        engine = self.make_engine()
        engine.write(batch_of({b"k%04d" % n: b"old" for n in range(500)}), 7, 1)
        view = engine.view()
        before = contents(view)
        engine.write(batch_of({b"k%04d" % n: None if n % 2 else b"new" for n in range(500)}), 8, 1)
        assert contents(view) == before and view.applied() == (7, 1)
        assert view.get(b"k0001") == b"old" and engine.get(b"k0001") is None
        assert engine.applied() == (8, 1) and len(contents(engine)) == 250
        view.close()
        assert engine.get(b"k0002") == b"new", "closing a view must not close the engine"
        engine.close()

    def test_size_follows_the_contents(self) -> None:
        engine = self.make_engine()
        empty = engine.size()
        engine.write(batch_of({b"k%04d" % n: b"v" * 1000 for n in range(200)}), 1, 1)
        engine.flush()
        assert engine.size() > empty, "size() ignores what was written"
        engine.close()

    def test_restore_replaces_everything(self) -> None:
        source, target = self.make_engine(), self.make_engine()
        source.write(batch_of({b"a": b"1", b"b": b"2", b"\xff" * 300: b"long"}), 9, 3)
        target.write(batch_of({b"b": b"other", b"gone": b"x"}), 2, 1)
        target.restore(source.view().scan(b"", None, False, 0))
        assert contents(target) == contents(source) == {b"a": b"1", b"b": b"2", b"\xff" * 300: b"long"}
        assert target.applied() == (9, 3)
        target.write(batch_of({b"c": b"3"}), 10, 3)
        assert target.get(b"c") == b"3" and source.get(b"c") is None
        source.close()
        target.close()

    def test_reclaim_and_flush_end(self) -> None:
        engine = self.make_engine()
        engine.write(batch_of({b"k%04d" % n: b"v" for n in range(2000)}), 1, 1)
        engine.write(batch_of({b"k%04d" % n: None for n in range(2000)}), 2, 1)
        engine.flush()
        slices = 0
        while engine.reclaim():
            slices += 1
            assert slices < 100_000, "reclaim() never ends"
        assert 0 <= engine.durable_applied() <= 2
        assert contents(engine) == {}
        engine.close()

    def test_it_says_what_room_it_needs(self) -> None:
        engine = self.make_engine()
        assert engine.full is False
        assert engine.headroom is None or engine.headroom >= 0
        engine.close()

    def test_it_says_whether_it_lasts(self) -> None:
        engine = self.make_engine()
        check_declared(engine, type(engine).__name__)
        engine.close()

    def test_opened_again(self) -> None:
        """A persistent engine has everything; of another one nothing is left."""
        folder = self.new_folder()
        engine = self.open_engine(folder)
        engine.write(batch_of({b"a": b"1"}), 4, 2)
        engine.flush()
        engine.close()
        again = self.open_engine(folder)
        if again.persistent:
            assert again.applied() == (4, 2) and contents(again) == {b"a": b"1"}
            again.flush()
            assert again.durable_applied() == 4, "flush() does not move durable_applied() on"
        else:
            assert again.applied() == (0, 0) and contents(again) == {}
            assert again.durable_applied() == 0
        again.close()

    def test_what_was_durable_survives_a_kill(self) -> None:
        """A process that writes is killed. At least what `durable_applied` returned is there, and it is the state of
        one moment."""
        folder = self.new_folder()
        engine = self.make_engine()
        promised = self._killed(folder) if engine.persistent else 0
        engine.close()
        if not engine.persistent:
            return
        assert FLUSHED <= promised <= WRITTEN, "flush() does not move durable_applied() on, or that is ahead of writes"
        again = self.open_engine(folder)
        index = again.applied()[0]
        assert promised <= index <= WRITTEN, f"durable up to {promised}, found up to {index}"
        assert again.durable_applied() <= index
        assert contents(again) == written_by(index)
        again.close()

    def _killed(self, folder: str) -> int:
        """Return what `durable_applied` returned before the kill."""
        kind = type(self)
        argv = [sys.executable, "-c", KILLED_PROGRAM, kind.__module__, kind.__qualname__, folder, *sys.path]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        return int(done.stdout)

    def write_and_die(self, folder: str) -> None:
        """Write in the process that is killed."""
        engine = self.open_engine(folder)
        for index in range(1, WRITTEN + 1):
            engine.write(batch_of({b"key%d" % (index % 7): b"%d" % index, b"only%d" % index: b""}), index, 1)
            if index == FLUSHED:
                engine.flush()
        print(engine.durable_applied(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def test_store_gives_the_same_replies_as_on_the_memory_engine(self) -> None:
        from metastore.storage.engines.memory import MemoryEngine

        mine, plain = Store(self.make_engine(), 1, 2), Store(MemoryEngine(), 1, 2)
        rng = random.Random(11)
        for step in range(400):
            kind, body = self._operation(rng, mine.revision)
            for_mine, for_plain = self._outcome(mine, kind, body), self._outcome(plain, kind, body)
            assert for_mine == for_plain, (step, encode_op(kind or 1, step, body))
            if rng.random() < 0.3:
                mine.commit(step + 1, 1)
                plain.commit(step + 1, 1)
            if rng.random() < 0.3:
                sweep_slice(mine, 40)
                sweep_slice(plain, 40)
        mine.commit(1000, 1)
        plain.commit(1000, 1)
        while sweep_slice(mine, 100):
            pass
        while sweep_slice(plain, 100):
            pass
        assert mine.engine.scan(b"", None, False, 0) == plain.engine.scan(b"", None, False, 0)

    def test_equal_hashes_and_defragmentation(self) -> None:
        """The hash of the records is that of any other engine, before and after the room is given back."""
        from metastore._core.engine import MemoryEngine

        mine, plain = Store(self.make_engine(), 1, 2), Store(MemoryEngine(), 1, 2)
        rng = random.Random(12)
        for step in range(300):
            kind, body = self._operation(rng, mine.revision)
            self._outcome(mine, kind, body)
            self._outcome(plain, kind, body)
            if step % 7 == 0:
                mine.commit(step + 1, 1)
                plain.commit(step + 1, 1)
        mine.commit(1000, 1)
        plain.commit(1000, 1)
        expected = self._hash(plain.engine)
        assert self._hash(mine.engine) == expected
        while sweep_slice(mine, 20):
            assert self._hash(mine.engine) == expected
        while (again := mine.engine.defragment()) is not None:
            time.sleep(again)
        assert self._hash(mine.engine) == expected
        assert mine.engine.size() >= 0

    @staticmethod
    def _hash(engine: Engine) -> int:
        hasher = Hasher(engine.view())
        while hasher.step(50):
            pass
        hasher.close()
        return hasher.hash

    def _operation(self, rng: random.Random, revision: int) -> tuple[int, bytes]:
        """Return (operation kind, 0 for a range; encoded request)."""
        key = bytes(rng.choices(b"\0ab", k=rng.randrange(1, 3)))
        field = b"\x0a" + bytes([len(key)]) + key
        what = rng.random()
        if what < 0.5:
            return 1, field + b"\x12\x02" + b"%02d" % rng.randrange(99) + b"\x20\x01"
        if what < 0.6:
            return 2, field + rng.choice([b"", b"\x12\x01\0", b"\x12\x01b"]) + b"\x18\x01"
        if what < 0.65:
            return 4, b"\x08" + bytes([max(1, min(127, revision - rng.randrange(10)))])
        at = bytes([0x20, max(1, min(127, revision - rng.randrange(8)))]) if rng.random() < 0.5 else b""
        return 0, field + rng.choice([b"", b"\x12\x01\0", b"\x12\x01b"]) + rng.choice([b"", b"\x18\x02"]) + at

    def _outcome(self, store: Store, kind: int, body: bytes) -> object:
        try:
            return execute(store, kind, body) if kind else store.range_reply(body)
        except ApiError as error:
            return repr(error)
