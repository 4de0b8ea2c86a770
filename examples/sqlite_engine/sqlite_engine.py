"""A storage engine in some 80 lines of code: `storage.engine = "sqlite"`. An example to copy, not built for speed.

What an engine owes is said in metastore/plugin.pyi, and in docs/plugins.md at length; test_sqlite_engine.py runs the
contract suite on this one. It has no `stage()`: the snapshot of a leader is read into it in the node's thread, which
stands still meanwhile. (examples/lmdb_engine has one.) Its option:

    [storage.sqlite]
    cache_size = "8MiB"    # of pages; each view has as much
"""

import contextlib
import os
import sqlite3
import struct

from metastore.plugin import APPLIED_KEY, DamagedData, DiskFailed, Engine, FormatError

POSITION = struct.Struct("<QQ")  # FORMATS.md, "Engine records": index and term of the last entry applied


@contextlib.contextmanager
def translated(path):
    """Raise MetaStore's errors for those of SQLite, in reads too: whatever else a call raises is a fault of the engine
    and not of its file, and the node then stops with other words and another exit code."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise DiskFailed(f"{path}: {error}") from error  # no room, no file, an input/output error
    except sqlite3.DatabaseError as error:
        raise DamagedData(f"{path}: {error}") from error  # "malformed", "not a database"


class SqliteEngine(Engine):
    """One table in the file state.db of the folder that MetaStore gives."""

    CONTRACT = 1  # the version of the contract that this was written for
    OPTIONS = {"cache_size": 8 << 20}  # a number: a user may also write "8MiB"
    persistent = True  # a start finds it again; up to where for certain, durable_applied() says

    def __init__(self, path, options=None, view_of=None):
        self.path = path
        self.options = options or self.OPTIONS
        self.durable = 0
        with translated(path):
            os.makedirs(path, exist_ok=True)
            file = os.path.join(path, "state.db")
            self.db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
            self.db.execute(f"PRAGMA cache_size = -{self.options['cache_size'] // 1024}")
            self.db.execute("PRAGMA cell_size_check = ON")
            if view_of is not None:
                # A transaction sees the state of its first read until it ends, whatever other connections write.
                self.db.execute("BEGIN")
            else:
                # A commit survives the process; that it survives a power cut too is what flush() sees to.
                self.db.execute("PRAGMA journal_mode = WAL")
                self.db.execute("PRAGMA synchronous = NORMAL")
                self.db.execute(
                    "CREATE TABLE IF NOT EXISTS kv (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
                )
        self.position = self.found()

    def found(self):
        """The log position in the file."""
        record = self.get(APPLIED_KEY) or bytes(POSITION.size)
        if len(record) != POSITION.size:
            raise DamagedData(f"{self.path}: the record of the log position has an unknown form")
        return POSITION.unpack(record)

    def get(self, key):
        with translated(self.path):
            row = self.db.execute("SELECT value FROM kv WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def scan(self, start, end, reverse, limit):
        order, stop = "DESC" if reverse else "ASC", "" if end is None else "AND key < ?2"
        query = f"SELECT key, value FROM kv WHERE key >= ?1 {stop} ORDER BY key {order} LIMIT ?3"
        with translated(self.path):
            return self.db.execute(query, (start, end, limit or -1)).fetchall()

    def change(self, pairs, anew=False):
        """All of it, or nothing: the end of the block commits, or rolls back what an exception of any kind ended. What
        `pairs` itself raises passes through."""
        with translated(self.path), self.db:
            self.db.execute("BEGIN IMMEDIATE")
            if anew:
                self.db.execute("DELETE FROM kv")
            for key, value in pairs:
                if value is None:
                    self.db.execute("DELETE FROM kv WHERE key = ?", (key,))
                else:
                    self.db.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, value))
            if self.get(APPLIED_KEY) is None:
                raise FormatError("restore: the stream has no log position")
        self.position = self.found()

    def write(self, batch, index, term):
        self.change([*batch.items(), (APPLIED_KEY, POSITION.pack(index, term))])

    def restore(self, stream):
        self.change(stream, anew=True)
        self.durable = 0

    def applied(self):
        return self.position

    def view(self):
        return SqliteEngine(self.path, self.options, view_of=self)

    def size(self):
        with translated(self.path):
            pages = self.db.execute("PRAGMA page_count").fetchone()[0]
            return pages * self.db.execute("PRAGMA page_size").fetchone()[0]

    def size_in_use(self):
        with translated(self.path):
            free = self.db.execute("PRAGMA freelist_count").fetchone()[0]
            return self.size() - free * self.db.execute("PRAGMA page_size").fetchone()[0]

    def durable_applied(self):
        return self.durable

    def flush(self):
        index = self.position[0]
        with translated(self.path):
            busy, pages, done = self.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if not busy and done == pages:  # while a view is open, not all pages may be moved to the file
            self.durable = index

    def close(self):
        with translated(self.path):
            self.db.close()
