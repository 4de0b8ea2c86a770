"""The folders of storage engines. Each has `engine/<name>/` in the data directory, with a marker of name and format.

FORMATS.md, "Engine folders". Up to version 0.1 an engine's files lay in `engine/` itself, and engines shared it.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from .. import errors
from .segments import sync_folder

log = logging.getLogger("metastore.engine")

MARKER = "metastore-engine.json"
VERSION = 1  # of the marker itself
ASIDE = "engine.old"  # the folder `engine` while it moves into one of its own
ROCKSDB, ROCKSDB_RECORD = "rocksdb", "engine.json"


@dataclass(frozen=True, slots=True)
class Marker:
    """What a marker says: whose folder this is, and in which version its files are."""

    engine: str
    format: int


def read_marker(folder: Path) -> Marker | None:
    """The marker of an engine's folder; None if there is none. Raises DamagedData, DiskFailed."""
    path = folder / MARKER
    try:
        record = json.loads(path.read_bytes())
        if record["version"] != VERSION:
            raise errors.DamagedData(f"{path}: has version {record['version']}, this program reads {VERSION}")
        marker = Marker(record["engine"], record["format"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise errors.DiskFailed(f"storage engine: {errors.reason(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise errors.DamagedData(
            f"{path}: is damaged: it must be a JSON object with version, engine, format"
        ) from error
    if type(marker.engine) is not str or type(marker.format) is not int:
        raise errors.DamagedData(f"{path}: is damaged: engine must be a string, and format a number")
    return marker


def write_marker(folder: Path, marker: Marker) -> None:
    """Write the marker, durably. Raises DiskFailed."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = folder / f"{MARKER}.tmp"
        with open(new, "w", encoding="utf-8") as file:
            json.dump({"version": VERSION, "engine": marker.engine, "format": marker.format}, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, folder / MARKER)
        sync_folder(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise errors.DiskFailed(f"storage engine: {errors.reason(error)}") from error


def check_marker(folder: Path, name: str, version: object) -> None:
    """Raise ConfigError if the folder's marker is that of another engine, or of a format other than `version`."""
    marker = read_marker(folder)
    if marker is None:
        return
    if marker.engine != name:
        raise errors.ConfigError(f"storage.engine: {folder} belongs to the engine {marker.engine!r}, not to {name!r}")
    if marker.format != version:
        raise errors.ConfigError(
            f"storage.engine: {folder} has format {marker.format} of the engine {name!r}, and the one that is "
            f"installed reads format {version}"
        )


def marked(root: Path) -> list[str]:
    """The names of the engines that have data below `root`. Raises DamagedData, DiskFailed."""
    if not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if path.is_dir() and read_marker(path) is not None)


def move_old(root: Path, configured: str) -> None:
    """Give the files that an older version left in `root` itself a folder of their own, in steps of which each is a
    rename. Files that are not RocksDB's are those of a plug-in, and taken for those of the engine that is `configured`.

    Raises DiskFailed, ConfigError.
    """
    aside = root.with_name(ASIDE)
    try:
        if not aside.exists():
            if not _is_old(root, configured) or _owner(root, configured) is None:
                return
            os.rename(root, aside)
            sync_folder(root.parent)
        owner = _owner(aside, configured)
        if owner is None:
            raise errors.ConfigError(f"storage.engine: {aside} holds the data of an engine that is not configured")
        root.mkdir(exist_ok=True, mode=0o700)
        os.rename(aside, root / owner)
        sync_folder(root)
        sync_folder(root.parent)
    except OSError as error:
        raise errors.DiskFailed(f"storage engine: {errors.reason(error)}") from error
    if owner == ROCKSDB:
        write_marker(root / owner, Marker(owner, 1))
    log.warning("storage engine: the files of %s were moved to %s", root, root / owner)


def _is_old(root: Path, configured: str) -> bool:
    """Whether files of an engine lie in `root` itself: there is a file, or only folders of which none is marked."""
    entries = list(root.iterdir()) if root.is_dir() else []
    if any((path / MARKER).exists() for path in entries):
        return False
    return any(not path.is_dir() or path.name != configured for path in entries)


def _owner(folder: Path, configured: str) -> str | None:
    """The engine whose files lie in `folder` itself; None if that cannot be told."""
    if (folder / ROCKSDB_RECORD).exists():
        return ROCKSDB
    return None if configured in (ROCKSDB, "memory") else configured
