"""When rounds of reads begin. What they serve is in tests/raft/transcripts/driver (read*.txt)."""

from __future__ import annotations

import pytest
from support import kvmessages as pb
from support.driver_stage import Member, Settings, World
from support.raft_harness import MemoryStorage

from metastore import errors
from metastore.replica.driver import Driver
from metastore.replica.read_rounds import REMEMBERED, SEVERAL_FROM, SPACING, RoundTrip


class Trio:
    """Three members, of which the first leads. A round of reads takes `apart` seconds."""

    def __init__(self, apart: float) -> None:
        self.world = World([1, 2, 3], Settings(), Driver)
        self.members = {ident: Member(self.world, ident, MemoryStorage()) for ident in self.world.initial}
        self.leader = self.members[1]
        self.leader.driver.campaign()
        self.leader.turn()
        self.settle()
        self.get("first")
        self.world.now += apart
        self.settle()
        self.world.lines.clear()

    def settle(self) -> None:
        """Let messages arrive and disks finish until nothing is under way."""
        while self.world.queue or not all(member.log.idle for member in self.members.values()):
            for member in self.members.values():
                if not member.log.idle:
                    member.disk_done()
            if self.world.queue:
                parcel = self.world.queue.pop(0)
                self.members[parcel.to].receive(parcel)

    def get(self, name: str) -> None:
        """Let a client read through the leader."""
        self.leader.call("Range", f"get {name}", pb.RangeRequest(key=name.encode()))
        self.leader.turn()

    def begins_in(self) -> float | None:
        """Return the seconds until the leader wants to begin another round."""
        begin_at = self.leader.driver.reads.begin_at
        return None if begin_at is None else begin_at - self.world.now

    @property
    def rounds(self) -> int:
        """The rounds under way."""
        return len(self.leader.driver.reads.rounds)


def test_near_members_have_one_round_under_way() -> None:
    trio = Trio(SEVERAL_FROM / 2)
    for name in ("a", "b", "c"):
        trio.get(name)
        trio.world.now += SPACING
    assert trio.rounds == 1
    assert trio.begins_in() is None


def test_near_members_do_not_wait_long_for_something_to_share_the_next_round() -> None:
    trio = Trio(0.0)
    trio.get("a")
    trio.get("b")
    trio.world.down = {(1, 3), (3, 1)}
    trio.world.queue = [parcel for parcel in trio.world.queue if parcel.to != 3]
    trio.settle()
    assert trio.world.lines[-1].startswith("1 answers get a")
    assert trio.rounds == 0
    assert trio.begins_in() == pytest.approx(SEVERAL_FROM)
    trio.world.now += SEVERAL_FROM
    trio.leader.turn()
    assert trio.rounds == 1
    assert trio.begins_in() is None


def test_distant_members_have_several_rounds_under_way() -> None:
    trio = Trio(0.1)
    trio.get("a")
    trio.world.now += 0.002
    trio.get("b")
    assert trio.rounds == 1
    assert trio.begins_in() == pytest.approx(0.1 / 16 - 0.002)
    trio.world.now += 0.1 / 16 - 0.002
    trio.leader.turn()
    assert trio.rounds == 2
    assert trio.begins_in() is None


def test_a_member_does_not_wait_for_the_round_of_a_read_that_has_failed() -> None:
    trio = Trio(0.1)
    trio.get("a")
    trio.world.now += 0.002
    trio.get("b")
    assert trio.begins_in() is not None
    trio.leader.driver.reads.fail(trio.world.now, errors.Timeout)
    assert trio.rounds == 0
    assert trio.begins_in() is None


def test_a_round_trip_is_the_shortest_of_late() -> None:
    trip = RoundTrip()
    assert not trip.seconds
    for seconds in (0.02, 0.01, 0.03):
        trip.took(seconds)
    assert trip.seconds == 0.01
    # It has become longer: that is known when as many rounds have said so.
    for _ in range(2 * REMEMBERED - 2):
        trip.took(0.02)
    assert trip.seconds == 0.02
    trip.forget()
    assert not trip.seconds
