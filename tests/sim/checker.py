"""What must hold at every moment, whatever fails. Raises Violation the moment it does not.

Of the Raft paper (figure 3): one leader a term, log matching, leader completeness, state machine safety; the commit
index never falls. Of persistence: nothing is said to others that a power cut could take back, and what is committed is
on the platters of a quorum. Of clients: an answered write is applied, once, with the result that was told; one that was
refused is not; a linearizable read shows no state older than what anybody had been shown before it began; nothing is
read that nobody wrote.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from metastore import errors
from metastore._core import mvcc
from metastore._core.batch import unframe
from metastore._core.codec import PayloadCodec
from metastore._core.mvcc_hash import Hasher
from metastore._core.mvcc_range import known_count
from metastore._core.op import MEMBER, decode_op
from metastore._core.ordered_map_check import check_counts
from metastore._core.raft_quorum import joint_committed
from metastore._core.raft_types import MsgAppResp, MsgVote, MsgVoteResp
from metastore.replica.roster import Roster

from . import wire
from .disk import LaggingThread
from .engines import contents
from .model import Call, Model, Pair
from .tidings import Tidings

if TYPE_CHECKING:
    from metastore._core.engine import Engine
    from metastore.snapshots.format import Header

    from .node import Member
    from .tenants import Promises

_HEAD = struct.Struct("<IIQQB")
HEADER = 32
MIN_CHUNK = 64  # of the log's memory
MSG_APP_RESP, MSG_VOTE, MSG_VOTE_RESP = int(MsgAppResp), int(MsgVote), int(MsgVoteResp)
LEADER = 2
DIGEST_EVERY = 16  # indexes after which a member's content is compared with the model's
COUNT_EVERY = 100  # indexes after which what a member knows of the number of keys is compared with a walk over them

# Errors after which an operation may be in the log all the same.
OPEN = ("Timeout", "LeaderChanged")


class Violation(AssertionError):
    """Something that must never happen."""


def heads(images: Any, at: int = 0) -> list[tuple[int, int, int, int, int, int]]:
    """(index, term, sum, type, offset of the payload, its size) of every entry image from offset `at` on."""
    found = []
    end = len(images)
    while at < end:
        crc, size, term, index, kind = _HEAD.unpack_from(images, at)
        found.append((index, term, crc, kind, at + HEADER, size))
        at += HEADER + size
    return found


class Platter:
    """What of one member's log is durable for certain, told by what was appended and which groups finished."""

    def __init__(self) -> None:
        self.base = 0
        self.terms: list[int] = []
        self.hard = (0, 0)
        self.written: tuple[int, int] | None = None  # a hard state that is reported, and perhaps not synced
        self.waiting: list[tuple[int, int, list[int], tuple[int, int] | None]] = []

    @property
    def last(self) -> int:
        """Index of the last durable entry."""
        return self.base + len(self.terms)

    @property
    def safe(self) -> int:
        """Up to here nothing that is on its way to the disk replaces anything."""
        first = min((first for _, first, terms, _ in self.waiting if terms), default=0)
        return min(self.last, first - 1) if first else self.last

    def append(self, number: int, first: int, terms: list[int], hard: tuple[int, int] | None) -> None:
        """Something is on its way to the disk."""
        self.waiting.append((number, first, terms, hard))

    def done(self, number: int) -> None:
        """Everything up to this append is durable."""
        while self.waiting and self.waiting[0][0] <= number:
            _, first, terms, hard = self.waiting.pop(0)
            if terms:
                del self.terms[max(0, first - 1 - self.base) :]
                self.terms += terms
            if hard is not None:
                self.written = hard

    def synced(self) -> None:
        """What was done so far, votes and terms included, a power cut cannot take."""
        self.hard, self.written = self.written or self.hard, None

    def reset(self, base: int, terms: list[int], hard: tuple[int, int]) -> None:
        """After opening a log: all that was found is durable."""
        self.base, self.terms, self.hard, self.written = base, terms, hard, None
        self.waiting.clear()

    def replaced(self, index: int) -> None:
        """A snapshot, synced before, has taken the place of the whole log."""
        self.base, self.terms = index, []
        self.waiting = [(number, 0, [], hard) for number, _, _, hard in self.waiting]

    def has(self, index: int, term: int) -> bool:
        """Whether this entry is durable."""
        return index <= self.base or (index <= self.last and self.terms[index - self.base - 1] == term)


class Checker:
    """Watches all members and clients of one simulation."""

    def __init__(self, codec: PayloadCodec) -> None:
        self.codec = codec
        self.model = Model()
        self.tidings = Tidings(self.fail)
        self.promises: Promises | None = None
        self.leaders: dict[int, int] = {}
        self.entries: dict[tuple[int, int], tuple[int, int]] = {}
        self.committed: list[tuple[int, int]] = [(0, 0)]
        self.commit_top: dict[int, int] = {}
        self.top = 0
        self.calls: dict[int, Call] = {}
        self.refused: set[int] = set()
        self.revision_at: list[int] = [1]
        self.digests: dict[int, int] = {}
        self.states: dict[int, tuple[Any, ...]] = {}
        self.floor = 1
        self.inside = True
        self.lagging = False
        self.largest = MIN_CHUNK
        self.counts = {"acked": 0, "reads": 0, "open": 0, "not done": 0, "digests": 0, "hashes": 0, "installed": 0}
        self.counts |= {"torn chunks": 0, "rotten": 0, "asked again": 0, "resumed": 0}

    def fail(self, text: str) -> None:
        """Something that must never happen has happened."""
        raise Violation(text)

    def count(self, what: str, number: int = 1) -> None:
        """Something has happened, so many times."""
        self.counts[what] = self.counts.get(what, 0) + number

    # ---- logs

    def appended(self, member: Member, number: int, images: Any, hard: Any) -> None:
        """A member hands entries to its log: log matching."""
        terms: list[int] = []
        first = 0
        state = (hard.term, hard.vote) if hard is not None else None
        if images is not None and len(images):
            entries = self.entries
            previous = 0
            for index, term, crc, _, _, size in heads(images):
                self.largest = max(self.largest, HEADER + size)
                if not first:
                    first = index
                    previous = member.raw.term_of(index - 1) or 0
                known = entries.get((index, term))
                if known is None:
                    entries[index, term] = (crc, previous)
                elif known[0] != crc or (previous and known[1] and known[1] != previous):
                    self.fail(f"log matching: entry {index} of term {term} differs on member {member.id}")
                terms.append(term)
                previous = term
            for index in range(first, min(first + len(terms), member.commit + 1, len(self.committed))):
                if self.committed[index][0] != terms[index - first]:
                    self.fail(f"member {member.id} overwrites entry {index}, committed are {member.commit}")
        member.platter.append(number, first, terms, state)

    def window(self, member: Member, seconds: float, nbytes: int) -> None:
        """What a member's disk has reported and not synced."""
        lag = member.cluster.settings.lag
        if self.inside and lag is not None and (seconds > lag.interval + 1e-6 or nbytes > lag.max_bytes):
            self.fail(f"member {member.id}: {nbytes} bytes are not synced {seconds:.3f} s after they were written")

    def observe(self, member: Member) -> None:
        """Look at a member after it did something."""
        thread = member.wal.thread
        if isinstance(thread, LaggingThread):
            self.window(member, *thread.at_risk())
        raw = member.raw
        kept = raw.log.settled_bytes
        if kept > max(member.cluster.settings.max_tail_bytes, self.largest):
            self.fail(f"member {member.id} keeps {kept} bytes of its log in memory, applied or not")
        state, term, commit = raw.state, raw.term, raw.commit
        if state == LEADER and (member.seen_state != LEADER or member.seen_term != term):
            self._new_leader(member, term)
        if commit != member.commit:
            if commit < member.commit:
                self.fail(f"member {member.id}: commit index fell from {member.commit} to {commit}")
            self._committed(member, term, commit, state == LEADER)
            member.commit = commit
        member.seen_state, member.seen_term = state, term
        if self.inside:
            self.tidings.observe(member)
        # The core's own list: it goes on with it.
        del member.confs[:-1]

    def changed(self, member: Member, before: dict[int, Any]) -> None:
        """A member works with another membership now. `before`: the progress of the others, where it leads."""
        if self.inside:
            self.tidings.removed(member, before, member.applied + 1)

    def tells(self, member: Member) -> None:
        """Look at what clients are told after a turn, in which all of the core's news were taken."""
        told = (member.driver.term, member.store.raft_term)
        if told != (member.raw.term, member.raw.term):
            self.fail(f"member {member.id} is in term {member.raw.term} and tells of {told}")

    def in_silence(self, member: Member) -> None:
        """A group of a member's log has ended, and the member is not told."""
        self.count("ends in silence")
        if not member.turn_due and not member.at_work:
            self.hears(member)

    def hears(self, member: Member) -> None:
        """Look at a member that has ended its turn: if it waits for a group that has ended, it is told of that."""
        raw, thread = member.raw, member.wal.thread
        if not self.inside or not thread.untold:
            return
        own = {**{ident: one.match for ident, one in raw.status().progress.items()}, member.id: raw.last_index}
        conf = raw.conf_state
        further = joint_committed(conf.voters, conf.voters_outgoing, own) > raw.commit
        queued = member.proposer.queued and not member.goes_on
        if raw.state != LEADER or further or raw.commit > raw.persisted or queued:
            self.fail(f"member {member.id} waits for a group that has ended, and nobody tells it")

    def _new_leader(self, member: Member, term: int) -> None:
        if self.leaders.setdefault(term, member.id) != member.id:
            self.fail(f"two leaders in term {term}: {self.leaders[term]} and {member.id}")
        for other in member.cluster.members.values():
            if self.inside and other is not member and other.alive and other.raw.lease_valid(other.now()):
                self.fail(f"member {member.id} is elected in term {term} while member {other.id} reads by a lease")
        top = max((top for known, top in self.commit_top.items() if known < term), default=0)
        if top:
            own = member.raw.term_of(top) if top <= member.raw.last_index else 0
            if own is not None and own != self.committed[top][0]:
                self.fail(
                    f"leader completeness: member {member.id} leads term {term} without the committed entry {top} of "
                    f"term {self.committed[top][0]} (it has term {own})"
                )

    def _committed(self, member: Member, term: int, commit: int, leads: bool) -> None:
        committed = self.committed
        fresh = len(committed) <= commit
        while len(committed) <= commit:
            index = len(committed)
            own = member.raw.term_of(index)
            if own is None:
                break
            committed.append((own, term))
        # By log matching it is enough to look at the last one.
        if commit < len(committed):
            own = member.raw.term_of(commit)
            if own is not None and own != committed[commit][0]:
                self.fail(
                    f"member {member.id} has committed entry {commit} of term {own}, another one of term "
                    f"{committed[commit][0]}"
                )
        if fresh:
            self.commit_top[term] = max(self.commit_top.get(term, 0), commit)
        # A member with a disk that lags counts until it has come back without what it acknowledged.
        if leads and self.inside and fresh and not self.lagging:
            self._check_quorum(member, commit)

    def _check_quorum(self, member: Member, commit: int) -> None:
        term = member.raw.term_of(commit)
        if term is None:
            return
        everybody = member.cluster.members

        def holds(ids: Iterable[int]) -> bool:
            ids = tuple(ids)
            disks = [everybody[ident].platters for ident in ids if ident in everybody]
            have = sum(any(platter.has(commit, term) for platter in platters) for platters in disks)
            return have * 2 > len(ids) or not ids

        confs = [*member.confs, member.raw.conf_state]
        if not any(holds(conf.voters) and holds(conf.voters_outgoing) for conf in confs):
            self.fail(f"entry {commit} of term {term} is committed by {member.id}, but no quorum has it on disk")

    def sending(self, member: Member, messages: Iterable[Any]) -> None:
        """Messages leave a member: they promise nothing that a power cut could take back."""
        if not self.inside:
            return
        self.tidings.sending(member, messages)
        platter = member.platter
        for message in messages:
            kind = message.type
            if kind == MSG_APP_RESP:
                if not message.reject and message.index > platter.safe:
                    self.fail(f"member {member.id} acknowledges entry {message.index}, durable are {platter.safe}")
            elif kind == MSG_VOTE_RESP and not message.reject:
                if platter.hard != (message.term, message.to) and platter.hard[0] <= message.term:
                    self.fail(f"member {member.id} votes for {message.to} in {message.term}, durable is {platter.hard}")
            elif kind == MSG_VOTE and platter.hard[0] < message.term:
                self.fail(f"member {member.id} campaigns in term {message.term}, durable is {platter.hard}")

    # ---- state

    def applying(self, member: Member, images: Any) -> None:
        """Entries are about to be applied: all members apply the same ones, in order, each operation once."""
        for index, term, crc, kind, at, size in heads(images):
            if index > member.raw.commit:
                self.fail(f"member {member.id} applies entry {index}, committed are {member.raw.commit}")
            if self.inside and index > member.platter.safe:
                self.fail(f"member {member.id} applies entry {index}, durable are {member.platter.safe}")
            if index > member.applied + 1:
                self.fail(f"member {member.id} applies entry {index} after {member.applied}")
            member.applied = max(member.applied, index)
            known = self.entries.get((index, term))
            if known is not None and known[0] != crc:
                self.fail(f"member {member.id} applies an entry {index} that differs from what was logged")
            if index < len(self.committed) and self.committed[index][0] != term:
                self.fail(
                    f"state machine safety: member {member.id} applies entry {index} of term {term}, elsewhere it is "
                    f"of term {self.committed[index][0]}"
                )
            if index == self.top + 1:
                self.top = index
                if kind == 0 and size:
                    self._apply(bytes(images[at : at + size]), index)
                self.revision_at.append(self.model.revision)

    def _apply(self, payload: bytes, index: int) -> None:
        for data in unframe(self.codec.decode(payload)):
            operation = decode_op(data)
            if operation.kind == MEMBER:
                continue
            if self.promises is not None and self.promises.log(operation, self.model.now()):
                continue
            call = self.calls.get(operation.request_id)
            if call is None or call.body != operation.request:
                self.fail(f"entry {index} holds an operation that no client sent: {data!r}")
                return
            if call.applied:
                self.fail(f"operation {operation.request_id:x} is applied twice: entries {call.applied} and {index}")
            if operation.request_id in self.refused:
                self.fail(f"operation {operation.request_id:x} was refused as not done, entry {index} holds it")
            call.applied = index
            self.model.apply(call)

    def state_is(self, member: Member, index: int, revision: int) -> None:
        """A member's state after applying up to `index`."""
        if index < len(self.revision_at) and self.revision_at[index] != revision:
            wanted = self.revision_at[index]
            self.fail(f"member {member.id} is at revision {revision} after entry {index}, not {wanted}")
        if index % DIGEST_EVERY == 0 or index == member.cluster.digest_at:
            self.digest(member, index)

    def is_at(self, member: Member, index: int) -> None:
        """A member has carried out entry `index`: its whole state, history and membership included, is that of all
        others there."""
        store, mirror = member.store, member.mirror
        if mirror.differs(store, index):
            self.fail(f"member {member.id}: its engine holds another state before entry {index} than was applied")
        mirror.follow(store, index)
        self.counts["hashes"] += 1
        told = member.roster.state
        state = (store.revision, store.compact_revision, mirror.hash, told, member.applier.alarms.raised)
        known = self.states.setdefault(index, state)
        if known != state:
            differ = [f"{one} instead of {other}" for one, other in zip(state, known, strict=True) if one != other]
            self.fail(f"member {member.id}: the state after entry {index} differs from another member's: {differ}")
        if index % COUNT_EVERY == 0:
            self.alive(member, index)
        if not member.raw.restoring and told.conf_state != member.raw.conf_state:
            self.fail(f"member {member.id} works with {member.raw.conf_state}, its roster has {told.conf_state}")

    def alive(self, member: Member, index: int) -> None:
        """What a member knows without a walk, now and at the revisions before, is what a walk finds, and what the other
        members have."""
        try:
            check_counts(contents(member.engine))
        except AssertionError as error:
            self.fail(f"member {member.id}: counts in its engine after entry {index}: {error}")
        store = member.store
        if member.cluster.settings.flaky:
            return  # a call of its engine may fail here as well
        for revision in range(store.revision, max(0, store.compact_revision - 1, store.revision - 60), -9):
            known = known_count(store, wire.count_at(revision))
            self.count("counts known", known is not None)
            found = len(self.model.all_at(revision))
            if known not in (None, found):
                self.fail(f"member {member.id}: {known} keys at revision {revision} after entry {index}, not {found}")

    def membership(self, member: Member, index: int) -> None:
        """A member works with another membership from entry `index` on: a power cut must not take that back."""
        if not self.inside:
            return
        durable = member.disk.durable_commit()
        if durable < index:
            self.fail(f"member {member.id} changes its membership at entry {index}, durably committed are {durable}")

    def mended(self, member: Member, before: Any, told: Any) -> None:
        """A roster was not the leader's. There are no such rosters here."""
        self.fail(f"member {member.id}: its roster {before} is mended to {told}")

    def snapshot(self, member: Member, header: Header, engine: Engine, history: object) -> None:
        """A member has taken a snapshot: it is the state at its log position, membership included, with the `history`
        that there was when it was begun."""
        if not self.inside:
            return
        name = f"member {member.id}: snapshot {header.index}"
        if engine.applied() != (header.index, header.term):
            self.fail(f"{name} holds the state of entry {engine.applied()}")
        store = mvcc.Store(engine, header.cluster_id, 0)
        conf_state = Roster(store, member.identity.members).conf_state
        if header.conf_state != conf_state:
            self.fail(f"{name} says {header.conf_state}, its records {conf_state}")
        revision, found = wire.parse_range(store.range_reply(wire.EVERYTHING, 0))
        if header.revision != revision:
            self.fail(f"{name} says revision {header.revision}, its records {revision}")
        self._digest(member, header.index, revision, found)
        if self.history(engine) != history:
            self.fail(f"{name} lacks a part of the history")

    def digest(self, member: Member, index: int) -> None:
        """Compare the whole content of a member's state with that of the others, and with the model."""
        self._digest(member, index, *member.everything())

    def _digest(self, member: Member, index: int, revision: int, found: list[Pair]) -> None:
        self.counts["digests"] += 1
        digest = zlib.crc32(repr((revision, found)).encode())
        if self.digests.setdefault(index, digest) != digest:
            self.fail(f"member {member.id}: the state after entry {index} differs from another member's")
        if found != self.model.all_at(revision):
            self.fail(f"member {member.id}: the state after entry {index} is not what the operations make")

    @staticmethod
    def history(engine: Engine) -> tuple[int, int, int]:
        """What an engine holds: revision, compact revision, and the hash over all versions between."""
        hasher = Hasher(engine.view())
        while hasher.step(1000):
            pass
        return hasher.revision, hasher.compact_revision, hasher.hash

    def histories(self, members: Iterable[Member]) -> None:
        """All members hold the same history, whatever engine holds it and however much was swept up."""
        found = {member.id: self.history(member.engine) for member in members}
        if len(set(found.values())) != 1:
            self.fail(f"histories differ: {found}")
        model = self.model
        wanted = sorted(b"a" + ident.to_bytes(8, "big") + key for key, ident in model.lease_of.items())
        for member in members:
            attached = [key for key, _ in member.engine.scan(b"a", b"b", False, 0)]
            if attached != wanted or member.store.leases.ids() != sorted(model.leases):
                self.fail(f"member {member.id} has the leases {member.store.leases.ids()} with the keys {attached}")

    # ---- who takes part

    def begins(self, member: Member, why: str) -> None:
        """A member without a log takes part from now on."""
        if member.kept is not None:
            self.fail(f"member {member.id}, whose directory was taken away, takes part: {why}")
        self.count("begun")

    def must_end(self, member: Member, why: errors.MetaStoreError) -> None:
        """A member's process ends, for another one said that it must."""
        removed = any(member.id in other.roster.removed for other in member.cluster.started())
        right = (
            removed
            if isinstance(why, errors.RemovedFromCluster)
            else (isinstance(why, errors.MustJoinAnew) and member.kept is not None)
        )
        if not right:
            self.fail(f"member {member.id} is made to end: {type(why).__name__}: {why.text}")
        self.count("removed" if removed else "sent away")

    # ---- clients

    def begin(self, call: Call) -> None:
        """A client sends this now."""
        call.floor = self.floor

    def admitted(self, call: Call) -> None:
        """It has a request id."""
        if call.ident in self.calls:
            self.fail(f"request id {call.ident:x} was used before")
        self.calls[call.ident] = call

    def refuse(self, ids: Iterable[int]) -> None:
        """These were surely not logged, a member says."""
        for ident in ids:
            if ident in self.calls and self.calls[ident].applied:
                self.fail(f"operation {ident:x} is refused as not done, entry {self.calls[ident].applied} holds it")
            self.refused.add(ident)

    def unanswered(self, member: Member, call: Call) -> None:
        """A client gives a call up: was it for the member to answer it, if only with an error?"""
        assert call.heard is not None
        heard, life = call.heard
        settings = member.cluster.settings
        slowest = (settings.request_timeout + 2.5 * settings.tick) / (1 - settings.drift)
        if not member.alive or member.life != life or member.paused or member.stood_still >= heard:
            return
        waited = member.clock.now - heard
        if waited > slowest:
            self.fail(f"member {member.id} has not answered a {call.kind} for {waited:.2f} s")

    def errored(self, call: Call, error: str) -> None:
        """The client is told an error."""
        if call.kind == "read":
            return
        if error in OPEN:
            self.counts["open"] += 1
            return
        if call.applied:
            if call.failed != error:
                outcome = call.failed or "done"
                self.fail(f"{call.kind} is answered {error}, but entry {call.applied} holds it ({outcome})")
            if call.kind == "late":
                self.count("failed late")
            return
        self.counts["not done"] += 1
        if call.ident:
            self.refused.add(call.ident)

    def wrote(self, call: Call, revision: int, swapped: bool, found: list[Pair]) -> None:
        """The client is told that it is done."""
        self.counts["acked"] += 1
        if not call.applied:
            self.fail(f"{call.kind} {call.value!r} is acknowledged, but not committed")
        if call.failed:
            self.fail(f"{call.kind} should have failed with {call.failed}")
        if revision != call.result_revision or swapped != call.swapped or found != call.found:
            self.fail(
                f"{call.kind} {call.value!r} is answered with revision {revision}, {swapped}, {found}; the log says "
                f"{call.result_revision}, {call.swapped}, {call.found}"
            )
        if revision < call.floor + call.changed:
            self.fail(f"{call.kind} {call.value!r} got revision {revision} after {call.floor} had been shown")
        self.floor = max(self.floor, revision)

    def read(self, call: Call, revision: int, found: list[Pair]) -> None:
        """The client is told this."""
        self.counts["reads"] += 1
        if revision > self.model.revision:
            self.fail(f"a read of {call.keys} shows revision {revision}, there are only {self.model.revision}")
        at = call.revision or revision
        wanted = (
            self.model.all_at(at)
            if len(call.keys) != 1
            else [pair for pair in (self.model.at(call.keys[0], at),) if pair is not None]
        )
        if found != wanted:
            self.fail(f"a read of {call.keys} at revision {at} shows {found}, not {wanted}")
        if not call.serializable:
            if revision < call.floor:
                self.fail(f"stale read of {call.keys}: revision {revision} after {call.floor} had been shown")
            self.floor = max(self.floor, revision)
