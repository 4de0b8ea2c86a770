"""What a put costs on a storage engine over a store that takes a millisecond for each call: docs/plugins.md, "An
existing distributed store".

    python bench/slow_store.py [--milliseconds 1] [--seconds 3] [--dir FOLDER]

The store is a map in this process behind a sleep, so the numbers show the engine's design and not a network's. Three
engines stand before it: one that calls it in the node's thread, one that writes in a thread of its own, and one that
also holds the table of keys in memory. The engine "memory" is there for comparison. Each is measured with one put at a
time, and with 64 in flight; keys are new, or the same 1,000 again and again.
"""

from __future__ import annotations

import itertools
import logging
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from options import make_parser

from metastore import Config, Node, storage
from metastore.plugin import APPLIED_KEY, Batch, Engine, EngineBusy, View

POSITION = struct.Struct("<QQ")
PENDING = 8 << 20  # bytes that may wait for the store before writes are held back
Pair = tuple[bytes, bytes]


class Store:
    """An ordered map, each call of which takes a while."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.data = Batch()
        self.calls = 0

    def wait(self) -> None:
        """The way to the store and back. Other threads go on meanwhile."""
        self.calls += 1
        time.sleep(self.delay)

    def apply(self, pairs: Iterable[tuple[bytes, bytes | None]]) -> None:
        """One atomic write."""
        self.wait()
        for key, value in pairs:
            if value is None:
                self.data.delete(key)
            else:
                self.data.set(key, value)


class Direct(Engine):
    """Each call is one of the store's."""

    CONTRACT = 1
    persistent = True
    fixed: Batch | None = None

    def __init__(self, store: Store) -> None:
        self.store = store
        self.position = (0, 0)

    def layers(self) -> list[Batch]:
        """The maps that make up the contents, the newest first; the last one is the store's."""
        return [self.store.data if self.fixed is None else self.fixed]

    def get(self, key: bytes) -> bytes | None:
        for layer in self.layers()[:-1]:
            if key in layer:
                return layer.get(key)
        self.store.wait()
        return self.layers()[-1].get(key)

    def scan(self, start: bytes, end: bytes | None, reverse: bool, limit: int) -> list[Pair]:
        self.store.wait()
        merged: dict[bytes, bytes | None] = {}
        layers = self.layers()
        pending = sum(layer.count for layer in layers[:-1])
        for layer in reversed(layers):
            merged.update(layer.scan(start, end, reverse, limit + pending if limit else 0))
        pairs = [(key, value) for key, value in sorted(merged.items(), reverse=reverse) if value is not None]
        return pairs[: limit or None]

    def write(self, batch: Batch, index: int, term: int) -> None:
        self.store.apply([*batch.items(), (APPLIED_KEY, POSITION.pack(index, term))])
        self.position = (index, term)

    def applied(self) -> tuple[int, int]:
        return self.position

    def durable_applied(self) -> int:
        return self.position[0]

    def view(self) -> View:
        view = Direct(self.store)
        view.position, view.fixed = self.position, self.store.data.view()
        return view

    def size(self) -> int:
        return self.store.data.nbytes

    def restore(self, stream: Iterable[Pair]) -> None:
        raise NotImplementedError


class OwnThread(Direct):
    """A thread of its own writes to the store, all that has gathered in one call. Reads see what waits. What the store
    has is durable, and the log has the rest."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.filling, self.sending = Batch(), Batch()
        self.durable = 0
        self.changed = threading.Condition()
        self.closing = False
        self.thread = threading.Thread(target=self.send, daemon=True)
        self.thread.start()

    def layers(self) -> list[Batch]:
        return [self.filling, self.sending, self.store.data]

    def seek_le(self, key: bytes) -> Pair | None:
        self.store.wait()
        layers, end = self.layers(), key + b"\0"
        while True:
            found = [pair for layer in layers for pair in layer.scan(b"", end, True, 1)]
            if not found:
                return None
            last = max(key for key, _ in found)
            value = next(value for key, value in found if key == last)
            if value is not None:
                return last, value
            end = last  # deleted: go on below

    def write(self, batch: Batch, index: int, term: int) -> None:
        with self.changed:
            if self.filling.nbytes > PENDING:
                raise EngineBusy("the store is behind")
            for key, value in batch.items():
                if value is None:
                    self.filling.set_deleted(key)
                else:
                    self.filling.set(key, value)
            self.filling.set(APPLIED_KEY, POSITION.pack(index, term))
            self.position = (index, term)
            self.changed.notify()

    def send(self) -> None:
        """The thread."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.closing or self.filling.count)
                if not self.filling.count:
                    return
                self.sending, self.filling, index = self.filling, Batch(), self.position[0]
            self.store.apply(self.sending.items())
            with self.changed:
                self.sending, self.durable = Batch(), index

    def durable_applied(self) -> int:
        return self.durable

    def view(self) -> View:
        raise NotImplementedError  # the layers' views, and the store's

    def close(self) -> None:
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join()


class KeysInMemory(OwnThread):
    """Holds the table of keys, which each put looks into. The values stay in the store."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.keys = Batch()  # a start reads the table `k` out of the store

    def write(self, batch: Batch, index: int, term: int) -> None:
        super().write(batch, index, term)
        for key, value in batch.items():
            if key[:1] != b"k":
                continue
            if value is None:
                self.keys.delete(key)
            else:
                self.keys.set(key, value)

    def seek_le(self, key: bytes) -> Pair | None:
        if key[:1] == b"k" and (found := self.keys.seek_le(key)) is not None:
            return found  # type: ignore[return-value]
        return super().seek_le(key)


ENGINES: dict[str, Callable[[Store], Engine] | None] = {
    "memory, no store": None, "every call in the node's thread": Direct, "writes in a thread of its own": OwnThread,
    "and the keys in memory": KeysInMemory,
}  # fmt: skip


def rate(node: Node, at_once: int, seconds: float, keys: Iterable[int]) -> tuple[float, float, int]:
    """Return (puts a second, mean seconds of a put, puts) with so many puts in flight."""
    numbers, ends, waiting = iter(keys), time.monotonic() + seconds, threading.Semaphore(at_once)
    taken: list[float] = []
    began = time.monotonic()
    while time.monotonic() < ends:
        waiting.acquire()
        start = time.monotonic()

        def done(_: Future[Any], start: float = start) -> None:
            taken.append(time.monotonic() - start)
            waiting.release()

        node.futures.put(b"key/%09d" % next(numbers), b"v" * 100).add_done_callback(done)
    for _ in range(at_once):
        waiting.acquire()
    return len(taken) / (time.monotonic() - began), sum(taken) / len(taken), len(taken)


def main() -> None:
    """Measure all engines and print a table."""
    parser = make_parser(__doc__)
    parser.add_argument("--milliseconds", type=float, default=1.0, help="that a call of the store takes")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each number")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    open_engine = storage.open_engine
    print("| Engine | one at a time, new keys | the same keys | 64 in flight, new keys | the same keys |")
    print("|---|---|---|---|---|")
    for name, kind in ENGINES.items():
        if kind is not None:
            store = Store(arguments.milliseconds / 1000)
            storage.open_engine = lambda *_, kind=kind, store=store: storage.guarded(kind(store), "slow")
        columns, store = [], store if kind is not None else Store(0)
        with tempfile.TemporaryDirectory(dir=arguments.dir) as folder, Node(Config(node={"data_dir": folder})) as node:
            new = itertools.count(1_000_000)
            for at_once in (1, 64):
                for keys in (new, itertools.cycle(range(1000))):
                    calls = store.calls
                    puts, each, number = rate(node, at_once, arguments.seconds, keys)
                    columns.append(f"{puts:.0f}, {each * 1000:.1f} ms, {(store.calls - calls) / number:.2f} calls")
        storage.open_engine = open_engine
        print(f"| {name} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
