"""etcdserverpb.Maintenance.Snapshot: a backup of the whole state.

`metastore.snapshots.backup_stream` sends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from . import pb

if TYPE_CHECKING:
    from .._core.h2_request import Request
    from .common import Handler
    from .ports import Backups


class Backup:
    """The Snapshot call, the only call of the Maintenance service whose reply is a stream."""

    def __init__(self, backups: Backups) -> None:
        self._backups = backups

    def methods(self) -> Mapping[bytes, Handler]:
        """Path -> handler."""
        return {b"/etcdserverpb.Maintenance/Snapshot": self.snapshot}

    def snapshot(self, request: Request) -> None:
        """Send a backup that holds everything acknowledged before this call."""
        pb.parse(pb.SnapshotRequest, request.body)
        self._backups.begin(request)
