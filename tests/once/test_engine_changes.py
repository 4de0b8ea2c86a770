"""The engine of a member is changed in every direction: memory, RocksDB, and the two examples."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
from support.examples import install_examples

from metastore import Config, Node

pytestmark = pytest.mark.node_only

# All twelve changes among four engines, each once.
WAY = (
    "memory", "rocksdb", "memory", "lmdb", "memory", "sqlite", "rocksdb", "lmdb", "rocksdb", "sqlite",
    "lmdb", "sqlite", "memory",
)  # fmt: skip
PUTS = 30


def config_of(folder: Path, engine: str) -> Config:
    """Return a configuration under which the log is cut all the time."""
    return Config(
        node={"data_dir": str(folder / "data")},
        listen={"client": "127.0.0.1:0"},
        storage={"engine": engine},
        limits={"max_key_bytes": 496},  # LMDB's
        maintenance={"snapshot_count": 10, "snapshot_min_size": "1KiB"},
        wal={"segment_size": "64KiB"},
        raft={"max_tail_bytes": "64KiB"},
    )


def test_a_changed_engine_is_filled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_examples(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    assert len(set(itertools.pairwise(WAY))) == 12
    expected: dict[bytes, bytes] = {}
    behind = 0
    for stage, engine in enumerate(WAY):
        with Node(config_of(tmp_path, engine)) as node:
            found = node.get_prefix(b"k")
            assert {one.key: one.value for one in found.kvs} == expected, (stage, engine)
            assert found.revision == 1 + PUTS * stage
            behind += node._running().disk.wal.snapshot_index > 0
            for number in range(PUTS):
                key, value = b"k%02d" % (number % 20), b"%d of %d " % (number, stage) * 300
                node.put(key, value)
                expected[key] = value
        names = {"rocksdb", "lmdb", "sqlite"} & {path.name for path in (tmp_path / "data" / "engine").glob("*")}
        assert names == set(WAY[: stage + 1]) - {"memory"}
    assert behind >= 10, "the log was not cut"
