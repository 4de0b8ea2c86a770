#!/usr/bin/env python3
"""An embedded node beside what one would embed instead: SQLite, LMDB and RocksDB (rocksdict), in this process.

    python bench/inprocess.py all --requests 50000 --rounds 5

Each store has a folder of its own on the same disk, and each write is on the disk before it returns: SQLite with its
write-ahead log and synchronous=FULL, LMDB as it is, rocksdict with synced writes. The stores take turns (A B C A B C
...). The others keep no revisions, no history and no log for other members, so they do less for each write. A bare sync
is what `lone` cannot be faster than. `futures`, `remote` and `beside` are of the node alone.
"""

from __future__ import annotations

import os
import random
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import h2load  # noqa: E402
from options import chosen, make_parser  # noqa: E402
from support import messages as m  # noqa: E402

from bench import KEY, PUT, check_build, percentile, prefixed, print_machine  # noqa: E402
from metastore import Config, Node  # noqa: E402

#: Pairs of one call that writes many, what part of the keys `lone` and `remote` take, and the Futures under way.
LIST, PART, WINDOW = 5000, 25, 1000
#: A bare sync is that of a record of so many bytes, which is written over a part of a file.
RECORD, SEGMENT = 384, 16 << 20

Pairs = Sequence[tuple[bytes, bytes]]


class Store(Protocol):
    """What is measured of each store."""

    def put(self, key: bytes, value: bytes) -> object: ...

    def put_many(self, pairs: Pairs) -> object: ...

    def get(self, key: bytes) -> bytes | None: ...


class OurNode:
    """A node in this process, with the default settings."""

    def __init__(self, node: Node) -> None:
        self.node = node
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


class Bare:
    """A file that is written over and synced. It stores nothing."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / "log", os.O_RDWR | os.O_CREAT, 0o600)
        self._at = 0
        os.pwrite(self._file, bytes(SEGMENT), 0)
        os.fsync(self._file)

    def put(self, key: bytes, value: bytes) -> None:
        os.pwrite(self._file, (key + value).ljust(RECORD), self._at)
        os.fdatasync(self._file)
        self._at = (self._at + RECORD) % SEGMENT

    def close(self) -> None:
        os.close(self._file)


@contextmanager
def opened(kind: str, folder: Path) -> Iterator[Store]:
    """Open a store of one kind in an empty folder."""
    folder.mkdir()
    if kind in OURS:
        listen = {"client": "127.0.0.1:0"}
        with Node(Config(node={"data_dir": str(folder)}, storage=OURS[kind], listen=listen)) as node:
            yield OurNode(node)
        return
    store: Any = {"sqlite": Sqlite, "lmdb": Lmdb, "rocksdict": Rocks, BARE: Bare}[kind](folder)
    try:
        yield store
    finally:
        store.close()


BARE = "bare sync"
OURS: dict[str, dict[str, Any]] = {
    "metastore memory": {"engine": "memory"},
    "metastore rocksdb": {"engine": "rocksdb"},
    # Each get goes to RocksDB, as that of a key does which was not used lately.
    "the same, cold": {"engine": "rocksdb", "rocksdb": {"recent_keys_size": 0}},
}
KINDS = (BARE, "sqlite", "lmdb", "rocksdict", *OURS)


@dataclass(frozen=True)
class Done:
    """What a work did: so many operations, and how long each took in microseconds, where that was measured."""

    count: int
    latencies: Sequence[float] = ()


def put_many(store: Store, pairs: Pairs) -> Done:
    """Write all keys, in lists of LIST."""
    for at in range(0, len(pairs), LIST):
        store.put_many(pairs[at : at + LIST])
    return Done(len(pairs))


def ascending(store: Store, pairs: Pairs) -> Done:
    """The same with new keys in ascending order."""
    return put_many(store, [(b"new/%08d" % place, value) for place, (_, value) in enumerate(pairs)])


def get(store: Store, pairs: Pairs) -> Done:
    """Read each key, one at a time."""
    for key, value in pairs:
        if store.get(key) != value:
            raise SystemExit(f"{type(store).__name__}: {key!r} has another value")
    return Done(len(pairs))


def few(pairs: Pairs) -> Pairs:
    return pairs[: max(10, len(pairs) // PART)]


def lone(store: Store, pairs: Pairs) -> Done:
    """Write keys one at a time."""
    latencies = []
    for key, value in few(pairs):
        began = time.perf_counter()
        store.put(key, value)
        latencies.append((time.perf_counter() - began) * 1e6)
    return Done(len(latencies), latencies)


def futures(store: OurNode, pairs: Pairs) -> Done:
    """Write all keys with a Future each, WINDOW under way."""
    put, under_way = store.node.futures.put, deque[Any]()
    for key, value in pairs:
        if len(under_way) == WINDOW:
            under_way.popleft().result()
        under_way.append(put(key, value))
    for future in under_way:
        future.result()
    return Done(len(pairs))


def remote(store: OurNode, pairs: Pairs) -> Done:
    """A client of another process puts one key, and waits for each answer."""
    load = h2load.Load(len(few(pairs)), 1, 1)
    outcome = h2load.run(store.node.client_addresses[0], PUT, prefixed(m.PutRequest(key=KEY, value=pairs[0][1])), load)
    return Done(load.requests, outcome.latencies)


def beside(store: OurNode, pairs: Pairs) -> Done:
    """The same while a thread of this process gets keys one after the other."""
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            for key, _ in pairs[:1000]:
                store.get(key)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        return remote(store, pairs)
    finally:
        over.set()
        thread.join()


#: The works, and those that not all can do.
WHAT: dict[str, Callable[[Any, Pairs], Done]] = {
    "put_many": put_many, "ascending": ascending, "get": get, "lone": lone, "futures": futures, "remote": remote,
    "beside": beside,
}  # fmt: skip
ONLY: dict[str, tuple[str, ...]] = {"lone": KINDS, **dict.fromkeys(("futures", "remote", "beside"), tuple(OURS))}


def measured(store: Store, what: str, pairs: Pairs) -> tuple[float, ...]:
    """Return operations a second, CPU microseconds of this process for one, and p50 and p99 in microseconds, or 0."""
    cpu, began = time.process_time(), time.perf_counter()
    done = WHAT[what](store, pairs)
    took, used = time.perf_counter() - began, time.process_time() - cpu
    latencies = [percentile(done.latencies, share) if done.latencies else 0.0 for share in (0.5, 0.99)]
    return (done.count / took, used / done.count * 1e6, *latencies)


def show(figures: dict[tuple[str, str], list[tuple[float, ...]]]) -> None:
    """Print the medians."""
    for what in dict.fromkeys(what for what, _ in figures):
        heads = ("a second", "noise", "CPU us", "p50 us", "p99 us")
        print(f"\n{what}: {(WHAT[what].__doc__ or '').strip()}\n  {'':<18}" + "".join(f" {head:>10}" for head in heads))
        for kind in KINDS:
            if (what, kind) in figures:
                rates, used, p50, p99 = zip(*figures[what, kind], strict=True)
                rate = statistics.median(rates)
                noise = (max(rates) - min(rates)) / 2 / rate * 100
                latencies = "".join(f" {statistics.median(some):>10.0f}" for some in (p50, p99) if any(some))
                print(f"  {kind:<18} {rate:>10,.0f} {noise:>8.0f} % {statistics.median(used):>10.2f}{latencies}")


def main() -> None:
    parser = make_parser(__doc__, tuple(WHAT), rounds=3, requests=50_000, value_size=256, seed=1)
    options = parser.parse_args()
    check_build()
    draw = random.Random(options.seed)
    pairs = [(b"key/%08d" % draw.randrange(10**8), draw.randbytes(options.value_size)) for _ in range(options.requests)]
    pairs = list(dict(pairs).items())
    figures: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    with tempfile.TemporaryDirectory(prefix="metastore-bench-", dir=options.dir) as name:
        print_machine(options, Path(name))
        for number in range(options.rounds):
            for kind in KINDS:
                with opened(kind, Path(name) / f"{kind}-{number}") as store:
                    for what in dict.fromkeys(("put_many", *chosen(options, tuple(WHAT)))):
                        if kind in ONLY.get(what, tuple(one for one in KINDS if one != BARE)):
                            figures.setdefault((what, kind), []).append(measured(store, what, pairs))
    show(figures)


if __name__ == "__main__":
    main()
