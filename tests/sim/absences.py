"""Scripts of members that are away while others come, move or lose their directories.

Each ends with what must hold: those who live find a leader, whoever was away catches up, and nobody whose directory is
gone takes part (`Checker.begins`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from metastore import errors
from metastore.replica.roster import ADD, REMOVE, UPDATE, Change

from .scripts import Step

if TYPE_CHECKING:
    from .node import Cluster, Member

LOOK = 0.05  # seconds between two looks at a condition
SOON = 20.0  # seconds within which members that live must find a leader, however they back off from dialling
MANY = 3  # voters: one is removed before another one is added, so that in the end two of three live

Play = Generator[Step, None, None]


def must(cluster: Cluster, condition: Callable[[], bool], text: str, seconds: float = SOON) -> Play:
    """Wait for something that must come."""
    end = cluster.clock.now + seconds
    while not condition():
        if cluster.clock.now >= end:
            cluster.checker.fail(f"{text} within {seconds:g} s")
        yield LOOK


def led(cluster: Cluster, ids: Iterable[int], applied: int = 0) -> Callable[[], bool]:
    """Whether these members live, follow one leader that is one of them, and have applied that much."""
    members = [cluster.members[ident] for ident in ids]

    def holds() -> bool:
        leader = cluster.leader()
        return leader in members and all(
            member.alive and member.driver.leader_id == leader.id and member.applied >= applied for member in members
        )

    return holds


def everybody(cluster: Cluster) -> list[int]:
    """The voters, as whoever has applied most knows them."""
    newest = max((member for member in cluster.members.values() if member.alive), key=lambda member: member.applied)
    voters = sorted(newest.raw.conf_state.voters)
    for ident in voters:
        if ident not in cluster.members:
            cluster.join(ident).start()  # added after all, when nobody waited for it any more
    return voters


def changed(cluster: Cluster, change: Change, done: Callable[[Member], bool]) -> Play:
    """An operator asks for a change of the membership until the leader has it."""
    asked = -10.0

    def finished() -> bool:
        nonlocal asked
        leader = cluster.leader()
        if leader is None:
            return False
        if done(leader):
            return True
        if cluster.clock.now >= asked + 2.0:
            asked = cluster.clock.now
            leader.act(lambda: leader.membership.change(change, lambda _error: None, leader.now()))
        return False

    yield from must(cluster, finished, f"no {change.action} of member {change.member.id}")


# ---- away while another one comes or moves


def away(cluster: Cluster) -> Play:
    """A member is away while another one moves or joins, or is killed when the leader has just answered that. Then the
    one that moved or joined leads, and of the others only as many live as make a quorum with the two."""
    chance = cluster.clock.random
    yield from must(cluster, lambda: led(cluster, everybody(cluster))(), "the voters find no leader")
    leader = cluster.leader()
    assert leader is not None
    voters = everybody(cluster)
    others = [ident for ident in voters if ident != leader.id]
    absent = cluster.members[chance.choice(others)]
    kind = chance.choice(["answered", "asked"] if len(voters) < 3 else ["answered", "asked", "moves", "moves first"])
    fresh: Member | None
    if kind in ("answered", "asked"):
        if len(voters) >= MANY:
            gone = chance.choice([ident for ident in others if ident != absent.id])
            yield from changed(cluster, Change(REMOVE, cluster.record(gone)), lambda one: gone in one.roster.removed)
            cluster.members[gone].crash(False)
        fresh = yield from _joins(cluster, absent, at_once=kind == "asked")
    else:
        absent.crash(False)
        yield chance.random()
        mover = cluster.members[chance.choice([ident for ident in voters if ident != absent.id])]
        fresh = yield from _moves(cluster, mover, first=kind == "moves first")
    if fresh is not None:
        yield from _leads(cluster, fresh)
        yield from _meet(cluster, absent, fresh)


def _joins(cluster: Cluster, absent: Member, at_once: bool) -> Generator[Step, None, Member | None]:
    """A voter joins; `absent` is killed when the leader says that it is one, or, `at_once`, when it has been asked.
    None if it came to nothing: with a member down none is added."""
    ident, leader, clock = next(cluster.ids), cluster.leader(), cluster.clock
    if leader is None or leader is absent:
        return None
    record = cluster.record(ident)

    def done(error: errors.MetaStoreError | None) -> None:
        if error is None:
            clock.after(0, absent.crash, False)

    leader.act(lambda: leader.membership.change(Change(ADD, record), done, leader.now()))
    if at_once:
        clock.after(clock.random.choice((0.002, 0.02)) * clock.random.random(), absent.crash, False)
    end = clock.now + 3.0
    while absent.alive or not any(one.alive and ident in one.roster.members for one in cluster.members.values()):
        if clock.now >= end:
            return None
        yield LOOK
    fresh = cluster.join(ident)
    fresh.start()
    return fresh


def _moves(cluster: Cluster, mover: Member, first: bool) -> Generator[Step, None, Member]:
    """A member gets another place; `first`: before the others are told."""
    place = cluster.new_place(mover)
    record = replace(cluster.record(mover.id), peer_urls=(f"http://{place}",))

    def told(one: Member) -> bool:
        return one.roster.members[mover.id].peer_urls == record.peer_urls

    if not first:
        yield from changed(cluster, Change(UPDATE, record), told)
    mover.crash(False)
    mover.place = place
    yield cluster.clock.random.random()
    mover.start()
    yield from changed(cluster, Change(UPDATE, record), told)
    return mover


def _leads(cluster: Cluster, fresh: Member) -> Play:
    """Have this member lead."""
    leader = cluster.leader()
    assert leader is not None
    mark = leader.applied
    yield from must(cluster, lambda: fresh.applied >= mark, f"member {fresh.id} does not catch up")

    def leads() -> bool:
        now = cluster.leader()
        if now is not None and now is not fresh and not fresh.raw.restoring:
            now.act(now.raw.transfer_leader, fresh.id)
        return bool(fresh.raw.is_leader)

    end = cluster.clock.now + 10.0
    while not leads() and cluster.clock.now < end:
        yield 0.5


def _meet(cluster: Cluster, absent: Member, fresh: Member) -> Play:
    """All but a quorum go, and the one that was away comes back."""
    chance, voters = cluster.clock.random, everybody(cluster)
    both = {absent.id, fresh.id}
    rest = [ident for ident in voters if ident not in both]
    chance.shuffle(rest)
    stay = [*both, *rest[: len(voters) // 2 + 1 - len(both)]]
    gone = [ident for ident in voters if ident not in stay]
    mark = fresh.applied
    for ident in gone:
        cluster.members[ident].crash(False)
    if chance.random() < 0.3:
        yield chance.random() * 3
    absent.start()
    cluster.checker.count("absences")
    yield from must(
        cluster, led(cluster, stay, mark), f"members {stay} live, {gone} do not: no leader, or one is behind"
    )
    for ident in gone:
        cluster.members[ident].start()
    yield from must(cluster, led(cluster, voters, mark), "a member that was down does not catch up")


# ---- directories that are lost


def wiped(cluster: Cluster) -> Play:
    """Some members, at most all but one, are down, and started anew with empty directories; those that are kept live
    on, or come back within the time for which new members wait. In the end the directories are there again."""
    chance, wait = cluster.clock.random, cluster.settings.begin_wait
    ids = list(cluster.members)

    def complete() -> bool:
        return led(cluster, ids)() and all(
            all(record.incarnation for record in cluster.members[ident].roster.members.values()) for ident in ids
        )

    yield from must(cluster, complete, "the members do not know each other")
    chance.shuffle(ids)
    many = chance.randint(len(ids) // 2 + 1, len(ids) - 1) if chance.random() < 0.7 else 1
    lost = [cluster.members[ident] for ident in ids[:many]]
    kept = [cluster.members[ident] for ident in ids if cluster.members[ident] not in lost]
    down = kept if chance.random() < 0.6 else []
    for member in [*lost, *down]:
        member.crash(chance.random() < 0.5)
    for member in lost:
        member.wipe()
        cluster.clock.after(chance.random(), member.start)
    for member in down:
        cluster.clock.after(chance.uniform(0.3, 0.8) * wait, _start, member)
    yield 1.0 + wait
    if down:
        # Those that have been started anew may know too little to tell who is who, until there is a leader.
        member = chance.choice(kept)
        member.crash(False)
        cluster.clock.after(chance.random() * wait * 0.8, _start, member)
        yield 2 * wait
    else:
        yield from must(
            cluster, lambda: all(one.ended for one in lost), "members without their directories go on", wait
        )
    cluster.checker.count("wiped", len(lost))
    for member in lost:
        member.crash(False)
        member.mount()
    for member in (*kept, *lost):
        _start(member)
    yield from must(cluster, led(cluster, ids), "members whose directories are there again find no leader")


def _start(member: Member) -> None:
    if not member.alive:
        member.start()
