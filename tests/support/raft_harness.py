"""What the Raft tests share: a storage in plain Python, and a small network of nodes in one process.

Nothing here knows time or randomness: a test delivers, drops and reorders by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from metastore._core.entry import Entry, HardState, encode_entry
from metastore._core.raft import RawNode
from metastore._core.raft_types import (
    ConfState,
    Message,
    NotYetLoaded,
    RaftConfig,
    Ready,
    Snapshot,
    decode_conf_change,
)


class MemoryStorage:
    """A storage with the methods that the core calls (ports.LogStore). What `store` was given counts as durable."""

    def __init__(self, conf: ConfState | None = None, hard: HardState | None = None) -> None:
        self.hard = hard
        self.conf = conf or ConfState()
        self.offset = 0
        self.offset_term = 0
        self.log: list[Entry] = []
        self.saved: Snapshot | None = None
        self.loaded = True
        self.reads: list[tuple[int, int]] = []

    def initial_state(self) -> tuple[HardState | None, ConfState]:
        return self.hard, self.conf

    def first_index(self) -> int:
        return self.offset + 1

    def last_index(self) -> int:
        return self.offset + len(self.log)

    def term(self, index: int) -> int:
        if index == self.offset:
            return self.offset_term
        return self.log[index - self.offset - 1].term

    def images(self, low: int, high: int, max_size: int) -> bytes:
        self.reads.append((low, high))
        if not self.loaded:
            raise NotYetLoaded()
        out = b""
        for entry in self.log[low - self.offset - 1 : high - self.offset - 1]:
            image = encode_entry(entry)
            if out and len(out) + len(image) > max_size:
                break
            out += image
        return out

    def has_conf_change(self, low: int, high: int) -> bool:
        return any(entry.type for entry in self.log[low - self.offset - 1 : high - self.offset - 1])

    def snapshot(self) -> Snapshot | None:
        return self.saved

    def store(self, entries: Iterable[Entry], hard: HardState | None = None, snapshot: Snapshot | None = None) -> None:
        """Persist what a Ready holds."""
        if snapshot is not None:
            self.offset, self.offset_term = snapshot.index, snapshot.term
            self.log = []
            self.saved, self.conf = snapshot, snapshot.conf_state
        for entry in entries:
            if not self.offset < entry.index <= self.last_index() + 1:
                raise AssertionError(f"entry {entry.index} leaves a gap in {self.offset}..{self.last_index()}")
            del self.log[entry.index - self.offset - 1 :]
            self.log.append(entry)
        if hard is not None:
            self.hard = hard

    def compact(self, index: int, conf: ConfState) -> None:
        """Drop the entries up to `index` and keep a snapshot in their place."""
        term = self.term(index)
        self.log = self.log[index - self.offset :]
        self.offset, self.offset_term = index, term
        self.saved, self.conf = Snapshot(index, term, conf), conf


class Node:
    """A RawNode with its storage and its applied entries. `hold_disk` keeps Readies from becoming durable."""

    def __init__(self, config: RaftConfig, storage: MemoryStorage) -> None:
        self.storage = storage
        self.raw = RawNode(config, storage)
        self.applied: list[Entry] = []
        self.read_states: list[tuple[int, bytes]] = []
        self.dropped_reads: list[bytes] = []
        self.hold_disk = False
        self.writing: list[Ready] = []
        self.last_ready: Ready | None = None

    def take(self) -> list[Message]:
        """Do everything that is ready. Return the messages to send."""
        out: list[Message] = []
        while self.raw.has_ready():
            ready = self.raw.ready()
            self.last_ready = ready
            out += ready.messages
            self.read_states += [(state.index, state.request_ctx) for state in ready.read_states]
            self.dropped_reads += ready.dropped_reads
            if ready.must_sync or ready.hard_state is not None:
                self.writing.append(ready)
            self.apply(ready)
            if not self.hold_disk:
                self.flush()
        return out

    def apply(self, ready: Ready) -> None:
        for entry in ready.committed_entries:
            self.applied.append(entry)
            if entry.type:
                self.raw.apply_conf_change(decode_conf_change(entry.type, entry.data))
        if ready.committed_last:
            self.raw.on_applied(ready.committed_last)

    def flush(self, count: int | None = None) -> None:
        """Make the oldest `count` Readies (default: all) durable."""
        done = self.writing[:count]
        del self.writing[: len(done)]
        for ready in done:
            self.storage.store(ready.entries, ready.hard_state, ready.snapshot)
        if done:
            self.raw.on_persisted(done[-1].number)


class Network:
    """Nodes and the messages between them."""

    def __init__(
        self, ids: Iterable[int], *, learners: Iterable[int] = (), bootstrap: bool = False, **config: object
    ) -> None:
        """bootstrap: the log begins after index 1, whose snapshot holds the membership. Members that join later get it
        from there."""
        self.config = config
        ids, learners = list(ids), list(learners)
        self.conf = ConfState(ids, learners)
        self.nodes: dict[int, Node] = {}
        self.queue: list[Message] = []
        self.cut: set[tuple[int, int]] = set()
        self.drop: Callable[[Message], bool] = lambda message: False
        for id in ids + learners:
            storage = MemoryStorage(self.conf)
            if bootstrap:
                storage.store([], HardState(1, 0, 1), Snapshot(1, 1, self.conf))
            self.add(id, storage)

    def add(self, id: int, storage: MemoryStorage, **config: object) -> Node:
        """Start or restart a node on a storage."""
        settings: dict = {"seed": 7, "pre_vote": False, "check_quorum": False, **self.config, **config}
        self.nodes[id] = Node(RaftConfig(id, **settings), storage)
        self.nodes[id].raw.election_timeout_ticks = 10 + id
        return self.nodes[id]

    def restart(self, id: int, **config: object) -> Node:
        """Crash a node and start it again. Only what its storage holds comes back."""
        return self.add(id, self.nodes[id].storage, **config)

    def __getitem__(self, id: int) -> RawNode:
        return self.nodes[id].raw

    def isolate(self, *ids: int) -> None:
        """Cut the links between these nodes and all others."""
        others = set(self.nodes) - set(ids)
        self.cut |= {(a, b) for a in ids for b in others} | {(b, a) for a in ids for b in others}

    def heal(self) -> None:
        self.cut.clear()

    def collect(self) -> None:
        """Move the messages that the nodes want to send into the queue."""
        for id in sorted(self.nodes):
            self.queue += self.nodes[id].take()

    def deliver(self) -> int:
        """Deliver the messages in the queue, which is one hop. Return how many messages arrived."""
        batch, self.queue = self.queue, []
        count = 0
        for message in batch:
            if (message.from_, message.to) in self.cut or message.to not in self.nodes or self.drop(message):
                continue
            self.nodes[message.to].raw.step(Message.decode(message.encode()))
            count += 1
        self.collect()
        return count

    def settle(self, limit: int = 200) -> None:
        """Deliver until nothing is on its way."""
        self.collect()
        for _ in range(limit):
            if not self.queue:
                return
            self.deliver()
        raise AssertionError(f"messages go round and round: {self.queue}")

    def campaign(self, id: int) -> None:
        self[id].campaign()
        self.settle()

    def tick(self, *ids: int, count: int = 1, now: float = 0.0) -> None:
        """Tick these nodes (default: all), settling after each tick."""
        for _ in range(count):
            for id in ids or sorted(self.nodes):
                self[id].tick(now)
            self.settle()

    def leader(self) -> int:
        """Return the one leader of the newest term, or 0 if there is none."""
        leading = [(node.raw.term, id) for id, node in self.nodes.items() if node.raw.is_leader]
        return max(leading)[1] if leading else 0

    def data(self, id: int) -> list[bytes]:
        """Return the payloads of the normal entries that this node applied."""
        return [entry.data for entry in self.nodes[id].applied if entry.type == 0 and entry.data]
