"""Histories under faults for a long time: with each engine, with both at once, and with both kinds of reads."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest
from support.rounds import run_rounds

LONG_ROUNDS = 50
# A member that is away for a second comes back by a snapshot of many chunks, and the log is read back from many
# segments.
EAGER = {
    "wal.segment_size": '"64KiB"',
    "raft.max_tail_bytes": '"64KiB"',
    "maintenance.snapshot_count": "100",
    "maintenance.snapshot_chunk_size": '"4KiB"',
}
ROCKSDB = {"storage.engine": '"rocksdb"', "storage.rocksdb.write_buffer_size": '"64KiB"'}


@pytest.mark.node_only
@pytest.mark.parametrize("read_only", ["safe", "lease"])
@pytest.mark.parametrize("engines", ["memory", "mixed", "rocksdb"])
def test_linearizable_under_faults_for_long(tmp_path: Path, engines: str, read_only: str) -> None:
    rounds = int(os.environ.get("METASTORE_ROUNDS", LONG_ROUNDS))
    seed = int(os.environ.get("METASTORE_SEED", secrets.randbits(32)))
    own = {"memory": [{}, {}, {}], "mixed": [{}, ROCKSDB, {}], "rocksdb": [ROCKSDB] * 3}[engines]
    run_rounds(tmp_path / "cluster", rounds, seed, own, **EAGER, **{"raft.read_only": f'"{read_only}"'})
