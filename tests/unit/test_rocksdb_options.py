"""RocksDB runs with what is configured, also where its files were there before."""

from __future__ import annotations

from pathlib import Path

import pytest

from metastore.settings import RocksdbTable

rocksdb = pytest.importorskip("metastore.storage.engines.rocksdb")

CACHE = 24 << 20


def test_each_opening_has_the_cache_and_the_filters(tmp_path: Path) -> None:
    """An opening by the file that the last one left had a cache of 8 MiB and no bloom filters."""
    for _ in range(3):
        engine = rocksdb.RocksEngine(str(tmp_path / "engine"), RocksdbTable(cache_size=CACHE))
        assert engine._db.property_value("rocksdb.block-cache-capacity") == str(CACHE)
        newest = max((tmp_path / "engine" / engine.name).glob("OPTIONS-*"))
        assert "filter_policy=bloomfilter" in newest.read_text()
        engine.close()
