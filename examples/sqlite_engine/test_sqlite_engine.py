"""The contract suite of MetaStore on this engine: pytest test_sqlite_engine.py."""

from sqlite_engine import SqliteEngine

from metastore.plugin import Batch
from metastore.testing.engine_contract import EngineContract


class TestSqliteEngine(EngineContract):
    def open_engine(self, folder):
        return SqliteEngine(folder)

    def test_what_a_view_keeps_out_of_the_file_is_not_durable(self):
        engine, batch = self.make_engine(), Batch()
        batch.set(b"a", b"1")
        engine.write(batch, 1, 1)
        engine.flush()
        view = engine.view()
        engine.write(batch, 2, 1)
        engine.flush()
        assert engine.durable_applied() == 1
        view.close()
        engine.flush()
        assert engine.durable_applied() == 2
        engine.close()
