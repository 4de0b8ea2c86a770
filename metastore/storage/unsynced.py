"""The file `unsynced` tells a starting member whether its log may lack entries that it has acknowledged.

A member with `wal.sync = "async"` acknowledges entries when they are in the page cache. A kill of the process loses
nothing of the page cache, but a power cut does. While such a member runs, the file therefore holds the boot id of the
machine. A different boot id at the next start means that the page cache was lost. The file keeps this doubt until the
log is complete again (see "Doubt" in `_core/raft.pyx`), even if `wal.sync` changes meanwhile. Layout: FORMATS.md,
"Unsynced".
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import zlib
from dataclasses import dataclass
from pathlib import Path

from ..errors import DamagedData
from .segments import sync_folder, write_all

log = logging.getLogger("metastore.wal")

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """An id that differs between two boots of a machine. If the system has none, each start counts as a new boot."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return secrets.token_hex(16)


def _sum(record: dict[str, object]) -> int:
    return zlib.crc32(json.dumps(record).encode())


@dataclass(frozen=True)
class Lag:
    """How far syncs may lag behind the reported position: seconds since the first unsynced byte was written, and
    bytes."""

    interval: float
    max_bytes: int


class Unsynced:
    """The file and its contents. If `doubt` is not 0, entries of this term or of earlier terms may be missing.

    The constructor raises DamagedData when it cannot understand the file, and OSError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begun = False
        self._boot, self.doubt = self._read()

    def begin(self, *, lagging: bool, term: int) -> None:
        """Call this when the log is recovered, before anything is acknowledged. Raises OSError.

        `term` is the term of the recovered log. `lagging` says whether this run acknowledges before it syncs.
        """
        now = boot_id()
        if self._boot and self._boot != now:
            self.doubt = max(self.doubt, term)
        if self.doubt:
            log.warning(
                "the machine went down while this member acknowledged writes before they were synced (wal.sync): its "
                "log may lack entries up to term %d. Unless wal.accept_loss is set, its vote counts only where all "
                "members vote alike, until it has caught up with a leader", self.doubt,
            )  # fmt: skip
        self._boot = now if lagging else ""
        self._begun = True
        self._write()

    def _read(self) -> tuple[str, int]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return "", 0
        try:
            record = json.loads(data.decode())
            if record["version"] != 1:
                raise ValueError(f"version {record['version']!r}, known is 1")
            # Older files have no checksum.
            stated = record.pop("sum", None)
            if set(record) != {"version", "boot_id", "doubt"} or stated not in (None, _sum(record)):
                raise ValueError("its sum does not fit it")
            boot, doubt = record["boot_id"], record["doubt"]
            if not isinstance(boot, str) or type(doubt) is not int or doubt < 0:
                raise ValueError("a field is of the wrong type")
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedData(f"{self._path}: cannot be read: {error}") from error
        return boot, doubt

    def _write(self) -> None:
        if self._boot or self.doubt:
            temporary = self._path.with_suffix(".tmp")
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                record = {"version": 1, "boot_id": self._boot, "doubt": self.doubt}
                write_all(fd, json.dumps({**record, "sum": _sum(record)}).encode() + b"\n", 0)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, self._path)
        elif self._path.exists():
            self._path.unlink()
        else:
            return
        sync_folder(self._path.parent)

    def settled(self) -> None:
        """No entries are missing any more. Raises OSError."""
        log.warning("the log holds all that was acknowledged before term %d was over", self.doubt)
        self.doubt = 0
        self._write()

    def closed(self, *, synced: bool) -> None:
        """Nothing more will be acknowledged. Raises OSError.

        If not everything is `synced` (a sync failed), the page cache may drop what it could not write. The next start
        is then like a start after a power cut.
        """
        if self._begun:
            self._boot = "failed sync" if self._boot and not synced else ""
            self._write()
