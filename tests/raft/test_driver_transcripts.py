"""Scenarios of the driver as text: tests/raft/transcripts/driver/*.txt hold commands and what the driver did for them.
The lines stand in the order of its actions: what went to the log, to the other members, to the engine and to waiting
clients. The form is that of the Raft transcripts beside them (test_raft_transcripts.py).

`PYTHONPATH=tests python tests/raft/test_driver_transcripts.py --rewrite [name ...]` writes the answers again; read the
difference before committing it.

Commands (members are numbers; behind a command the turn of the member named in it ends, so its driver is pumped):

    members 1 2 3 [timeout=5.0] [batch=100] [delay=0.01] [tail=1048576]    a cluster: see Settings
    lead N                          N is elected, and everything that follows from it is done
    put N KEY=VALUE ...             clients call N, all of them in one turn
    get N KEY ... [local]           linearizable, or serializable with "local"
    change N ACTION MEMBER          add, add_learner, promote, remove
    give_up N LABEL                 the time that the client of N set for this ("put a=x", "remove 3") is over
    disk N ...                      what N's disk has under way is durable
    deliver [A->B|->B|A->] [KIND]   what is on its way arrives, in order; KIND: a Raft message's, forward, refusal
    drop [A->B ...] [KIND]          it is lost
    settle [at once]                disks finish and messages arrive until nothing is under way; then leaders tell what
                                    they hold back of their commit index, but not with "at once"
    queue                           what is on its way
    tick N [count]                  Raft's clock, and the deadlines of the waiting operations
    after SECONDS                   time passes; no part notices by itself
    down A->B ... | up A->B ...     the connection takes nothing | works again
    busy N [full] | ready N         N's engine refuses writes (for lack of room) | takes them again
    full N | roomy N                N's log takes no puts any more | takes them again
    campaign N | transfer N TO | abandon N | turn N | stop N
    watch N | unwatch N             there are watchers at N | there are none any more
    compact N | installed N         N's log begins behind what is applied | N's engine has the snapshot it received
    crash N                         it starts again with what its log had made durable
    state [N ...]
    quiet COMMAND                   the same without showing anything

Every command also checks that the engines of all members hold the same behind the same entry.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sim.plants import (
    AnyRound,
    ChangesAtOnce,
    EarlyReply,
    EarlyReport,
    ImpatientRead,
    JoinedRound,
    PatientReads,
    PatientReplies,
    SecondForward,
    SkipBusy,
    Withholding,
)
from support import kvmessages as pb
from support.driver_stage import HandLog, Member, Parcel, Settings, World
from support.raft_harness import MemoryStorage
from support.transcripts import keyword, replay, rewrite

from metastore import errors
from metastore.replica.driver import Driver
from metastore.replica.membership_changes import MembershipChanges
from metastore.replica.peer_link import PeerLink
from metastore.replica.pending import Pending
from metastore.replica.read_rounds import ReadRounds

FOLDER = Path(__file__).parent / "transcripts" / "driver"


class Transcript:
    """Carries out commands and collects the lines to show."""

    def __init__(self, kind: type[Driver] = Driver) -> None:
        self.driver_class = kind
        self.world = World([], Settings(), kind)
        self.members: dict[int, Member] = {}

    def run(self, command: str) -> list[str]:
        """Return the lines that a command causes."""
        self.world.lines.clear()
        words = shlex.split(command)
        quiet = words[0] == "quiet"
        words = words[1:] if quiet else words
        getattr(self, "do_" + words[0])(words[1:])
        return [] if quiet else list(self.world.lines) or ["ok"]

    def _member(self, word: str) -> Member:
        return self.members[int(word)]

    # ---- the cluster

    def do_members(self, words: list[str]) -> None:
        plain, options = keyword(words)
        self.world = World([int(word) for word in plain], Settings(**options), self.driver_class)
        self.members = {ident: Member(self.world, ident, MemoryStorage()) for ident in self.world.initial}

    def do_campaign(self, words: list[str]) -> None:
        member = self._member(words[0])
        member.driver.campaign()
        member.turn()

    def do_lead(self, words: list[str]) -> None:
        self.do_campaign(words)
        self.do_settle([])

    def do_transfer(self, words: list[str]) -> None:
        member = self._member(words[0])
        member.raw.transfer_leader(int(words[1]))
        member.turn()

    def do_abandon(self, words: list[str]) -> None:
        self._member(words[0]).driver.abandon()

    def do_turn(self, words: list[str]) -> None:
        self._member(words[0]).turn()

    def do_stop(self, words: list[str]) -> None:
        member = self._member(words[0])
        member.driver.stop()
        member.turn()

    def do_watch(self, words: list[str]) -> None:
        member = self._member(words[0])
        member.driver.set_watched(True)
        member.turn()

    def do_unwatch(self, words: list[str]) -> None:
        member = self._member(words[0])
        member.driver.set_watched(False)
        member.turn()

    def do_compact(self, words: list[str]) -> None:
        self._member(words[0]).compact()

    def do_installed(self, words: list[str]) -> None:
        self._member(words[0]).installed()

    def do_crash(self, words: list[str]) -> None:
        old = self._member(words[0])
        self.members[old.id] = Member(self.world, old.id, old.storage, old.life + 1)
        self.members[old.id].turn()

    def do_state(self, words: list[str]) -> None:
        named = [self._member(word) for word in words] or list(self.members.values())
        self.world.lines += [member.state for member in named]

    # ---- clients

    def do_put(self, words: list[str]) -> None:
        member = self._member(words[0])
        for word in words[1:]:
            key, value = word.split("=")
            member.call("Put", f"put {word}", pb.PutRequest(key=key.encode(), value=value.encode()))
        member.turn()

    def do_get(self, words: list[str]) -> None:
        member, local = self._member(words[0]), words[-1] == "local"
        for word in words[1 : -1 if local else None]:
            member.call("Range", f"get {word}", pb.RangeRequest(key=word.encode(), serializable=local))
        member.turn()

    def do_change(self, words: list[str]) -> None:
        member = self._member(words[0])
        member.change(words[1], int(words[2]))
        member.turn()

    def do_give_up(self, words: list[str]) -> None:
        member = self._member(words[0])
        member.give_up(" ".join(words[1:]))
        member.turn()

    # ---- disks, engines, time

    def do_disk(self, words: list[str]) -> None:
        for word in words:
            self._member(word).disk_done()

    def do_busy(self, words: list[str]) -> None:
        engine = self._member(words[0]).engine
        engine.busy, engine.full = True, "full" in words

    def do_ready(self, words: list[str]) -> None:
        self._member(words[0]).engine.busy = False

    def do_full(self, words: list[str]) -> None:
        self._member(words[0]).kv.limit_log(0, 0)

    def do_roomy(self, words: list[str]) -> None:
        self._member(words[0]).kv.limit_log(None, None)

    def do_after(self, words: list[str]) -> None:
        self.world.now += float(words[0])

    def do_tick(self, words: list[str]) -> None:
        for _ in range(int(words[1]) if len(words) > 1 else 1):
            self._member(words[0]).driver.tick(self.world.now)

    # ---- the network

    def _take(self, words: list[str]) -> list[Parcel]:
        links = [word.split("->") for word in words if "->" in word]
        kinds = [word for word in words if "->" not in word]
        messages = [
            parcel
            for parcel in self.world.queue
            if (not links or any(a in ("", str(parcel.sender)) and b in ("", str(parcel.to)) for a, b in links))
            and (not kinds or parcel.kind in kinds)
        ]
        self.world.queue = [parcel for parcel in self.world.queue if not any(parcel is other for other in messages)]
        return messages

    def do_deliver(self, words: list[str]) -> None:
        for parcel in self._take(words):
            if parcel.to in self.members:
                self.members[parcel.to].receive(parcel)

    def do_drop(self, words: list[str]) -> None:
        self.world.lines += [f"dropped {parcel.text}" for parcel in self._take(words)]

    def do_queue(self, words: list[str]) -> None:
        self.world.lines += [parcel.text for parcel in self.world.queue] or ["empty"]

    def do_settle(self, words: list[str]) -> None:
        for _ in range(100):
            writing = [member for member in self.members.values() if not member.log.idle]
            for member in writing:
                member.disk_done()
            if not writing and not self.world.queue:
                holding = [member for member in self.members.values() if member.driver.tell_at is not None]
                if not holding or words:
                    return
                for member in holding:
                    member.raw.tell_commit()
                    member.turn()
            self.do_deliver([])
        raise AssertionError("messages go round and round")

    def do_down(self, words: list[str]) -> None:
        for word in words:
            sender, to = map(int, word.split("->"))
            self.world.down.add((sender, to))

    def do_up(self, words: list[str]) -> None:
        for word in words:
            sender, to = map(int, word.split("->"))
            self.world.down.discard((sender, to))


def replayed(text: str, driver: type[Driver] = Driver) -> str:
    """Return the transcript's text with the answers of today, of drivers of this kind."""
    return replay(text, Transcript(driver).run)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    text = path.read_text()
    assert replayed(text) == text


# ---- bugs that the transcripts must show

Plant = Callable[[pytest.MonkeyPatch], "type[Driver] | None"]


def kind(driver: type[Driver]) -> Plant:
    """Replace the driver by another kind."""
    return lambda _patch: driver


def part(of: type, name: str, call: Callable[..., object]) -> Plant:
    """Replace a method by something else."""
    return lambda patch: patch.setattr(of, name, call)


def nothing(*_arguments: object) -> None:
    """Replaces a method, and does nothing."""


def taken(link: PeerLink, to: int, batch: bytes) -> bool:
    """Treats an operation that the connection did not take as sent."""
    return link._transport.forward(to, batch) or True


def refused(_pending: Pending, _data: bytes, _kind: int, _now: float) -> None:
    """Refuses what another member forwards, whoever leads."""
    raise errors.LeaderChanged()


def at_once(rounds: ReadRounds, _now: float, _leader: int) -> None:
    """Serves reads without asking any member."""
    rounds._kv.serve_reads(rounds._kv.take_reads())


def overtaking(rounds: ReadRounds, state: Any, applied: int, _now: float) -> None:
    """Serves a round whose index is applied, whoever waits longer."""
    reads = rounds.rounds.popleft().reads
    if state.index <= applied:
        rounds._kv.serve_reads(reads)
    else:
        rounds.confirmed_rounds.append((state.index, reads))


def everybody(pending: Pending, _below: int, error: type[errors.ApiError], fail: Any = Pending._fail_writes) -> Any:
    """Fails all waiting operations when the first deadline has passed."""
    return fail(pending, pending._kv.next_id, error)


class NotHeld(Driver):
    """Treats a snapshot as installed as soon as it has come."""

    def _persist(self, ready: Any, now: float) -> bool:
        news = super()._persist(ready, now)
        self._installing = None
        return news


PLANTS: list[tuple[str, str, Plant]] = [
    ("put", "reported before the disk is done", kind(EarlyReport)),
    ("put", "answered when it is proposed", kind(EarlyReply)),
    ("commit_index", "held back for ever", kind(Withholding)),
    ("put_alone", "reported before the disk is done", kind(EarlyReport)),
    ("put_alone", "nobody looks for news", part(HandLog, "settle", lambda log: 0)),
    ("forward", "what was not taken counts as sent", part(PeerLink, "forward", taken)),
    ("forward", "its account is never settled", part(Pending, "_settle_forwarded", nothing)),
    ("forward_to_a_former_leader", "refused", part(Pending, "_pass_on", refused)),
    ("leader_change", "no end of the grace", part(Pending, "leader_lost", nothing)),
    ("leader_change_after_a_forward", "forwarded twice", kind(SecondForward)),
    ("leader_change_after_a_forward", "no end of the grace", part(Pending, "leader_lost", nothing)),
    ("busy_engine", "what was refused counts as written", kind(SkipBusy)),
    ("busy_engine", "replies wait for the engine", kind(PatientReplies)),
    ("full_engine", "reads wait for room", part(ReadRounds, "give_up", nothing)),
    ("refusal", "not heard", part(Pending, "receive_refusal", nothing)),
    ("read", "served without a round", part(ReadRounds, "start", at_once)),
    ("read_waits_for_apply", "served when the index is known", kind(ImpatientRead)),
    ("reads_while_the_engine_is_busy", "a later one goes first", part(ReadRounds, "confirmed", overtaking)),
    ("read_through_a_follower", "no deadline", kind(PatientReads)),
    ("read_through_a_follower", "an answer to an older round", kind(AnyRound)),
    ("reads_under_way", "a read joins a round already sent", kind(JoinedRound)),
    ("reads_under_way", "an answer to an older round", kind(AnyRound)),
    ("deadline", "no deadline of reads", kind(PatientReads)),
    ("deadline", "one deadline for all", part(Pending, "_fail_writes", everybody)),
    ("abandon", "nobody is answered", part(Pending, "abandon", nothing)),
    ("withdrawal", "the leader is not told", part(PeerLink, "withdraw", nothing)),
    ("withdrawal", "what is queued stays", part(Pending, "withdraw", nothing)),
    ("withdrawal", "changes stay", part(MembershipChanges, "withdraw", nothing)),
    ("withdrawal", "what was dropped is not refused", part(Pending, "confirm_withdrawals", nothing)),
    ("membership_change", "before its commit is durable", kind(ChangesAtOnce)),
    ("membership_change_on_a_follower", "what was not taken counts as sent", part(PeerLink, "forward", taken)),
    ("membership_change_and_leader_change", "they wait for ever", part(MembershipChanges, "leader_changed", nothing)),
    ("snapshot", "taken for installed", kind(NotHeld)),
]


@pytest.mark.parametrize(("name", "bug", "plant"), PLANTS, ids=lambda value: value if isinstance(value, str) else "")
def test_planted_bugs_change_the_transcript(name: str, bug: str, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (FOLDER / f"{name}.txt").read_text()
    driver = plant(monkeypatch) or Driver
    try:
        answers = replayed(text, driver)
    except AssertionError as error:
        assert "two states" in str(error)
        return
    assert answers != text


def test_every_transcript_shows_a_bug() -> None:
    assert {name for name, _, _ in PLANTS} == {path.stem for path in FOLDER.glob("*.txt")}


if __name__ == "__main__":
    rewrite(FOLDER, replayed, sys.argv[1:])
