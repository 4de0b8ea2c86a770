"""The promise on which lease reads rest: a member that answered a leader's heartbeat helps no other member to lead for
one election timeout, whatever it hears meanwhile. Only a candidate to which the leader itself hands over is helped at
once."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from support.raft_harness import MemoryStorage, Network

from metastore._core.entry import Entry
from metastore._core.raft import PLANT_PROMISE_FORGOTTEN, RawNode
from metastore._core.raft_types import (
    ConfChange,
    ConfState,
    Message,
    MsgApp,
    MsgHeartbeat,
    MsgHeartbeatResp,
    MsgPreVote,
    MsgPreVoteResp,
    MsgVote,
    MsgVoteResp,
    RaftConfig,
    RaftInvariantBroken,
    StateType,
    decode_conf_change,
)

TICKS = 10
LEASE = {"read_only_option": "lease", "lease_seconds": 0.72, "pre_vote": True, "check_quorum": True}
TRANSFER = b"CampaignTransfer"
ADD_LEARNER = ConfChange(3, 4)


def follower(planted: int = 0, **config: object) -> RawNode:
    """Return member 2 of three. Member 1 leads term 1 and has sent it a membership change that may be committed or
    not."""
    settings = {"election_ticks": TICKS, "planted": planted, **LEASE, **config}
    node = RawNode(RaftConfig(2, **settings), MemoryStorage(ConfState((1, 2, 3))))
    node.step(Message(MsgApp, 2, 1, 1, 0, 0, [Entry(1, 1, 1, ADD_LEARNER.encode())], commit=0))
    messages_of(node)
    return node


def messages_of(node: RawNode) -> list[Message]:
    """Return its messages, all of its state durable."""
    out = []
    while node.has_ready():
        ready = node.ready()
        out += ready.messages
        node.on_persisted(ready.number)
    return out


def beat(node: RawNode, commit: int = 0) -> None:
    """Deliver the leader's heartbeat, which is answered."""
    node.step(Message(MsgHeartbeat, 2, 1, 1, commit=commit))
    assert messages_of(node)[-1].type == MsgHeartbeatResp


def helped(node: RawNode, term: int, kind: int = MsgPreVote, context: bytes = b"") -> bool:
    """Whether it votes for 3, whose log is the longer one."""
    node.step(Message(kind, 2, 3, term, 1, 5, context=context))
    answers = [message for message in messages_of(node) if message.type in (MsgVoteResp, MsgPreVoteResp)]
    return any(not message.reject for message in answers)


def keep(node: RawNode) -> None:
    """Check that nobody is helped for an election timeout, and then somebody is."""
    for _ in range(TICKS):
        assert not helped(node, node.term + 1) and not helped(node, node.term + 1, MsgVote)
        node.tick()
    assert helped(node, node.term + 1)


def test_an_answered_heartbeat_is_a_promise() -> None:
    node = follower()
    beat(node)
    node.election_timeout_ticks = 2 * TICKS
    keep(node)


def test_a_late_refusal_that_tells_the_commit_index_does_not_end_it() -> None:
    node = follower()
    beat(node)
    node.step(Message(MsgPreVoteResp, 2, 3, 1, 1, commit=1, reject=True))
    assert (node.lead, node.commit) == (1, 1)
    assert not helped(node, 2)


@pytest.mark.parametrize("kind", [MsgPreVoteResp, MsgVoteResp])
def test_a_late_refusal_of_a_later_term_does_not_end_it(kind: int) -> None:
    node = follower()
    beat(node)
    node.election_timeout_ticks = 2 * TICKS
    node.step(Message(kind, 2, 3, 2, reject=True))
    messages_of(node)
    assert (node.term, node.lead) == (2, 0)
    assert not helped(node, 2) and not helped(node, 2, MsgVote), "a vote of the term that it is in already"
    node.election_timeout_ticks = 2 * TICKS
    keep(node)


@pytest.mark.parametrize("mode", ["lease", "safe"])
def test_a_deferred_election_ends_when_the_leader_is_heard_again(mode: str) -> None:
    node = follower(read_only_option=mode)
    beat(node, commit=1)
    for _ in range(2 * TICKS):
        node.tick()  # committed, and the state machine is slow: no election by old rules
    assert not messages_of(node)
    beat(node, commit=1)
    node.apply_conf_change(ADD_LEARNER)
    node.on_applied(1)
    assert not messages_of(node) and (node.lead, node.raft_state) == (1, StateType.StateFollower)
    assert not helped(node, 2)


def test_a_deferred_election_waits_for_the_next_timeout() -> None:
    """Messages that the leader has sent meanwhile may be unread yet."""
    node = follower(read_only_option="safe")
    beat(node, commit=1)
    for _ in range(2 * TICKS):
        node.tick()
    node.apply_conf_change(ADD_LEARNER)
    node.on_applied(1)
    assert not messages_of(node)
    node.election_timeout_ticks = 1
    node.tick()
    assert {message.type for message in messages_of(node)} == {MsgPreVote}


def test_a_sole_voter_does_not_wait() -> None:
    storage = MemoryStorage(ConfState((2,)))
    storage.store([Entry(1, 1, 1, ADD_LEARNER.encode())])
    node = RawNode(RaftConfig(2), storage)
    for _ in range(2 * TICKS):
        node.tick()
    messages_of(node)
    assert node.is_leader
    node.apply_conf_change(ADD_LEARNER)
    storage.store(node.ready().entries)
    again = RawNode(RaftConfig(2), storage)
    again.step(Message(MsgHeartbeat, 2, 1, 2, commit=1))
    again.campaign()
    messages_of(again)
    assert not again.is_leader
    again.apply_conf_change(ADD_LEARNER)
    again.on_applied(1)
    messages_of(again)
    assert again.is_leader


def test_who_takes_over_from_the_leader_is_helped() -> None:
    node = follower()
    beat(node)
    assert not helped(node, 2, MsgVote)
    assert helped(node, 2, MsgVote, TRANSFER)


def test_without_check_quorum_nothing_is_promised() -> None:
    node = follower(read_only_option="safe", check_quorum=False)
    beat(node)
    assert helped(node, 2)


def test_the_old_leader_reads_nothing_stale_when_a_follower_was_slow_to_apply() -> None:
    net = Network([1, 2, 3], **LEASE)
    net.campaign(1)
    net.tick(1, now=0.0)
    two = net.nodes[2].raw
    two.apply_held = True
    net[1].propose_conf_change(ADD_LEARNER)
    net.settle()
    net.tick(1, now=0.0)
    net.isolate(1)
    for step in range(TICKS):
        two.tick(0.1 * (step + 1))  # 1 stands still; the timer of 2 fires
        net[3].tick(0.1 * (step + 1))
        if step == 0:
            two.election_timeout_ticks = net[3].election_timeout_ticks = TICKS
    net.collect()
    net.queue.clear()
    net.heal()
    net.isolate(3)
    net.tick(1, now=1.0)
    assert two.lead == 1 and net[1].lease_valid(1.05)
    two.apply_held = False
    net.heal()
    net.isolate(1)
    net.settle()
    for step in range(6):
        net.tick(2, 3, now=1.1 + 0.1 * step)
        assert not (net[1].lease_valid(1.1 + 0.1 * step) and net.leader() != 1), "two leaders"


class Fuzz:
    """One node that gets messages which two others may send, in random order."""

    def __init__(self, seed: int, planted: int) -> None:
        self.chance = random.Random(seed)
        self.storage = MemoryStorage(ConfState((1, 2, 3)))
        self.node = RawNode(RaftConfig(2, seed=seed, planted=planted, **LEASE), self.storage)
        self.ticks = 0
        self.promised = -TICKS
        self.leaders: dict[int, int] = {}
        self.changes: list[Entry] = []
        self.handed_out = 0
        self.slow = self.chance.random() < 0.3

    def run(self) -> str:
        """Run, and return what the node did against its promise; empty if it kept it."""
        for _ in range(60):
            try:
                for what in self.event():
                    broken = self.look()
                    if broken:
                        return f"{broken} after {what}"
            except RaftInvariantBroken:
                return ""  # two leaders of one term, which random messages may include
        return ""

    def look(self) -> str:
        """Take its messages, and compare them with the promise."""
        broken = ""
        while self.node.has_ready():
            ready = self.node.ready()
            self.storage.store(ready.entries, ready.hard_state, ready.snapshot)
            self.node.on_persisted(ready.number)
            self.handed_out = ready.committed_last or self.handed_out
            self.changes += [entry for entry in ready.committed_entries if entry.type]
            for message in ready.messages:
                if message.type == MsgHeartbeatResp:
                    self.promised = self.ticks
                elif self.ticks - self.promised < TICKS and message.context != TRANSFER and helps(message):
                    broken = repr(message)
        return broken

    def event(self) -> Iterator[str]:
        """Choose a random event."""
        node, chance = self.node, self.chance
        term = max(1, max(node.term, 1) + chance.choice((-1, 0, 0, 0, 0, 1)))
        peer, dice, last = chance.choice((1, 3)), chance.random(), node.last_index
        last_term = node.term_of(last) or 0
        if dice < 0.35:
            for _ in range(chance.choice((1, 1, 3, 12))):
                node.tick()
                self.ticks += 1
                yield "a tick"
        elif dice < 0.7:
            if term < node.term or self.leaders.setdefault(term, peer) != peer:
                return
            if dice < 0.6:
                node.step(Message(MsgHeartbeat, 2, peer, term, commit=0))
                yield "a heartbeat"
                return
            change = chance.random() < 0.4
            entry = Entry(term, last + 1, 1 if change else 0, ADD_LEARNER.encode() if change else b"x")
            commit = chance.choice((node.commit, last))
            node.step(Message(MsgApp, 2, peer, term, last_term, last, [entry], commit=commit))
            yield "an append"
        elif dice < 0.8:
            kind = chance.choice((MsgVote, MsgPreVote))
            if kind == MsgPreVote or self.leaders.get(term, peer) == peer:
                node.step(Message(kind, 2, peer, term, last_term, last + chance.choice((0, 1))))
                yield "a candidate's question"
        elif dice < 0.95:
            kind, commit = chance.choice((MsgVoteResp, MsgPreVoteResp)), chance.randint(0, last)
            if kind == MsgPreVoteResp or term <= node.term:
                known = node.term_of(commit) or 0
                node.step(Message(kind, 2, peer, term, known, 0, commit=commit, reject=True))
                yield "a refusal"
        elif not self.slow or chance.random() < 0.2:
            for entry in self.changes:
                node.apply_conf_change(decode_conf_change(entry.type, entry.data))
            self.changes.clear()
            if self.handed_out > node.applied:
                node.on_applied(self.handed_out)
            yield "applying"


def helps(message: Message) -> bool:
    """Whether a message helps a candidate."""
    if message.type in (MsgVoteResp, MsgPreVoteResp):
        return not message.reject
    return message.type in (MsgVote, MsgPreVote)


def test_no_order_of_messages_breaks_the_promise() -> None:
    for seed in range(3000):
        broken = Fuzz(seed, 0).run()
        assert not broken, f"seed {seed}: {broken}"


def test_the_fuzz_finds_a_promise_that_is_forgotten() -> None:
    assert any(Fuzz(seed, PLANT_PROMISE_FORGOTTEN).run() for seed in range(100))
