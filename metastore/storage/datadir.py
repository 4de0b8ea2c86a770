"""The data directory: its layout and the lock that keeps a second process out."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .. import errors
from .locks import lock, unlock

LOCK = "LOCK"

#: A file that is there while a backup is being restored into the directory; nothing is served from it.
RESTORING = "RESTORING"


class DataDir:
    """An existing, locked data directory. `wal`, `snapshots` and `engine` are the folders of its parts.

    Two locks keep a second process out. The lock on the directory itself lasts as long as the directory, even if files
    in it are deleted. Older versions check the lock on the file LOCK, which also names the owner. Both are `flock`
    locks: the kernel drops them with the process, so a kill -9 leaves nothing to clean up.

    The constructor raises DataDirInUse when another process holds one of the locks, ConfigError when the directory
    cannot be used, and DamagedData when a restore into it did not finish (unless this process continues that restore).
    """

    def __init__(self, path: str, restoring: bool = False) -> None:
        self.path = Path(path)
        self._fds: list[int] = []
        try:
            self._open()
            if not restoring and (self.path / RESTORING).exists():
                raise errors.DamagedData(
                    f"data directory {path}: a restore into it was not finished ({path}/{RESTORING}): run "
                    "`metastore snapshot restore` again"
                )
            os.ftruncate(self._fds[1], 0)
            os.pwrite(self._fds[1], f"{os.getpid()}\n".encode(), 0)
        except FileExistsError as error:
            self.close()
            raise errors.ConfigError(f"node.data_dir {path}: is a file, and must be a directory") from error
        except OSError as error:
            self.close()
            raise errors.ConfigError(f"node.data_dir {path}: {error.filename or path}: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._fds.append(os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        if lock(self._fds[0]):
            self._fds.append(os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            if lock(self._fds[1]):
                return
        raise errors.DataDirInUse(f"data directory {self.path} is in use by {self._owner()}")

    @property
    def wal(self) -> Path:
        """Folder of the log's segments."""
        return self.path / "wal"

    @property
    def snapshots(self) -> Path:
        """Folder of the snapshot files."""
        return self.path / "snap"

    @property
    def engine(self) -> Path:
        """Folder of the storage engine's files."""
        return self.path / "engine"

    def check_new(self) -> None:
        """Raises DamagedData if files of a member are here, and ConfigError if the directory is etcd's.

        Without its log, such a member must not begin again: it would forget whom it voted for and what it acknowledged.
        """
        if (self.path / "member" / "wal").is_dir():
            # The user expects to find etcd's keys here; an empty store would look as if they were lost.
            raise errors.ConfigError(
                f"node.data_dir {self.path}: is etcd's ({self.path}/member), whose files are not read: give another"
            )
        for folder in (self.snapshots, self.engine):
            rest = sorted(path for path in folder.glob("*") if path.suffix not in (".tmp", ".part"))
            if rest:
                raise errors.DamagedData(
                    f"{self.wal}: the write-ahead log is gone, but {rest[0]} is there; bring the log back, or move all "
                    f"of {self.path} away to begin with nothing"
                )

    def _owner(self) -> str:
        """The process that last wrote the lock file; only used in the message."""
        text = ""
        with contextlib.suppress(OSError):
            text = (self.path / LOCK).read_bytes()[:32].decode("ascii", "replace").strip()
        if text == str(os.getpid()):
            return f"process {text}, which is this one"
        return f"process {text}" if text.isdigit() else "another process"

    def close(self) -> None:
        """Releases the locks."""
        while self._fds:
            unlock(self._fds[-1])
            os.close(self._fds.pop())

    def descriptors(self) -> list[int]:
        """Those that hold the locks."""
        return list(self._fds)
