"""Membership changes wait for what a put waits for, a leader and the way to it, and also for the connections that would
make them safe. A change that would endanger the quorum for good is refused. The members are simulated, in virtual
time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace

import pytest
from sim.node import Member
from sim.runner import Scene, Simulation

from metastore import errors
from metastore._core.batch import frame
from metastore._core.engine import MemoryEngine
from metastore._core.mvcc import Store
from metastore._core.op import MEMBER, PUT, encode_op
from metastore.replica.membership_changes import FIRST_CONNECTIONS, MAX_CHANGES
from metastore.replica.peer_link import refusal_type
from metastore.replica.roster import ADD, ADD_LEARNER, PUBLISH, REMOVE, RESTATE, Change, Roster, check_healthy
from metastore.replica.roster import Member as Record
from metastore.settings import MAX_BATCH_OPS

LEARNER = 9


class Cluster:
    """Three running members, and the results of the changes that were requested."""

    def __init__(self, timeout: float = 30.0) -> None:
        def set_up(scene: Scene) -> None:
            scene.settings.request_timeout = timeout
            scene.settings.check_quorum = True

        self.simulation = Simulation(7, "deposed_leaders", set_up)
        self.cluster, self.clock = self.simulation.cluster, self.simulation.clock
        self.members = list(self.cluster.members.values())
        self.outcomes: list[errors.MetaStoreError | None] = []
        for member in self.members:
            member.start()
        self.run(12.0)

    def run(self, seconds: float) -> None:
        self.clock.run(self.clock.now + seconds)

    @property
    def leader(self) -> Member:
        leader = self.cluster.leader()
        assert leader is not None
        return leader

    @property
    def followers(self) -> list[Member]:
        return [member for member in self.members if member is not self.leader]

    def ask(self, member: Member, ident: int = LEARNER) -> None:
        change = Change(ADD_LEARNER, self.cluster.record(ident, True))
        member.act(lambda: member.membership.change(change, self.outcomes.append, member.now()))
        self.run(0.05)

    def hand_over(self, to: Member) -> None:
        self.leader.act(self.leader.raw.transfer_leader, to.id)
        self.run(0.3)
        assert self.leader is to

    def isolate(self, members: Iterable[Member]) -> None:
        ids = [member.id for member in members]
        self.cluster.network.separate(ids, [ident for ident in self.cluster.members if ident not in ids])


def test_a_change_waits_for_a_leader() -> None:
    cluster = Cluster()
    follower, other = cluster.followers
    leader = cluster.leader
    leader.crash(False)
    other.crash(False)
    cluster.run(30.0)
    assert not follower.driver.leader_id
    cluster.ask(follower)
    cluster.run(8.0)
    assert not cluster.outcomes
    leader.start()
    other.start()
    cluster.run(15.0)
    assert cluster.outcomes == [None]
    assert LEARNER in follower.roster.members


def test_a_change_waits_for_the_way_to_the_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    follower = cluster.followers[0]
    with monkeypatch.context() as patched:
        patched.setattr(follower, "forward", lambda _to, _batch: False)
        cluster.ask(follower)
        cluster.run(2.0)
        assert not cluster.outcomes
    cluster.run(1.0)
    assert cluster.outcomes == [None]


def test_a_change_does_not_wait_for_a_leader_without_end() -> None:
    cluster = Cluster(timeout=1.5)
    follower = cluster.followers[0]
    cluster.isolate([follower])
    cluster.run(30.0)
    cluster.ask(follower)
    cluster.run(1.0)
    assert not cluster.outcomes
    cluster.run(0.8)
    assert [type(error) for error in cluster.outcomes] == [errors.Timeout]
    cluster.cluster.network.heal()
    cluster.run(20.0)
    assert LEARNER not in cluster.leader.roster.members, "nobody waits for it any more"


def test_no_more_changes_wait_than_the_limit() -> None:
    cluster = Cluster()
    follower = cluster.followers[0]
    cluster.isolate([follower])
    cluster.run(30.0)
    for _ in range(MAX_CHANGES):
        cluster.ask(follower)
    assert not cluster.outcomes
    cluster.ask(follower)
    assert [type(error) for error in cluster.outcomes] == [errors.TooManyRequests]


def forwarded(cluster: Cluster, operations: list[bytes]) -> list[tuple[type[errors.MetaStoreError], int]]:
    """What the leader refuses of operations that a follower forwards: (error, request id). Raises FormatError."""
    leader, refused, bad = cluster.leader, [], []

    def refuse(_to: int, code: int, ids: list[int]) -> None:
        refused.extend((refusal_type(code), ident) for ident in ids)

    leader.driver.link.refuse = refuse  # type: ignore[method-assign]

    def receive() -> None:
        try:
            leader.driver.receive_forward(cluster.followers[0].id, frame(operations), leader.now())
        except errors.FormatError as error:
            bad.append(error)

    leader.act(receive)
    if bad:
        raise bad[0]
    return refused


def test_what_one_member_forwards_is_bounded() -> None:
    """Batches have at most so many operations, and of changes of the membership only so many wait."""
    cluster = Cluster()
    with pytest.raises(errors.FormatError, match="more than 5000 operations"):
        forwarded(cluster, [encode_op(PUT, ident, b"") for ident in range(MAX_BATCH_OPS + 1)])
    changes = [Change(ADD_LEARNER, cluster.cluster.record(100 + n, True)).encode() for n in range(MAX_CHANGES + 1)]
    refused = forwarded(cluster, [encode_op(MEMBER, ident, change) for ident, change in enumerate(changes, 1)])
    assert refused == [(errors.TooManyRequests, MAX_CHANGES + 1)]


def test_only_a_leader_states_its_roster() -> None:
    cluster = Cluster()
    leader = cluster.leader
    forged = replace(leader.roster.state, removed=frozenset({leader.id}))
    operation = encode_op(MEMBER, 1, Change(RESTATE, leader.roster.members[leader.id], forged).encode())
    with pytest.raises(errors.FormatError, match="only a leader states its roster"):
        forwarded(cluster, [operation])
    cluster.run(1.0)
    assert not cluster.leader.roster.removed


def test_a_forwarded_change_is_no_longer_than_a_record_may_be() -> None:
    cluster = Cluster()
    long = Record(LEARNER, "n" * 1000, (), ())
    assert forwarded(cluster, [encode_op(MEMBER, 1, Change(PUBLISH, long).encode())]) == [(errors.RequestTooLarge, 1)]


def test_a_new_leader_waits_for_its_first_connections() -> None:
    cluster = Cluster()
    follower, other = cluster.followers
    other.crash(False)
    cluster.run(10.0)
    cluster.hand_over(follower)
    cluster.ask(follower)
    cluster.run(FIRST_CONNECTIONS / 2)
    assert not cluster.outcomes
    other.start()
    cluster.run(1.0)
    assert cluster.outcomes == [None]


def test_with_one_of_three_down_for_long_a_change_is_refused_at_once() -> None:
    cluster = Cluster()
    cluster.followers[0].crash(False)
    cluster.run(10.0 + FIRST_CONNECTIONS)
    cluster.ask(cluster.leader)
    assert [type(error) for error in cluster.outcomes] == [errors.Unhealthy]


def forgotten(cluster: Cluster) -> None:
    """Go on to the moment at which Raft has just forgotten whom it has heard. There is one in each election timeout."""
    progress = cluster.leader.raw.status
    for _ in range(100_000):
        if sum(peer.recent_active for peer in progress().progress.values()) == 1:
            return
        cluster.run(0.001)
    pytest.fail("the leader never forgot whom it has heard")


def test_between_two_heartbeats_nobody_is_taken_to_be_down() -> None:
    cluster = Cluster()
    cluster.run(FIRST_CONNECTIONS)
    leader = cluster.leader
    for number in range(5):
        forgotten(cluster)
        action = ADD_LEARNER if number % 2 == 0 else REMOVE
        change = Change(action, cluster.cluster.record(LEARNER + number // 2, True))
        leader.membership.change(change, cluster.outcomes.append, leader.now())
        leader.driver.pump(leader.now())
        cluster.run(1.0)
    assert cluster.outcomes == [None] * 5


@pytest.mark.parametrize("when", ["between two heartbeats", "a connection was lost"])
def test_a_live_one_is_not_removed_as_if_it_were_dead(when: str) -> None:
    """With one of three members down, the leader and another one are left, and neither may go."""
    cluster = Cluster()
    down, live = cluster.followers
    down.crash(False)
    cluster.run(10.0 + FIRST_CONNECTIONS)
    if when == "between two heartbeats":
        forgotten(cluster)
    else:
        cluster.leader.driver.unreachable(live.id)
    leader = cluster.leader
    change = Change(REMOVE, cluster.cluster.record(live.id))
    leader.membership.change(change, cluster.outcomes.append, leader.now())
    leader.driver.pump(leader.now())
    assert [type(error) for error in cluster.outcomes] == [errors.Unhealthy]
    # The dead member may go.
    change = Change(REMOVE, cluster.cluster.record(down.id))
    leader.membership.change(change, cluster.outcomes.append, leader.now())
    cluster.run(1.0)
    assert cluster.outcomes[1:] == [None]


def test_what_waits_for_connections_holds_up_nobody() -> None:
    cluster = Cluster()
    cluster.followers[0].crash(False)
    cluster.run(10.0)
    follower = next(member for member in cluster.followers if member.alive)
    cluster.hand_over(follower)
    leader = cluster.leader
    cluster.ask(leader)
    record = Record(leader.id, "somebody", ("http://n1:2",), ())
    published: list[errors.MetaStoreError | None] = []
    leader.act(lambda: leader.membership.change(Change("publish", record), published.append, leader.now()))
    cluster.run(0.5)
    assert published == [None] and not cluster.outcomes


def test_a_leader_knows_whether_the_others_go_on_without_its_disk() -> None:
    """Only then it may hand over because of its disk. If its own vote is needed, no other member could lead."""
    cluster = Cluster()
    leader, (first, second) = cluster.leader, cluster.followers
    cluster.run(1.0)
    assert not leader.membership.others_go_on(), "its disk is as good as theirs"
    leader.speed.sync = 1000.0
    cluster.ask(first)
    cluster.run(1.0)
    assert leader.membership.others_go_on()
    second.crash(False)
    cluster.run(10.0)
    assert leader is cluster.leader
    assert not leader.membership.others_go_on(), "one of three is no quorum"


def test_a_change_whose_client_is_gone_by_then_is_not_handed_in() -> None:
    """The peer port is opened before the first member is added, which may take longer than the client waits."""
    cluster = Cluster()
    leader = cluster.leader
    change, late = Change(ADD_LEARNER, cluster.cluster.record(LEARNER, True)), SimpleNamespace(ident=0, answered=True)
    leader.act(lambda: leader.membership.change(change, cluster.outcomes.append, leader.now(), late))
    cluster.run(1.0)
    assert [type(error) for error in cluster.outcomes] == [errors.DeadlineExceeded]
    assert LEARNER not in leader.driver.roster.members and late.ident == 0
    waiting = SimpleNamespace(ident=0, answered=False)
    leader.act(lambda: leader.membership.change(change, cluster.outcomes.append, leader.now(), waiting))
    cluster.run(1.0)
    assert cluster.outcomes[1:] == [None] and waiting.ident


def roster(voters: int) -> Roster:
    """Return a roster with so many voters, all of them started."""
    return Roster(Store(MemoryEngine()), [Record(n, f"n{n}", (f"http://n{n}:2",), ()) for n in range(1, voters + 1)])


@pytest.mark.parametrize("action", [ADD, ADD_LEARNER])
@pytest.mark.parametrize(
    ("voters", "down", "allowed"),
    [(1, 0, True), (2, 0, True), (2, 1, False), (3, 0, True), (3, 1, False), (4, 1, True), (4, 2, False), (5, 1, True),
     (5, 2, False), (6, 2, True), (7, 2, True), (7, 3, False)],
)  # fmt: skip
def test_as_many_may_be_down_as_in_etcd(action: str, voters: int, down: int, allowed: bool) -> None:
    """etcd 3.6: the connected members must be a quorum if the new member counts as a voter that does not answer."""
    change = Change(action, Record(99, "", ("http://n99:2",), (), action == ADD_LEARNER))
    active = frozenset(range(1, voters - down + 1))
    if allowed:
        check_healthy(roster(voters), change, active, active)
    else:
        with pytest.raises(errors.Unhealthy):
            check_healthy(roster(voters), change, active, active)
