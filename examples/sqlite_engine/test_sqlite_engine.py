"""The contract suite of MetaStore on this engine: pytest test_sqlite_engine.py."""

import pytest
from sqlite_engine import SqliteEngine

from metastore.storage.contract import EngineContract


class TestSqliteEngine(EngineContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.folder = tmp_path
        self.made = 0

    def make_engine(self):
        self.made += 1
        return SqliteEngine(str(self.folder / str(self.made)))

    def reopen(self, engine):
        engine.close()
        again = SqliteEngine(engine.path)
        again.flush()
        return again
