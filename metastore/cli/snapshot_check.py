"""The part of `metastore wal verify` that checks the snapshots of a log: can a start find a state to begin with?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, DamagedData
from ..snapshots.backup_file import verify
from ..snapshots.format import parse_name
from .console import Progress

HEADS = ("snapshot", "bytes", "index", "state", "note")


@dataclass
class CheckedSnapshot:
    """A snapshot file and the result of its check.

    `state` is good, damaged, foreign (the file belongs to another cluster), or older than the beginning of the log; a
    start does not look at such an older file.
    """

    path: Path
    size: int
    index: int
    state: str
    note: str = ""

    def row(self) -> list[object]:
        """Its cells under HEADS."""
        return [self.path.name, self.size, self.index, self.state, self.note]


def look(folder: Path, begins: int, cluster_id: int | None, tell: Progress) -> list[CheckedSnapshot]:
    """The complete files in `folder`, the newest first; those that a start of a log that begins after entry `begins`
    may use are read and checked. cluster_id: None if not known. Raises ConfigError if the folder cannot be read."""
    try:
        names = sorted((path for path in folder.iterdir() if parse_name(path.name)), reverse=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be read: {error.strerror}") from error
    found = []
    for path in names:
        try:
            found.append(_judge(path, begins, cluster_id, tell))
        except (ConfigError, OSError):
            # A running node removes those that are too old.
            if path.exists():
                raise
    return found


def _judge(path: Path, begins: int, cluster_id: int | None, tell: Progress) -> CheckedSnapshot:
    index = (parse_name(path.name) or (0,))[0]
    checked = CheckedSnapshot(path, path.stat().st_size, index, "older", "not read: the log begins later")
    if index < begins:
        return checked
    try:
        header = verify(path, True, lambda at, size: tell(f"verifying {path.name}", at, size)).header
    except DamagedData as error:
        checked.state, checked.note = "damaged", error.text.removeprefix(f"{path}: ")
        return checked
    checked.state, checked.note = "good", ""
    if (header.index, header.term, header.stream) != parse_name(path.name):
        checked.state, checked.note = "damaged", "its name belongs to another one"
    elif cluster_id not in (None, header.cluster_id):
        checked.state, checked.note = "foreign", f"of cluster {header.cluster_id:016x}"
    return checked


def missing(folder: Path, begins: int, found: list[CheckedSnapshot]) -> DamagedData | None:
    """Why a start of a log that begins after entry `begins` is refused for its snapshots, None if it is not."""
    for one in found:
        if one.state == "foreign":
            return DamagedData(f"{one.path}: snapshot {one.note}")
        if one.state == "good":
            return None
    if not begins:
        return None
    bad = "; ".join(f"{one.path.name}: {one.note}" for one in found if one.state == "damaged")
    return DamagedData(
        f"the log begins after entry {begins}, and {folder} has no snapshot of it or later that can be read"
        f"{': ' if bad else ''}{bad}"
    )
