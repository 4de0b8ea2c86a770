"""A storage engine in some 60 lines of code: `storage.engine = "sqlite"`. An example of a plug-in, not built for speed.

What an engine is, is said in metastore/_core/engine.pyx; test_sqlite_engine.py runs the contract suite on this one. It
has no `stage()`: a snapshot of a leader's is read into it in the node's thread, which stands still meanwhile.
"""

import os
import sqlite3
import struct

from metastore.errors import DiskFailed, FormatError
from metastore.plugin import APPLIED_KEY, Engine

POSITION = struct.Struct("<QQ")  # FORMATS.md, "Engine records": index and term of the last entry applied


class SqliteEngine(Engine):
    """One table in the file state.db of the folder that MetaStore gives."""

    persistent = True  # a start finds it again; up to where for certain, durable_applied() says

    def __init__(self, path, view_of=None):
        os.makedirs(path, exist_ok=True)
        self.path = path
        self.db = sqlite3.connect(os.path.join(path, "state.db"), isolation_level=None, check_same_thread=False)
        if view_of is not None:
            # A transaction sees the state of its first read until it ends, whatever other connections write.
            self.db.execute("BEGIN")
        else:
            # A commit survives the process; that it survives a power cut too is what flush() sees to.
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = NORMAL")
            self.db.execute("CREATE TABLE IF NOT EXISTS kv (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
        self.position = POSITION.unpack(self.get(APPLIED_KEY) or bytes(16))
        self.durable = 0

    def get(self, key):
        row = self.db.execute("SELECT value FROM kv WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def scan(self, start, end, reverse, limit):
        order, stop = "DESC" if reverse else "ASC", "" if end is None else "AND key < ?2"
        query = f"SELECT key, value FROM kv WHERE key >= ?1 {stop} ORDER BY key {order} LIMIT ?3"
        return self.db.execute(query, (start, end, limit or -1)).fetchall()

    def change(self, pairs, anew=False):
        """All of it, or nothing."""
        try:
            with self.db:  # commits, or rolls back what an error of any kind ended
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
        except sqlite3.Error as error:
            raise DiskFailed(f"{self.path}: {error}") from error
        self.position = POSITION.unpack(self.get(APPLIED_KEY))

    def write(self, batch, index, term):
        self.change([*batch.items(), (APPLIED_KEY, POSITION.pack(index, term))])

    def restore(self, stream):
        self.change(stream, anew=True)
        self.durable = 0

    def applied(self):
        return self.position

    def view(self):
        return SqliteEngine(self.path, view_of=self)

    def size(self):
        pages = self.db.execute("PRAGMA page_count").fetchone()[0]
        return pages * self.db.execute("PRAGMA page_size").fetchone()[0]

    def durable_applied(self):
        return self.durable

    def flush(self):
        index = self.position[0]
        busy, pages, done = self.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if not busy and done == pages:  # while a view is open, not all pages may be moved to the file
            self.durable = index

    def close(self):
        self.db.close()
