"""Directed schedules, for what chance alone finds too seldom: a script is a generator that acts on the cluster and
yields how long it waits: seconds, or a condition (given up after five seconds, which ends this round of the script).

What a script does, the network, disks and clocks could do all by themselves; it only has the better timing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from metastore._core.raft_types import ConfChange, ConfChangeError, ConfChangeV2, ProposalDropped
from metastore.errors import NoLeader, NotLeader
from metastore.replica.roster import ADD_LEARNER, REMOVE, Change

from .clock import Clock

if TYPE_CHECKING:
    from .node import Cluster, Member

Step = float | Callable[[], bool]
Script = Callable[["Cluster"], Generator[Step, None, None]]

POLL = 0.0002
PATIENCE = 5.0


class Player:
    """Plays a script over and over until `stop`."""

    def __init__(self, cluster: Cluster, script: Script) -> None:
        self.cluster = cluster
        self.script = script
        self.clock: Clock = cluster.clock
        self.rounds = self.finished = 0
        self.stopped = False
        self.last_round = False  # the one under way
        self._begin()

    def _begin(self) -> None:
        self.rounds += 1
        self._next(self.script(self.cluster))

    def _next(self, play: Generator[Step, None, None]) -> None:
        if self.stopped:
            return
        try:
            step = next(play)
        except StopIteration:
            self.finished += 1
            self._again()
            return
        if callable(step):
            self._wait(play, step, self.clock.now + PATIENCE)
        else:
            self.clock.after(step, self._next, play)

    def _wait(self, play: Generator[Step, None, None], condition: Callable[[], bool], end: float) -> None:
        if self.stopped:
            return
        if condition():
            self._next(play)
        elif self.clock.now >= end:
            self._again()
        else:
            self.clock.after(POLL, self._wait, play, condition, end)

    def _again(self) -> None:
        """Everything is well for a while, then the next round."""
        if self.last_round:
            self.stopped = True
            return
        self.cluster.network.heal()
        for member in self.cluster.members.values():
            member.speed.sync = 0.001
            member.resume()
            if not member.alive:
                member.start()
        self.clock.after(3.0, self._begin)


def campaign(member: Member) -> Callable[[], bool]:
    """Have a member stand for election now; the condition says whether it leads."""
    member.act(member.raw.campaign)
    tried = [member.clock.now]

    def leads() -> bool:
        if member.clock.now - tried[0] > 0.3 and not member.raw.is_leader:
            tried[0] = member.clock.now
            member.act(member.raw.campaign)
        return bool(member.raw.is_leader)

    return leads


def groups(cluster: Cluster, *parts: list[Member]) -> None:
    """Only members of the same part hear each other; who is in none hears nobody."""
    network = cluster.network
    network.heal()
    everybody = list(cluster.members)
    network.silence(everybody, everybody)
    for part in parts:
        for one in part:
            for other in part:
                network.cut.discard((one.id, other.id))


def best(members: list[Member]) -> Member:
    """Who may win an election among these: the one with the newest log."""
    return max(members, key=lambda member: (member.raw.term_of(member.raw.last_index) or 0, member.raw.last_index))


def newest(cluster: Cluster) -> list[Member]:
    """All members in an order out of a hat, but the one that can be elected by all comes first."""
    members = list(cluster.members.values())
    cluster.clock.random.shuffle(members)
    first = cluster.leader() or best(members)
    members.remove(first)
    return [first, *members]


def matched(leader: Member, other: Member) -> int:
    """Up to where a leader knows another member's log to be its own."""
    progress = leader.raw.status().progress.get(other.id)
    return progress.match if progress is not None else 0


def figure8(cluster: Cluster) -> Generator[Step, None, None]:
    """Raft paper, figure 8: an entry of an old term comes to a quorum, and is overwritten all the same."""
    one, two, *rest = newest(cluster)
    yield campaign(one)
    yield lambda: one.raw.commit == one.raw.last_index
    groups(cluster, [one, two])
    before = two.raw.last_index
    yield lambda: two.platter.last > before
    groups(cluster, rest)
    five = best(rest)
    yield campaign(five)
    groups(cluster)  # whatever it sent is lost
    yield lambda: five.platter.last == five.raw.last_index
    one.crash(False)
    one.start()
    index = one.raw.last_index
    three, four = (member for member in rest if member is not five)
    groups(cluster, [one, two, three])
    yield campaign(one)
    yield lambda: index <= matched(one, three) < one.raw.last_index
    five.crash(False)
    five.start()
    groups(cluster, [three, four, five])
    yield campaign(five)
    yield 0.5


def aba(cluster: Cluster) -> Generator[Step, None, None]:
    """An entry is written, overwritten and written again, all while the first write is still on its way to the disk."""
    first, second, slow, *rest = newest(cluster)
    yield campaign(first)
    yield 0.2
    groups(cluster, [first, second, slow])
    yield 0.05
    yield lambda: not slow.wal.thread.busy
    slow.speed.sync, slow.speed.stall = 2.5, 0.0
    yield lambda: slow.wal.thread.busy and bool(slow.platter.waiting) and bool(slow.platter.waiting[0][2])
    _, begin, terms, *_ = slow.platter.waiting[0]
    index = begin + len(terms) - 1
    yield lambda: second.platter.last >= index
    other = best(rest)
    rest.remove(other)
    groups(cluster, [other, *rest])
    yield campaign(other)
    groups(cluster, [other, slow])
    yield lambda: slow.raw.term == other.raw.term and slow.raw.last_index >= other.raw.last_index
    groups(cluster, [first, second, *rest])
    yield campaign(second)
    yield lambda: second.raw.commit >= index
    groups(cluster, [first, second, slow, *rest])
    yield lambda: not slow.wal.thread.busy or slow.wal.thread.syncs_begun > 1
    yield 3.0


def halves(cluster: Cluster) -> Generator[Step, None, None]:
    """A joint configuration whose halves are cut apart as soon as the leader works with it."""
    leader, *rest = newest(cluster)
    yield campaign(leader)
    old, new = rest[:2], rest[2:]
    change_voters(leader, {leader.id, *(member.id for member in old)})
    voters = tuple(sorted((leader.id, *(member.id for member in old))))
    yield lambda: all(
        member.raw.conf_state.voters == voters and not member.raw.conf_state.voters_outgoing
        for member in [leader, *rest]
    )
    change_voters(leader, {leader.id, *(member.id for member in new)})
    yield lambda: bool(leader.raw.conf_state.voters_outgoing)
    groups(cluster, [leader, *new], old)
    yield 0.3
    yield campaign(best(old))
    yield 0.5


def change_voters(leader: Member, wanted: set[int]) -> None:
    """Have these be the voters, and all others learners, by way of a joint configuration."""
    voters = set(leader.raw.conf_state.voters)
    changes = [ConfChange(0, ident) for ident in sorted(wanted - voters)]
    changes += [ConfChange(3, ident) for ident in sorted(voters - wanted)]

    def propose() -> None:
        try:
            leader.raw.propose_conf_change(ConfChangeV2(1, changes))
        except (ConfChangeError, ProposalDropped, NotLeader, NoLeader):
            leader.clock.note(b"no joint change now")

    if changes:
        leader.act(propose)


def deposed(cluster: Cluster) -> Generator[Step, None, None]:
    """A leader is cut off, another one is elected and written to, and clients go on reading from the old one."""
    leader, *rest = newest(cluster)
    yield campaign(leader)
    yield 0.1
    groups(cluster, rest)
    other = best(rest)
    yield campaign(other)
    before = other.raw.commit
    yield lambda: other.raw.commit > before + 2
    yield 0.5


def forgotten(cluster: Cluster) -> Generator[Step, None, None]:
    """A member votes, is killed, and is asked by another candidate of the same term."""
    first, voter, *rest = newest(cluster)
    yield campaign(first)
    yield lambda: all(member.raw.last_index == first.raw.commit for member in cluster.members.values())
    groups(cluster)
    other = best(rest)
    first.crash(False)
    first.start()
    groups(cluster, [first, voter])
    yield campaign(first)
    groups(cluster)  # before it could send an entry
    voter.crash(True)
    voter.start()
    groups(cluster, [other, voter])
    yield campaign(other)
    yield 0.5


def unsynced(cluster: Cluster) -> Generator[Step, None, None]:
    """The leader and a follower commit what the third has not heard of. The follower loses it with its power, and meets
    the third without the leader, then both of them."""
    leader, follower, other = newest(cluster)
    yield campaign(leader)
    yield lambda: all(member.raw.last_index == leader.raw.commit for member in cluster.members.values())
    groups(cluster, [leader, follower])
    before = leader.raw.commit
    yield lambda: leader.raw.commit > before + 2
    groups(cluster)
    follower.crash(True)
    follower.start()
    if cluster.clock.random.random() < 0.7:
        groups(cluster, [other, follower])
        campaign(other)
        yield 0.5
    cluster.network.heal()
    yield 1.0


def promised(cluster: Cluster) -> Generator[Step, None, None]:
    """A follower is slow to apply a membership change while its leader stands still for an election timeout. It
    answers the leader's next heartbeat, applies the change, and meets a third one, who has not heard the leader."""
    leader, slow, other = newest(cluster)
    yield campaign(leader)
    yield 0.3
    slow.engine.until = cluster.clock.now + PATIENCE
    learner = cluster.initial[-1].id + 1
    action = REMOVE if learner in leader.roster.members else ADD_LEARNER
    change = Change(action, cluster.record(learner, True))
    leader.act(lambda: leader.membership.change(change, lambda _error: None, leader.now()))
    yield lambda: other.applied == leader.applied and bool(other.roster.members.keys() ^ slow.roster.members.keys())
    groups(cluster, [leader, slow])
    leader.pause()
    yield 2.1
    leader.resume()
    yield lambda: bool(leader.raw.lease_valid(leader.now())) or not leader.raw.is_leader
    groups(cluster, [slow, other])
    slow.engine.until = 0.0
    yield 0.7


def overtaken(cluster: Cluster) -> Generator[Step, None, None]:
    """A leader that is cut off goes on writing, and one other member hears of it. The rest commit others in the place
    of these entries. Then it is brought up: out of logs, and leads again over who has the old entries still; or by a
    snapshot that is shorter than its log."""
    first, second, *rest = newest(cluster)
    yield campaign(first)
    yield 0.2
    base = first.raw.last_index
    groups(cluster, [first], rest)
    other = best(rest)
    yield lambda: first.platter.last > base + 6
    snapshot = bool(cluster.settings.snapshots)
    if snapshot:
        yield lambda: first.raw.last_index > base + 24
    else:
        # What is not committed is in memory, but for what was there before a restart.
        first.crash(False)
        first.start()
        groups(cluster, [first, second, rest[0]])
        yield campaign(first)
        groups(cluster, [first, second])
        before = first.raw.last_index
        yield lambda: second.platter.last >= before
    groups(cluster, [first], rest)
    before = first.raw.last_index
    yield campaign(other)
    if snapshot:
        yield lambda: other.wal.first_index() > base + 1
    else:
        yield lambda: other.raw.commit > before
    groups(cluster, [first, *rest])
    after = other.raw.commit
    yield lambda: first.raw.commit >= after
    other.act(other.raw.transfer_leader, first.id)
    yield lambda: first.raw.is_leader
    groups(cluster, [first, second, other])
    yield 1.0
