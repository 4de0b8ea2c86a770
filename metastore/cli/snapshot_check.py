"""The part of `metastore wal verify` that checks the snapshots of a log: can a start find a state to begin with?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, DamagedData, FormatError
from ..snapshots.backup_file import verify
from ..snapshots.format import Header, parse_name
from ..snapshots.startup import choose, usable
from .console import Progress

HEADS = ("snapshot", "bytes", "index", "state", "note")


@dataclass
class CheckedSnapshot:
    """A snapshot file and the result of its check.

    `state` is good, damaged, foreign (the file belongs to another cluster), or older than the beginning of the log; a
    start does not look at such an older file. `header` is None where the file is damaged or was not read.
    """

    path: Path
    size: int
    state: str
    note: str
    header: Header | None = None

    def row(self) -> list[object]:
        """Return the cells under HEADS."""
        return [self.path.name, self.size, (parse_name(self.path.name) or (0,))[0], self.state, self.note]


def look(folder: Path, begins: int, cluster_id: int | None, tell: Progress) -> list[CheckedSnapshot]:
    """Return the complete files in `folder`, the newest first. Files that a start of a log that begins after entry
    `begins` may use are read and checked. `cluster_id` is None if it is not known. Raises ConfigError if the folder
    cannot be read."""
    try:
        names = sorted((path for path in folder.iterdir() if parse_name(path.name)), reverse=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be read: {error.strerror}") from error
    checked = []
    for path in names:
        try:
            checked.append(_judge(path, begins, cluster_id, tell))
        except (ConfigError, OSError):
            # A running node removes files that are too old.
            if path.exists():
                raise
    return checked


def _judge(path: Path, begins: int, cluster_id: int | None, tell: Progress) -> CheckedSnapshot:
    size = path.stat().st_size
    if not usable(path.name, begins):
        return CheckedSnapshot(path, size, "older", "not read: the log begins later")
    try:
        header = verify(path, True, lambda at, size: tell(f"verifying {path.name}", at, size)).header
    except DamagedData as error:
        return CheckedSnapshot(path, size, "damaged", error.text.removeprefix(f"{path}: "))
    if (header.index, header.term, header.stream) != parse_name(path.name):
        return CheckedSnapshot(path, size, "damaged", "its name belongs to another one")
    if cluster_id not in (None, header.cluster_id):
        return CheckedSnapshot(path, size, "foreign", f"of cluster {header.cluster_id:016x}", header)
    return CheckedSnapshot(path, size, "good", "", header)


def missing(
    folder: Path, begins: tuple[int, int], cluster_id: int | None, snapshots: Iterable[CheckedSnapshot]
) -> DamagedData | None:
    """Return the reason why a start is refused for its snapshots, or None. For the arguments see `startup.choose`."""
    files = {one.path: one for one in snapshots}

    def read(path: Path) -> Header:
        one = files[path]
        if one.header is None:
            raise FormatError(one.note)
        return one.header

    try:
        choose(folder, files, begins, cluster_id, read)
    except DamagedData as error:
        return error
    return None
