"""The numbers on the pages of a node."""

from __future__ import annotations

from pathlib import Path

import pytest

from metastore import Config, Node
from metastore.api.numbers import MEANINGS


@pytest.mark.node_only
def test_every_number_of_a_node_has_a_meaning(tmp_path: Path) -> None:
    """HELP lines that only repeat a name are of no use."""
    config = Config(node={"data_dir": str(tmp_path)}, listen={"client": "127.0.0.1:0"})
    with Node(config.changed(storage={"engine": "rocksdb"}, wal={"segment_size": "1MiB"})) as member:
        names = set(member.stats())
    missing = sorted(names - set(MEANINGS))
    assert missing == [], "write what they mean into metastore/api/numbers.py"
    assert all(text.endswith(".") for text in MEANINGS.values())
