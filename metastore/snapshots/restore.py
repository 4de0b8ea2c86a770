"""Makes the first files of a new member from a backup: a log with a new identity, and a snapshot of the state.

The restore leaves out what the backup says about its cluster: members, Raft's membership, and the members' alarms. The
new member begins like a member of a new cluster, except that it has a state. Records are copied one by one, so memory
is a few chunks.

A restore that is killed leaves a file RESTORING in the directory. No node starts from such a directory, but a restore
can begin there again. RESTORING is the first file to be created and the last to be removed.
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from .._core.codec import PayloadCodec
from .._core.engine import APPLIED_KEY
from .._core.entry import HardState
from .._core.leases import without_checkpoint
from .._core.mvcc_keys import COMPACT_KEY, META, REVISION_KEY
from .._core.raft_types import ConfState
from ..errors import ConfigError, DamagedData, DiskFailed, NoSpace, reason
from ..failpoints import Failpoints
from ..replica.alarms import META_ALARMS
from ..replica.roster import META_CONF_STATE, META_MEMBERS, Identity
from ..storage.datadir import RESTORING, DataDir
from ..storage.segments import sync_folder
from ..storage.wal import Wal
from .backup_file import BackupReader, BackupSummary, verify
from .files import Info, SnapshotStore
from .format import Header

MAX_REVISION = (1 << 63) - 1
#: Meta records about members have keys that begin like this.
OF_MEMBERS = tuple(META + name for name in (META_MEMBERS, META_CONF_STATE, META_ALARMS))

_NUMBER = struct.Struct("<Bq")
_POSITION = struct.Struct("<QQ")
#: The names that may exist in a data directory that counts as empty.
_NOTHING = {"LOCK", "lost+found"}

Progress = Callable[[str, int, int], object]


def number_record(value: int) -> bytes:
    """The value of a counter in table 'm' (FORMATS.md, "Engine records")."""
    return _NUMBER.pack(1, value)


def rewrite(records: Iterable[tuple[bytes, bytes]], replace: Mapping[bytes, bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yields `records` in order, without those of members. Keys in `replace` get that value, even if they
    were missing.
    """
    rest = sorted(replace.items(), reverse=True)
    for key, value in records:
        while rest and rest[-1][0] < key:
            yield rest.pop()
        if rest and rest[-1][0] == key:
            yield rest.pop()
        elif not key.startswith(OF_MEMBERS):
            yield key, value
    while rest:
        yield rest.pop()


class Stream:
    """Presents (key, value) pairs as the stream of a snapshot. Its caller takes it piece by piece, as from a
    `snapfile.Walker`.
    """

    def __init__(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        self._records = iter(records)
        self._buffer = bytearray()
        self._over = False
        self.records = 0
        self.done = False

    def take(self, limit: int) -> bytes:
        """Returns the next `limit` bytes, fewer only at the end. `done` is true when nothing follows."""
        buffer = self._buffer
        while len(buffer) <= limit and not self._over:
            item = next(self._records, None)
            if item is None:
                self._over = True
            else:
                buffer += struct.pack("<II", len(item[0]), len(item[1]))
                buffer += item[0]
                buffer += item[1]
                self.records += 1
        piece = bytes(buffer[:limit])
        del buffer[:limit]
        self.done = self._over and not buffer
        return piece


class Restore:
    """One restore of `source` into `data_dir` for the member `identity`. Call `check` and then `run`.

    bump: the number that is added to the revision. mark_compacted: everything up to the new revision counts as
    compacted.
    """

    def __init__(
        self, source: Path, data_dir: Path, identity: Identity, *, bump: int = 0, mark_compacted: bool = False,
        check_digest: bool = True, chunk_size: int, make_codec: Callable[[], PayloadCodec],
        failpoints: Failpoints | None = None, progress: Progress = lambda _what, _at, _size: None,
    ) -> None:  # fmt: skip
        if bump < 0 or (bump > 0) != mark_compacted:
            # This is etcd's rule: old watchers would otherwise wait at revisions that return with other contents.
            raise ConfigError("--bump-revision N (above 0) and --mark-compacted go together")
        self.source = source
        self.data_dir = data_dir
        self.identity = identity
        self.bump = bump
        self.check_digest = check_digest
        self.chunk_size = chunk_size
        self.make_codec = make_codec
        self.failpoints = failpoints or Failpoints()
        self.progress = progress

    def check(self) -> BackupSummary:
        """Reads the whole backup and checks the directory; changes nothing. Raises DamagedData, ConfigError."""
        self._check_empty()
        summary = verify(
            self.source, self.check_digest, lambda at, size: self.progress(f"verifying {self.source}", at, size)
        )
        if summary.header.revision > MAX_REVISION - self.bump - 1:
            raise ConfigError(
                f"--bump-revision {self.bump}: {summary.header.revision} and that is no revision any more"
            )
        return summary

    def _check_empty(self) -> None:
        try:
            there = {entry.name for entry in os.scandir(self.data_dir)} - _NOTHING
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(f"{self.data_dir}: cannot be used: {error.strerror}") from error
        if there and RESTORING not in there:
            names = ", ".join(sorted(there)[:3])
            raise ConfigError(f"{self.data_dir} is not empty ({names}): a backup is restored into a new directory")

    def run(self, summary: BackupSummary) -> Info:
        """Make the files. `found` is the summary that `check` returned. Raises DataDirInUse, ConfigError, DamagedData,
        NoSpace, DiskFailed."""
        directory = DataDir(str(self.data_dir), restoring=True)
        try:
            self._check_empty()
            return self._make(directory, summary)
        except NoSpace as error:
            raise DiskFailed(f"{self.data_dir}: no space left on device") from error
        except OSError as error:
            raise DiskFailed(f"{self.data_dir}: {reason(error)}") from error
        finally:
            directory.close()

    def _make(self, directory: DataDir, summary: BackupSummary) -> Info:
        marker = directory.path / RESTORING
        with marker.open("wb") as file:
            file.write(f"A restore of {self.source} began here and did not end.\n".encode(errors="replace"))
            os.fsync(file.fileno())
        sync_folder(directory.path)
        sync_folder(directory.path.parent)
        for folder in (directory.wal, directory.snapshots, directory.engine):
            if folder.exists():
                shutil.rmtree(folder)
        self.failpoints.hit("restore.begin")
        info = self._write_state(directory, summary.header)
        self.failpoints.hit("restore.log")
        self._write_log(directory, info.header)
        self.failpoints.hit("restore.end")
        sync_folder(directory.path)
        marker.unlink()
        sync_folder(directory.path)
        return info

    def _write_state(self, directory: DataDir, old: Header) -> Info:
        revision = old.revision + self.bump
        counters = {REVISION_KEY: number_record(revision), APPLIED_KEY: _POSITION.pack(old.index, old.term)}
        if self.bump:
            counters[COMPACT_KEY] = number_record(revision)
        voters = tuple(sorted(member.id for member in self.identity.members))
        header = Header(
            old.index, old.term, ConfState(voters=voters), revision, int.from_bytes(os.urandom(8), "little"),
            self.identity.cluster_id, self.chunk_size,
        )  # fmt: skip
        store = SnapshotStore(
            directory.snapshots, chunk_size=self.chunk_size, make_codec=self.make_codec, failpoints=self.failpoints
        )
        reader = BackupReader(self.source, False, lambda at, size: self.progress(f"restoring {self.source}", at, size))
        return store.save(header, Stream(rewrite(self._same(reader, old), counters)))

    def _same(self, reader: BackupReader, old: Header) -> Iterator[tuple[bytes, bytes]]:
        """Returns the records if their position and revision are those of the header."""
        expected = {REVISION_KEY: number_record(old.revision), APPLIED_KEY: _POSITION.pack(old.index, old.term)}
        for key, value in reader.records():
            if expected.pop(key, value) != value:
                raise DamagedData(f"{self.source}: its header and its record {key!r} say different things")
            # Time has passed since the backup, and no leader has counted it. So each lease has its whole time again.
            yield key, without_checkpoint(value) if key.startswith(b"l") else value
        if APPLIED_KEY in expected:
            raise DamagedData(f"{self.source}: has no log position")

    def _write_log(self, directory: DataDir, header: Header) -> None:
        """Writes a log with this member's identity that begins after the state, in the state's term."""
        wal = Wal.open(
            directory.wal, segment_size=4 << 20, metadata=self.identity.encode(), failpoints=self.failpoints,
            log=logging.getLogger("metastore.restore"),
        )  # fmt: skip
        try:
            wal.save_snapshot_position(header.index, header.term, header.conf_state.encode())
            wal.append(1, None, HardState(header.term, 0, header.index))
            waiter = select.poll()
            waiter.register(wal.fileno(), select.POLLIN)
            wal.submit()
            while wal.durable < 1 or wal.durable_snapshot != header.index:
                waiter.poll()
                wal.poll()
        finally:
            wal.close()
