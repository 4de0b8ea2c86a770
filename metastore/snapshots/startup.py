"""The state that a start begins with, before the log goes on: the engine's own, or one from a snapshot.

`choose` decides which snapshot that is. A start calls it, and so does `metastore wal verify`, which says whether a
start would find one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .._core.mvcc_keys import META
from .._core.raft_types import ConfState
from ..errors import CodecFailed, CodecMissing, DamagedData, FormatError
from ..replica.roster import META_CONF_STATE
from .format import parse_name

if TYPE_CHECKING:
    from .._core.engine import Engine
    from ..storage.wal import Wal
    from .files import Info, SnapshotStore
    from .format import Header

log = logging.getLogger("metastore.snapshot")

LOOK = 1000  # pairs between two looks at the memory that is left

#: Other engines with data of this member, and their names. Each is closed when the next one is asked for.
Others = Callable[[], "Iterable[tuple[str, Engine]]"]


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
    read: Callable[[Path], Header],
) -> Path | None:  # fmt: skip
    """Choose the snapshot for a start whose log begins after the entry `begins` (index, term): the newest of `names`
    that can be read. None if there is none and none is needed.

    names: complete files in `folder`, the newest first. cluster_id: None if it is not known. read: reads a file and
    returns its header, or raises FormatError, OSError. Raises DamagedData if the log
    begins after entries that no snapshot holds, or if the newest readable snapshot is not of this log.
    """
    bad = []
    for path in names:
        if not usable(path.name, begins[0]):
            break
        try:
            header = read(path)
        except CodecMissing as error:
            raise CodecMissing(f"{path} needs the codec with flag {error.flag} (not installed)", error.flag) from error
        except CodecFailed as error:
            raise CodecFailed(f"{path}: {error.text}") from error
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
        f"{': ' if bad else ''}{'; '.join(bad)}"
    )


def check_position(index: int, term: int, begins: tuple[int, int]) -> None:
    """Raise DamagedData if a state at entry `index` of `term` cannot belong to a log that begins after `begins`."""
    if index < begins[0] or (index == begins[0] and term != begins[1]):
        raise DamagedData(f"the state at entry {index} of term {term} does not belong to the log")


def begin(
    store: SnapshotStore, engine: Engine, wal: Wal, cluster_id: int, memory: Memory, others: Others = tuple
) -> Info | None:
    """Bring `engine` to a state that the log goes on from. Return the snapshot that it was filled from, or None if it
    needed none.

    A persistent engine goes on from what it holds, unless the log begins later. Damaged snapshots are reported and
    skipped. If no snapshot reaches back far enough, the state comes out of one of the engines that `others()` gives,
    with their names: those that the configuration named before. Raises DamagedData as `choose` does, and OutOfMemory.
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
        except (CodecMissing, CodecFailed):
            raise
        except (FormatError, OSError) as error:
            log.error("snapshot %s is damaged, the one before it is tried: %s", path, error)
            raise
        return infos[path].header

    try:
        path = choose(store.path, store.names(), begins, cluster_id, read)
    except DamagedData:
        if not _take_over(engine, wal, memory, others):
            raise
        path = None
    if path is None:
        return None
    header, trailer = infos[path].header, infos[path].trailer
    log.info(
        "restored snapshot index=%d term=%d revision=%d records=%d bytes=%d after=%.3fs",
        header.index, header.term, header.revision, trailer.records, trailer.size, time.monotonic() - began,
    )  # fmt: skip
    _fit_log(wal, header.index, header.term, header.conf_state.encode())
    return infos[path]


def _take_over(engine: Engine, wal: Wal, memory: Memory, others: Others) -> bool:
    """Fill `engine` with the contents of the engine that the configuration named before. Return whether there was one
    from which the log goes on."""
    began = time.monotonic()
    for name, other in others():
        applied = other.applied()
        if applied[0] < max(1, wal.snapshot_index):
            continue
        conf_state = other.get(META + META_CONF_STATE) or ConfState().encode()
        log.info(
            "storage.engine was changed: the new engine is filled from what %r holds at entry %d", name, applied[0]
        )
        engine.restore(_checked(other.iterate(b""), memory))
        log.info("filled at index=%d term=%d after=%.3fs", *applied, time.monotonic() - began)
        _fit_log(wal, *applied, conf_state)
        return True
    return False


def _checked(pairs: Iterator[tuple[bytes, bytes]], memory: Memory) -> Iterator[tuple[bytes, bytes]]:
    """Yield the pairs, and look at the memory that is left from time to time. Raises OutOfMemory."""
    for number, pair in enumerate(pairs):
        if not number % LOOK:
            memory.check()
        yield pair


def _fit_log(wal: Wal, index: int, term: int, conf_state: bytes) -> None:
    """If the log does not hold the entry that the state ends with, let it begin there: the state was received from a
    leader, and the node died before its log recorded that."""
    if index <= wal.last_index() and wal.term(index) == term:
        return
    check_position(index, term, (wal.snapshot_index, wal.snapshot_term))
    log.warning("the log ends at entry %d and begins again after the snapshot's %d", wal.last_index(), index)
    wal.save_snapshot_position(index, term, conf_state)
    wal.submit()
