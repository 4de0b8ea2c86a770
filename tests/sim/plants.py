"""Bugs that the simulator must find: switches in the Raft core, and drivers that do one thing wrong.

For each: the profile whose mishaps favour it, and within how many seeds it must be found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from metastore import errors
from metastore._core import raft
from metastore._core.batch import frame, unframe
from metastore._core.engine import Engine, MemoryEngine
from metastore._core.entry import decode_entry
from metastore._core.leases import encode_revoke
from metastore._core.lessor import CLEARING, Lessor
from metastore._core.mvcc_apply import Applier
from metastore._core.op import LEASE_REVOKE, decode_op, encode_op
from metastore._core.ordered_map import OrderedMap
from metastore._core.raft_types import ConfState
from metastore._core.snap_chunk import HEADER as CHUNK_HEADER
from metastore._core.snap_chunk import check_chunk
from metastore._core.watch_index import Sink, Stream
from metastore._core.watch_wire import WatchRequest, decode_request
from metastore.peers import handshake as hs
from metastore.peers.acquaintances import Acquaintances
from metastore.peers.founding import Founding
from metastore.replica.driver import Driver
from metastore.replica.lease_rounds import LeaseRounds
from metastore.replica.read_rounds import ReadRounds
from metastore.snapshots.files import Info
from metastore.snapshots.format import Header, Trailer, parse_name
from metastore.storage import guarded
from metastore.storage.readahead import ReadAhead
from metastore.storage.reading import Reading
from metastore.storage.wal import Lag

from . import wire
from .applying import SimApplier
from .checker import HEADER, heads
from .disk import Disk
from .engines import FlakyEngine, contents
from .greetings import Link, SimPeering
from .runner import Scene
from .snapshots import Path, SimSnapshots
from .sums import SimCheck
from .transfers import SimPart, cut_up
from .watchers import ASKS_PROGRESS, LIVE, SimHub, SimSink, Spectator


class EarlyReport(Driver):
    """Says that a Ready is durable when it has only been handed to the disk."""

    def _persist(self, ready: Any, now: float) -> bool:
        handed = super()._persist(ready, now)
        self._durable(ready.number)
        return handed


class SecondForward(Driver):
    """Sends what it has forwarded once more when the leader changes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.copies: list[bytes] = []
        forward = self.link.forward

        def remember(to: int, batch: bytes) -> bool:
            self.copies.append(batch)
            return bool(forward(to, batch))

        self.link.forward = remember  # type: ignore[method-assign]

    def _lead_changed(self, lead: int, now: float) -> None:
        changed = lead and lead != self.leader_id
        super()._lead_changed(lead, now)
        if changed and not self.is_leader:
            copies, self.copies = self.copies[-3:], []
            for batch in copies:
                self.link.forward(lead, batch)


class ImpatientRounds(ReadRounds):
    """Serves a read when its index is known, without waiting until it is applied."""

    def confirmed(self, state: Any, applied: int, now: float) -> None:
        super().confirmed(state, 1 << 62, now)


class ImpatientRead(Driver):
    """A driver with such rounds."""

    reads_type = ImpatientRounds


class AnyRounds(ReadRounds):
    """Takes the answer to any round of reads for one to the rounds under way."""

    def confirmed(self, state: Any, applied: int, now: float) -> None:
        for one in self.rounds:
            one.first = 0
        super().confirmed(state, applied, now)


class AnyRound(Driver):
    """A driver with such rounds."""

    reads_type = AnyRounds


class JoiningRounds(ReadRounds):
    """Lets reads join the newest round under way, although its question was sent before they came in."""

    def start(self, now: float, leader: int) -> None:
        if self.rounds:
            self.rounds[-1].reads += self._kv.take_reads()
        super().start(now, leader)


class JoinedRound(Driver):
    """A driver with such rounds."""

    reads_type = JoiningRounds


class Withholding(Driver):
    """Never tells the others a commit index that waits for the next append."""

    def _go_on(self, now: float) -> None:
        super()._go_on(now)
        self.tell_at = None


class Overlooked:
    """A log that does not say that a group ended just before its owner began to wait for it."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def listen(self, wanted: bool) -> bool:
        """As the log, but for what it returns."""
        self._log.listen(wanted)
        return False


class Overlooking(Driver):
    """A driver with such a log."""

    def __init__(self, raw: Any, log: Any, *args: Any, **options: Any) -> None:
        super().__init__(raw, Overlooked(log), *args, **options)


class Deafened(Overlooked):
    """A log whose owner never waits."""

    def listen(self, wanted: bool) -> bool:
        """Says what the owner does not say."""
        return super().listen(False)


class Deaf(Driver):
    """A driver with such a log."""

    def __init__(self, raw: Any, log: Any, *args: Any, **options: Any) -> None:
        super().__init__(raw, Deafened(log), *args, **options)


class SkipBusy(Driver):
    """Takes what a busy engine refused for written."""

    def _commit(self, now: float) -> None:
        super()._commit(now)
        if self.retry_at is not None:
            self.applier.store.overlay.clear()


class HalfWritten(Driver):
    """Writes what an entry has changed so far as if that were all of it."""

    def _commit(self, now: float) -> None:
        store = self.applier.store
        if self.applier.inside and not store.stale:
            store.commit(*store.engine.applied())
        super()._commit(now)


class PartsKept(Driver):
    """Applies an entry again over what it had written before the crash."""

    def _apply_on(self, now: float) -> None:
        self.applier.store.stale = False
        super()._apply_on(now)


class ReadInside(Driver):
    """Serves the reads that wait for an entry as soon as that is begun."""

    def _passed(self, last: int) -> None:
        super()._passed(last + self.applier.inside)


class PatientRounds(ReadRounds):
    """Leaves reads without an answer however long they wait."""

    def fail(self, before: float, error: Callable[[], errors.ApiError]) -> None:
        if error is not errors.Timeout:
            super().fail(before, error)


class PatientReads(Driver):
    """A driver with such rounds."""

    reads_type = PatientRounds


class PatientReplies(Driver):
    """Keeps the replies of what is applied for as long as the engine is busy."""

    def _expire(self, now: float) -> None:
        retry_at, self.retry_at = self.retry_at, None
        super()._expire(now)
        self.retry_at = retry_at


class EarlyReply(Driver):
    """Answers writes when they are proposed, before they are committed."""

    def _propose(self, now: float) -> None:
        super()._propose(now)
        if self.is_leader and self.pending._proposed:
            revision = self.applier.store.revision + 1
            for ident in list(self.kv.waiters)[:1]:
                self.kv.waiters.pop(ident).complete(b"\x0a\x03\x18" + bytes(((revision & 0x7F) | 0x80, revision >> 7)))


class ChangesLast(Driver):
    """Applies what a Ready has of normal entries first, and its membership changes behind them."""

    def _apply_on(self, now: float) -> None:
        images, applier, held = self._images, self.applier, []
        for index, term, _, kind, payload, size in heads(images):
            image = images[payload - HEADER : payload + size]
            if kind:
                held.append(decode_entry(image)[0])
                member: Any = applier
                member.member.cluster.checker.applying(member.member, image)
                Applier.passed(applier, index, term)
            else:
                applier.apply_images(image)
        for entry in held:
            self.committed.apply(entry)
        self._images = None
        self._unwritten = applier.applied_index
        self._commit(now)


class ChangesAtOnce(Driver):
    """Changes the membership whether the commit index is durable or not."""

    def _change_may_take_effect(self, index: int) -> bool:
        return True


class PassingFault(SimApplier):
    """One record of the history, which nobody reads, is another one in a member's engine for six entries."""

    garbled: tuple[bytes, bytes] | None = None
    heals_at = 0

    def at_its_end(self, index: int) -> None:
        super().at_its_end(index)
        if self.garbled is not None and index >= self.heals_at:
            self._put(*self.garbled)
            self.garbled = None
        elif self.garbled is None and self.member.id == 2 and index % 16 == 1:
            self._garble(index)

    def _garble(self, index: int) -> None:
        """Spoil a version that is not the newest of its key, and not compacted."""
        newer: set[bytes] = set()
        for key, change in contents(self.store.engine).scan(b"r", b"s", True, 0):
            name = change[6 : 6 + int.from_bytes(change[2:6], "little")]
            if int.from_bytes(key[1:9], "big") < self.store.compact_revision:
                break
            if name in newer and change[1] == 0:
                self.garbled, self.heals_at = (key, change), index + 6
                self._put(key, change[:-1] + b"?")
                break
            newer.add(name)

    def _put(self, key: bytes, change: bytes) -> None:
        engine, batch = contents(self.store.engine), OrderedMap()
        if engine.get(key) is not None:
            batch.set(key, change)
            MemoryEngine.write(engine, batch, *engine.applied())


class Unsynced(SimSnapshots):
    """Counts on a snapshot that it has written and named, and has not synced."""

    def _publish(self, temporary: str, name: str, then: Callable[[], object]) -> None:
        self._steps(lambda: self.member.disk.rename(temporary, name), then)


class AtTheNewest(SimSnapshots):
    """Lets the log begin at the newest snapshot: when that is damaged, the one before it is of no use."""

    def _compact(self) -> None:
        newest = self.catalogue.good[-1].header
        if newest.index > self.wal.snapshot_index:
            self._move(newest.index, newest.term, newest.conf_state)


class AnyPart(SimPart):
    """Takes what comes in for the next chunk, without a look at its sum."""

    def _take(self, image: bytes) -> bool:
        if len(image) <= CHUNK_HEADER:
            return False
        self.chunks += 1
        self._end += len(image)
        return True


class Unverified(SimSnapshots):
    """Looks neither at chunks that come in nor at the whole file."""

    part_type = AnyPart

    def verified(self, name: str) -> Info | None:
        path: Any = Path(self.member.disk, name)
        head, images, trailer = cut_up(path.data())
        return Info(Header.decode(head), Trailer(0, len(images), 0, 0, len(trailer)), path)


class BeyondFlush(SimSnapshots):
    """Cuts the log behind a flush that has only begun."""

    def _flushed(self) -> None:
        files = self.member.files
        self.member.files = self.engine.view()
        super()._flushed()
        self.member.files = files


class Unchecked(SimSnapshots):
    """Takes chunks without a look at their sums; the whole file is looked at."""

    part_type = AnyPart


class OtherPart(SimPart):
    """Goes on behind whatever was begun, of this file or of another."""

    @staticmethod
    def tidy(disk: Disk, header: Header) -> None:
        for name in [name for name in disk.files if parse_name(name, "part")]:
            disk.rename(name, header.name("part"))

    def _resume(self) -> None:
        if self.file.data:
            self.file.write(0, self.header.encode())
        super()._resume()

    def _take(self, image: bytes) -> bool:
        chunk = check_chunk(image, self.header.chunk_size)
        if (chunk.number, chunk.offset) != (self.chunks, self._offset):
            return False
        self.chunks += 1
        self._offset += chunk.size
        self._end += len(image)
        return True


class AnyFile(SimSnapshots):
    """Mixes what is received with chunks of another snapshot."""

    part_type = OtherPart


class NoMembers(SimSnapshots):
    """Takes snapshots that do not say who the members are."""

    def _moment(self, stream: int) -> tuple[Header, Engine] | None:
        moment = super()._moment(stream)
        return moment and (replace(moment[0], conf_state=ConfState()), moment[1])


class InTheMiddle(SimSnapshots):
    """Takes a snapshot while the engine is behind what is applied."""

    def _moment(self, stream: int) -> tuple[Header, Engine] | None:
        retry_at, self.driver.retry_at = self.driver.retry_at, None
        moment = super()._moment(stream)
        self.driver.retry_at = retry_at
        return moment


class Unspared(Engine):
    """A view without what compaction has removed since."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.old = engine.view()

    def iterate(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key, value in self.old.scan(start, None, False, 0):
            if key[:1] == b"m" or self.engine.get(key) is not None:
                yield key, value

    def applied(self) -> tuple[int, int]:
        return self.old.applied()


class SweptAway(SimSnapshots):
    """Lets compaction take records that an open view shows."""

    def _moment(self, stream: int) -> tuple[Header, Engine] | None:
        moment = super()._moment(stream)
        return moment and (moment[0], Unspared(self.engine))


class AnyTerm(ReadAhead):
    """Serves blocks of a suffix that was overwritten."""

    def _holds(self, reading: Reading) -> bool:
        return self._wal.first_index() <= reading.end - 1 <= self._wal.last_index()


class LogKept(Driver):
    """Keeps its log where a snapshot takes its place, if it is long enough."""

    def _persist(self, ready: Any, now: float) -> bool:
        log = self.log
        if ready.snapshot is not None and ready.snapshot.index <= log.last_index():
            self.log = SimpleNamespace(append=log.append, submit=log.submit, save_snapshot_position=lambda *_: None)
        handed = super()._persist(ready, now)
        self.log = log
        return handed


def unguarded(engine: Engine, _name: str) -> Engine:
    """Lets an engine's failure in the middle of an entry look like an error of the operation."""
    assert isinstance(engine, FlakyEngine)
    engine.only_applying = True
    return engine


class Unwelcoming(Acquaintances[Link]):
    """Refuses members that the roster does not know yet."""

    def judge(self, hello: hs.Hello, *more: Any) -> tuple[int, str, bool]:
        if hello.sender.member_id not in self.members:
            return hs.OTHER_TARGET, "nobody knows the dialler here", False
        return super().judge(hello, *more)


class RosterOnly(Acquaintances[Link]):
    """Answers members only where the roster says that they are."""

    def accepted(self, identity: hs.PeerIdentity, now: float) -> Link:
        one = super().accepted(identity, now)
        one.greeted = ()
        return one


class Unasked(SimPeering):
    """Begins a cluster without asking anybody."""

    def _founding(self) -> Founding | None:
        return None


class Heedless(SimPeering):
    """Goes on when another member says that it must not."""

    def on_verdict(self, status: int, text: str) -> None:
        """Noted."""


class HalfRevisions(SimSink):
    """Delivers what is collected in two parts, wherever a revision ends."""

    def send(self, message: bytes) -> None:
        told = wire.parse_watch(message)
        middle = len(told.events) // 2
        if middle and not told.fragment:
            super().send(wire.some_events(message, 0, middle))
            message = wire.some_events(message, middle, len(told.events))
        super().send(message)


class SkippingReader(SimSink):
    """Forgets what its client does not take, and goes on with what comes when it does."""

    def full(self) -> bool:
        return False

    def send(self, message: bytes) -> None:
        if not self.spectator.is_full() or not wire.parse_watch(message).events:
            super().send(message)


class SentTwice(SimSink):
    """Begins with what was sent last when its client takes something again."""

    last = b""
    blocked = False

    def full(self) -> bool:
        full = super().full()
        self.blocked = self.blocked or full
        return full

    def send(self, message: bytes) -> None:
        if wire.parse_watch(message).events:
            if self.blocked and self.last:
                super().send(self.last)
            self.blocked, self.last = False, message
        super().send(message)


class MarksAtOnce(SimHub):
    """Answers requests for progress at once, whether everything up to there is sent or not."""

    def handle(self, stream: Stream, request: WatchRequest, now: float) -> None:
        if request.kind == ASKS_PROGRESS and stream.watchers:
            stream.sink.send(wire.progress_mark(self.store.revision))
        else:
            super().handle(stream, request, now)


class Leaping(SimApplier):
    """Lets watchers that had everything go on behind a snapshot, and forgets what lies between."""

    def reload(self) -> None:
        super().reload()
        audience, hub = self.member.cluster.audience, self.member.replica.watches
        for one in audience.of(self.member) if audience is not None else ():
            stream = one.stream
            one.stream = None  # it hears nothing of this
            assert stream is not None
            for ident, watcher in list(stream.watchers.items()):
                if ident and watcher.state == LIVE:
                    hub.cancel(stream, ident)
                    hub.handle(stream, decode_request(one.by_id[ident].request(ident, from_now=True)), 0.0)
            one.stream = stream


class StaleClock(LeaseRounds):
    """Goes on ending leases by its own clock when another member leads."""

    def _play_role(self, now: float) -> None:
        if self._driver.is_leader or not self._lessor.leading:
            super()._play_role(now)

    def gather(self, now: float) -> None:
        if not self._driver.is_leader and self._lessor.leading:
            for ident in self._lessor.due(now, 10):
                self._driver.proposer.add(encode_op(LEASE_REVOKE, 0, encode_revoke(ident, True)), now)
        super().gather(now)


class Credulous(Driver):
    """A leader that ends leases when another member wants it."""

    def receive_forward(self, sender: int, batch: bytes, now: float) -> None:
        rest = []
        for data in unframe(batch):
            if self.is_leader and decode_op(data).kind == LEASE_REVOKE and not decode_op(data).request_id:
                self.proposer.add(data, now)
            else:
                rest.append(data)
        if rest:
            super().receive_forward(sender, frame(rest), now)


class Unconfirmed(LeaseRounds):
    """Answers for leases as a leader that nobody has confirmed."""

    def __init__(self, driver: Driver, lessor: Lessor, confirm: Any, **options: Any) -> None:
        super().__init__(driver, lessor, lambda done: done(None), **options)


class KeptCheckpoints(Lessor):
    """Does not wait until a checkpoint is cleared before it tells of a renewal, and forgets to clear it."""

    def renew(self, idents: list[int], now: float) -> list[int]:
        found = super().renew(idents, now)
        self.checkpoints(0.0, 1000)  # the clearings are lost
        return [3 if ttl == CLEARING else ttl for ttl in found]


class WithoutLeases(Engine):
    """A view of an engine that has no leases."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.applied = engine.applied

    def iterate(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key, value in self.engine.iterate(start):
            if key[:1] != b"l":
                yield key, value


class ForgottenLeases(SimSnapshots):
    """Takes snapshots that have no leases."""

    def _moment(self, stream: int) -> tuple[Header, Engine] | None:
        moment = super()._moment(stream)
        return moment and (moment[0], WithoutLeases(moment[1]))


class OtherMoment(SimCheck):
    """Tells the sum of its present data for one at the revision that was asked for."""

    def _answer(self, sender: int, number: int, revision: int) -> None:
        hash_kv = self._sums.hash_kv
        with mock.patch.object(self._sums, "hash_kv", lambda _at, *rest: hash_kv(0, *rest)):
            super()._answer(sender, number, revision)


class Plant(NamedTuple):
    """A bug, where it is found, and within how many seeds. `inside`: whether the checker may look into disks and
    messages, or must find it by what clients and logs show; `outside`: whether it is found that way too. `doubts`:
    whether members know that they lost what they acknowledged."""

    name: str
    profile: str
    seeds: int
    core: int = 0
    driver: type[Driver] = Driver
    applier: type[SimApplier] = SimApplier
    taker: type[SimSnapshots] = SimSnapshots
    inside: bool = True
    outside: bool = True
    doubts: bool = True
    reader: type[ReadAhead] = ReadAhead
    lag: Lag | None = None
    guard: Callable[[Engine, str], Engine] = guarded
    peering: type[SimPeering] = SimPeering
    acquaintances: type[Acquaintances[Link]] = Acquaintances
    hub: type[SimHub] = SimHub
    sink: Callable[[Spectator], Sink] = SimSink
    sweep_waits: bool = True
    leases: type[LeaseRounds] = LeaseRounds
    lessor: type[Lessor] = Lessor
    check: type[SimCheck] = SimCheck

    def change(self) -> Callable[[Scene], None]:
        """Puts it into a scene."""

        def plant(scene: Scene) -> None:
            scene.settings.planted = self.core
            scene.settings.driver = self.driver
            scene.settings.applier = self.applier
            scene.settings.doubts = self.doubts
            scene.settings.taker = self.taker
            scene.settings.reader = self.reader
            scene.settings.guard = self.guard
            scene.settings.real_lag = self.lag
            scene.settings.peering = self.peering
            scene.settings.acquaintances = self.acquaintances
            scene.settings.hub = self.hub
            scene.settings.check = self.check
            scene.settings.sink = self.sink
            scene.settings.sweep_waits = self.sweep_waits
            scene.settings.leases = self.leases
            scene.settings.lessor = lambda leases: self.lessor(leases, 1.0)
            scene.inside = self.inside

        return plant


PLANTS = [
    Plant("vote not persisted", "forgotten_votes", 4, raft.PLANT_VOTE_NOT_PERSISTED),
    Plant("ack before sync", "usual", 10, raft.PLANT_ACK_BEFORE_SYNC),
    Plant("commit of an old term", "old_terms", 4, raft.PLANT_COMMIT_OLD_TERM),
    Plant("read without a round", "deposed_leaders", 4, raft.PLANT_READ_WITHOUT_ROUND),
    Plant("lease kept", "lease", 6, raft.PLANT_LEASE_KEPT),
    Plant("promise forgotten", "lease_promises", 2, raft.PLANT_PROMISE_FORGOTTEN),
    Plant("half of a joint quorum", "cut_halves", 4, raft.PLANT_JOINT_HALF),
    Plant("ABA ignored", "rewritten", 11, raft.PLANT_ABA, outside=False),
    Plant("reported before the disk finished", "usual", 4, driver=EarlyReport),
    Plant("end of a group overlooked", "usual", 10, driver=Overlooking, outside=False),
    Plant("disk not waited for", "usual", 4, driver=Deaf, outside=False),
    Plant("forwarded twice", "usual", 10, driver=SecondForward),
    Plant("read before apply", "usual", 10, driver=ImpatientRead),
    Plant("answer to an older round", "reads", 20, driver=AnyRound),
    Plant("read joins a round already sent", "reads", 4, driver=JoinedRound),
    Plant("reads without a deadline", "reads", 10, driver=PatientReads),
    Plant("commit index held back", "usual", 4, driver=Withholding, outside=False),
    Plant("read overtakes its commit index", "reads", 20, raft.PLANT_READ_OVERTAKES, outside=False),
    Plant("removed member not told", "shrinking", 4, raft.PLANT_REMOVAL_UNTOLD, outside=False),
    Plant("replies without a deadline", "busy", 4, driver=PatientReplies),
    Plant("power cut taken for a kill", "forgotten_entries", 4, doubts=False),
    Plant("write skipped that was refused", "busy", 4, driver=SkipBusy),
    Plant("reply before commit", "usual", 2, driver=EarlyReply),
    Plant("snapshot not synced", "transfers", 4, taker=Unsynced),
    Plant("log cut at the newest snapshot", "transfers", 4, taker=AtTheNewest),
    Plant("received and not verified", "transfers", 4, taker=Unverified),
    Plant("log cut beyond the flush", "filed", 6, taker=BeyondFlush, outside=False),
    Plant("chunk not checked", "transfers", 4, taker=Unchecked, outside=False),
    Plant("chunks of another file", "transfers", 8, taker=AnyFile, outside=False),
    Plant("snapshot without members", "snapshots", 4, taker=NoMembers, outside=False),
    Plant("snapshot in the middle of an apply", "busy", 4, taker=InTheMiddle, outside=False),
    Plant("view swept away", "snapshots", 14, taker=SweptAway, outside=False),
    Plant("entries of an overwritten term", "overtaken_logs", 8, reader=AnyTerm),
    Plant("log kept under a snapshot", "overtaken_logs", 3, driver=LogKept),
    Plant("membership changes behind their Ready", "members", 4, driver=ChangesLast),
    Plant("membership changed before its commit is durable", "shrinking", 4, driver=ChangesAtOnce),
    Plant("engine's failure taken for the operation's", "flaky", 6, guard=unguarded),
    Plant("half of an entry written", "pieces", 4, driver=HalfWritten),
    Plant("parts of an entry kept", "pieces", 8, driver=PartsKept),
    Plant("read in the middle of its entry", "pieces", 20, driver=ReadInside),
    Plant("history wrong for a moment", "usual", 4, applier=PassingFault),
    Plant("history wrong for a moment, busy engines", "busy", 4, applier=PassingFault),
    Plant("history wrong for a moment, engines with files", "filed", 4, applier=PassingFault),
    Plant("history wrong for a moment, flaky engines", "flaky", 4, applier=PassingFault),
    Plant("history wrong for a moment, in pieces", "pieces", 4, applier=PassingFault),
    Plant("members that the roster does not know are refused", "absences", 4, acquaintances=Unwelcoming),
    Plant("members are answered only where the roster has them", "absences", 4, acquaintances=RosterOnly),
    Plant("a cluster is begun without asking", "lost_directories", 4, peering=Unasked),
    Plant("a verdict is not acted on", "lost_directories", 4, peering=Heedless),
    Plant("half of a revision delivered", "watched", 4, sink=HalfRevisions),
    Plant("slow reader skips revisions", "watched", 4, sink=SkippingReader),
    Plant("events sent again when a reader goes on", "watched", 4, sink=SentTwice),
    Plant("progress told ahead of events", "watched", 4, hub=MarksAtOnce),
    Plant("watchers leap over what a snapshot brought", "watched", 12, applier=Leaping),
    Plant("sweep does not wait for watchers", "caught_up", 6, sweep_waits=False),
    Plant("a lease ends by the clock of a former leader", "leased", 10, leases=StaleClock, driver=Credulous),
    Plant("a lease renewed without a quorum", "leased", 10, leases=Unconfirmed),
    Plant("a checkpoint kept over a renewal", "leased", 10, lessor=KeptCheckpoints),
    Plant("leases that a snapshot forgot", "leased", 10, taker=ForgottenLeases),
    Plant("a sum of another revision", "compared", 4, check=OtherMoment),
    Plant("window not kept", "lagging", 4, lag=Lag(1e6, 1 << 40), outside=False),
]
