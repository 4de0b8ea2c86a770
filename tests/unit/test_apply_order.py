"""The meaning of a log does not depend on how it was cut up: into Readies, by restarts, by a busy engine.

A follower gets a random log of everything that changes the state (keys, alarms, the roster, Raft's membership) from a
leader that reveals its commit index bit by bit. The follower is killed and started again on the way. Whatever it was
given at once, its engine, roster and membership after an entry are those of a member that applied one entry at a time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import kvmessages as pb
from support.raft_harness import MemoryStorage

from metastore import errors
from metastore._core.batch import BatchProposer, frame
from metastore._core.codec import PayloadCodec
from metastore._core.engine import Engine
from metastore._core.entry import Entry, decode_entries, decode_entry, encode_entry
from metastore._core.kv_server import KVServer
from metastore._core.mvcc import Store
from metastore._core.mvcc_apply import Applier
from metastore._core.op import ALARM, COMPACT, DELETE_RANGE, MEMBER, PUT, TXN, encode_op
from metastore._core.raft import RawNode
from metastore._core.raft_types import ConfState, Message, MsgApp, RaftConfig
from metastore.replica.alarms import ACTIVATE, CORRUPT, DEACTIVATE, NOSPACE, encode_change
from metastore.replica.driver import Driver
from metastore.replica.peer_link import PeerLink
from metastore.replica.roster import (
    ADD,
    ADD_LEARNER,
    PROMOTE,
    PUBLISH,
    REMOVE,
    RESTATE,
    UPDATE,
    Change,
    Member,
    Roster,
    RosterState,
)
from metastore.settings import RocksdbTable
from metastore.storage.engines.memory import MemoryEngine
from metastore.storage.engines.rocksdb import RocksEngine

OWN, LEADER = 1, 2
CODEC = PayloadCodec(None, 1 << 20, 1 << 24)
INITIAL = tuple(Member(ident, "", (f"http://n{ident}:2",), ()) for ident in (1, 2, 3))
SMALL = RocksdbTable(cache_size=1 << 20, write_buffer_size=64 << 10, recent_keys_size=64 << 10)

State = tuple[list[tuple[bytes, bytes]], RosterState, ConfState]


# ---- a random log


def a_member(chance: random.Random) -> Member:
    """There are few ids and few addresses, so operations get in each other's way."""
    return Member(
        chance.randint(1, 5), chance.choice(("", "a", "b")), (f"http://n{chance.randint(1, 7)}:2",), ("http://c:1",)
    )


def an_entry(chance: random.Random, index: int) -> Entry:
    if chance.random() < 0.3:
        change = Change(chance.choice((ADD, ADD, ADD_LEARNER, PROMOTE, REMOVE)), a_member(chance))
        conf_change = change.conf_change(encode_op(MEMBER, index, change.encode()))
        assert conf_change is not None
        return Entry(1, index, 1, conf_change.encode())
    operations = [an_operation(chance, index) for _ in range(chance.choice((1, 1, 1, 3)))]
    return Entry(1, index, 0, CODEC.encode(frame(operations)) if chance.random() < 0.95 else b"")


def an_operation(chance: random.Random, index: int) -> bytes:
    key = chance.choice((b"a", b"b", b"c"))
    kind = chance.choices((PUT, DELETE_RANGE, TXN, COMPACT, ALARM, MEMBER, 0), (5, 2, 3, 1, 2, 9, 0.2))[0]
    if kind == PUT:
        body = pb.PutRequest(key=key, value=b"%d" % index, ignore_value=chance.random() < 0.1).SerializeToString()
    elif kind == DELETE_RANGE:
        body = pb.DeleteRangeRequest(key=key, range_end=chance.choice((b"", b"c", b"\0"))).SerializeToString()
    elif kind == TXN:
        txn = pb.TxnRequest(compare=[pb.Compare(key=key, target=0, result=1, version=chance.randint(0, 3))])
        txn.success.add(request_put=pb.PutRequest(key=b"t", value=b"%d" % index))
        txn.failure.add(request_delete_range=pb.DeleteRangeRequest(key=key))
        body = txn.SerializeToString()
    elif kind == COMPACT:
        body = pb.CompactionRequest(revision=chance.randint(1, index)).SerializeToString()
    elif kind == ALARM:
        action = chance.choice((ACTIVATE, DEACTIVATE, DEACTIVATE))
        body = encode_change(action, 1, chance.choice((NOSPACE, CORRUPT)))
    elif kind == MEMBER:
        body = a_roster_operation(chance).encode()
    else:
        return b"nonsense"
    return encode_op(kind, index, body)


def a_roster_operation(chance: random.Random) -> Change:
    subject = a_member(chance)
    if chance.random() > 0.08:
        return Change(chance.choice((UPDATE, PUBLISH)), subject)
    known = {subject.id: subject, **{member.id: member for member in INITIAL[: chance.randint(1, 3)]}}
    members = tuple(known[ident] for ident in sorted(known))
    return Change(RESTATE, subject, RosterState(members, frozenset([7]), ConfState(voters=sorted(known))))


# ---- a follower that can be killed


class Log:
    """The write-ahead log as the driver sees it. Appends become durable when `sync` is called."""

    def __init__(self, storage: MemoryStorage, chance: random.Random) -> None:
        self.storage = storage
        self.chance = chance
        self.durable_commit = storage.hard.commit if storage.hard is not None else 0
        self.waiting: list[tuple[int, list[Entry], Any, int]] = []
        self.durable = 0
        self.idle = True

    def append(self, number: int, images: Any, hard_state: Any, must_sync: bool = True) -> None:
        self.waiting.append((number, decode_entries(images or b""), hard_state, 0))

    def save_commit(self, hard_state: Any) -> None:
        self.waiting.append((0, [], hard_state, hard_state.commit))

    def sync(self, count: int) -> None:
        for number, entries, hard_state, commit in self.waiting[:count]:
            self.storage.store(entries, hard_state)
            self.durable = max(self.durable, number)
            self.durable_commit = max(self.durable_commit, commit)
        del self.waiting[:count]

    def submit(self, writer: int = 0) -> bool:
        return False

    def poll(self, start: bool = True) -> int:
        self.sync(self.chance.randint(0, 3))
        return self.durable

    def settle(self) -> int:
        return self.durable

    def has_ended(self) -> bool:
        return False

    def listen(self, wanted: bool) -> bool:
        return False

    def mark(self) -> bool:
        return False


class Busy(MemoryEngine):
    """Refuses about every other write."""

    chance: random.Random

    def write(self, batch: Any, index: int, term: int) -> None:
        if self.chance.random() < 0.4:
            raise errors.EngineBusy("not now")
        MemoryEngine.write(self, batch, index, term)


class Follower:
    """One life of a member over a log and an engine."""

    def __init__(
        self, storage: MemoryStorage, engine: Engine, chance: random.Random, per_ready: int,
        driver_class: type[Driver] = Driver,
    ) -> None:  # fmt: skip
        self.storage, self.engine = storage, engine
        self.store = Store(engine, 1, 0)
        waiters: dict[int, Any] = {}
        self.applier = Applier(
            self.store, CODEC, waiters, lambda request: self.driver.committed.apply_operation(request)
        )
        proposer = BatchProposer(100, 1 << 20, 0.01, 1000, 1 << 22, True)
        limits = SimpleNamespace(
            max_request_bytes=1 << 16, max_txn_ops=128, max_key_bytes=0, max_txn_walk=10**6, max_inflight_requests=1000
        )
        kv: Any = KVServer(self.store, proposer, waiters, 1 << 40, limits)
        self.roster = Roster(self.store, INITIAL)
        storage.conf = self.roster.conf_state
        config = RaftConfig(
            id=OWN,
            election_ticks=10,
            heartbeat_ticks=1,
            applied=engine.applied()[0],
            max_committed_size_per_ready=per_ready,
        )
        self.raw = RawNode(config, storage)
        self.log = Log(storage, chance)
        self.driver = driver_class(
            self.raw, self.log, self.applier, proposer, CODEC, kv, self.roster, PeerLink(), request_timeout=5.0
        )
        self.now = 0.0

    def hear(self, entries: list[Entry], commit: int) -> None:
        first = entries[0].index if entries else self.raw.last_index + 1
        self.driver.receive(
            Message(
                type=MsgApp, to=OWN, from_=LEADER, term=1, index=first - 1, log_term=self.raw.term_of(first - 1) or 0,
                commit=commit, images=b"".join(map(encode_entry, entries)),
            )
        )  # fmt: skip
        self.turn()

    def turn(self) -> None:
        self.now += 0.01
        self.driver.on_disk(self.now)

    def state(self) -> State | None:
        """Return the state reached, or None while the engine is behind the applied entries."""
        if self.driver.retry_at is not None:
            return None
        contents = [pair for pair in self.engine.scan(b"", None, False, 0) if pair[0] != b"mapplied"]
        # The core takes over a restated membership when the commit index is durable, before anything else.
        conf_state = self.driver.committed.due or self.raw.conf_state
        assert self.engine.applied()[0] == self.applier.applied_index
        return contents, self.roster.state, conf_state


def one_by_one(entries: list[Entry]) -> list[State]:
    """Return the state after each entry, with a Ready for each entry."""
    follower = Follower(MemoryStorage(), MemoryEngine(), random.Random(0), 1)
    states = []
    for index in range(len(entries) + 1):
        follower.hear([entries[index - 1]] if index else [], index)
        while follower.applier.applied_index < index:
            follower.turn()
        state = follower.state()
        assert state is not None and state[1].conf_state == state[2]
        states.append(state)
    return states


def differs(
    entries: list[Entry], chance: random.Random, engine: Callable[[], Engine], kill: Callable[[Engine], None],
    driver_class: type[Driver] = Driver,
) -> list[int]:  # fmt: skip
    """Return the entries at which a member that is fed and killed at random differs from one that applies one entry at
    a time."""
    states, wrong = one_by_one(entries), []
    storage = MemoryStorage()
    lives = 0
    while True:
        follower = Follower(storage, engine(), chance, chance.choice((1, 200, 1 << 20)), driver_class)
        lives += 1
        begun = follower.applier.applied_index
        for _ in range(chance.randint(1, 40) if lives < 8 else 1 << 30):
            last = follower.raw.last_index
            part = entries[last : last + chance.choice((0, 0, 5, 40))]
            follower.hear(part, chance.randint(follower.raw.commit, last + len(part)))
            state = follower.state()
            if state is not None and state != states[follower.applier.applied_index]:
                wrong.append(follower.applier.applied_index)
            if wrong or (state is not None and follower.applier.applied_index == len(entries)):
                kill(follower.engine)
                return wrong
        assert follower.applier.applied_index >= begun
        kill(follower.engine)


def logs(count: int, size: int = 120) -> Iterator[tuple[int, list[Entry]]]:
    for seed in range(count):
        chance = random.Random(seed)
        yield seed, [an_entry(chance, index) for index in range(1, size + 1)]


def nothing(_engine: Engine) -> None:
    """An engine in memory is gone with its process."""


def test_any_way_to_cut_up_a_log_gives_the_same_states() -> None:
    for seed, entries in logs(12):
        for life in range(3):
            assert differs(entries, random.Random(f"{seed} {life}"), MemoryEngine, nothing) == [], f"seed {seed} {life}"


def test_with_an_engine_that_is_busy() -> None:
    for seed, entries in logs(8):
        chance = random.Random(f"busy {seed}")

        def busy(chance: random.Random = chance) -> Engine:
            engine = Busy()
            engine.chance = chance
            return engine

        assert differs(entries, chance, busy, nothing) == [], f"seed {seed}"


@pytest.mark.node_only
def test_with_an_engine_that_goes_on_where_it_was(tmp_path: Path) -> None:
    for seed, entries in logs(3):
        folder, chance = tmp_path / str(seed), random.Random(f"rocksdb {seed}")
        folder.mkdir()
        make = lambda folder=folder: RocksEngine(str(folder), SMALL)  # noqa: E731
        assert differs(entries, chance, make, lambda engine: engine.close()) == [], f"seed {seed}"


def test_the_logs_hold_what_stands_in_each_others_way() -> None:
    """The logs hold operations that are possible, operations that others before them prevent, and several
    memberships."""
    alarms: set[bytes] = set()
    for seed, entries in logs(4):
        states = one_by_one(entries)
        rosters, confs = {state[1].digest for state in states}, {state[2] for state in states}
        assert len(rosters) > 8 and len(confs) > 2, f"seed {seed}"
        assert len({len(state[0]) for state in states}) > 4, f"seed {seed}"
        alarms |= {value for state in states for key, value in state[0] if key == b"malarms"}
    assert len(alarms) == 4


class ChangesLast(Driver):
    """What the driver once did: it applied the membership changes of a Ready after all other entries of it."""

    def _apply_on(self, now: float) -> None:
        images, at, held = self._images, 0, []
        while at < len(images):
            entry, behind = decode_entry(images, at)
            if entry.type:
                held.append(entry)
                self.applier.passed(entry.index, entry.term)
            else:
                self.applier.apply_images(images[at:behind])
            at = behind
        for entry in held:
            self.committed.apply(entry)
        if self.committed.due is not None:
            self.committed.enter()
        self._images, self._unwritten = None, self.applier.applied_index
        self._commit(now)


def test_the_old_order_is_found() -> None:
    differences = [
        differs(entries, random.Random(seed), MemoryEngine, nothing, ChangesLast) != [] for seed, entries in logs(12)
    ]
    assert sum(differences) >= 3
