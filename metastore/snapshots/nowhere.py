"""The snapshots of a member without files: it has none, takes none and gives no backup."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import Unimplemented
from ..settings import IN_MEMORY
from .files import Info, Records, SnapshotStore
from .format import Header


class NoSnapshots(SnapshotStore):
    """Where other members keep files."""

    def __init__(self) -> None:
        self.path = Path(IN_MEMORY) / "snap"
        self.chunk_size = 1

    def names(self) -> list[Path]:
        """There are none."""
        return []

    def parts(self) -> list[Path]:
        """There are none."""
        return []

    def prune(self, keep: Iterable[Path] = ()) -> None:
        """There are none."""

    def save(self, header: Header, walker: Records, between: Callable[[], None] = lambda: None) -> Info:
        """Raises Unimplemented."""
        raise Unimplemented(f'metastore: a member with node.data_dir = "{IN_MEMORY}" gives no backup')
