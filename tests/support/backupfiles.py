"""Backups made without a node."""

from __future__ import annotations

import hashlib
from pathlib import Path

from metastore._core.raft_types import ConfState
from metastore._core.snap_records import Walker
from metastore.snapshots.files import SnapshotStore
from metastore.snapshots.format import Header, backup_padding
from metastore.snapshots.restore import number_record

from .snapshotfiles import engine_of, make_codec, records


def backup_file(path: Path, meta: dict[bytes, bytes] | None = None, revision: int = 55, count: int = 500) -> Path:
    """A backup of some chunks, made without a node."""
    store = SnapshotStore(path.parent / "snap", chunk_size=4096, make_codec=make_codec)
    state = records(count) | {b"mmembers": b"x", b"mconf_state": b"y", b"malarms": b"z"} | (meta or {})
    state |= {b"mrevision": number_record(revision)}
    header = Header(1000, 7, ConfState((1, 2)), revision, 1, 99, 4096)
    info = store.save(header, Walker(engine_of(state).view()))
    data = info.path.read_bytes()
    data += bytes(backup_padding(len(data)))
    path.write_bytes(data + hashlib.sha256(data).digest())
    return path
