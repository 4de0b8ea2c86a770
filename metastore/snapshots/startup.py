"""The state that a start begins with, before the log goes on: the engine's own, or one from a snapshot.

`choose` decides which snapshot that is. A start calls it, and so does `metastore wal verify`, which says whether a
start would find one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .._core.mvcc_keys import META
from .._core.raft_types import ConfState
from ..errors import DamagedData, FormatError
from ..replica.roster import META_CONF_STATE
from .format import parse_name

if TYPE_CHECKING:
    from .._core.engine import Engine
    from ..storage.wal import Wal
    from .files import Info, SnapshotStore
    from .format import Header

log = logging.getLogger("metastore.snapshot")


class Memory(Protocol):
    """The memory that the contents of a snapshot have to fit into."""

    def check(self) -> None:
        """Raise OutOfMemory if hardly any memory is left."""

    def fits(self, nbytes: int, records: int) -> bool:
        """Whether so many records, of so many bytes together, fit beside the present contents."""


def usable(name: str, begins: int) -> bool:
    """Whether a start looks at the snapshot file of that name if the log begins after entry `begins`."""
    return (parse_name(name) or (0,))[0] >= begins


def choose(
    folder: Path, names: Iterable[Path], begins: tuple[int, int], cluster_id: int | None,
    read: Callable[[Path], Header], hint: str = "",
) -> Path | None:  # fmt: skip
    """Choose the snapshot for a start whose log begins after the entry `begins` (index, term): the newest of `names`
    that can be read. None if there is none and none is needed.

    names: complete files in `folder`, the newest first. cluster_id: None if it is not known. read: reads a file and
    returns its header, or raises FormatError, OSError. hint: a further text for people. Raises DamagedData if the log
    begins after entries that no snapshot holds, or if the newest readable snapshot is not of this log.
    """
    bad = []
    for path in names:
        if not usable(path.name, begins[0]):
            break
        try:
            header = read(path)
        except (FormatError, OSError) as error:
            bad.append(f"{path}: {error}")
            continue
        if cluster_id not in (None, header.cluster_id):
            raise DamagedData(f"{path}: snapshot of cluster {header.cluster_id:016x}, not {cluster_id:016x}")
        check_position(header.index, header.term, begins)
        return path
    if not begins[0]:
        return None
    raise DamagedData(
        f"the log begins after entry {begins[0]}, and {folder} has no snapshot of it or later that can be read"
        f"{': ' if bad else ''}{'; '.join(bad)}{hint}"
    )


def check_position(index: int, term: int, begins: tuple[int, int]) -> None:
    """Raise DamagedData if a state at entry `index` of `term` cannot belong to a log that begins after `begins`."""
    if index < begins[0] or (index == begins[0] and term != begins[1]):
        raise DamagedData(f"the state at entry {index} of term {term} does not belong to the log")


def begin(store: SnapshotStore, engine: Engine, wal: Wal, cluster_id: int, memory: Memory) -> Info | None:
    """Bring `engine` to a state that the log goes on from. Return the snapshot that it was filled from, or None if it
    needed none.

    A persistent engine goes on from what it holds, unless the log begins later. Damaged snapshots are reported and
    skipped. Raises DamagedData as `choose` does, and OutOfMemory.
    """
    applied, begins = engine.applied(), (wal.snapshot_index, wal.snapshot_term)
    if engine.persistent and applied[0] >= max(1, begins[0]):
        _fit_log(wal, *applied, engine.get(META + META_CONF_STATE) or ConfState().encode())
        return None
    began = time.monotonic()
    infos: dict[Path, Info] = {}

    def read(path: Path) -> Header:
        try:
            infos[path] = store.restore(path, engine, pause=memory.check)
        except (FormatError, OSError) as error:
            log.error("snapshot %s is damaged, the one before it is tried: %s", path, error)
            raise
        return infos[path].header

    path = choose(store.path, store.names(), begins, cluster_id, read, _elsewhere(store.path, engine))
    if path is None:
        return None
    header, trailer = infos[path].header, infos[path].trailer
    log.info(
        "restored snapshot index=%d term=%d revision=%d records=%d bytes=%d after=%.3fs",
        header.index, header.term, header.revision, trailer.records, trailer.size, time.monotonic() - began,
    )  # fmt: skip
    _fit_log(wal, header.index, header.term, header.conf_state.encode())
    return infos[path]


def _elsewhere(folder: Path, engine: Engine) -> str:
    """Return a sentence about what another engine has left in the engine's folder."""
    other = folder.parent / "engine"
    if engine.persistent or not other.is_dir() or not any(other.iterdir()):
        return ""
    return f"; {other} holds the data of another engine: start with the storage.engine that it was made with"


def _fit_log(wal: Wal, index: int, term: int, conf_state: bytes) -> None:
    """If the log does not hold the entry that the state ends with, let it begin there: the state was received from a
    leader, and the node died before its log recorded that."""
    if index <= wal.last_index() and wal.term(index) == term:
        return
    check_position(index, term, (wal.snapshot_index, wal.snapshot_term))
    log.warning("the log ends at entry %d and begins anew after the snapshot's %d", wal.last_index(), index)
    wal.save_snapshot_position(index, term, conf_state)
    wal.submit()
