"""The whole state of a member after each entry that it applies, summed up: history, membership and alarms included.

A member's engine is behind its store while entries wait for their write, so the state after an entry is in two
places. The mirror puts both together: it is a copy of the engine's records, and gets, entry by entry, what the store is
about to write. The hash over the mirror is the member's state at that index. At every `ENGINE_EVERY` indexes the engine
itself is compared with it. Records that a sweep has still to remove are no state, and do not count in either hash.
"""

from __future__ import annotations

import struct

from metastore._core.engine import APPLIED_KEY, Engine, MemoryEngine
from metastore._core.mvcc import Store
from metastore._core.mvcc_hash import Hasher
from metastore._core.ordered_map import OrderedMap

from .engines import contents

ENGINE_EVERY = 4
ATTACHED = b"a"
REVISION, SWEPT = b"mrevision", b"mswept"
COUNTER = struct.Struct("<Bq")  # the form of a counter: its version, 1, and the number


def whole_hash(engine: Engine) -> int:
    """The hash over all that is replicated but the keys of leases. Those follow from the versions of the keys, and hold
    what an unfinished entry has done to them, too; the checker looks at them in the end."""
    if list(engine.scan(ATTACHED, b"b", False, 1)):
        records = engine.scan(b"", None, False, 0)
        engine = MemoryEngine()
        engine.restore([record for record in records if record[0][:1] != ATTACHED])
    hasher = Hasher(engine.view(), 0, True)
    while hasher.step(1 << 30):
        pass
    return hasher.hash


class Mirror:
    """See above. `hash` is that of the last entry, `written` that of the last one that the engine has."""

    def __init__(self, store: Store) -> None:
        self._records = MemoryEngine()
        self._looked_at = 0  # the index when the engine was compared last
        self._stale = store.stale  # they hold a part of an entry that will be applied again
        self._restore(contents(store.engine))
        self.hash = self.written = whole_hash(self._records)

    def _restore(self, engine: MemoryEngine) -> None:
        self._records = MemoryEngine()
        if engine.get(APPLIED_KEY) is not None:
            self._records.restore(engine.scan(b"", None, False, 0))
        counter = engine.get(REVISION)
        self._revision = 1 if counter is None else COUNTER.unpack(counter)[1]
        self._swept = engine.get(SWEPT)

    def differs(self, store: Store, index: int) -> bool:
        """Whether the engine holds anything but the state of the last entry that was written to it, if it is time to
        look at it again."""
        if index < self._looked_at + ENGINE_EVERY:
            return False
        self._looked_at = index
        return whole_hash(contents(store.engine)) != self.written

    def follow(self, store: Store, index: int) -> None:
        """An entry is at its end."""
        if store.spilled or self._stale:
            self._restore(contents(store.engine))
            self._stale = store.stale  # at a start there may be no entry yet whose end is the end of them
        self._records.write(store.overlay, index, 0)
        if store.revision != self._revision:
            self._revision = store.revision
            batch = OrderedMap()
            batch.set(REVISION, COUNTER.pack(1, self._revision))
            self._records.write(batch, index, 0)
        self.hash = whole_hash(self._records)

    def commit(self, store: Store) -> None:
        """The engine has got all that there was to write."""
        self.written = self.hash
        engine = contents(store.engine)
        if engine.get(SWEPT) != self._swept:
            self._restore(engine)  # a sweep goes to the engine alone
