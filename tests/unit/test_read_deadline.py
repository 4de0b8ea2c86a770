"""A linearizable read waits for a leader, for its round and for the state to be applied, but only within its deadline,
and with no more other reads than the limit of requests in flight allows. A transaction that waits for its turn has a
deadline, too."""

from __future__ import annotations

from collections import Counter

import pytest
from sim import wire
from sim.model import Call
from sim.node import Member
from sim.runner import Scene, Simulation
from sim.workload import Client

LIMIT = 1000  # tests/sim/node.py gives this to the real KVServer as limits.max_inflight_requests


class Asker(Client):
    """Sends reads to one member and counts the outcomes."""

    outcomes: Counter[str]

    def answered(self, call: Call, reply: bytes) -> None:
        self.outcomes["answered"] += 1

    def failed(self, call: Call, error: str) -> None:
        self.outcomes[error] += 1

    def ask(self, member: Member, count: int) -> None:
        """Send so many reads at once."""
        for _ in range(count):
            call = Call("read", (b"k",))
            wire.encode(call)
            member.act(self.arrive, member, call)


@pytest.fixture
def served() -> tuple[Simulation, Member, Asker]:
    """Return a cluster, one of its followers and a client."""

    def busy(scene: Scene) -> None:
        scene.settings.busy = 1e-9  # only when the test says so
        scene.settings.max_waiting = LIMIT
        scene.settings.max_txn_walk = 8  # for one of the transactions here

    simulation = Simulation(3, "deposed_leaders", busy)
    cluster, leader = simulation.cluster, simulation.led()
    asker = Asker(0, cluster, simulation.scene.habits)
    asker.stopped, asker.outcomes = True, Counter()
    return simulation, next(member for member in cluster.members.values() if member is not leader), asker


def lag(simulation: Simulation, follower: Member) -> None:
    """Commit an entry that the follower does not apply."""
    cluster, clock = simulation.cluster, simulation.clock
    follower.engine.until = clock.now + 100
    leader = cluster.leader()
    assert leader is not None
    for number in range(2):
        writer = Client(1, cluster, simulation.scene.habits)
        writer.stopped, writer.member = True, leader.id
        call = Call("put", (b"k",), b"%d" % number)
        wire.encode(call)
        writer.issue(call)
        clock.run(clock.now + 0.5)
    assert follower.raw.commit > follower.applier.applied_index


def test_a_read_does_not_wait_for_applying_without_end(served: tuple[Simulation, Member, Asker]) -> None:
    simulation, follower, asker = served
    lag(simulation, follower)
    clock, timeout = simulation.clock, simulation.scene.settings.request_timeout
    asker.ask(follower, 5)
    clock.run(clock.now + timeout / 2)
    asker.ask(follower, 7)
    assert not asker.outcomes
    clock.run(clock.now + timeout / 2 + 0.25)
    assert asker.outcomes == {"Timeout": 5}, "the younger ones have time left"
    clock.run(clock.now + timeout / 2)
    assert asker.outcomes == {"Timeout": 12}
    follower.engine.until = 0.0
    asker.ask(follower, 1)
    clock.run(clock.now + 0.5)
    assert asker.outcomes == {"Timeout": 12, "answered": 1}
    assert follower.kv.reads_waiting == 0


def test_reads_that_wait_for_applying_count_against_the_limit(served: tuple[Simulation, Member, Asker]) -> None:
    simulation, follower, asker = served
    lag(simulation, follower)
    clock = simulation.clock
    for _ in range(4):
        asker.ask(follower, LIMIT // 2)
        clock.run(clock.now + 0.2)
    assert asker.outcomes == {"TooManyRequests": LIMIT}
    clock.run(clock.now + 2.0)
    assert asker.outcomes == {"TooManyRequests": LIMIT, "Timeout": LIMIT}


def test_a_read_does_not_wait_for_a_leader_without_end(served: tuple[Simulation, Member, Asker]) -> None:
    simulation, follower, asker = served
    cluster, clock = simulation.cluster, simulation.clock
    cluster.network.separate([follower.id], [ident for ident in cluster.members if ident != follower.id])
    for count in (1, 2, 3):
        asker.ask(follower, count)
        clock.run(clock.now + 0.4)
    clock.run(clock.now + 0.5)
    assert asker.outcomes == {"Timeout": 1}
    clock.run(clock.now + 0.8)
    assert asker.outcomes == {"Timeout": 6}


def test_a_transaction_that_waited_for_another_one_has_no_more_time_than_others(
    served: tuple[Simulation, Member, Asker],
) -> None:
    """It may look at its keys only when the one before has been answered, and here nobody is: there is no leader."""
    simulation, follower, asker = served
    cluster, clock = simulation.cluster, simulation.clock
    cluster.network.separate([follower.id], [ident for ident in cluster.members if ident != follower.id])
    timeout = simulation.scene.settings.request_timeout
    for _ in range(2):
        call = Call("renew", (b"k",), b"v")
        wire.encode(call)
        follower.act(asker.arrive, follower, call)
        clock.run(clock.now + timeout / 2)
    assert (len(follower.kv.waiters), follower.kv.late) == (1, 1)
    clock.run(clock.now + 0.25)
    assert asker.outcomes == {"Timeout": 1}
    assert (len(follower.kv.waiters), follower.kv.late) == (1, 0)
    clock.run(clock.now + timeout / 2)
    assert asker.outcomes == {"Timeout": 2}
