"""Who may begin a cluster: members in every order of starting, some with wiped directories, over the real decisions.

In a small world, the running members greet each other in turns of a second. Members that may begin and see a majority
elect a leader. A leader's members know every directory that took part.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from metastore import Config
from metastore.member.peering import Peering
from metastore.peers import handshake as hs
from metastore.peers.founding import PROOF, SHOWN, Founding, Lives
from metastore.replica.roster import Identity
from metastore.replica.roster import Member as Record

WAIT = 5.0
CLUSTER = 7


def orders(size: int) -> list[tuple[int, ...]]:
    """Return the orders in which members are started; of the many orders of five every seventh."""
    return list(itertools.permutations(range(1, size + 1)))[:: 7 if size > 4 else 1]


class Member:
    """One member of the world. A `kept` member has the log of a running cluster; all others have an empty log."""

    def __init__(self, world: World, ident: int, survivor: bool) -> None:
        self.world = world
        self.id = ident
        self.survivor = survivor
        self.incarnation = f"dir-{ident}" if survivor else f"fresh-{ident}"
        #: The directories of the others, as its roster has them.
        self.known = dict(world.directories) if survivor else {}
        self.up = False
        self.ended = 0
        self.leads = False
        self.founding: Founding | None = None if survivor else Founding(ident, world.ids, WAIT)

    @property
    def identity(self) -> hs.PeerIdentity:
        flags = (
            (0 if self.survivor else hs.NEW) | (hs.FORMING if self.founding else 0) | (hs.LEADER if self.leads else 0)
        )
        return hs.PeerIdentity(CLUSTER, 1, self.id, self.incarnation, flags=flags)

    def greet(self, other: Member, now: float) -> None:
        """Dial another member."""
        known = hs.Known(incarnations={i: text for i, text in other.known.items() if i != other.id})
        status, text = hs.judge_hello(hs.Hello(hs.CONTROL, self.identity, other.id), other.identity, known)
        if other.founding is not None and status == hs.OK:
            other.founding.greeted(self.id, self.identity.flags, now)
        answer = hs.Answer(status, text, other.identity)
        status, _ = hs.judge_answer(answer, self.identity, other.id, self.known.get(other.id))
        if status in hs.FATAL:
            self.ended, self.up = status, False
        elif self.founding is not None:
            self.founding.answered(other.id, status, other.identity.flags)


class World:
    """`kept` are the members of the running cluster that still have their directories. `stale` are those whose rosters
    do not know the others' directories (they know little of what is committed)."""

    def __init__(self, ids: Iterable[int], kept: Iterable[int] = (), stale: Iterable[int] = ()) -> None:
        self.ids = tuple(ids)
        self.directories = {ident: f"dir-{ident}" for ident in self.ids}
        self.members = {ident: Member(self, ident, ident in set(kept)) for ident in self.ids}
        for ident in stale:
            self.members[ident].known = {}
        self.began: set[int] = set()
        self.now = 0.0

    def turn(self) -> None:
        """Let one second pass."""
        self.now += 1.0
        for one, other in itertools.permutations(self.members.values(), 2):
            if one.up and other.up:
                one.greet(other, self.now)
        for member in self.members.values():
            if member.up and member.founding is not None and member.founding.may_begin(self.now):
                member.founding = None
                self.began.add(member.id)
        self.elect()

    def elect(self) -> None:
        """Members that take part and are a majority have a leader. A majority without any log would begin a new
        history."""
        ready = [member for member in self.members.values() if member.up and member.founding is None]
        leads = len(ready) > len(self.ids) // 2
        for member in self.members.values():
            member.leads = leads and member in ready
        if leads:
            for member in ready:
                member.survivor = True
                member.known = member.known | {one.id: one.incarnation for one in ready}

    def run(self, order: Iterable[int], turns: int = 30) -> None:
        """Start members in this order, one each second, then go on."""
        for ident in order:
            self.members[ident].up = True
            self.turn()
        for _ in range(turns):
            self.turn()


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_new_members_always_begin(size: int) -> None:
    for order in orders(size):
        world = World(range(1, size + 1))
        world.run(order)
        assert world.began == set(world.ids) and all(member.leads for member in world.members.values()), order


def test_a_majority_of_new_members_begins_after_a_while() -> None:
    world = World((1, 2, 3))
    world.run((1, 2), turns=0)
    assert world.began == set()
    world.run((), turns=int(WAIT))
    assert world.began == {1, 2}
    # The member that comes later is taken in.
    world.run((3,), turns=3)
    assert world.began == {1, 2, 3}


def test_less_than_a_majority_never_begins() -> None:
    world = World(range(1, 6))
    world.run((1, 2), turns=100)
    assert world.began == set()


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize(("size", "kept"), [(3, (1,)), (5, (1,)), (5, (1, 2)), (4, (1, 2))])
def test_wiped_members_never_begin_beside_one_that_was_kept(size: int, kept: tuple[int, ...], stale: bool) -> None:
    """This holds in every order of starting, if the kept member comes within `begin_wait`. If it knows the others'
    directories, it ends them. If it does not (it has no leader), it keeps them waiting."""
    for order in orders(size):
        world = World(range(1, size + 1), kept, kept if stale else ())
        world.run(order)
        wiped = [world.members[ident] for ident in world.ids if ident not in kept]
        assert world.began == set(), (order, world.began)
        ends = {0} if stale else {hs.OTHER_INCARNATION}
        assert {member.ended for member in wiped} == ends, order


def test_one_wiped_member_of_a_running_cluster_ends() -> None:
    for order in orders(3):
        world = World((1, 2, 3), kept=(1, 2))
        world.run(order)
        assert world.members[3].ended == hs.OTHER_INCARNATION and world.members[1].leads


def test_what_cannot_be_told_apart() -> None:
    """The only kept member is down for longer than new members wait, so they look like a new cluster. When it comes
    back its answer ends them, and none of their writes is mixed with its data."""
    world = World((1, 2, 3), kept=(1,))
    world.run((2, 3), turns=20)
    assert world.began == {2, 3}
    world.run((1,), turns=3)
    assert world.members[2].ended == world.members[3].ended == hs.OTHER_INCARNATION and not world.members[1].leads


def test_a_member_that_only_dials_us_keeps_us_from_beginning() -> None:
    """That member cannot be asked what it knows about us, but it is no new one."""
    founding = Founding(2, (1, 2, 3), 1.0)
    founding.answered(3, hs.OK, hs.NEW | hs.FORMING)
    assert not founding.greeted(1, hs.LEADER, now=10.0)
    assert not founding.may_begin(10.0 + SHOWN / 2)
    assert not founding.may_begin(10.0 + SHOWN) and founding.may_begin(12.0 + SHOWN)
    # A member that said that it is new must be asked again.
    again = Founding(2, (1, 2, 3), 1.0)
    again.answered(1, hs.OK, hs.NEW)
    assert again.greeted(1, 0, 0.0) and not again.greeted(9, 0, 0.0) and not again.greeted(3, hs.NEW, 0.0)


@pytest.mark.parametrize(
    ("change", "asks"),
    [
        ({}, True),
        # Its log is empty, because all members stopped when only the first leader had the first entry; it voted for
        # that leader.
        ({"term": 1}, False),
        ({"last_index": 1}, False),
        ({"doubt": 3}, False),
        ({"contacts": (Record(9, "", ("http://h:9",), ()),)}, False),
        ({"alone": True}, False),
    ],
)
def test_who_asks_before_it_begins(change: dict[str, Any], asks: bool) -> None:
    initial = {"a": "h:1"} if change.get("alone") else {"a": "h:1", "b": "h:2", "c": "h:3"}
    identity = replace(Identity.create("a", "t", initial, "00"), contacts=change.get("contacts", ()))
    status = SimpleNamespace(last_index=change.get("last_index", 0))
    raw = SimpleNamespace(status=lambda: status, term=change.get("term", 0))
    answers: list[bool] = []
    driver: Any = SimpleNamespace(raw=raw, kv=SimpleNamespace(), roster=None, hold=answers.append)
    unused: Any = None
    peering = Peering(
        Config(), identity, driver, unused, unused, unused, unused, unused, connect=unused, start=1, life=2,
        doubt=change.get("doubt", 0), transfers=unused, held=unused, leases=unused, declines=unused,
        end=unused, stopping=unused,
    )  # fmt: skip
    assert (peering.founding is not None) == asks == driver.kv.holding
    assert answers == [asks]


def test_a_member_without_a_leader_says_again_for_whom_it_waits(caplog: pytest.LogCaptureFixture) -> None:
    """The first line comes after a second, and one every ten seconds from then on, until there is a leader."""
    identity = Identity.create("a", "t", {"a": "h:1", "b": "h:2"}, "00")
    raw = SimpleNamespace(status=lambda: SimpleNamespace(last_index=1), term=1)
    driver: Any = SimpleNamespace(raw=raw, kv=SimpleNamespace(), roster=None, hold=lambda _on: None, leader_id=0)
    membership: Any = SimpleNamespace(label=lambda member: f"n{member}")
    unused: Any = None
    peering = Peering(
        Config(), identity, driver, membership, unused, unused, unused, unused, connect=unused, start=1, life=2,
        doubt=0, transfers=unused, held=unused, leases=unused, declines=unused,
        end=unused, stopping=unused,
    )  # fmt: skip
    stats = {2: {"connected": False, "address": "h:2", "trouble": "refused"}}
    asked: list[int] = []
    peering.transport = cast("Any", SimpleNamespace(stats=lambda: stats, ask_roster=asked.append))

    def lines(first: int, last: int) -> list[tuple[float, str]]:
        """Let tenths of a second pass. Return what was logged, and when."""
        found = []
        for tenth in range(first, last):
            caplog.clear()
            peering.tick(tenth / 10)
            found += [(tenth / 10, record.getMessage()) for record in caplog.records]
        return found

    waiting = "no leader: waiting for n2 at h:2 (refused)"
    assert lines(0, 350) == [(1.0, waiting), (11.0, waiting), (21.0, waiting), (31.0, waiting)]
    assert not asked, "nobody is connected"
    driver.leader_id = 2
    assert lines(350, 600) == []
    driver.leader_id = 0
    assert lines(600, 615) == [(61.0, waiting)]
    stats[2]["connected"] = True
    assert [at for at, text in lines(615, 815) if "election is under way" in text] == [71.0, 81.0]
    assert asked == [2, 2], "the roster, every ten seconds"


def test_strangers_have_no_say() -> None:
    founding = Founding(1, (1, 2, 3), 0.0)
    founding.answered(9, hs.OK, hs.NEW)
    founding.answered(2, hs.OTHER_CLUSTER, hs.NEW)
    assert not founding.may_begin(100.0)


def test_which_process_is_the_member() -> None:
    lives, old, new = Lives(), (3, 111), (4, 222)
    assert lives.judge(1, old, None, 0.0)[0] == hs.OK
    # The streams of the old process are open. It is asked once, and does not answer.
    assert lives.judge(1, new, old, 1.0)[::2] == (hs.BUSY, True)
    assert lives.judge(1, new, old, 1.0 + PROOF / 2)[::2] == (hs.BUSY, False)
    assert lives.judge(1, new, old, 1.0 + PROOF)[0] == hs.OK
    # Now it answers.
    assert lives.judge(1, old, new, 5.0)[::2] == (hs.BUSY, True)
    lives.alive(1, 5.1)
    status, text, _ = lives.judge(1, old, new, 5.2)
    assert status == hs.TWIN and "start 4 of the directory; this is start 3" in text
    # Its answer counts only for a moment.
    assert lives.judge(1, old, new, 60.0)[::2] == (hs.BUSY, True)
    lives.forget(1)
    assert lives.judge(1, old, None, 60.0)[0] == hs.OK


def test_what_one_process_was_told_says_nothing_about_another() -> None:
    """The simulator found this: a late greeting of the previous start made the other side ask the member, which lost
    its power a moment later. Its next start was sent away for good, because of the sign of life that the start in
    between had given."""
    lives, first, second, third = Lives(), (1, 11), (2, 22), (3, 33)
    assert lives.judge(1, first, second, 1.0)[::2] == (hs.BUSY, True)
    lives.alive(1, 1.1)
    assert lives.judge(1, third, second, 1.5)[::2] == (hs.BUSY, True)
    assert lives.judge(1, third, second, 1.5 + PROOF)[0] == hs.OK


def test_a_process_that_gave_no_sign_of_life_is_not_asked_again_and_again() -> None:
    """The simulator found this: a process that came back after more than two seconds, because it dials several
    addresses in turn, had to wait each time, for as long as the dead process's stream seemed to be open."""
    lives, old, new = Lives(), (3, 111), (4, 222)
    assert lives.judge(1, new, old, 1.0)[::2] == (hs.BUSY, True)
    assert lives.judge(1, new, old, 1.0 + 5 * PROOF)[0] == hs.OK


def test_silence_of_one_process_says_nothing_about_the_next() -> None:
    """The process that did not answer is gone, and its next start is connected by now. That one is asked first."""
    lives, old, new, copy = Lives(), (3, 111), (4, 222), (5, 333)
    assert lives.judge(1, copy, old, 1.0)[::2] == (hs.BUSY, True)
    assert lives.judge(1, copy, new, 1.0 + 5 * PROOF)[::2] == (hs.BUSY, True)
