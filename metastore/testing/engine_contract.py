"""The contract that every storage engine keeps, as a test-suite for pytest; a plug-in's author runs it too:

    from metastore.testing.engine_contract import EngineContract

    class TestMyEngine(EngineContract):
        def open_engine(self, folder):
            return MyEngine(folder)

Each test gets new, empty engines, each in a folder of its own. What the class declares as `persistent` decides what is
expected of one that is opened again, and of one whose process was killed. `patience` bounds each test. docs/plugins.md
says what an engine owes; tests/once/test_engine_contract.py has broken engines that the suite must find.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from metastore._core.mvcc import Store
from metastore._core.mvcc_hash import Hasher
from metastore._core.mvcc_sweep import sweep_slice
from metastore._core.mvcc_txn_work import execute
from metastore._core.op import encode_op
from metastore.errors import ApiError

from .engine_base import TookTooLong, batch_of, contents
from .engine_contents import Contents
from .engine_crashes import Crashes
from .engine_damage import Damage
from .engine_replacing import Replacing
from .engine_views import Views

if TYPE_CHECKING:
    from metastore._core.engine import Engine

__all__ = ["EngineContract", "TookTooLong", "batch_of", "contents"]


class EngineContract(Contents, Views, Replacing, Crashes, Damage):
    """Subclass it at the top of a module, under a name that pytest collects, and define `open_engine`."""

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
        slices = 0
        while (again := mine.engine.defragment()) is not None:
            slices += 1
            assert slices < 100_000, "defragment() never ends"
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
