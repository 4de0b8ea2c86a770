"""Backups made without a node, and nodes that are backed up and restored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from metastore._core.raft_types import ConfState
from metastore._core.snap_records import Walker
from metastore.cli import main as cli
from metastore.snapshots.files import SnapshotStore
from metastore.snapshots.format import Header, backup_padding
from metastore.snapshots.restore import number_record

from .client import Client, Failure
from .processes import Server
from .snapshotfiles import engine_of, make_codec, records

Make = Callable[..., Server]


def backup_file(path: Path, meta: dict[bytes, bytes] | None = None, revision: int = 55, count: int = 500) -> Path:
    """Make a backup of some chunks without a node."""
    store = SnapshotStore(path.parent / "snap", chunk_size=4096, make_codec=make_codec)
    state = records(count) | {b"mmembers": b"x", b"mconf_state": b"y", b"malarms": b"z"} | (meta or {})
    state |= {b"mrevision": number_record(revision)}
    header = Header(1000, 7, ConfState((1, 2)), revision, 1, 99, 4096)
    info = store.save(header, Walker(engine_of(state).view()))
    data = info.path.read_bytes()
    data += bytes(backup_padding(len(data)))
    path.write_bytes(data + hashlib.sha256(data).digest())
    return path


def fill(node: Server, first: int, last: int, value: bytes = b"value") -> None:
    """Put the keys from k00000 on, one after the other."""
    with node.client() as client:
        for number in range(first, last):
            client.put(b"k%05d" % number, value)


def works(client: Client) -> bool:
    """Whether the node gives a backup."""
    try:
        return bool(client.backup())
    except Failure:
        return False


def everything(client: Client) -> dict[int, object]:
    """Return the answers at every revision: keys with all their numbers, or the error."""
    answers: dict[int, object] = {}
    for revision in range(1, client.revision() + 1):
        try:
            reply = client.range(b"\0", b"\0", revision=revision)
            answers[revision] = [kv.SerializeToString() for kv in reply.kvs]
        except Failure as failure:
            answers[revision] = failure.text
    return answers


def restored(fresh: Make, backup: Path, *more: str, name: str = "restored") -> Server:
    """Start a node on a directory that `backup` was restored to."""
    node = fresh(name, settings={"node.name": '"r1"', "cluster.token": '"other"'})
    arguments = ["snapshot", "restore", str(backup), "--name", "r1", "--token", "other", "--data-dir"]
    assert cli.main([*arguments, str(node.data_dir), *more]) == 0
    return node
