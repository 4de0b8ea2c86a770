#!/usr/bin/env python3
"""An embedded node beside what one would embed instead: SQLite, LMDB and RocksDB (rocksdict), in this process.

    python bench/inprocess.py all --requests 50000 --rounds 5

Each store has a folder of its own on the same disk, and each write is on the disk before it returns: SQLite with its
write-ahead log and synchronous=FULL, LMDB as it is, rocksdict with synced writes. The stores take turns (A B C A B C
...). The others keep no revisions, no history and no log for other members, so they do less for each write.
"""

from __future__ import annotations

import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from options import chosen, make_parser  # noqa: E402

from bench import check_build, print_machine  # noqa: E402
from metastore import Config, Node  # noqa: E402

#: Pairs of one call that writes many, and the calls of `lone` as a part of the keys.
LIST, LONE = 5000, 25

Pairs = Sequence[tuple[bytes, bytes]]


class Store(Protocol):
    """What is measured of each store."""

    def put(self, key: bytes, value: bytes) -> object: ...

    def put_many(self, pairs: Pairs) -> object: ...

    def get(self, key: bytes) -> bytes | None: ...


class OurNode:
    """A node in this process, with the default settings."""

    def __init__(self, node: Node) -> None:
        self.put = node.put
        self.put_many = node.put_many
        self._get = node.get

    def get(self, key: bytes) -> bytes | None:
        found = self._get(key)
        return None if found is None else found.value


class Sqlite:
    """One table of SQLite."""

    def __init__(self, folder: Path) -> None:
        self._db = sqlite3.connect(folder / "db", isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("CREATE TABLE kv (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def put(self, key: bytes, value: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, value))

    def put_many(self, pairs: Pairs) -> None:
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR REPLACE INTO kv VALUES (?, ?)", pairs)
        self._db.execute("COMMIT")

    def get(self, key: bytes) -> bytes | None:
        found = self._db.execute("SELECT value FROM kv WHERE key = ?", (key,)).fetchone()
        return None if found is None else found[0]

    def close(self) -> None:
        self._db.close()


class Lmdb:
    """An environment of LMDB."""

    def __init__(self, folder: Path) -> None:
        import lmdb

        self._env = lmdb.open(str(folder), map_size=8 << 30)

    def put(self, key: bytes, value: bytes) -> None:
        with self._env.begin(write=True) as txn:
            txn.put(key, value)

    def put_many(self, pairs: Pairs) -> None:
        with self._env.begin(write=True) as txn, txn.cursor() as cursor:
            cursor.putmulti(pairs)

    def get(self, key: bytes) -> bytes | None:
        with self._env.begin(buffers=False) as txn:
            return txn.get(key)

    def close(self) -> None:
        self._env.close()


class Rocks:
    """A database of RocksDB."""

    def __init__(self, folder: Path) -> None:
        import rocksdict

        self._db = rocksdict.Rdict(str(folder), rocksdict.Options(raw_mode=True))
        self._batch = rocksdict.WriteBatch
        self._synced = rocksdict.WriteOptions()
        self._synced.sync = True

    def put(self, key: bytes, value: bytes) -> None:
        self._db.put(key, value, self._synced)

    def put_many(self, pairs: Pairs) -> None:
        batch = self._batch(raw_mode=True)
        for key, value in pairs:
            batch.put(key, value)
        self._db.write(batch, self._synced)

    def get(self, key: bytes) -> bytes | None:
        return self._db.get(key)

    def close(self) -> None:
        self._db.close()


@contextmanager
def opened(kind: str, folder: Path) -> Iterator[Store]:
    """Open a store of one kind in an empty folder."""
    folder.mkdir()
    if kind.startswith("metastore"):
        engine = kind.partition(" ")[2]
        listen = {"client": "127.0.0.1:0"}
        with Node(Config(node={"data_dir": str(folder)}, storage={"engine": engine}, listen=listen)) as node:
            yield OurNode(node)
        return
    store = {"sqlite": Sqlite, "lmdb": Lmdb, "rocksdict": Rocks}[kind](folder)
    try:
        yield store
    finally:
        store.close()


KINDS = ("sqlite", "lmdb", "rocksdict", "metastore memory", "metastore rocksdb")


def put_many(store: Store, pairs: Pairs) -> int:
    """Write all keys, in lists of LIST."""
    for at in range(0, len(pairs), LIST):
        store.put_many(pairs[at : at + LIST])
    return len(pairs)


def get(store: Store, pairs: Pairs) -> int:
    """Read each key, one at a time."""
    for key, value in pairs:
        if store.get(key) != value:
            raise SystemExit(f"{type(store).__name__}: {key!r} has another value")
    return len(pairs)


def lone(store: Store, pairs: Pairs) -> int:
    """Write keys one at a time."""
    few = pairs[: max(10, len(pairs) // LONE)]
    for key, value in few:
        store.put(key, value)
    return len(few)


WHAT: dict[str, Callable[[Store, Pairs], int]] = {"put_many": put_many, "get": get, "lone": lone}


def main() -> None:
    parser = make_parser(__doc__, tuple(WHAT), rounds=3, requests=50_000, value_size=256, seed=1)
    options = parser.parse_args()
    check_build()
    draw = random.Random(options.seed)
    pairs = [(b"key/%08d" % draw.randrange(10**8), draw.randbytes(options.value_size)) for _ in range(options.requests)]
    pairs = list(dict(pairs).items())
    figures: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="metastore-bench-", dir=options.dir) as name:
        print_machine(options, Path(name))
        for number in range(options.rounds):
            for kind in KINDS:
                with opened(kind, Path(name) / f"{kind}-{number}") as store:
                    for what in dict.fromkeys(("put_many", *chosen(options, tuple(WHAT)))):
                        cpu, began = time.process_time(), time.perf_counter()
                        count = WHAT[what](store, pairs)
                        took, used = time.perf_counter() - began, time.process_time() - cpu
                        figures.setdefault((what, kind), []).append((count / took, used / count * 1e6))
    for what in dict.fromkeys(what for what, _ in figures):
        print(f"\n{what}: {(WHAT[what].__doc__ or '').strip()}\n  {'':<18} {'a second':>12} {'noise':>8} {'CPU us':>8}")
        for kind in KINDS:
            rates, used = zip(*figures[what, kind], strict=True)
            rate = statistics.median(rates)
            noise = (max(rates) - min(rates)) / 2 / rate * 100
            print(f"  {kind:<18} {rate:>12,.0f} {noise:>6.0f} % {statistics.median(used):>8.2f}")


if __name__ == "__main__":
    main()
