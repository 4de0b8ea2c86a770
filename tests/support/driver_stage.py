"""Members for the transcripts of the driver: the real core, driver, proposer, applier and store over a log, a network
and an engine that a transcript moves by hand. Each action of the driver at one of its seams is a line, in the order of
the actions.

Nothing here knows time or randomness: a disk finishes, a message arrives and a second passes when a command says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

from metastore import errors
from metastore._core.batch import BatchProposer, unframe
from metastore._core.codec import PayloadCodec
from metastore._core.entry import Entry, decode_entries
from metastore._core.kv_server import KVServer
from metastore._core.mvcc import Store
from metastore._core.mvcc_apply import Applier
from metastore._core.op import DELETE_RANGE, MEMBER, PUT, decode_op
from metastore._core.raft import RawNode
from metastore._core.raft_types import Message, MessageType, RaftConfig, Snapshot, decode_conf_change
from metastore._core.raft_wire import WITHDRAWN
from metastore._core.waiter import Waiter
from metastore.member.membership_client import hand_in
from metastore.member.waiters import outcome
from metastore.replica.driver import Driver
from metastore.replica.peer_link import PeerLink, refusal_type
from metastore.replica.roster import Change, Roster, RosterState
from metastore.replica.roster import Member as Record
from metastore.storage.engines.memory import MemoryEngine

from . import kvmessages as pb
from .raft_harness import MemoryStorage
from .transcripts import message_text

CODEC = PayloadCodec(None, 1 << 20, 1 << 24)
LIMITS: Any = SimpleNamespace(
    max_request_bytes=1 << 16, max_txn_ops=128, max_key_bytes=0, max_txn_walk=10**6, max_inflight_requests=1000
)

Show = Callable[[str], None]


# ---- the form of entries and operations


def operation_text(data: bytes) -> str:
    """Show an encoded operation to people."""
    operation = decode_op(data)
    if operation.kind == PUT:
        put = pb.PutRequest.FromString(operation.request)
        return f"put {put.key.decode()}={put.value.decode()}"
    if operation.kind == DELETE_RANGE:
        return f"delete {pb.DeleteRangeRequest.FromString(operation.request).key.decode()}"
    if operation.kind == MEMBER:
        return change_text(Change.decode(operation.request))
    return f"operation of kind {operation.kind}"


def change_text(change: Change) -> str:
    """Show a change of the membership to people."""
    return "restate" if change.roster is not None else f"{change.action} {change.member.id}"


def entry_text(entry: Entry) -> str:
    """Show an entry to people: term/index and contents."""
    text = f"{entry.term}/{entry.index}"
    if entry.type:
        context = decode_conf_change(entry.type, entry.data).context
        return f"{text} {operation_text(context) if context else 'leave joint'}"
    if not entry.data:
        return f"{text} empty"
    return f"{text} {' + '.join(operation_text(data) for data in unframe(CODEC.decode(entry.data)))}"


# ---- the parts that a transcript moves


class HandLog:
    """A write-ahead log as the driver sees it (ports.DriverLog), over the storage that the core reads. A group that was
    begun becomes durable when `finish` is called."""

    def __init__(self, storage: MemoryStorage, show: Show) -> None:
        self.storage = storage
        self.show = show
        self.durable = 0
        self.durable_commit = storage.hard.commit if storage.hard is not None else 0
        self.gathering: list[tuple[int, list[Entry], Any, int]] = []
        self.urgent = False  # whether the gathered group must be synced
        self.group: list[tuple[int, list[Entry], Any, int]] | None = None

    @property
    def idle(self) -> bool:
        return self.group is None

    def append(self, number: int, images: Any, hard_state: Any, must_sync: bool = True) -> None:
        entries = decode_entries(images or b"")
        parts = [", ".join(map(entry_text, entries))] if entries else []
        if hard_state is not None:
            parts.append(f"term:{hard_state.term} vote:{hard_state.vote} commit:{hard_state.commit}")
        self.show(f"logs Ready {number}: {'; '.join(parts) or 'nothing'}{'' if must_sync else ' (not urgent)'}")
        self.gathering.append((number, entries, hard_state, 0))
        self.urgent = self.urgent or must_sync

    def save_snapshot_position(self, index: int, term: int, conf_state: bytes) -> None:
        self.show(f"logs that it begins behind {term}/{index}")
        self.storage.store([], None, Snapshot(index, term, self.storage.conf))

    def save_commit(self, hard_state: Any) -> None:
        self.show(f"logs commit {hard_state.commit} to be made durable")
        self.gathering.append((0, [], hard_state, hard_state.commit))
        self.urgent = True

    def submit(self, writer: int = 0) -> bool:
        if self.group is not None or not self.urgent:
            return False
        self._begin("disk begins")
        if writer:
            self.finish()
        return writer != 0

    def mark(self) -> bool:
        self._begin("disk begins with a marker")
        return True

    def _begin(self, text: str) -> None:
        self.group, self.gathering, self.urgent = self.gathering, [], False
        numbers = [str(number) for number, *_ in self.group if number]
        self.show(f"{text}{': Ready ' if numbers else ''}{', '.join(numbers)}")

    def finish(self) -> None:
        """Make the group under way durable."""
        group, self.group = self.group, None
        assert group is not None, "the disk has nothing to do"
        for number, entries, hard_state, commit in group:
            self.storage.store(entries, hard_state)
            self.durable = max(self.durable, number)
            self.durable_commit = max(self.durable_commit, commit)
        self.show("disk is done")

    def poll(self, start: bool = True) -> int:
        return self.durable

    def settle(self) -> int:
        return self.durable

    def has_ended(self) -> bool:
        return False

    def listen(self, wanted: bool) -> bool:
        return False


class HandEngine(MemoryEngine):
    """The engine in memory. It shows its writes, and refuses them while `busy`, or for lack of room if `full`."""

    show: Show
    seen: Callable[[int, object], None]
    busy = full = False

    def write(self, batch: Any, index: int, term: int) -> None:
        if self.busy:
            self.show("engine is full" if self.full else "engine is busy")
            raise (errors.EngineFull if self.full else errors.EngineBusy)("not now")
        MemoryEngine.write(self, batch, index, term)
        self.show(f"engine has {term}/{index}")
        self.seen(index, [pair for pair in self.scan(b"", None, False, 0) if pair[0] != b"mapplied"])


class Client(Waiter):
    """A client that waits for an answer, which becomes a line."""

    def __init__(self, label: str, show: Show) -> None:
        self.label = label
        self.show = show

    def complete(self, reply: bytes) -> None:
        if self.label.startswith("get"):
            answer = pb.RangeResponse.FromString(reply)
            pairs = [f"{kv.key.decode()}={kv.value.decode()}" for kv in answer.kvs]
            self.show(f"answers {self.label}: {' '.join(pairs) or 'nothing'} at revision {answer.header.revision}")
        else:
            self.show(f"answers {self.label}: revision {pb.PutResponse.FromString(reply).header.revision}")

    def fail(self, error: errors.MetaStoreError) -> None:
        self.show(f"fails {self.label}: {type(error).__name__}")


# ---- members


@dataclass
class Settings:
    """Settings of all members. timeout, delay: seconds; batch: operations; tail: bytes of entries that the core
    keeps."""

    timeout: float = 5.0
    batch: int = 100
    delay: float = 0.01
    tail: int = 1 << 20


class Parcel(NamedTuple):
    """Anything on its way between two members: a Raft message, framed operations, or (code, ids)."""

    sender: int
    to: int
    kind: str
    data: Any
    text: str


class World:
    """The shared parts of the members: time, the network, and the lines that a command has caused so far."""

    def __init__(self, initial: list[int], settings: Settings, driver: type[Driver]) -> None:
        self.initial = initial
        self.settings = settings
        self.driver_class = driver
        self.now = 0.0
        self.lines: list[str] = []
        self.queue: list[Parcel] = []
        self.down: set[tuple[int, int]] = set()  # (from, to)
        self.labels: dict[int, str] = {}  # names that the clients give to their operations, by request id
        self.snapshots: dict[int, list[tuple[bytes, bytes]]] = {}  # contents of engines, by the last entry
        self._contents: dict[int, object] = {}

    def seen(self, index: int, contents: object) -> None:
        """Note that an engine holds everything up to entry `index`. All engines must hold the same there."""
        assert self._contents.setdefault(index, contents) == contents, f"two states behind entry {index}"

    @staticmethod
    def record(ident: int, learner: bool = False) -> Record:
        """Return a member's record."""
        return Record(ident, f"n{ident}", (f"http://n{ident}:2",), (), learner)


class Member:
    """One life of a member. It is the transport of its own driver."""

    def __init__(self, world: World, ident: int, storage: MemoryStorage, life: int = 1) -> None:
        self.world, self.id, self.storage, self.life = world, ident, storage, life
        settings = world.settings
        self.engine = HandEngine()
        self.engine.show, self.engine.seen = self.show, world.seen
        self.store = Store(self.engine, 1, ident)
        waiters: dict[int, Any] = {}
        self.applier = Applier(self.store, CODEC, waiters, self._change_roster)
        self.proposer = BatchProposer(settings.batch, 1 << 20, settings.delay, 1000, 1 << 22, True)
        self.kv = KVServer(self.store, self.proposer, waiters, 1_000_000 * ident + 1000 * life, LIMITS)
        self.roster = Roster(self.store, [world.record(other) for other in world.initial])
        storage.conf = self.roster.conf_state
        config = RaftConfig(
            ident,
            election_ticks=10,
            heartbeat_ticks=1,
            seed=7,
            pre_vote=False,
            check_quorum=False,
            max_tail_bytes=settings.tail,
        )
        self.raw = RawNode(config, storage)
        self.raw.election_timeout_ticks = 10 + ident
        self.log = HandLog(storage, self.show)
        self.installing: tuple[int, Callable[[], None]] | None = None
        self.driver = world.driver_class(
            self.raw,
            self.log,
            self.applier,
            self.proposer,
            CODEC,
            self.kv,
            self.roster,
            PeerLink(self if len(world.initial) > 1 else None),
            request_timeout=settings.timeout,
            install=self._install,
            members_changed=self._members_changed,
            roster_mended=self._roster_mended,
        )

    def show(self, text: str) -> None:
        """Add a line about this member."""
        self.world.lines.append(f"{self.id} {text}")

    def turn(self) -> None:
        """End a turn of the loop."""
        self.driver.pump(self.world.now)

    def compact(self) -> None:
        """Keep a snapshot of the state, and drop the log up to there."""
        index = self.applier.applied_index
        self.world.snapshots[index] = self.engine.scan(b"", None, False, 0)
        self.storage.compact(index, self.roster.conf_state)

    def _install(self, snapshot: Snapshot, done: Callable[[], None]) -> None:
        self.show(f"begins to install snapshot {snapshot.term}/{snapshot.index}")
        self.installing = (snapshot.index, done)

    def installed(self) -> None:
        """The engine now has the contents of the snapshot."""
        assert self.installing is not None, "nothing is"
        (index, done), self.installing = self.installing, None
        self.engine.restore(self.world.snapshots[index])
        done()
        self.turn()

    def disk_done(self) -> None:
        """The group under way is durable, and the log's event says so."""
        if self.log.idle:
            self.show("disk has nothing to do")
            return
        self.log.finish()
        self.driver.on_disk(self.world.now)

    def _change_roster(self, request: bytes) -> bytes:
        return self.driver.committed.apply_operation(request)

    def _members_changed(self) -> None:
        names = [f"({ident})" if member.is_learner else str(ident) for ident, member in self.roster.members.items()]
        self.show(f"members are {' '.join(names)}")

    def _roster_mended(self, _before: RosterState, _told: RosterState) -> None:
        self.show("takes over the leader's roster")

    # ---- the transport

    def send(self, messages: list[Message]) -> None:
        """Send the Raft messages of a Ready."""
        for message in messages:
            text = message_text(message, entry_text)
            if (self.id, message.to) in self.world.down:
                self.show(f"loses {text}")
            else:
                self.show(f"sends {text}")
                self.world.queue.append(Parcel(self.id, message.to, MessageType(message.type).name, message, text))

    def forward(self, to: int, batch: bytes) -> bool:
        """Send operations to the leader."""
        text = " + ".join(map(operation_text, unframe(batch)))
        if (self.id, to) in self.world.down:
            self.show(f"cannot forward to {to}: {text}")
            return False
        self.show(f"forwards to {to}: {text}")
        self.world.queue.append(Parcel(self.id, to, "forward", batch, f"{self.id}->{to} forward: {text}"))
        return True

    def refuse(self, to: int, code: int, ids: list[int]) -> None:
        """Return operations that were surely not logged."""
        text = f"{' + '.join(self.world.labels[ident] for ident in ids)}: {refusal_type(code).__name__}"
        self.show(f"refuses to {to}: {text}")
        self.world.queue.append(Parcel(self.id, to, "refusal", (code, ids), f"{self.id}->{to} refusal: {text}"))

    def withdraw(self, to: int, ids: list[int]) -> None:
        """Withdraw operations that nobody waits for any more."""
        text = " + ".join(self.world.labels[ident] for ident in ids)
        if (self.id, to) in self.world.down:
            self.show(f"cannot withdraw from {to}: {text}")
            return
        self.show(f"withdraws from {to}: {text}")
        self.world.queue.append(Parcel(self.id, to, "refusal", (WITHDRAWN, ids), f"{self.id}->{to} withdrawal: {text}"))

    def receive(self, parcel: Parcel) -> None:
        """Let a parcel arrive, and end the turn."""
        if parcel.kind == "forward":
            self.driver.receive_forward(parcel.sender, parcel.data, self.world.now)
        elif parcel.kind == "refusal":
            self.driver.receive_refusal(parcel.sender, *parcel.data)
        else:
            self.driver.receive(Message.decode(parcel.data.encode()))
        self.turn()

    # ---- clients

    def call(self, method: str, label: str, request: Any) -> None:
        """Begin a client's call. The turn that it came in with has still to end."""
        self.world.labels[self.kv.next_id] = label
        self.kv.call(method, request.SerializeToString(), Client(label, self.show), self.world.now)

    def change(self, action: str, ident: int) -> None:
        """Ask for a change of the membership."""
        label, change = f"{action} {ident}", Change(action, self.world.record(ident, action == "add_learner"))
        self.world.labels[self.kv.next_id] = label

        def done(error: errors.MetaStoreError | None) -> None:
            self.show(f"answers {label}" if error is None else f"fails {label}: {type(error).__name__}")

        now = self.world.now
        hand_in(self.kv, MEMBER, change.encode(), outcome(done), lambda op: self.driver.change_members(op, now), None)

    def give_up(self, label: str) -> None:
        """Let the grpc-timeout of the client that asked for this pass."""
        self.driver.withdraw([ident for ident, name in self.world.labels.items() if name == label])

    @property
    def state(self) -> str:
        """Return the state of the member in words."""
        driver, proposer, leader = self.driver, self.proposer, self.driver.leader_id
        role = "leads" if driver.is_leader else f"follows {leader}" if leader else "knows no leader"
        return (
            f"{self.id} {role}; term {driver.term}, applied {self.applier.applied_index}, "
            f"engine {self.engine.applied()[0]}, queued {proposer.queued}, in flight {proposer.inflight}, "
            f"waiting {len(self.kv.waiters)} writes {self.kv.reads_waiting} reads{', quiet' if driver.quiet else ''}"
        )
