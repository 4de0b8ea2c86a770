"""Which snapshot files a member relies on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from metastore.snapshots.catalogue import RECEIVED, Catalogue


def snapshot(folder: Path, index: int) -> Any:
    """Return what a catalogue needs of a verified file."""
    path = folder / f"{index}"
    path.touch()
    return SimpleNamespace(path=path, header=SimpleNamespace(index=index, term=1))


def test_a_received_snapshot_waits_for_its_turn_though_another_one_comes(tmp_path: Path) -> None:
    """The simulator found this: the core had taken one snapshot, another arrived before it was installed, and the
    member stopped because the first file was gone."""
    catalogue = Catalogue(None)
    first, second = snapshot(tmp_path, 9), snapshot(tmp_path, 15)
    catalogue.arrived(first)
    catalogue.arrived(second)
    assert catalogue.find(9, 1) is first and catalogue.find(15, 1) is second
    assert catalogue.needed == [first, second]
    catalogue.passed(9)
    assert catalogue.find(9, 1) is None and catalogue.needed == [second]


def test_received_snapshots_are_bounded(tmp_path: Path) -> None:
    catalogue = Catalogue(None)
    received = [snapshot(tmp_path, index) for index in range(1, RECEIVED + 3)]
    for info in received:
        catalogue.arrived(info)
    assert catalogue.needed == received[-RECEIVED:]


def test_a_file_that_is_gone_is_not_found(tmp_path: Path) -> None:
    catalogue = Catalogue(snapshot(tmp_path, 5))
    assert catalogue.find(5, 1) is not None and catalogue.find(5, 2) is None
    (tmp_path / "5").unlink()
    assert catalogue.find(5, 1) is None
