"""A store with watchers, without a node around it. The responses of `WatchHub` are compared with what was written."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from metastore._core.engine import MemoryEngine
from metastore._core.mvcc import Store
from metastore._core.watch import WatchHub
from metastore._core.watch_index import Sink, Stream
from metastore._core.watch_wire import decode_request

from . import messages as m

WatchRequest, WatchResponse = m.TYPES["WatchRequest"], m.TYPES["WatchResponse"]
PUT, DELETE = 0, 1
NO_PUT, NO_DELETE = 0, 1


class TestSink(Sink):
    """Keeps the responses, up to `room` of them before it is full."""

    __test__ = False

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.sent: list[Any] = []

    def full(self) -> bool:
        return len(self.sent) >= self.room

    def send(self, message: bytes) -> None:
        self.sent.append(WatchResponse.FromString(message))

    def take(self) -> list[Any]:
        """Return the responses since the last call."""
        sent, self.sent = self.sent, []
        return sent


@dataclass
class Change:
    """One change of a key as it was written."""

    revision: int
    key: bytes
    value: bytes | None
    create: int = 0
    version: int = 0
    prev: tuple[bytes, int] | None = None  # value and revision


@dataclass
class History:
    """A store and everything that was written to it. `engine` may be any engine."""

    store: Store
    changes: list[Change] = field(default_factory=list)
    live: dict[bytes, Change] = field(default_factory=dict)
    index: int = 0

    @classmethod
    def fresh(cls, engine: Any = None) -> History:
        return cls(Store(engine if engine is not None else MemoryEngine()))

    def put(self, key: bytes, value: bytes = b"") -> int:
        self.store.put(m.PutRequest(key=key, value=value).SerializeToString())
        revision, old = self.store.revision, self.live.get(key)
        made = Change(revision, key, value, old.create if old else revision, old.version + 1 if old else 1)
        made.prev = (old.value or b"", old.revision) if old else None
        self.live[key] = made
        self.changes.append(made)
        return revision

    def delete(self, key: bytes, end: bytes = b"") -> int:
        gone = sorted(k for k in self.live if holds(key, end, k))
        self.store.delete_range(m.DeleteRangeRequest(key=key, range_end=end).SerializeToString())
        for name in gone:
            old = self.live.pop(name)
            self.changes.append(Change(self.store.revision, name, None, prev=(old.value or b"", old.revision)))
        return self.store.revision

    def compact(self, revision: int) -> None:
        self.store.compact(m.CompactionRequest(revision=revision).SerializeToString())

    def commit(self) -> None:
        self.index += 1
        self.store.commit(self.index, 1)


def holds(key: bytes, end: bytes, name: bytes) -> bool:
    """Whether the range of a watcher or a deletion holds `name`."""
    return name == key if not end else name >= key and (end == b"\0" or name < end)


def create(**fields: Any) -> Any:
    """Return a decoded create request."""
    return decode_request(WatchRequest(create_request=fields).SerializeToString())


def watch(hub: WatchHub, stream: Stream, now: float = 0.0, **fields: Any) -> Any:
    """Make a watcher. Return the last response, which is the answer to it if nothing else comes in between."""
    sink: Any = stream.sink
    hub.handle(stream, create(**fields), now)
    return sink.sent[-1]


def event_of(change: Change, prev_kv: bool, compacted: int) -> Any:
    """Return the event that a watcher must get."""
    event = m.TYPES["Event"](kv={"key": change.key, "mod_revision": change.revision})
    if change.value is None:
        event.type = DELETE
    else:
        event.kv.value, event.kv.create_revision, event.kv.version = change.value, change.create, change.version
    if prev_kv and change.prev is not None and change.revision - 1 >= compacted:
        event.prev_kv.key, event.prev_kv.value, event.prev_kv.mod_revision = change.key, *change.prev
    return event


def some_key(chance: random.Random) -> bytes:
    return chance.choice([b"a", b"b", b"b\0", b"bb", b"c", b"ca", b"\0", b"d\xff", b"k%d" % chance.randrange(30)])


def settle(hub: WatchHub, budget: int = 1 << 30) -> None:
    """Step until there is nothing to do at once."""
    for _ in range(100_000):
        if not hub.step(budget):
            return
    raise AssertionError("the hub never comes to an end")
