"""kill -9 of a node on RocksDB at more failpoints."""

from __future__ import annotations

import pytest
from support.rocksdbkills import Make, killed_at, killed_behind_a_flush

pytestmark = pytest.mark.node_only


@pytest.mark.parametrize("point", ["apply.before@60", "wal.segment@5"])
def test_killed_at_a_failpoint(point: str, fresh: Make) -> None:
    killed_at(point, fresh)


@pytest.mark.parametrize("point", ["wal.release@3", ""])
def test_killed_when_the_log_was_cut_behind_a_flush(point: str, fresh: Make) -> None:
    killed_behind_a_flush(point, fresh)
