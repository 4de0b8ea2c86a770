"""The snapshots of one running member: when one is taken, which thread writes it, and what the log may drop afterwards.

`Snapshots` belongs to the loop's thread. A separate thread writes each snapshot from a view of the engine. The view is
taken between two applies, together with the log position and the membership; `_core/snap_records.pyx` explains why this
does not delay the loop. When the file is on disk, has been read back and is verified, the writing thread reports it.
The loop's thread then moves the beginning of the log to the verified snapshot *before* the new one, so that a start can
use either of the two.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from .._core.raft_types import Snapshot, SnapshotNotReady
from .._core.replica_turn import KeeperFields
from .._core.snap_records import Walker
from ..errors import (
    CodecFailed,
    CodecMissing,
    DamagedData,
    DiskFailed,
    EngineDamaged,
    EngineFailed,
    FormatError,
    MetaStoreError,
    reason,
)
from ..threads import begin
from .files import Cancelled, Info
from .format import Header
from .policy import client_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from .._core.engine import Engine
    from .._core.raft_types import ConfState
    from ..failpoints import Failpoints
    from ..net.loop import Loop
    from ..replica.driver import Driver
    from ..storage.wal import Wal
    from .catalogue import Catalogue
    from .files import SnapshotStore
    from .policy import Policy
    from .startup import Memory

log = logging.getLogger("metastore.snapshot")

PAUSE = 0.0001  # seconds between two slices of work in a thread that needs the GIL, in which the loop gets its turn
RETRY = 10.0  # seconds after an attempt that failed
#: Entries that an engine with files of its own keeps in the log for slow followers, at most; half of `snapshot_count`.
CATCH_UP = 5000


class Snapshots(KeeperFields):
    """The snapshots of one member, made when the engine holds what the start begins with (`startup.py`).

    store: the files. catalogue: the known files and their uses. memory: the room that an installed snapshot has to fit
    into.
    """

    def __init__(
        self, store: SnapshotStore, catalogue: Catalogue, engine: Engine, wal: Wal, driver: Driver, loop: Loop,
        policy: Policy, *, cluster_id: int, failpoints: Failpoints, memory: Memory,
    ) -> None:  # fmt: skip
        self.store = store
        self.catalogue = catalogue
        self.engine = engine
        self.wal = wal
        self.driver = driver
        self.loop = loop
        self.policy = policy
        self.cluster_id = cluster_id
        self.failpoints = failpoints
        self.memory = memory
        #: Whether the engine's contents are lost when the process ends.
        self.volatile = not engine.persistent
        self.taken = self.failed = self.bytes = 0
        self.seconds = 0.0
        self._relieved = 0  # the last entry that was applied when the log was last cut for lack of room
        self._waiting = []
        self._install: threading.Thread | None = None
        self._install_next: tuple[Snapshot, Callable[[], None]] | None = None
        self._stopping = False
        for begun in catalogue.good:
            policy.restored(begun.header.index, 0, begun.trailer.size, int(engine.data_size()))
        self._look_at = policy.index + policy.count

    # ---- when and how

    def turn(self, now: float, pressed: bool = False) -> None:
        """Begins a snapshot if one is due. The loop calls this at the end of each turn, at `now` (seconds).

        `pressed` says that the log has no room left on the disk; the log is then cut as far as possible.
        """
        self._pressed = pressed
        if self._releasing:
            self._release()
        if self._waiting and self._thread is None:
            self.begin()
        if self._flushed_to:
            self._flushed()
        if (self._sweeping or self.driver.kv.sweep_pending) and self._swept():
            # The snapshot may fit by now, and the log of a full disk may wait for it.
            self._not_before = 0.0
        if pressed:
            self._relieve(now)
        index = self.driver.applier.applied_index
        if index < self._look_at or self._thread is not None:
            return
        if now < self._not_before:
            return
        # A flush of an engine with files writes no more than clients wrote, so there is no cost to be amortised.
        if self.policy.due(index, self._counted(), int(self.engine.data_size()) if self.volatile else 0):
            self._due(now)
        else:
            self._look_at = index + max(1, self.policy.count // 16)

    def _swept(self) -> bool:
        """Whether a compaction was swept to its end since the last attempt that failed."""
        if self.driver.kv.sweep_pending:
            self._sweeping = True
        elif self._sweeping and self._thread is None:
            # An attempt under way saw the state before that.
            self._sweeping = False
            return True
        return False

    def _relieve(self, now: float) -> None:
        """Cuts the log as far as possible, because there is no room for more of it.

        The log is cut behind the newest snapshot. If entries were applied since, it is cut again behind a new snapshot,
        which is small when the data that clients deleted has been swept.
        """
        applied = self.driver.applier.applied_index
        if self._thread is not None or self._releasing or self._flushed_to or self.driver.kv.sweep_pending:
            return
        good = self.catalogue.good
        newest = good[-1].header.index if good else 0
        if self.volatile and newest > self.wal.snapshot_index:
            self._compact()
        if applied <= max(self._relieved, newest) or now < self._not_before:
            return
        self._relieved = applied
        self._due(now)

    def _due(self, now: float) -> None:
        if self.volatile:
            self.begin()
            return
        # An engine with files needs no snapshot: the log may drop the entries that a flush has brought to these files.
        self.engine.begin_flush()
        self.policy.restored(self.engine.applied()[0], self._counted(), 0, int(self.engine.data_size()))
        self._look_at = self.policy.index + self.policy.count
        self._flushed_to = self.engine.applied()[0]

    def _flushed(self) -> None:
        """Cuts the log when the flush under way is done; some entries stay for slow followers."""
        durable = int(self.engine.durable_applied())
        if durable < self._flushed_to:
            return
        self._flushed_to = 0
        tail = 0 if self._pressed else min(CATCH_UP, self.policy.count // 2)
        index = min([durable - tail, self._needed()])
        if index > self.wal.snapshot_index:
            self._move(index, self.wal.term(index), self._conf_state())

    def _counted(self) -> int:
        applier = self.driver.applier
        return client_bytes(applier.nbytes, applier.operations)

    def _conf_state(self) -> ConfState:
        return self.driver.roster.conf_state

    def begin(self) -> bool:
        """Begins a snapshot of the present state, between two applies.

        Returns False if a snapshot is under way or nothing was applied.
        """
        moment = self._moment(int.from_bytes(os.urandom(8), "little"))
        if moment is None:
            return False
        header, view = moment
        # Keep the newest good file even if newer files are damaged: until there are two, the log begins with it.
        self.catalogue.passed(header.index)
        keep = [info.path for info in (*self.catalogue.needed, *self.catalogue.good[-1:])]
        work = (header, Walker(view, lambda: time.sleep(PAUSE)), keep, self._counted(), int(self.engine.data_size()))
        self._thread = begin("snapshot", self._work, *work)
        return True

    def _moment(self, stream: int) -> tuple[Header, Engine] | None:
        """Returns the header of a snapshot of the present state and a view of the data; None if no snapshot
        is possible now.
        """
        if self._thread is not None or self._stopping:
            return None
        if not self.driver.whole:
            # The engine lags behind the applied entries, and so behind the membership, or it holds a part of an entry.
            return None
        view = self.engine.view()
        index, term = view.applied()
        if not index:
            view.close()
            return None
        revision = self.driver.applier.store.revision
        header = Header(index, term, self._conf_state(), revision, stream, self.cluster_id, self.store.chunk_size)
        return header, view

    def _work(self, header: Header, walker: Walker, keep: list[Path], counted: int, engine_size: int) -> None:
        """Runs in the snapshot's thread: writes and verifies the file and removes files that are too old."""
        began = time.monotonic()
        try:
            info = self._save(header, walker, keep, counted)
        finally:
            self._let_go(walker)
        took = time.monotonic() - began
        if info is not None:
            self.loop.call_soon_threadsafe(partial(self._taken, info, counted, engine_size, took))

    def _save(self, header: Header, walker: Walker, keep: list[Path], counted: int) -> Info | None:
        """Writes the file. Returns None if that failed, which is told by then, or if it was given up."""
        try:
            info = self.store.save(header, walker, self._between)
            self.store.prune(keep)
        except Cancelled:
            return None
        except (EngineFailed, EngineDamaged) as error:
            # Clients cannot read this data either, so the node must stop.
            self.loop.call_soon_threadsafe(partial(_fail, error))
            return None
        except (MetaStoreError, OSError, MemoryError) as error:
            # The disk is full or failing. The node goes on, and its log grows until a later attempt succeeds.
            self._tell_failed(error, counted)
            return None
        except BaseException as error:
            # Our code has a bug. The node goes on as above, and people get a traceback.
            self._tell_failed(error, counted)
            raise
        return info

    def _let_go(self, walker: Walker) -> None:
        try:
            walker.close()
        except (EngineFailed, EngineDamaged) as error:
            # If the exception stayed in this thread, the node would go on, and take no snapshot any more.
            self.loop.call_soon_threadsafe(partial(_fail, error))

    def _tell_failed(self, error: BaseException, counted: int) -> None:
        # For a full disk the text is not etcd's, because etcd's text speaks of the quota.
        error = error.__cause__ or error
        why = reason(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        self.loop.call_soon_threadsafe(lambda: self._failed(f"{self.store.path}: {why}", counted))

    def _between(self) -> None:
        if self._stopping:
            raise Cancelled

    def _failed(self, reason: str, counted: int) -> None:
        self._thread = None
        self.failed += 1
        self._not_before = self.loop.now() + RETRY
        self.policy.failed(counted)
        log.error("a snapshot could not be taken, the log is kept: %s", reason)
        self._answer(MetaStoreError(f"metastore: a snapshot could not be taken: {reason}"))

    def _taken(self, info: Info, counted: int, engine_size: int, took: float) -> None:
        self._thread = None
        self.taken += 1
        self.bytes += info.trailer.size
        self.seconds += took
        log.info(
            "snapshot index=%d records=%d bytes=%d of=%d after=%.3fs",
            info.header.index, info.trailer.records, info.trailer.size, info.trailer.nbytes, took,
        )  # fmt: skip
        asked_for = self._answer(info)
        catalogue = self.catalogue
        if any(old.header.index >= info.header.index for old in catalogue.good):
            # A snapshot that was received meanwhile is newer than this one.
            self._reclaim()
            return
        catalogue.good = [*(old for old in catalogue.good if old.path.exists()), info]
        if self.volatile:
            # A requested snapshot does not delay those that are due: many backups must not keep the log for ever.
            count = self.policy.restored if asked_for else self.policy.taken
            count(info.header.index, counted, info.trailer.size, engine_size)
            self._look_at = self.policy.index + self.policy.count
            self._compact()
        self._reclaim()

    def _reclaim(self) -> None:
        """Frees the memory that only the view still held, in slices."""
        if not self._stopping and self.engine.reclaim():
            self.loop.call_later(0, self._reclaim)

    # ---- for a backup

    def fresh(self, done: Callable[[Info | MetaStoreError], object]) -> None:
        """Calls `done`, now or later, with a verified snapshot of this moment or a later one, or with the error.

        Call this only between two applies.
        """
        index, good = self.driver.applier.applied_index, self.catalogue.good
        newest = good[-1] if good else None
        if newest is not None and newest.header.index >= index and newest.path.exists():
            done(newest)
            return
        self._waiting.append((index, done))
        self.begin()

    def _answer(self, result: Info | MetaStoreError) -> bool:
        """Answers the callers that wait for a snapshot. Returns whether there was one to answer.

        A snapshot that was begun before a caller came does not serve this caller; `turn` begins another one.
        """
        waiting, self._waiting = self._waiting, []
        for index, done in waiting:
            if isinstance(result, Info) and result.header.index < index:
                self._waiting.append((index, done))
            else:
                done(result)
        return len(waiting) > len(self._waiting)

    # ---- from a leader

    def bad(self, info: Info) -> None:
        """A file that was good can no longer be read. It is not used any more, and another snapshot is taken."""
        log.error("snapshot %s is damaged; another one is taken", info.path)
        self.catalogue.good = [other for other in self.catalogue.good if other.path != info.path]
        self.begin()

    def install(self, snapshot: Snapshot, done: Callable[[], None]) -> None:
        """Fills the engine from a snapshot that was received, then calls `done` (in this thread).

        Another thread reads the file into a new engine beside the old one, which can still be read meanwhile.
        Installations run one after the other.
        """
        if self._install is not None:
            self._install_next = (snapshot, done)
            return
        info = self.catalogue.find(snapshot.index, snapshot.term)
        if info is None:
            where = f"at entry {snapshot.index} of term {snapshot.term}"
            raise DamagedData(f"the snapshot {where} is gone from {self.store.path}")
        self.failpoints.hit("snapshot.install")
        fits = self.memory.fits(info.trailer.nbytes, info.trailer.records)
        fresh = self.engine.stage() if fits else None
        if not fits:
            # The memory does not suffice for the old contents and the new ones. No client reads during this work,
            # because it occupies the loop's thread.
            log.warning("snapshot index=%d is read in the place of the old data: no memory for both", snapshot.index)
            self.engine.drop()
        if fresh is None:
            self._fill(info, self.engine)
            self._installed(info, None, done)
            return
        keep = [info.path, *(other.path for other in self.catalogue.needed)]
        work = (info, fresh, keep, done)
        self._install = begin("snapshot-install", self._read, *work)

    def _read(self, info: Info, fresh: Engine, keep: list[Path], done: Callable[[], None]) -> None:
        """Runs in the thread of an installation."""
        failure: BaseException | None = None
        try:
            self.store.restore(info.path, fresh, self._between, lambda: time.sleep(PAUSE))
            self.failpoints.hit("snapshot.seal")
            fresh.seal()
            self.store.prune(keep)
            self.loop.call_soon_threadsafe(lambda: self._installed(info, fresh, done))
            return
        except Cancelled:
            pass
        except (MetaStoreError, OSError, MemoryError) as error:
            known = (DiskFailed, EngineDamaged, CodecMissing, CodecFailed)
            failure = error if isinstance(error, known) else DamagedData(
                f"snapshot {info.path} cannot be installed: {error}"
            )  # fmt: skip
        except BaseException as error:  # noqa: BLE001
            # Our code has a bug. If an exception stayed in this thread, the node would wait for ever.
            failure = error
        try:
            fresh.close()
        except (EngineFailed, EngineDamaged) as error:
            failure = failure or error
        if failure is not None:
            self.loop.call_soon_threadsafe(partial(_fail, failure))

    def _fill(self, info: Info, engine: Engine) -> None:
        try:
            self.store.restore(info.path, engine, pause=self.memory.check)
        except (CodecMissing, CodecFailed):
            raise
        except FormatError as error:
            raise DamagedData(f"snapshot {info.path} cannot be installed: {error}") from error

    def _installed(self, info: Info, fresh: Engine | None, done: Callable[[], None]) -> None:
        self._install = None
        if self._install_next is not None:
            # This snapshot is skipped: the driver already knows of the newer one, and its counters fit neither of them.
            if fresh is not None:
                fresh.close()
            following, self._install_next = self._install_next, None
            self.install(*following)
            return
        if fresh is not None:
            self.failpoints.hit("snapshot.adopt")
            self.engine.adopt(fresh)
        index = info.header.index
        log.info("installed snapshot index=%d term=%d records=%d", index, info.header.term, info.trailer.records)
        self.catalogue.good = [info]
        self.catalogue.passed(index)
        self.policy.restored(index, self._counted(), info.trailer.size, int(self.engine.data_size()))
        self._look_at = index + self.policy.count
        self._releasing = True
        self._reclaim()
        done()

    # ---- the log

    def _compact(self) -> None:
        """Lets the log begin at the snapshot before the newest, or at an older one that others need.

        Where there is no room for more of the log, it begins at the newest snapshot itself.
        """
        good = self.catalogue.good
        usable = good if self._pressed else good[:-1]
        if not usable:
            return
        needed = self._needed()
        target = next((info for info in reversed(usable) if info.header.index <= needed), good[0])
        if target.header.index > self.wal.snapshot_index:
            self._move(target.header.index, target.header.term, target.header.conf_state)

    def _needed(self) -> int:
        """Returns the last entry behind which others need the log; a large number where nobody needs any of it.

        That is the last entry that every active follower of this leader has, and the last one that is in every snapshot
        that is being sent.
        """
        needed = [info.header.index for info in self.catalogue.sending.values()]
        if self.driver.is_leader:
            needed += [peer.match for peer in self.driver.raw.status().progress.values() if peer.heard]
        return min(needed, default=1 << 62)

    def _move(self, index: int, term: int, conf_state: ConfState) -> None:
        self.failpoints.hit("snapshot.release")
        self.wal.save_snapshot_position(index, term, conf_state.encode())
        self.wal.submit()
        self._releasing = True

    def _release(self) -> None:
        """Releases segments as soon as the new beginning of the log is durable."""
        if self.wal.durable_snapshot == self.wal.snapshot_index:
            self._releasing = False
            self.wal.release(self.wal.snapshot_index)

    # ---- for others

    def newest(self) -> Snapshot:
        """The storage's answer to the Raft core: the newest snapshot that a follower can go on from in the log.

        Raises SnapshotNotReady while there is none; one is begun then."""
        good = self.catalogue.good
        if good and good[-1].header.index >= self.wal.snapshot_index:
            header = good[-1].header
            return Snapshot(header.index, header.term, header.conf_state)
        self.begin()
        raise SnapshotNotReady()

    def stats(self) -> dict[str, float]:
        """Counters for metrics."""
        return {
            "taken": self.taken,
            "failed": self.failed,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "codec_failures": self.store.codec_failures,
        }

    def close(self) -> None:
        """Give up a snapshot that is under way and wait for its thread."""
        self._stopping = True
        for thread in (self._thread, self._install):
            if thread is not None:
                thread.join()


def _fail(error: BaseException) -> None:
    """Let the loop end with this error."""
    raise error
