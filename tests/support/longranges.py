"""Ranges in pieces, while other clients write."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from metastore import errors
from metastore._core.engine import Engine
from metastore._core.mvcc import Store
from metastore._core.mvcc_sweep import sweep_slice
from metastore.storage.engines.memory import MemoryEngine

from . import kvmessages as pb

MANY = 40_000
KEYS = [b"a", b"b", b"a\0", b"\0", b"\0\0", b"ab", b"a\xff", b"\xff", b"a\0b"]


class Writer:
    """A store that changes at random. Nearly every call is a commit; at the others the engine is busy. With `sweeps`,
    compacted records are removed. Without an `engine` it has one in memory."""

    def __init__(self, seed: int, sweeps: bool = True, engine: Engine | None = None) -> None:
        self.sweeps = sweeps
        self.store = Store(MemoryEngine() if engine is None else engine, 5, 6)
        self.rng = random.Random(seed)
        self.index = 0

    def change(self, compactions: float = 0.1) -> None:
        """Make a few puts and deletes, now and then a compaction with its sweep."""
        rng, store = self.rng, self.store
        for _ in range(rng.randint(1, 4)):
            key = rng.choice(KEYS)
            if rng.random() < 0.25:
                store.delete_range(pb.DeleteRangeRequest(key=key).SerializeToString())
            else:
                store.put(pb.PutRequest(key=key, value=b"v" * rng.choice([0, 1, 200])).SerializeToString())
        if rng.random() < compactions and store.revision > max(1, store.compact_revision):
            store.compact(pb.CompactionRequest(revision=store.revision).SerializeToString())
        if rng.random() < 0.3:
            return
        self.index += 1
        store.commit(self.index, 1)
        while self.sweeps and rng.random() < 0.9 and sweep_slice(store, 3):
            pass

    def change_much(self) -> None:
        """Overwrite, compact and sweep the keys that a range in pieces is about to read."""
        self.change(0.7)


def outcome(ask: Callable[[], bytes]) -> Any:
    """Return the reply, or the class of the error."""
    try:
        return ask()
    except errors.ApiError as error:
        return type(error)
