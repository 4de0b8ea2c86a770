"""The contract suite of MetaStore on this engine: pytest test_lmdb_engine.py."""

import os

import pytest
from lmdb_engine import LmdbEngine

from metastore.plugin import Batch, EngineFull
from metastore.testing.engine_contract import EngineContract
from metastore.testing.engine_damage import beheaded, cut

OPTIONS = {"map_size": 256 << 20, "max_readers": 32, "sync": True}


class TestLmdbEngine(EngineContract):
    # LMDB maps its file and has no checksums, so pages with nonsense in them may end the process by a signal.
    damages = (cut, beheaded)

    def open_engine(self, folder):
        return LmdbEngine(folder, OPTIONS)

    def test_a_full_map_refuses_writes_and_serves_reads(self):
        engine = LmdbEngine(self.new_folder(), {**OPTIONS, "map_size": 1 << 20})
        index = 0
        with pytest.raises(EngineFull, match="map_size must be larger"):
            while True:
                engine.write(batch({b"k%d" % index: os.urandom(50_000)}), index + 1, 1)
                index += 1
        assert engine.full and index > 5
        assert engine.applied() == (index, 1) and len(engine.get(b"k0")) == 50_000
        engine.write(batch(dict.fromkeys(b"k%d" % n for n in range(index))), index + 1, 1)
        assert not engine.full
        # LMDB uses a page again when no transaction that may be found after a crash needs it: two writes later.
        for more in (2, 3, 4):
            engine.write(batch({b"k": b""}), index + more, 1)
        engine.write(batch({b"k": os.urandom(50_000)}), index + 5, 1)
        engine.close()

    def test_room_that_is_free_is_used_again(self):
        """The file does not grow, and size() goes back, when the same keys are written again and again."""
        engine = self.make_engine()
        file = os.path.join(engine.database.path, "data.mdb")
        sizes = []
        for index in range(1, 40):
            engine.write(batch({b"k%d" % n: os.urandom(1000) for n in range(200)}), index, 1)
            sizes.append(os.path.getsize(file))
        assert sizes[-1] <= 3 * sizes[0]
        full = engine.size()
        engine.write(batch(dict.fromkeys(b"k%d" % n for n in range(200))), 40, 1)
        assert engine.size() < full / 4
        engine.close()

    def test_without_sync_only_a_flush_makes_writes_last(self):
        engine = LmdbEngine(self.new_folder(), {**OPTIONS, "sync": False})
        engine.write(batch({b"a": b"1"}), 1, 1)
        engine.write(batch({b"a": b"2"}), 2, 1)
        assert engine.durable_applied() == 0
        engine.flush()
        assert engine.durable_applied() == 2
        engine.close()

    def test_folders_that_do_not_count_are_removed(self):
        folder = self.new_folder()
        engine = self.open_engine(folder)
        engine.stage().close()
        assert sorted(os.listdir(folder)) == ["current", "db-0", "db-1"]
        engine.close()
        self.open_engine(folder).close()
        assert sorted(os.listdir(folder)) == ["current", "db-0"]


def batch(pairs):
    made = Batch()
    for key, value in pairs.items():
        made.set_deleted(key) if value is None else made.set(key, value)
    return made
