"""RocksDB runs with what is configured, also where its files were there before."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from support import kvmessages as pb

from metastore._core.mvcc import Store
from metastore._core.mvcc_stream import chunks
from metastore._core.ordered_map import OrderedMap
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


def full(folder: Path) -> tuple[Any, list[bytes]]:
    """Return an engine with 4 MiB in files and an empty cache, and its keys in random order."""
    random, batch = Random(1), OrderedMap()
    keys = [b"r" + number.to_bytes(8, "big") + bytes(4) for number in range(16_000)]
    for key in keys:
        batch.set(key, random.randbytes(256))
    engine = rocksdb.RocksEngine(str(folder), RocksdbTable(cache_size=CACHE))
    engine.write(batch, 1, 1)
    engine.flush()
    random.shuffle(keys)
    return engine, keys


def cached(engine: Any) -> int:
    """The bytes in the cache, in KiB."""
    return int(engine._db.property_value("rocksdb.block-cache-usage")) >> 10


def test_a_view_fills_the_cache_with_what_it_looks_up_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metastore.storage.engines.rocksdb_reads.CACHED", 100 * 256)
    engine, keys = full(tmp_path / "engine")
    view, before = engine.view(), cached(engine)
    assert len(list(view.iterate(b"r"))) == len(keys)
    # Indexes and filters are always there.
    assert cached(engine) - before < 300, "a walk"
    for at in range(0, len(keys), 100):
        assert all(view.find_many(keys[at : at + 100]))
    assert 400 < cached(engine) - before < 1500, "100 blocks"
    view.close()
    engine.close()


def test_what_is_read_once_is_not_kept(tmp_path: Path) -> None:
    engine, keys = full(tmp_path / "engine")
    for once in (True, False):
        engine.read_once(once)
        before = cached(engine)
        assert len(list(engine.iterate(b"r"))) == len(keys)
        assert all(engine.find_many(keys[:1000]))
        assert (cached(engine) - before < 300) == once
    engine.close()


def test_a_stream_fills_the_cache_with_its_first_8_mib(tmp_path: Path) -> None:
    """Each of its chunks has a view of its own, and looks into the index of a file."""
    engine = rocksdb.RocksEngine(str(tmp_path / "engine"), RocksdbTable(cache_size=CACHE))
    store, random = Store(engine), Random(1)
    for number in range(20_000):
        value = random.randbytes(1000)
        store.put(pb.PutRequest(key=b"k%06d" % number, value=value).SerializeToString())
    store.commit(1, 1)
    engine.flush()
    before = cached(engine)
    body = pb.RangeRequest(key=b"k", range_end=b"l").SerializeToString()
    assert len(chunks(store, body, 1 << 16, 40)) > 300
    assert 7 << 10 < cached(engine) - before < (8 << 10) + 700
    engine.close()
