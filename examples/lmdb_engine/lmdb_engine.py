"""A storage engine over LMDB: `storage.engine = "lmdb"`.

It has all that an engine may have: options, limits, views that cost nothing, and a state that is filled beside the old
one when a snapshot comes. Its options:

    [storage.lmdb]
    map_size = "16GiB"     # the file cannot grow beyond this; keep limits.quota_bytes below half of it
    max_readers = 256      # views at once, with some to spare
    sync = true            # false: a crash of the machine may damage the file, and then this member must join anew

LMDB's keys have up to 511 bytes. A record's key is up to 15 bytes longer than the client's, and each zero byte in it
counts twice, as it does for `limits.max_key_bytes`: set that to 496 or less.

The folder holds `db-<number>` folders, each with one LMDB environment, and the file `current` with the name of the one
that counts. A snapshot that was received becomes the state of the next start by one rename, of `current`.
"""

import contextlib
import os
import shutil
import struct
import threading

import lmdb

from metastore.plugin import (
    APPLIED_KEY,
    DamagedData,
    DiskFailed,
    Engine,
    EngineFull,
    FormatError,
)

POSITION = struct.Struct("<QQ")  # FORMATS.md, "Engine records": index and term of the last entry applied
SLICE, SLICE_BYTES = 10_000, 4 << 20  # pairs and bytes that a snapshot being received writes in one transaction
DAMAGED = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.PanicError)


def failure(path, error):
    """MetaStore's error for one of LMDB's."""
    if isinstance(error, lmdb.MapFullError):
        return EngineFull(f"{path}: the map is full: storage.lmdb.map_size must be larger")
    kind = DamagedData if isinstance(error, DAMAGED) else DiskFailed
    return kind(f"{path}: {error}")


@contextlib.contextmanager
def translated(path):
    """Raise MetaStore's errors for LMDB's."""
    try:
        yield
    except (lmdb.Error, OSError) as error:
        raise failure(path, error) from error


def sync_folder(path):
    """Make the names in a folder last."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Database:
    """One LMDB environment in a folder of its own. It is closed when nobody uses it any more: the engine does, and each
    view. Views end in other threads, hence the lock."""

    def __init__(self, folder, name, options):
        self.name, self.path = name, os.path.join(folder, name)
        self.users, self.lock, self.removed = 1, threading.Lock(), False
        with translated(self.path):
            os.makedirs(self.path, mode=0o700, exist_ok=True)
            self.env = lmdb.open(
                self.path, map_size=options["map_size"], max_readers=options["max_readers"], sync=options["sync"],
                metasync=False, lock=True, readahead=False,
            )  # fmt: skip

            numbers = self.env.info()
            needed = (numbers["last_pgno"] + 1) * self.env.stat()["psize"]
            file = os.path.join(self.path, "data.mdb")
            if numbers["last_txnid"] and os.path.getsize(file) < needed:
                # The file is mapped. A page that it has lost would end the process by a signal.
                self.env.close()
                raise DamagedData(f"{file}: {os.path.getsize(file)} bytes, and {needed} are in use")

    def use(self):
        """Count another user."""
        with self.lock:
            self.users += 1

    def leave(self):
        """One user less. The last one closes the environment, and removes it if it was replaced."""
        with self.lock:
            self.users -= 1
            if self.users:
                return
        self.env.close()
        if self.removed:
            shutil.rmtree(self.path, ignore_errors=True)


class Reading(Engine):
    """The reading half, which engine and view share. `transaction()` gives LMDB's read transaction."""

    CONTRACT = 1
    persistent = True
    max_key = 511  # a number that is compiled into LMDB
    database = None

    def transaction(self):
        raise NotImplementedError

    def get(self, key):
        with translated(self.database.path):
            return self.transaction().get(key) if key else None

    def find_many(self, keys):
        with translated(self.database.path):
            get = self.transaction().get
            return [get(key) if key else None for key in keys]

    def scan(self, start, end, reverse, limit):
        pairs = []
        if end == b"":
            return pairs
        with translated(self.database.path), self.transaction().cursor() as cursor:
            if reverse:
                walk = cursor.iterprev() if self.place_below(cursor, end) else ()
            else:
                walk = cursor.iternext() if self.place(cursor, start) else ()
            for key, value in walk:
                if key < start if reverse else end is not None and key >= end:
                    break
                pairs.append((key, value))
                if len(pairs) == limit:
                    break
        return pairs

    @staticmethod
    def place(cursor, start):
        """Put a cursor at the first key not below `start`. Whether there is one. LMDB knows no empty keys."""
        return cursor.set_range(start) if start else cursor.first()

    @staticmethod
    def place_below(cursor, end):
        """Put a cursor at the last key below `end` (None: at the last of all). Whether there is one."""
        return cursor.prev() if end is not None and cursor.set_range(end) else cursor.last()

    def seek_ge(self, key):
        with translated(self.database.path), self.transaction().cursor() as cursor:
            return cursor.item() if self.place(cursor, key) else None

    def seek_le(self, key):
        """Each put calls this once."""
        with translated(self.database.path), self.transaction().cursor() as cursor:
            if self.place(cursor, key) and cursor.key() == key:
                return cursor.item()
            return cursor.item() if key and self.place_below(cursor, key) else None

    def applied(self):
        return self.position


class LmdbView(Reading):
    """A read transaction: it sees the state of its beginning, whatever is written, and costs nothing but the pages that
    it keeps from being used again. LMDB's Python package opens environments so that a read transaction may move to
    another thread (MDB_NOTLS)."""

    def __init__(self, engine):
        self.database, self.position, self.bytes = engine.database, engine.position, engine.size()
        self.database.use()
        with translated(self.database.path):
            self.txn = self.database.env.begin()

    def transaction(self):
        return self.txn

    def iterate(self, start):
        with translated(self.database.path), self.txn.cursor() as cursor:
            if self.place(cursor, start):
                yield from cursor.iternext()

    def size(self):
        return self.bytes

    def close(self):
        if self.txn is not None:
            self.txn.abort()
            self.txn = None
            self.database.leave()


class LmdbEngine(Reading):
    """The engine in the folder `path`."""

    OPTIONS = {"map_size": 16 << 30, "max_readers": 256, "sync": True}

    def __init__(self, path, options=None, name=None):
        self.path, self.options = path, {**self.OPTIONS, **(options or {})}
        self.full, self.reading, self.durable = False, None, 0
        with translated(path):
            os.makedirs(path, mode=0o700, exist_ok=True)
            self.database = Database(path, name or self.current(), self.options)
        self.position = self.found()
        if name is None:
            self.flush()

    def current(self):
        """The name of the folder that counts. What else is there was never sealed, or was replaced, and is removed."""
        file = os.path.join(self.path, "current")
        if not os.path.exists(file):
            self.name_current("db-0")
        with open(file, encoding="ascii", errors="replace") as opened:
            name = opened.read()
        if not name.startswith("db-") or "/" in name:
            raise DamagedData(f"{file}: it must hold the name of a folder")
        for entry in os.listdir(self.path):
            if entry.startswith("db-") and entry != name:
                shutil.rmtree(os.path.join(self.path, entry))
        return name

    def name_current(self, name):
        """Have the next start find this folder."""
        new = os.path.join(self.path, "current.new")
        with open(new, "w", encoding="ascii") as file:
            file.write(name)
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, os.path.join(self.path, "current"))
        sync_folder(self.path)

    def found(self):
        """The log position that the database holds."""
        record = self.get(APPLIED_KEY)
        if record is None:
            return (0, 0)
        if len(record) != POSITION.size:
            raise DamagedData(f"{self.database.path}: the record of the log position has an unknown form")
        return POSITION.unpack(record)

    # ---- reading: one read transaction serves until the next write

    def transaction(self):
        if self.reading is None:
            self.reading = self.database.env.begin()
        return self.reading

    def release(self):
        """End the read transaction, which would keep old pages from being used again."""
        if self.reading is not None:
            self.reading.abort()
            self.reading = None

    def view(self):
        return LmdbView(self)

    def size(self):
        """The pages in use. LMDB's file never shrinks, but what is deleted makes room for what is written next, so the
        quota is compared with this and not with the length of the file, which `map_size` bounds."""
        with translated(self.database.path):
            numbers = self.database.env.stat()
        return numbers["psize"] * (2 + sum(numbers[kind] for kind in ("branch_pages", "leaf_pages", "overflow_pages")))

    def reclaim(self):
        self.release()
        return False

    # ---- writing

    def write(self, batch, index, term):
        self.release()
        before = self.position[0]
        try:
            with translated(self.database.path), self.database.env.begin(write=True) as transaction:
                for key, value in batch.items():
                    if value is None:
                        transaction.delete(key)
                    else:
                        transaction.put(key, value)
                transaction.put(APPLIED_KEY, POSITION.pack(index, term))
        except EngineFull:
            self.full = True
            raise
        self.full = False
        self.position = (index, term)
        if self.options["sync"]:
            # With `metasync` off a commit syncs its pages and the page that names those of the commit before it.
            self.durable = before

    def durable_applied(self):
        return self.durable

    def flush(self):
        with translated(self.database.path):
            self.database.env.sync(True)
        self.durable = self.position[0]

    # ---- snapshots

    def restore(self, stream):
        """Fill a new database and take it over: whatever breaks off, the old one is still there."""
        staged = self.stage()
        try:
            staged.restore(stream)
            staged.seal()
        except BaseException:
            staged.close()
            raise
        self.adopt(staged)

    def stage(self):
        taken = [int(entry[3:]) for entry in os.listdir(self.path) if entry.startswith("db-") and entry[3:].isdigit()]
        return Staged(self.path, self.options, f"db-{max(taken, default=0) + 1}")

    def adopt(self, staged):
        """Views of the old database go on, and the last one removes it."""
        self.release()
        old, self.database, staged.database = self.database, staged.database, None
        self.position, self.durable, self.full = staged.position, staged.position[0], False
        old.removed = True
        old.leave()

    def close(self):
        if self.database is not None:
            self.release()
            self.database.leave()
            self.database = None


class Staged(LmdbEngine):
    """A database beside the one that counts. Another thread fills it."""

    def restore(self, stream):
        positioned = False
        for part in slices(stream):
            try:
                with translated(self.database.path), self.database.env.begin(write=True) as transaction:
                    for key, value in part:
                        transaction.put(key, value)
            except EngineFull as error:
                raise DiskFailed(error.text) from error  # only a write may be busy
            positioned = positioned or any(key == APPLIED_KEY for key, _ in part)
        if not positioned:
            raise FormatError("restore: the stream has no log position")
        self.release()
        self.position = self.found()

    def seal(self):
        self.flush()
        with translated(self.path):
            sync_folder(self.database.path)
            self.name_current(self.database.name)


def slices(stream):
    """Yield lists of pairs, each for one transaction. What the stream raises passes through."""
    part, size = [], 0
    for pair in stream:
        part.append(pair)
        size += len(pair[0]) + len(pair[1])
        if len(part) >= SLICE or size >= SLICE_BYTES:
            yield part
            part, size = [], 0
    yield part
