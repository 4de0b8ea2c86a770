"""The file that says whether acknowledged entries may be missing. Damage is reported, and never taken for another boot
or term."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metastore.errors import DamagedData
from metastore.storage.unsynced import Unsynced


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the file of a running member that is in doubt up to term 17."""
    path = tmp_path / "unsynced"
    path.write_text(json.dumps({"version": 1, "boot_id": "another boot", "doubt": 3}))
    one = Unsynced(path)
    one.begin(lagging=True, term=17)
    assert one.doubt == 17
    return path


def test_every_wrong_byte_and_every_missing_one_is_told(path: Path) -> None:
    good = path.read_bytes()
    assert Unsynced(path).doubt == 17
    for at in range(len(good)):
        for bit in range(8):
            path.write_bytes(good[:at] + bytes([good[at] ^ (1 << bit)]) + good[at + 1 :])
            with pytest.raises(DamagedData, match="unsynced: cannot be read"):
                Unsynced(path)
    for end in range(len(good) - 1):  # all but the newline
        path.write_bytes(good[:end])
        with pytest.raises(DamagedData, match="unsynced: cannot be read"):
            Unsynced(path)
