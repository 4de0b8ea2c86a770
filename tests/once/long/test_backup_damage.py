"""Damage to a backup, byte by byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.backupfiles import backup_file

from metastore.errors import DamagedData
from metastore.snapshots.backup_file import summarize, verify


def test_every_wrong_byte_and_every_missing_one_is_found(tmp_path: Path) -> None:
    path = backup_file(tmp_path / "b", count=5)
    good = path.read_bytes()
    whole = summarize(path).trailer.size  # a backup that ends there is a snapshot file
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(DamagedData, match=r"/b: (before )?offset \d+: "):
            verify(path)
        path.write_bytes(good[:at])
        if at != whole:
            with pytest.raises(DamagedData, match=r"/b: (before )?offset \d+: "):
                verify(path)
