"""The engine "rocksdb": RocksDB through rocksdict, for data sets larger than memory. Directory: FORMATS.md, "RocksDB".

Each applied batch becomes one RocksDB batch, which also holds the log position. RocksDB's own log is off, because the
Raft log already has every change. After a kill the database therefore holds a state since the last flush, together with
the log position that belongs to this state. The Raft log holds the rest: it is never cut beyond `durable_applied()`,
and only a completed flush raises that index.

Measured on rocksdict 0.3.29: get, write and every step of an iterator hold the GIL; flush and compaction do not. Writes
use `no_slowdown`: where RocksDB would make a write wait for a flush or a compaction, it refuses the write, and this
module raises EngineBusy. A refused batch is lost, so the next attempt builds it again from the caller's data.

The database has a folder of its own below the engine's folder; `engine.json` names it. To install a received snapshot,
another thread fills a new folder beside the old one. The new folder takes over when `engine.json` is replaced.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import struct
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from ..._core.engine import APPLIED_KEY, Engine
from ..._core.file_reads import Finder, ItemsWalk, SharedWalk
from ..._core.gaps import FEW, LIMIT, Gaps, GapWalk
from ..._core.ordered_map import OrderedMap
from ..._core.recent_keys import RecentEngine
from ..._core.stretches import Stretches
from ...errors import (
    ConfigError,
    DamagedData,
    DiskFailed,
    EngineBusy,
    EngineFull,
    FormatError,
    MetaStoreError,
    reason,
)
from ...settings import RocksdbTable
from ...threads import begin
from ..segments import sync_folder
from . import rocksdb_forks
from .rocksdb_options import opening, reading, rocksdict, writing
from .rocksdb_reads import View, bounds, failure_of, scan

__all__ = ["RocksEngine"]

log = logging.getLogger("metastore.engine")

VERSION = 1
RECORD = "engine.json"
POSITION = struct.Struct("<QQ")
# For a staged engine: records and bytes written at once, and the pause after them, in which the loop gets its turn.
SLICE_RECORDS, SLICE_BYTES, PAUSE = 256, 256 << 10, 0.0002
REWRITTEN = 256 << 20  # bytes of files that a compaction may hold twice, as far as room is kept for it
FULL_RETRY = 0.5  # seconds until a write is tried again that the disk had no room for
BUSY_PAUSE = 0.002  # seconds until a staged engine tries a refused write again
COUNTED_AT_ONCE = 100  # records that one `reclaim` counts: 0.06 to 0.3 ms, and a put may wait for several
QUIET = 20  # writes since the last `reclaim`, of which it still says that nobody writes
MANY_REMOVALS = 10_000  # in one file: a walk takes 1 to 4 ms for them
PRUNED_AT_ONCE = 30  # gaps that one `reclaim` looks at: 0.3 ms
ASK_AGAIN = 0.05  # seconds between two looks whether all files are rewritten


def _open(path: Path, table: RocksdbTable, fresh: bool) -> Any:
    """Opens the database in a folder; `fresh` creates it. Raises DamagedData, DataDirInUse, DiskFailed, Forked."""
    rocksdb_forks.opens()
    options = opening(table)
    options.create_if_missing(fresh)
    try:
        # Named once, rocksdict would take what the last opening left in a file: no cache and no bloom filters.
        database = rocksdict.Rdict(str(path), options, column_families={"default": options})
        database.set_write_options(writing())
    except Exception as error:
        rocksdb_forks.closed()
        raise _final(path, error) from error
    return database


def _close(database: Any) -> None:
    """Closes a database. Raises what rocksdict raises."""
    database.close()
    rocksdb_forks.closed()


def _final(path: Path, error: Exception) -> MetaStoreError:
    """Like `failure_of`, for a call that cannot be tried again: a lack of room then counts as a failure."""
    failure = failure_of(path, error)
    return DiskFailed(failure.text) if isinstance(failure, EngineFull) else failure


def _position(value: bytes | None, path: Path) -> tuple[int, int]:
    if value is None:
        return (0, 0)
    if len(value) != POSITION.size:
        raise DamagedData(f"{path}: the record of the log position has an unknown form")
    index, term = POSITION.unpack(value)
    return (index, term)


class RocksEngine(RecentEngine):
    """One database in the folder `path`, which is created if necessary. One thread owns it, except for views and
    flushes.

    The constructor raises ConfigError for a folder that belongs to another engine, DamagedData, DataDirInUse and
    DiskFailed.
    """

    CONTRACT = 1
    persistent = True

    def __init__(self, path: str, options: RocksdbTable | None = None) -> None:
        self.table = options or RocksdbTable()
        self.path = Path(path)
        self.set_budget(self.table.recent_keys_size)
        self._flushing: threading.Thread | None = None
        self._compacting: threading.Thread | None = None
        self._discarding: threading.Thread | None = None
        #: Whether the disk had no room for the last write.
        self.full = False
        self._try_again = 0.0  # when a write is tried again while that is so
        self._closing = threading.Event()
        self._flush_wanted = False
        self._flush_lock = threading.Lock()  # guards both: whether a flush is wanted, and whether a thread will do it
        self._failed: MetaStoreError | None = None
        # These references are weak, because a view that was released without `close` must not keep a folder for ever.
        self.views: weakref.WeakSet[View] = weakref.WeakSet()
        self._walk: GapWalk | None = None
        self._finder: Finder | None = None
        self._shared: SharedWalk | None = None
        self._writes = 0  # also raised by `adopt`
        self._settled = 0  # so many of them there were when `_settle` was last called
        self._quiet = False  # whether it went on then
        self._once = False  # what is read does not go into the cache
        #: How many keys are alive in each stretch. Begun anew at each start, and by each `adopt`.
        self.stretches = Stretches()
        #: Where nothing but removed records are. Empty at each start, and after each `adopt`.
        self.gaps = Gaps()
        self.detours = self.gaps.detours
        #: By whether what is read goes into the cache.
        self.read_options = (reading(LIMIT, False), reading(LIMIT))
        self._few_options = reading(FEW)
        self._write_options = writing()
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.name = self._find()
        except OSError as error:
            raise DiskFailed(f"{self.path}: {reason(error)}") from error
        self._db = _open(self.path / self.name, self.table, False)
        self._tidy()
        self._index, self._term = _position(self.get(APPLIED_KEY), self.path)
        # A crash cannot lose any of this state, because all of it came out of files.
        self._durable = self._index

    # ---- the folder

    def _find(self) -> str:
        """The name of the folder with the database, which is made if there is none. Other folders are removed."""
        there = {entry.name: entry for entry in self.path.iterdir()}
        if RECORD in there:
            name = _read_record(there[RECORD])
        else:
            # A first start may have died before it wrote the record. What holds data is not removed for that.
            for entry in there.values():
                if not entry.name.startswith("db-") or any(entry.glob("*.sst")):
                    raise ConfigError(
                        f"storage.engine: {self.path} has no {RECORD} and holds {entry.name!r}: it is another engine's"
                    )
                shutil.rmtree(entry)
            name = self._new_name()
            with contextlib.suppress(AttributeError):
                _close(_open(self.path / name, self.table, True))
            self._write_record(name)
        for entry in self.path.iterdir():
            if entry.name.startswith("db-") and entry.name != name:
                shutil.rmtree(entry)
        return name

    def _new_name(self) -> str:
        taken = [int(entry.name[3:]) for entry in self.path.glob("db-*") if entry.name[3:].isdigit()]
        return f"db-{max(taken, default=0) + 1}"

    def _write_record(self, name: str) -> None:
        """Writes the record, after which a start opens the folder `name`."""
        # Sync the folder first: a record that survives a power cut must not name a folder that did not survive.
        sync_folder(self.path)
        new = self.path / f"{RECORD}.tmp"
        with open(new, "w", encoding="utf-8") as file:
            json.dump({"engine": "rocksdb", "version": VERSION, "db": name}, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, self.path / RECORD)
        sync_folder(self.path)

    def _tidy(self) -> None:
        """Rewrites the files that hold little but removals, because the gaps of the last run are not known any more."""
        began = time.monotonic()
        try:
            files = [file for file in self._db.live_files() if file["num_deletions"] >= MANY_REMOVALS]
            files = [file for file in files if 2 * file["num_deletions"] >= file["num_entries"]]
            for file in files:
                self._db.compact_range(file["start_key"], file["end_key"])
        except Exception as error:
            raise _final(self.path, error) from error
        if files:
            log.info("engine: rewrote %d files of removals in %.1f s", len(files), time.monotonic() - began)

    # ---- reading

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        try:
            value: bytes | None = self._db.get(key)
        except Exception as error:
            raise failure_of(self.path, error) from error
        return value

    def finder(self) -> Finder:
        """See WalkedEngine.finder."""
        if self._finder is None:
            items, options = self._db.items, self._options
            self._finder = Finder(
                self._walker(),
                lambda key: items(from_key=key, read_opt=options),
                None if self._once else self._db.get,
                self.detours,
            )
        return self._finder

    def fault(self, error: Exception) -> Exception:
        """See WalkedEngine.fault."""
        return failure_of(self.path, error)

    def seek_le(self, key: bytes) -> tuple[bytes, bytes] | None:
        """(key, value) of the last key not above `key`, or None."""
        walk = self._walker()
        try:
            walk.seek_for_prev(key)
            here = walk.key()
            if here is not None:
                return (here, walk.value())
            walk.status()
        except Exception as error:
            raise failure_of(self.path, error) from error
        return None

    def read_once(self, once: bool) -> None:
        """See Engine.read_once."""
        if once != self._once:
            self._once = once
            self._rest()

    def _walker(self) -> GapWalk:
        """Returns an iterator. It sees the state at its creation, so one iterator serves until the next write."""
        if self._walk is None:
            self._walk = GapWalk(self._db.iter(self._options), self.gaps, self._db.iter)
        return self._walk

    @property
    def _options(self) -> Any:
        return self.read_options[not self._once]

    def _rest(self) -> None:
        """Releases the shared iterators."""
        self._walk = self._finder = self._shared = None

    def reader(self) -> tuple[Any, Any]:
        """For look-ups in other threads (`_core/kv_direct`): an iterator of the present state, and what finds a key."""
        return self._db.iter(self._options), self._db.get

    def scan(self, start: bytes, end: bytes | None, reverse: bool, limit: int) -> list[tuple[bytes, bytes]]:
        """See Engine.scan."""
        return scan(self._walker(), self.path, start, end, reverse, limit)

    def iterate(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See Engine.iterate. This takes very little memory."""
        db, options, gaps, fault = self._db, self._options, self.gaps, partial(failure_of, self.path)

        def others(start: bytes) -> Iterator[tuple[bytes, bytes]]:
            return SharedWalk(GapWalk(db.iter(options), gaps, db.iter), fault).pairs(start)

        try:
            start, last = bounds(gaps, start, self._walker)
            if last == b"":
                return others(start)
            return ItemsWalk(db.items(from_key=start, read_opt=options), start, last, others, fault)
        except Exception as error:
            raise fault(error) from error

    def walks(self) -> SharedWalk:
        """See WalkedEngine.walks."""
        if self._shared is None:
            walk = GapWalk(self._db.iter(self._options), self.gaps, self._db.iter)
            self._shared = SharedWalk(walk, partial(failure_of, self.path))
        return self._shared

    def items_of(self, writes: int, options: Any, start: bytes) -> Any:
        """For views, also in other threads: pairs from `start` on of the state after so many writes, by an iterator of
        rocksdict's `items`. None when there was a further write."""
        db = self._db
        if self._writes == writes and db is not None:
            try:
                items = db.items(from_key=start, read_opt=options)
            except Exception:
                if self._writes == writes and db is self._db:
                    raise
                return None
            # A write counts before it begins, so it did not come in between.
            if self._writes == writes:
                return items
        return None

    def applied(self) -> tuple[int, int]:
        """(index, term) of the last write."""
        return (self._index, self._term)

    def view(self) -> Engine:
        """Returns a view of the present contents, which another thread may read."""
        plain = self._db.iter(reading(0, False))
        iterators = [self._db.iter(self.read_options[cache]) for cache in (False, True, False)]
        walks = [GapWalk(one, self.gaps, lambda: plain, False) for one in iterators]
        return View(self, self._writes, walks, self._index, self._term)

    def reclaim(self) -> bool:
        """Counts some more keys, as long as not all are counted, looks at some gaps, splits stretches that have grown,
        and releases the shared iterator.

        If nothing is written, the iterator would keep all files of its state. A completed compaction would then give
        back no room (22 MiB of a disk of 80, for as long as puts were refused).
        """
        self._rest()
        try:
            return self.gaps.prune(self._few, PRUNED_AT_ONCE) or (
                self.stretches.build(self._plain_walk, COUNTED_AT_ONCE, self.detours) or self._settle()
            )
        except Exception as error:
            raise failure_of(self.path, error) from error

    def _few(self) -> Any:
        return self._db.iter(self._few_options)

    def _plain_walk(self) -> GapWalk:
        """An iterator for a walk over all keys, which nothing stays in the cache of."""
        past, plain = (self._db.iter(reading(limit, False)) for limit in (LIMIT, 0))
        return GapWalk(past, self.gaps, lambda: plain)

    def _settle(self) -> bool:
        """Splits a part off a stretch if little was written since the last call, and nothing since one that did so.

        Who writes all the time would pay for splits and gain nothing from them: a count splits what it walks over.
        """
        wrote, self._settled = self._writes - self._settled, self._writes
        self._quiet = self.stretches.due > 0 and wrote <= (0 if self._quiet else QUIET)
        if self._quiet:
            self._watch(self.stretches.settle(self._walker()))
        return self._quiet

    def _watch(self, right: bool) -> None:
        if not right:
            log.error("engine: a number of living keys was wrong, and all keys are counted again")

    def count(self, start: bytes, end: bytes | None) -> int | None:
        """See Engine.count. None while not all keys below `end` are counted."""
        faults = self.stretches.faults
        try:
            found = self.stretches.count(start, end, self._walker())
        except Exception as error:
            raise failure_of(self.path, error) from error
        self._watch(self.stretches.faults == faults)
        return found

    @property
    def index_state(self) -> tuple[bool, int, int]:
        """See Engine.index_state."""
        return (self.stretches.border is None, self.stretches.keys, self.stretches.faults + self.gaps.faults)

    def size(self) -> int:
        """The bytes of the files, and of the data that is not in files yet."""
        return self._number("live-sst-files-size") + self._number("cur-size-all-mem-tables")

    def size_in_use(self) -> int:
        """RocksDB's estimate."""
        return min(self.size(), self._number("estimate-live-data-size") + self._number("cur-size-all-mem-tables"))

    def _number(self, name: str) -> int:
        return int(self._db.property_int_value(f"rocksdb.{name}") or 0)

    # ---- writing

    def write(self, batch: OrderedMap, index: int, term: int) -> None:
        """See Engine.write."""
        records = rocksdict.WriteBatch(raw_mode=True)
        self.feed(batch, records.put, records.delete)
        records.put(APPLIED_KEY, POSITION.pack(index, term))
        # Found out before the write, and noted behind it: a batch that is refused comes again.
        changes = self.stretches.changes(batch, self)
        try:
            planned = self.gaps.plan(batch, self._walker)
        except Exception as error:
            raise failure_of(self.path, error) from error
        self._take(records)
        self.remember(batch)
        self._index, self._term = index, term
        self._follow(batch, planned)
        if changes:
            self._note(changes)

    def _take(self, records: Any) -> None:
        """Writes a batch of RocksDB."""
        if self._failed is not None:
            raise self._failed
        if self.full and time.monotonic() < self._try_again:
            raise EngineFull(f"{self.path}: the disk is full")
        try:
            self._writes += 1
            self._db.write(records, self._write_options)
        except Exception as error:
            failure = failure_of(self.path, error)
            if isinstance(failure, EngineFull):
                self._no_room(failure)
                self._try_again = time.monotonic() + FULL_RETRY
            raise failure from error
        self.full = False
        self._rest()

    def remove_ranges(self, ranges: list[tuple[bytes, bytes]]) -> bool:
        """See Engine.remove_ranges. The last version of a client's key is not among the records, so no count changes.

        A range costs RocksDB as much as a record. Iterators seek over it where the removed records are in older files,
        and step over these (0.05 us each) where they are in the same memory or file.
        """
        if ranges:
            records = rocksdict.WriteBatch(raw_mode=True)
            for start, end in ranges:
                records.delete_range(start, end)
            self._take(records)
            self.forget_ranges(ranges)
            try:
                self.gaps.wiped(ranges, self._walker())
            except Exception as error:
                raise failure_of(self.path, error) from error
            self._rest()  # that walk does not know the new gaps
        return True

    def _follow(self, batch: OrderedMap, planned: list[tuple[bytes, bytes]]) -> None:
        faults = self.gaps.faults
        try:
            self.gaps.wrote(batch, planned, self._walker, self._few)
        except Exception as error:
            raise failure_of(self.path, error) from error
        if self.gaps.faults > faults:
            log.error("engine: a gap was wrong, and all gaps are forgotten")

    def _note(self, changes: list[Any]) -> None:
        """Notes how many keys were born and have died in a write."""
        for fence in self.stretches.note(changes):
            try:
                self._watch(self.stretches.split(fence, self._walker()))
            except Exception as error:
                raise failure_of(self.path, error) from error

    def durable_applied(self) -> int:
        """The log position of the last flush that completed. Raises DiskFailed when one failed since."""
        if self._failed is not None:
            raise self._failed
        return self._durable

    def flush(self) -> None:
        """Write what is in memory to files, and wait for it. Raises DiskFailed."""
        index, db = self._index, self._db
        try:
            db.flush(True)
        except Exception as error:
            raise failure_of(self.path, error) from error
        if db is self._db:
            self._durable = max(self._durable, index)

    def begin_flush(self) -> None:
        """Flushes in the background. If a flush is under way, another one follows it."""
        with self._flush_lock:
            self._flush_wanted = True
            if self._flushing is None:
                self._flushing = begin("engine-flush", self._flush_there)

    def _flush_there(self) -> None:
        while True:
            with self._flush_lock:
                # Not `is_alive`: a thread that has looked for the last time, and is not gone yet, flushes nothing more.
                if not self._flush_wanted or self._failed is not None:
                    self._flushing = None
                    return
                self._flush_wanted = False
            try:
                self.flush()
            except EngineFull as error:
                self._no_room(error)
                self._await_room()
                self._flush_wanted = not self._closing.is_set()
            except MetaStoreError as error:
                self._failed = error

    def _no_room(self, error: EngineFull) -> None:
        if not self.full:
            log.error("engine: %s", error.text)
        self.full = True

    def _await_room(self) -> None:
        """Waits until RocksDB accepts writes again, or until `close`.

        RocksDB looks for room every five seconds and then flushes its memory, but only if no other flush is under way.
        When this code tried a flush each half second, RocksDB could never begin its own. Therefore this code tries an
        empty write, which RocksDB refuses before it begins anything.
        """
        while not self._closing.wait(FULL_RETRY):
            db = self._db
            try:
                if db is not None:
                    db.write(rocksdict.WriteBatch(raw_mode=True), self._write_options)
            except Exception as error:  # noqa: BLE001
                if isinstance(failure_of(self.path, error), EngineFull):
                    continue
            self.full = False
            return

    @property
    def headroom(self) -> int:
        """The bytes that the disk must have free: twice the data that is only in memory, and room to rewrite files.

        If RocksDB finds too little room, it accepts no writes until it has looked again.
        """
        return 2 * self._number("cur-size-all-mem-tables") + min(self._number("live-sst-files-size"), REWRITTEN)

    def defragment(self) -> float | None:
        """Rewrites all files in the background, without the deleted data.

        Returns None when that is done, or else the number of seconds after which to ask again.
        """
        if self._compacting is None:
            self._compacting = begin("engine-compaction", self._compact_there, self._db)
        elif not self._compacting.is_alive():
            self._compacting = None
            return None
        return ASK_AGAIN

    def _compact_there(self, db: Any) -> None:
        try:
            db.compact_range(None, None)
        except Exception as error:  # noqa: BLE001
            # A failed compaction does no harm. A real fault shows at the next write or read.
            if not self._closing.is_set():
                log.warning("engine: the files were not rewritten: %s", error)

    def close(self) -> None:
        """Flushes and closes. Failures are only logged, because the Raft log has all the data."""
        if self._db is None:
            return
        if self.full:
            self._closing.set()  # ends a flush that waits for room
        self._rest()
        self.stretches.release()
        db, self._db = self._db, None
        given_up = self._compacting is not None and self._compacting.is_alive()
        if given_up:
            self._closing.set()
            with contextlib.suppress(Exception):
                db.flush(True)  # RocksDB flushes nothing any more once its work in the background is given up
            db.cancel_all_background(False)
        # The next start may come at once, in this process. It would meet folders that are half removed.
        for thread in (self._flushing, self._compacting, self._discarding):
            if thread is not None:
                thread.join()
        try:
            _close(db)
        except Exception as error:  # noqa: BLE001
            if not (given_up and str(error).startswith("Shutdown in progress")):
                log.error("engine: closing %s: %s", self.path, error)

    # ---- replacing all of it

    def stage(self) -> Engine:
        """An empty database in a new folder."""
        return _Staged(self)

    def restore(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
        """Replaces the contents by the pairs of an iterable. If the iterable raises, its exception passes
        and nothing changes.
        """
        fresh = _Staged(self)
        try:
            fresh.restore(stream)
            fresh.seal()
        except BaseException:
            fresh.close()
            raise
        self.adopt(fresh)

    def adopt(self, staged: Engine) -> None:
        """Continues with the database of a sealed engine that `stage` made."""
        assert isinstance(staged, _Staged), "only what stage() has made"
        old = self._db
        self._writes += 1
        self._rest()
        self.forget()
        self.stretches.restart()
        self.gaps = Gaps(self.detours)  # GuardedEngine has them, too
        self._db, self.name = staged.take()
        self._index, self._term = staged.applied()
        self._durable = self._index
        # Folders that were sealed and then replaced are removed too. While views have old files open, a later start
        # does it.
        folders = [] if self.views else [entry for entry in self.path.glob("db-*") if entry.name != self.name]
        work = (old, folders, self._flushing, self._compacting)
        self._discarding = begin("engine-discard", _discard, self._discarding, *work)


def _discard(before: threading.Thread | None, db: Any, folders: list[Path], *users: threading.Thread | None) -> None:
    """Closes a database that is no longer used, when its `users` have finished, and removes folders. The thread that
    does the same for an older database, `before`, ends first."""
    for thread in (before, *users):
        if thread is not None:
            thread.join()
    with contextlib.suppress(Exception):
        _close(db)
    for path in folders:
        shutil.rmtree(path, ignore_errors=True)


def _read_record(path: Path) -> str:
    """The name of the database's folder. Raises DamagedData, ConfigError."""
    try:
        record = json.loads(path.read_bytes())
        engine, version, name = record["engine"], record["version"], record["db"]
    except OSError as error:
        raise DiskFailed(f"storage engine: {reason(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedData(f"{path}: is damaged: it must be a JSON object with engine, version and db") from error
    if engine != "rocksdb":
        raise ConfigError(f"storage.engine: {path} says that this folder belongs to the engine {engine!r}")
    if version != VERSION:
        raise DamagedData(f"{path}: has version {version}, this program reads {VERSION}")
    if not isinstance(name, str) or not name.startswith("db-") or "/" in name or not (path.parent / name).is_dir():
        raise DamagedData(f"{path}: names the folder {name!r}, which is not there")
    return name


class _Staged(Engine):
    """A database that another thread is filling."""

    def __init__(self, engine: RocksEngine) -> None:
        self._engine = engine
        self._name = engine._new_name()
        self._path = engine.path / self._name
        self._applied = (0, 0)
        self._db = _open(self._path, engine.table, True)

    def restore(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
        """Fills the database with the pairs of an iterable.

        Raises FormatError if they have no log position, DiskFailed, and the iterable's own exceptions.
        """
        where = None
        pairs: list[tuple[bytes, bytes]] = []
        size = 0
        for pair in chain(stream, [(b"", b"")]):
            if pair[0] == APPLIED_KEY:
                where = pair[1]
            if pair[0]:
                pairs.append(pair)
                size += len(pair[1])
            if len(pairs) >= SLICE_RECORDS or size >= SLICE_BYTES or not pair[0]:
                self._put(pairs)
                pairs, size = [], 0
                time.sleep(PAUSE)
        if where is None or len(where) != POSITION.size:
            raise FormatError("restore: the stream has no log position")
        self._flush()
        self._applied = _position(where, self._path)

    def _put(self, pairs: list[tuple[bytes, bytes]]) -> None:
        while True:
            batch = rocksdict.WriteBatch(raw_mode=True)
            for key, value in pairs:
                batch.put(key, value)
            try:
                self._db.write(batch, self._engine._write_options)
                return
            except Exception as error:
                failure = _final(self._path, error)
                if not isinstance(failure, EngineBusy):
                    raise failure from error
            time.sleep(BUSY_PAUSE)

    def _flush(self) -> None:
        try:
            self._db.flush(True)
        except Exception as error:
            raise _final(self._path, error) from error

    def applied(self) -> tuple[int, int]:
        """(index, term) of what was restored."""
        return self._applied

    def seal(self) -> None:
        """Makes the next start use this database."""
        sync_folder(self._path)
        self._engine._write_record(self._name)

    def take(self) -> tuple[Any, str]:
        """Hands the database and the name of its folder to the engine that adopts it."""
        db, self._db = self._db, None
        return db, self._name

    def close(self) -> None:
        """Gives up a database that was not adopted. The next start removes its folder."""
        if self._db is not None:
            with contextlib.suppress(Exception):
                _close(self._db)
            self._db = None
