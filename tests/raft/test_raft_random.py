"""Random schedules against the Raft core alone: lost, doubled and reordered messages, slow disks, crashes that lose
what was not durable, snapshots, membership changes, transfers, reads. After every step the invariants of the Raft
paper (figure 3) are checked. The simulator (tests/sim) does the same with the whole node; this one is small and
fast, and its seeds name what failed.
"""

from __future__ import annotations

import random

import pytest
from support.raft_harness import MemoryStorage, Network

from metastore._core import raft
from metastore._core.raft_types import (
    ConfChange,
    ConfChangeError,
    ConfChangeV2,
    ConfState,
    Message,
    MessageType,
    ProposalDropped,
)
from metastore.errors import MetaStoreError, NoLeader, NotLeader


class Unsafe(AssertionError):
    """An invariant of Raft does not hold."""


class Chaos:
    """A cluster in which any step may be next."""

    def __init__(self, seed: int, planted: int = 0, members: int = 3, **config: object) -> None:
        self.random = random.Random(seed)
        self.lease = self.random.random() < 0.3
        if self.lease:
            # All clocks tick together every 0.1 s here; the simulator has drift.
            config |= {"read_only_option": "lease", "lease_seconds": 0.9}
        self.now = 0.0
        self.net = Network(
            range(1, members + 1),
            pre_vote=self.random.random() < 0.5,
            check_quorum=self.random.random() < 0.5 or self.lease,
            max_size_per_msg=self.random.choice([64, 300, 1 << 20]),
            max_inflight=self.random.choice([1, 2, 256]),
            max_tail_bytes=self.random.choice([1, 1 << 20]),
            planted=planted,
            **config,
        )
        self.members = members
        self.committed: dict[int, tuple[int, bytes]] = {}
        self.top = 0
        self.leaders: dict[int, int] = {}
        self.applied_upto: dict[int, int] = {}
        self.reads: dict[tuple[int, bytes], int] = {}
        self.serial = 0
        self.loss = self.random.choice([0, 0.01, 0.1])
        self.disorder = self.random.choice([1, 4, 12])
        self.disk_speed = self.random.choice([1, 0.5, 0.1])
        self.crash_rate = self.random.choice([0, 0.05, 0.15])
        self.patience = 1 if self.lease else self.random.choice([1, 0.3])
        self.waits = self.random.choice([0, 0.5, 1])  # how often a member waits for entries
        for id in self.net.nodes:
            self.ready_node(id)

    def ready_node(self, id: int) -> None:
        self.net.nodes[id].hold_disk = True
        self.applied_upto[id] = self.net.nodes[id].storage.offset
        self.net[id].election_timeout_ticks = self.random.randint(10, 19)
        self.net[id].patient = self.random.random() >= self.waits

    # -- checks

    def check(self, id: int) -> None:
        node = self.net.nodes[id]
        for entry in node.applied:
            known = self.committed.setdefault(entry.index, (entry.term, entry.data))
            if known != (entry.term, entry.data):
                raise Unsafe(f"entry {entry.index} applied as {known} and as {(entry.term, entry.data)} by {id}")
            self.top = max(self.top, entry.index)
        node.applied.clear()
        if node.raw.is_leader:
            if self.leaders.setdefault(node.raw.term, id) != id:
                raise Unsafe(f"two leaders in term {node.raw.term}")
            newest = max(self.leaders)
            if node.raw.term == newest:
                for index in range(max(self.top - 20, 1), self.top + 1):
                    term = node.raw.term_of(index)
                    if index > node.raw.last_index or (term is not None and term != self.committed[index][0]):
                        raise Unsafe(f"leader {id} of term {newest} lacks committed entry {index}")
        for index, context in node.read_states:
            if index < self.reads.pop((id, context), 0):
                raise Unsafe(f"stale read: {context!r} on {id} answered with {index}")
        node.read_states.clear()

    # -- steps

    def step(self) -> None:
        rnd = self.random
        id = rnd.choice(sorted(self.net.nodes))
        node = self.net.nodes[id]
        what = rnd.random()
        if what < 0.10:
            self.now += 0.1
            for other in self.net.nodes.values():
                if rnd.random() < self.patience:
                    other.raw.tick(self.now)
                    other.raw.tell_commit()
        elif what < 0.60:
            self.deliver()
        elif what < 0.80:
            if node.writing and rnd.random() < self.disk_speed:
                node.flush(rnd.randint(1, len(node.writing)) if self.disk_speed < 1 else None)
        elif what < 0.93:
            self.propose(id)
        elif what < 0.96:
            self.read(id)
        else:
            self.mishap(id)
        self.net.queue += self.net.nodes[id].take()
        self.check(id)

    def mishap(self, id: int) -> None:
        """Let a mishap happen now and then."""
        net, rnd = self.net, self.random
        node = net.nodes[id]
        what = rnd.random()
        if what < 0.3:
            self.change(id)
        elif what < 0.5:
            if node.storage.offset < node.raw.applied <= node.storage.last_index():
                node.storage.compact(node.raw.applied, node.raw.conf_state)
        elif what < 0.6:
            node.raw.transfer_leader(rnd.choice(sorted(net.nodes)))
        elif what < 0.6 + self.crash_rate:
            self.crash(id)
        elif what < 0.80:
            net.isolate(id)
        elif what < 0.83:
            net.cut.add((id, rnd.choice(sorted(net.nodes))))
        else:
            net.heal()

    def deliver(self) -> None:
        net, rnd = self.net, self.random
        for _ in range(rnd.randint(1, 4)):
            if not net.queue:
                return
            at = rnd.randrange(min(len(net.queue), self.disorder))
            message = net.queue[at] if rnd.random() < 0.02 else net.queue.pop(at)
            if (message.from_, message.to) in net.cut or rnd.random() < self.loss:
                if message.type == MessageType.MsgSnap and message.from_ in net.nodes:
                    net[message.from_].report_snapshot(message.to, False)
                continue
            net[message.to].step(Message.decode(message.encode()))
            if message.type == MessageType.MsgSnap:
                net[message.from_].report_snapshot(message.to, True)
            net.queue += net.nodes[message.to].take()
            self.check(message.to)

    def propose(self, id: int) -> None:
        self.serial += 1
        self.net[id].patient = self.random.random() >= self.waits
        self.net[id].ask_commit()
        try:
            self.net[id].propose(b"\0%d" % self.serial * self.random.choice([1, 1, 30]))
        except (NoLeader, NotLeader, ProposalDropped):
            pass

    def read(self, id: int) -> None:
        self.serial += 1
        context = b"r%d" % self.serial
        try:
            self.net[id].read_index(context, self.now)
        except NoLeader:
            return
        self.reads[id, context] = self.top

    def change(self, id: int) -> None:
        rnd = self.random
        ids = sorted(self.net.nodes)
        conf = self.net[id].conf_state
        if len(conf.voters) < 3 and not conf.voters_outgoing:
            change: ConfChange | ConfChangeV2 = ConfChange(0, rnd.choice(ids))
        elif conf.voters_outgoing and not conf.auto_leave:
            change = ConfChangeV2()
        elif rnd.random() < 0.5:
            change = ConfChange(rnd.choice([0, 0, 1, 3]), rnd.choice(ids))
        else:
            change = ConfChangeV2(
                rnd.choice([0, 1, 2]),
                [ConfChange(rnd.choice([0, 1, 3]), other) for other in rnd.sample(ids, rnd.randint(2, 3))],
            )
        try:
            self.net[id].propose_conf_change(change)
        except (ConfChangeError, NoLeader, NotLeader, ProposalDropped):
            pass

    def crash(self, id: int) -> None:
        node = self.net.nodes[id]
        if node.writing and self.random.random() < 0.5:
            # A part of the next write got through.
            ready = node.writing[0]
            node.storage.store(ready.entries[: self.random.randint(0, len(ready.entries))], None, ready.snapshot)
        self.net.restart(id)
        self.ready_node(id)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def heal_and_progress(self) -> None:
        """From here on everything works: a leader is found, and a proposal reaches every member."""
        net = self.net
        net.heal()
        for node in net.nodes.values():
            node.hold_disk = False
            node.flush()

        def deliver_all() -> None:
            for _ in range(3000):
                net.collect()
                for id in net.nodes:
                    self.check(id)
                if not net.queue:
                    return
                batch, net.queue = net.queue, []
                for message in batch:
                    net[message.to].step(message)
                    if message.type == MessageType.MsgSnap:
                        net[message.from_].report_snapshot(message.to, True)
            raise Unsafe("messages go round and round")

        for _ in range(400):
            for id in sorted(net.nodes):
                net[id].tick()
                deliver_all()
            leader = net.leader()
            if leader:
                conf = net[leader].conf_state
                members = {*conf.voters, *conf.voters_outgoing, *conf.learners}
                if not conf.auto_leave and all(net[m].applied == net[leader].last_index for m in members):
                    try:
                        index = net[leader].propose(b"\0last")
                    except ProposalDropped:
                        continue
                    deliver_all()
                    if net[leader].applied >= index:
                        return
        raise Unsafe("no progress after healing")


@pytest.mark.parametrize("seed", range(40))
def test_random_schedule(seed: int) -> None:
    chaos = Chaos(seed, members=3 + 2 * (seed % 2))
    try:
        chaos.run(4000)
        chaos.heal_and_progress()
    except (Unsafe, MetaStoreError) as error:
        raise AssertionError(f"seed {seed}: {error}") from error


def found_within(planted: int, seeds: int, steps: int = 4000) -> int | None:
    for seed in range(seeds):
        chaos = Chaos(seed, planted=planted, members=3)
        try:
            chaos.run(steps)
            chaos.heal_and_progress()
        except (Unsafe, MetaStoreError):
            return seed
    return None


@pytest.mark.parametrize(
    "name", ["PLANT_VOTE_NOT_PERSISTED", "PLANT_ACK_BEFORE_SYNC", "PLANT_READ_WITHOUT_ROUND", "PLANT_JOINT_HALF"]
)
def test_planted_bugs_are_found(name: str) -> None:
    """The other planted bugs need schedules that are too rare here; the transcripts and the simulator have them."""
    assert found_within(getattr(raft, name), 400) is not None


def test_storage_of_the_harness_refuses_gaps() -> None:
    from metastore._core.entry import Entry

    with pytest.raises(AssertionError, match="gap"):
        MemoryStorage(ConfState([1])).store([Entry(1, 5, 0, b"")])


def ticks_to_the_next_leader(seed: int) -> int:
    """Return the ticks from the end of a leader of three members until another one leads."""
    draw = random.Random(seed)
    net = Network((1, 2, 3), pre_vote=True, check_quorum=True)
    for id in (1, 2, 3):
        net.restart(id, seed=draw.getrandbits(32))
    net.campaign(1)
    net.tick(count=3)
    net.isolate(1)
    for id in (2, 3):
        net[id].election_timeout_ticks = draw.randint(10, 19)
    for count in range(1, 1000):
        net.tick(2, 3)
        if net[2].is_leader or net[3].is_leader:
            return count
    raise AssertionError("no leader")


def test_the_next_leader_comes_within_two_election_timeouts_or_after_a_split_vote() -> None:
    """An election timeout is ten ticks. Two members that ask at the same tick split the vote and draw again."""
    ticks = sorted(ticks_to_the_next_leader(seed) for seed in range(200))
    assert ticks[0] >= 10 and ticks[170] <= 20 and ticks[-1] <= 60, ticks
