"""A member finds four things on its disk: its data directory, its identity, its log, and a note of entries that may be
missing from the log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from typing import TYPE_CHECKING

from .. import errors
from ..net.accept import real_address
from ..peers.join import join_unless
from ..replica.roster import Identity
from ..settings import IN_MEMORY
from ..storage.datadir import DataDir
from ..storage.in_memory import NoDataDir, NothingUnsynced, open_wal
from ..storage.starts import next_start
from ..storage.unsynced import Unsynced
from ..storage.wal import Lag, Wal

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import Config
    from ..failpoints import Failpoints
    from ..settings import WalTable
    from ..threads import Gate
    from .closing import Closing

log = logging.getLogger("metastore.node")

CLOSE_TIMEOUT = 10.0  # seconds that the log of a node that stops by itself has for its last group


class Disk:
    """The constructor opens everything, and `closing` closes it. A join that is under way ends when `stopping` is open.

    The constructor raises ConfigError, DataDirInUse, DamagedData, DiskFailed and Stopped. Attributes:

    in_memory: whether the member has no files.
    data_dir: the data directory, which is locked.
    identity: the member that the directory belongs to.
    wal: the log, which is recovered.
    unsynced: the note of entries that may be missing from the log.
    start: the number of this start of the directory.
    close_by: the time by which the log must be closed (seconds of `now`); None for CLOSE_TIMEOUT after the request.
    """

    def __init__(
        self, config: Config, failpoints: Failpoints, now: Callable[[], float], stopping: Gate,
        closing: Closing,
    ) -> None:  # fmt: skip
        self._now = now
        self.close_by: float | None = None
        self.in_memory = config.node.data_dir == IN_MEMORY
        if self.in_memory:
            self._open_in_memory(config, failpoints, stopping, closing)
            return
        self.data_dir = DataDir(config.node.data_dir)
        closing.callback(self.data_dir.close)
        fresh = None
        if not any(self.data_dir.wal.glob("*.wal")):
            self.data_dir.check_new()
            fresh = _new_identity(config, stopping).encode()
        self.unsynced = Unsynced(self.data_dir.path / "unsynced")
        self.wal = Wal.open(
            self.data_dir.wal,
            segment_size=config.wal.segment_size,
            group_commit=config.wal.group_commit,
            metadata=fresh,
            failpoints=failpoints,
            lag=_lag(config.wal),
            busy_poll=config.performance.busy_poll,
        )
        closing.callback(self._close_wal)
        self.identity = self._owner(config)
        if fresh is None and self.identity.differs(dict(config.cluster.initial)):
            log.info("cluster.initial is not that of %s, whose log says who the members are", self.data_dir.path)
        self.start = next_start(self.data_dir.path)
        lagging, term = config.wal.sync == "async", self.wal.hard_state.term
        try:
            self.unsynced.begin(lagging=lagging, term=term)
        except OSError as error:
            raise errors.DiskFailed(errors.reason(error)) from error

    def _open_in_memory(self, config: Config, failpoints: Failpoints, stopping: Gate, closing: Closing) -> None:
        """What is the same for a member without files: all but the files."""
        log.warning('node.data_dir = "%s": this member has no files; all is lost when it stops', IN_MEMORY)
        self.data_dir = NoDataDir()
        self.unsynced = NothingUnsynced()
        self.wal = open_wal(
            segment_size=config.wal.segment_size,
            group_commit=config.wal.group_commit,
            metadata=_new_identity(config, stopping).encode(),
            failpoints=failpoints,
            busy_poll=config.performance.busy_poll,
        )
        closing.callback(self._close_wal)
        self.identity = self._owner(config)
        self.start = 1

    def _owner(self, config: Config) -> Identity:
        try:
            identity = Identity.decode(self.wal.metadata)
        except errors.FormatError as error:
            raise errors.DamagedData(f"{self.data_dir.wal}: {error.text}") from error
        try:
            identity.check(config.node.name, config.cluster.token)
        except errors.ConfigError as error:
            raise errors.ConfigError(f"{self.data_dir.path}: {error.text}") from error
        return identity

    def descriptors(self) -> list[int]:
        """Those of the locks and of the log."""
        return [*self.data_dir.descriptors(), *self.wal.descriptors()]

    def _close_wal(self) -> None:
        """Closes the log. After a failure of the disk, nothing more is written to it."""
        left = CLOSE_TIMEOUT if self.close_by is None else self.close_by - self._now()
        with contextlib.suppress(errors.DiskFailed):
            self.wal.close(max(0.1, left))
        if self.wal.sync_pending_since is not None:
            return  # another write would wait for that disk, too
        with contextlib.suppress(OSError):
            self.unsynced.closed(synced=not self.wal.unsynced[0])


def absolute(data_dir: str) -> str:
    """The data directory as an absolute path. Raises ConfigError."""
    if data_dir == IN_MEMORY:
        return data_dir
    try:
        return os.path.abspath(data_dir)
    except OSError as error:
        why = f"the working directory is gone: {error.strerror}"
        raise errors.ConfigError(f"node.data_dir {data_dir}: {why}") from error


def _lag(table: WalTable) -> Lag | None:
    """The bounds within which syncs may lag behind acknowledgements; None if they may not."""
    if table.sync != "async":
        return None
    log.warning(
        'wal.sync = "async": writes are acknowledged up to %g ms and %d bytes before they are synced; a power cut '
        "can take that much", table.sync_interval * 1000, table.async_max_bytes,
    )  # fmt: skip
    return Lag(table.sync_interval, table.async_max_bytes)


def _new_identity(config: Config, stopping: Gate) -> Identity:
    """The identity for a new data directory, of a member that begins the cluster or joins it."""
    initial = dict(config.cluster.initial)
    own = initial[config.node.name] = real_address(initial[config.node.name])
    incarnation = secrets.token_hex(16)
    if config.cluster.state == "existing":
        others = initial.values()
        return join_unless(stopping, others, config.node.name, config.cluster.token, own, incarnation)
    return Identity.create(config.node.name, config.cluster.token, initial, incarnation)
