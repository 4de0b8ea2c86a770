"""Raft scenarios as text: tests/raft/transcripts/*.txt hold commands and the answers of the core.

A line that begins with "> " is a command; the lines up to the next one are the answer. Lines with # are
comments. `PYTHONPATH=tests python tests/raft/test_raft_transcripts.py --rewrite [name ...]` writes the answers
again; read the difference before committing it.

Commands (nodes are numbers; after a command the nodes named in it do what is ready, and their Readies are shown):

    nodes 1 2 3 [learners 4] [key=value ...]   a cluster; keys are RaftConfig's
        (bootstrap=true: the log begins after a snapshot at index 1, from which members that join learn the membership)
    history N @NOW TERM TERM ...               N starts again in term NOW with entries of these terms
    step N TYPE from=A term=T [log=TERM/INDEX] [commit=I] [reject=true] [entries=TERM/INDEX:DATA,...]
        N receives this message
    join 4 [key=value ...]                     an empty node that nobody knows yet
    campaign N | tick N [count] | tick N now=SECONDS | timeout N TICKS
    propose N DATA | conf N [auto|implicit|explicit] +4 -2 ~3 ... | conf N leave
        (+ voter, - remove, ~ learner)
    read N CONTEXT [now=SECONDS] | lease N now=SECONDS
    transfer N TO | unreachable N PEER | snapshot-arrived N PEER | snapshot-failed N PEER
    patient N ... | waits N ...                nobody waits for entries at these nodes | somebody does
    tell N | hasten N PEER | ask N             N tells its commit index | tells PEER at once from now on | asks for it
    deliver [A->B|->B|A->] [Type] [count=N]    deliver queued messages that match, in order
    drop [A->B ...] [Type]                     lose them
    settle                                     deliver everything until nothing is on its way
    hold N | flush N [count]                   N's disk gets stuck | its oldest writes become durable
    unhold N                                   the disk works again
    crash N                                    restart from what was durable
    cut N ... | heal                           cut these nodes off from the others
    compact N INDEX                            the storage keeps a snapshot and drops the log up to INDEX
    load N off|on                              the storage answers NotYetLoaded | it is loaded
    state [N ...] | log N | progress N | queue | data N
    quiet COMMAND                              the same without showing anything

Every command also checks that no two nodes applied different entries at one index.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from support.raft_harness import MemoryStorage, Network, Node
from support.transcripts import keyword, message_text, replay, rewrite

from metastore._core import raft
from metastore._core.entry import Entry, HardState
from metastore._core.raft_types import (
    ConfChange,
    ConfChangeTransition,
    ConfChangeV2,
    ConfState,
    EntryType,
    Message,
    MessageType,
    ProgressState,
    Ready,
    StateType,
)
from metastore.errors import MetaStoreError

FOLDER = Path(__file__).parent / "transcripts"
KINDS = {"+": 0, "-": 1, "~": 3}


class Transcript:
    """Carries out commands and collects the lines to show."""

    def __init__(self, **extra: object) -> None:
        self.extra = extra
        self.net = Network([])
        self.lines: list[str] = []
        self.known: dict[int, tuple] = {}
        self.seen: dict[int, int] = {}

    def run(self, command: str) -> list[str]:
        self.lines = []
        words = shlex.split(command)
        quiet = words[0] == "quiet"
        words = words[1:] if quiet else words
        try:
            getattr(self, "do_" + words[0].replace("-", "_"))(words[1:])
        except (MetaStoreError, ValueError) as error:
            self.lines.append(f"error {type(error).__name__}: {error}")
        self.check()
        return [] if quiet else self.lines or ["ok"]

    def check(self) -> None:
        for id, node in self.net.nodes.items():
            for entry in node.applied[self.seen.get(id, 0) :]:
                same = (entry.term, entry.type, entry.data)
                assert self.known.setdefault(entry.index, same) == same, f"node {id} applied another {entry.index}"
            self.seen[id] = len(node.applied)

    # -- showing

    def pump(self, *ids: int) -> None:
        """Let nodes do what is ready, and show it."""
        for id in ids:
            node = self.net.nodes[id]
            while node.raw.has_ready():
                before = len(node.read_states), len(node.dropped_reads)
                self.net.queue += self.take_one(node)
                self.show(id, node, node.last_ready, before)

    @staticmethod
    def take_one(node: Node) -> list[Message]:
        ready = node.raw.ready()
        node.last_ready = ready
        node.read_states += [(state.index, state.request_ctx) for state in ready.read_states]
        node.dropped_reads += ready.dropped_reads
        if ready.must_sync or ready.hard_state is not None:
            node.writing.append(ready)
        node.apply(ready)
        if not node.hold_disk:
            node.flush()
        return ready.messages

    def show(self, id: int, node: Node, ready: Ready, before: tuple[int, int]) -> None:
        out = [f"{id} Ready {ready.number}"]
        if ready.soft_state is not None:
            out.append(f"{StateType(ready.soft_state.raft_state).name} lead:{ready.soft_state.lead}")
        if ready.hard_state is not None:
            hard = ready.hard_state
            out.append(f"term:{hard.term} vote:{hard.vote} commit:{hard.commit}")
        if ready.snapshot is not None:
            out.append(f"snapshot {ready.snapshot.term}/{ready.snapshot.index} {ready.snapshot.conf_state!r}")
        if ready.last_index:
            out.append("append " + " ".join(self.entry(e) for e in ready.entries))
        if ready.committed_last:
            out.append("apply " + " ".join(self.entry(e) for e in ready.committed_entries))
            if any(e.type for e in ready.committed_entries):
                out.append(f"config {node.raw.conf_state!r}")
        for index, context in node.read_states[before[0] :]:
            out.append(f"read {context.decode()} at {index}")
        for context in node.dropped_reads[before[1] :]:
            out.append(f"read {context.decode()} dropped")
        if len(out) > 1 or not ready.messages:
            self.lines.append("; ".join(out))
        self.lines += [f"{id} sends {self.message(m)}" for m in ready.messages]

    @staticmethod
    def entry(entry: object) -> str:
        text = f"{entry.term}/{entry.index}"
        if entry.type:
            return text + f"({EntryType(entry.type).name[5:]})"
        return text + (f'"{entry.data.decode()}"' if entry.data else "")

    def message(self, m: Message) -> str:
        return message_text(m, self.entry)

    # -- commands

    def do_nodes(self, words: list[str]) -> None:
        plain, config = keyword(words)
        at = plain.index("learners") if "learners" in plain else len(plain)
        self.net = Network(map(int, plain[:at]), learners=map(int, plain[at + 1 :]), **config, **self.extra)

    def do_history(self, words: list[str]) -> None:
        id, current, terms = int(words[0]), int(words[1].lstrip("@")), list(map(int, words[2:]))
        storage = MemoryStorage(self.net.conf)
        storage.store([Entry(term, at + 1, 0, b"") for at, term in enumerate(terms)], HardState(current, 0, 0))
        self.net.add(id, storage)

    def do_step(self, words: list[str]) -> None:
        plain, options = keyword(words)
        log = [int(part) for part in str(options.get("log", "0/0")).split("/")]
        entries = []
        for word in str(options.get("entries", "")).split(","):
            if word:
                position, data = word.split(":")
                term, index = map(int, position.split("/"))
                entries.append(Entry(term, index, 0, data.encode()))
        id = int(plain[0])
        message = Message(
            MessageType[plain[1]],
            to=id,
            from_=options["from"],
            term=options["term"],
            log_term=log[0],
            index=log[1],
            commit=options.get("commit", 0),
            reject=options.get("reject", False),
            entries=entries,
        )
        self.net[id].step(message)
        self.pump(id)

    def do_join(self, words: list[str]) -> None:
        plain, config = keyword(words)
        self.net.add(int(plain[0]), MemoryStorage(ConfState()), **config)

    def do_campaign(self, words: list[str]) -> None:
        self.net[int(words[0])].campaign()
        self.pump(int(words[0]))

    def do_tick(self, words: list[str]) -> None:
        plain, options = keyword(words)
        id = int(plain[0])
        for _ in range(int(plain[1]) if len(plain) > 1 else 1):
            self.net[id].tick(options.get("now", 0.0))
            self.pump(id)

    def do_timeout(self, words: list[str]) -> None:
        self.net[int(words[0])].election_timeout_ticks = int(words[1])

    def do_propose(self, words: list[str]) -> None:
        self.net[int(words[0])].propose(words[1].encode())
        self.pump(int(words[0]))

    def do_conf(self, words: list[str]) -> None:
        id, rest = int(words[0]), words[1:]
        if rest == ["leave"]:
            change: ConfChange | ConfChangeV2 = ConfChangeV2()
        else:
            modes = {"auto": 0, "implicit": 1, "explicit": 2}
            mode = modes.get(rest[0])
            singles = [ConfChange(KINDS[word[0]], int(word[1:])) for word in (rest if mode is None else rest[1:])]
            change = singles[0] if mode is None else ConfChangeV2(ConfChangeTransition(mode), singles)
        self.net[id].propose_conf_change(change)
        self.pump(id)

    def do_read(self, words: list[str]) -> None:
        plain, options = keyword(words)
        self.net[int(plain[0])].read_index(plain[1].encode(), options.get("now", 0.0))
        self.pump(int(plain[0]))

    def do_lease(self, words: list[str]) -> None:
        plain, options = keyword(words)
        self.lines.append("valid" if self.net[int(plain[0])].lease_valid(options["now"]) else "not valid")

    def do_transfer(self, words: list[str]) -> None:
        self.net[int(words[0])].transfer_leader(int(words[1]))
        self.pump(int(words[0]))

    def do_patient(self, words: list[str]) -> None:
        for word in words:
            self.net[int(word)].patient = True

    def do_waits(self, words: list[str]) -> None:
        for word in words:
            self.net[int(word)].patient = False

    def do_tell(self, words: list[str]) -> None:
        self.net[int(words[0])].tell_commit()
        self.pump(int(words[0]))

    def do_hasten(self, words: list[str]) -> None:
        self.net[int(words[0])].hasten(int(words[1]))
        self.pump(int(words[0]))

    def do_ask(self, words: list[str]) -> None:
        self.net[int(words[0])].ask_commit()
        self.pump(int(words[0]))

    def do_unreachable(self, words: list[str]) -> None:
        self.net[int(words[0])].report_unreachable(int(words[1]))
        self.pump(int(words[0]))

    def do_snapshot_arrived(self, words: list[str]) -> None:
        self.net[int(words[0])].report_snapshot(int(words[1]), True)
        self.pump(int(words[0]))

    def do_snapshot_failed(self, words: list[str]) -> None:
        self.net[int(words[0])].report_snapshot(int(words[1]), False)
        self.pump(int(words[0]))

    def matching(self, words: list[str]) -> list[Message]:
        plain, options = keyword(words)
        links = [word.split("->") for word in plain if "->" in word]
        types = [MessageType[word] for word in plain if "->" not in word]
        out = [
            m
            for m in self.net.queue
            if (not links or any(a in ("", str(m.from_)) and b in ("", str(m.to)) for a, b in links))
            and (not types or m.type in types)
        ]
        return out[: options.get("count", len(out))]

    def take_from_queue(self, words: list[str]) -> list[Message]:
        messages = self.matching(words)
        self.net.queue = [m for m in self.net.queue if not any(m is other for other in messages)]
        return messages

    def do_deliver(self, words: list[str]) -> None:
        for message in self.take_from_queue(words):
            if (message.from_, message.to) in self.net.cut or message.to not in self.net.nodes:
                self.lines.append(f"lost {self.message(message)}")
                continue
            self.net[message.to].step(Message.decode(message.encode()))
            self.pump(message.to)

    def do_drop(self, words: list[str]) -> None:
        self.lines += [f"dropped {self.message(m)}" for m in self.take_from_queue(words)]

    def do_settle(self, words: list[str]) -> None:
        for _ in range(100):
            if not self.net.queue:
                return
            self.do_deliver([])
        raise AssertionError("messages go round and round")

    def do_hold(self, words: list[str]) -> None:
        self.net.nodes[int(words[0])].hold_disk = True

    def do_flush(self, words: list[str]) -> None:
        self.net.nodes[int(words[0])].flush(int(words[1]) if len(words) > 1 else None)
        self.pump(int(words[0]))

    def do_unhold(self, words: list[str]) -> None:
        self.net.nodes[int(words[0])].hold_disk = False
        self.do_flush(words[:1])

    def do_crash(self, words: list[str]) -> None:
        id = int(words[0])
        self.net.restart(id)
        self.seen.pop(id, None)
        self.pump(id)

    def do_cut(self, words: list[str]) -> None:
        self.net.isolate(*map(int, words))

    def do_heal(self, words: list[str]) -> None:
        self.net.heal()

    def do_compact(self, words: list[str]) -> None:
        node = self.net.nodes[int(words[0])]
        node.storage.compact(int(words[1]), node.raw.conf_state)

    def do_load(self, words: list[str]) -> None:
        id = int(words[0])
        self.net.nodes[id].storage.loaded = words[1] == "on"
        if words[1] == "on":
            self.net[id].entries_loaded()
            self.pump(id)

    def do_state(self, words: list[str]) -> None:
        for id in map(int, words) if words else sorted(self.net.nodes):
            s = self.net[id].status()
            self.lines.append(
                f"{id} {s.raft_state.name[5:]} term:{s.term} vote:{s.vote} lead:{s.lead} commit:{s.commit} "
                f"applied:{s.applied} last:{s.last_index} durable:{s.persisted} config:{s.config!r}"
            )

    def do_log(self, words: list[str]) -> None:
        raw = self.net[int(words[0])]
        first = self.net.nodes[int(words[0])].storage.first_index()
        self.lines.append(" ".join(f"{raw.term_of(i)}/{i}" for i in range(first, raw.last_index + 1)) or "empty")

    def do_progress(self, words: list[str]) -> None:
        for id, p in self.net[int(words[0])].status().progress.items():
            out = f"{id} {ProgressState(p.state).name[5:]} match:{p.match} next:{p.next}"
            out += f" inflight:{p.inflight}" if p.inflight else ""
            out += " learner" if p.is_learner else ""
            out += " paused" if p.is_paused else ""
            out += f" snapshot:{p.pending_snapshot}" if p.pending_snapshot else ""
            self.lines.append(out + ("" if p.recent_active else " inactive"))

    def do_queue(self, words: list[str]) -> None:
        self.lines += [self.message(m) for m in self.net.queue] or ["empty"]

    def do_data(self, words: list[str]) -> None:
        self.lines.append(" ".join(d.decode() for d in self.net.data(int(words[0]))) or "nothing")


def replayed(text: str, **extra: object) -> str:
    """Return the transcript's text with the answers of today. `extra` has settings for all nodes."""
    return replay(text, Transcript(**extra).run)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    text = path.read_text()
    assert replayed(text) == text


def test_there_are_transcripts() -> None:
    assert len(list(FOLDER.glob("*.txt"))) >= 25


def test_a_changed_answer_is_noticed() -> None:
    text = replayed("> nodes 1\n> campaign 1\n")
    assert "StateLeader" in text
    assert replayed(text.replace("StateLeader", "StateFollower")) == text


@pytest.mark.parametrize(
    ("plant", "name"),
    [
        ("PLANT_VOTE_NOT_PERSISTED", "vote_is_remembered"),
        ("PLANT_ACK_BEFORE_SYNC", "replication_slow_follower_disk"),
        ("PLANT_COMMIT_OLD_TERM", "figure8_old_term_is_not_committed_by_counting"),
        ("PLANT_READ_WITHOUT_ROUND", "read_index_with_a_deposed_leader"),
        ("PLANT_LEASE_KEPT", "lease_ends_with_transfer"),
        ("PLANT_JOINT_HALF", "conf_joint_election"),
        ("PLANT_JOINT_HALF", "conf_joint_explicit"),
        ("PLANT_ABA", "aba_of_persistence"),
    ],
)
def test_planted_bugs_change_the_transcript(plant: str, name: str) -> None:
    text = (FOLDER / f"{name}.txt").read_text()
    assert replayed(text, planted=getattr(raft, plant)) != text


if __name__ == "__main__":
    rewrite(FOLDER, replayed, sys.argv[1:])
