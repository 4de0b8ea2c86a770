"""Automatic compaction: the rules on virtual time, and a real node that keeps its size."""

from __future__ import annotations

import pytest

from metastore.replica.autocompact import FIVE_MINUTES, OFF, PERIODIC, REVISION, SPACING, AutoCompactor

HOUR = 3600.0


class World:
    """A store that is written at a steady pace, and a leader that looks every tenth of a second."""

    def __init__(self, compactor: AutoCompactor, rate: float = 10.0) -> None:
        self.compactor = compactor
        self.rate = rate
        self.now = 0.0
        self.revision = 1.0
        self.compacted = -1
        self.asked: list[tuple[float, int]] = []
        self.works = True

    def pass_(self, seconds: float, leads: bool = True, tick: float = 0.1) -> None:
        for _ in range(round(seconds / tick)):
            self.now += tick
            self.revision += self.rate * tick
            if not leads:
                self.compactor.follow()
                continue
            target = self.compactor.lead(self.now, int(self.revision), self.compacted)
            if target:
                self.asked.append((self.now, target))
                if self.works:
                    self.compacted = target
                    self.compactor.compacted(self.now)

    def age(self, at: float, revision: int) -> float:
        """Return how old a revision is at a time, in a world that never paused writing."""
        return at - (revision - 1) / self.rate


def test_off() -> None:
    world = World(AutoCompactor(OFF))
    world.pass_(10 * HOUR, tick=60)
    assert world.asked == []
    with pytest.raises(ValueError, match="sometimes"):
        AutoCompactor("sometimes")


@pytest.mark.parametrize("retention, tick", [(1.0, 0.01), (60.0, 0.1), (HOUR, 1.0)])
def test_periodic(retention: float, tick: float) -> None:
    """Nothing happens before one retention has passed. Then a compaction comes once every retention, and never cuts
    younger history."""
    world = World(AutoCompactor(PERIODIC, retention))
    world.pass_(retention * 0.95, tick=tick)
    assert world.asked == []
    world.pass_(retention * 9.15, tick=tick)
    assert 9 <= len(world.asked) <= 10
    for at, revision in world.asked:
        assert retention <= world.age(at, revision) <= 1.3 * retention
    gaps = [later - sooner for (sooner, _), (later, _) in zip(world.asked, world.asked[1:], strict=False)]
    assert all(0.85 * retention <= gap <= 1.3 * retention for gap in gaps)


def test_a_long_retention_is_compacted_every_hour() -> None:
    world = World(AutoCompactor(PERIODIC, 24 * HOUR))
    world.pass_(23.9 * HOUR, tick=10)
    assert world.asked == []
    world.pass_(6.2 * HOUR, tick=10)
    assert 6 <= len(world.asked) <= 7
    assert all(24 * HOUR <= world.age(at, revision) <= 24.3 * HOUR for at, revision in world.asked)
    assert len(world.compactor._samples) <= 250


def test_a_quiet_store_is_not_compacted_again() -> None:
    world = World(AutoCompactor(PERIODIC, 10.0))
    world.pass_(25)
    world.rate = 0.0
    world.pass_(20)
    count = len(world.asked)
    assert world.asked[-1][1] == int(world.revision)
    world.pass_(1000)
    assert len(world.asked) == count
    assert len(world.compactor._samples) < 20


def test_a_new_leader_begins_again() -> None:
    world = World(AutoCompactor(PERIODIC, 10.0))
    world.pass_(9)
    world.pass_(1, leads=False)
    world.pass_(9.5)
    assert world.asked == []
    world.pass_(2)
    assert len(world.asked) == 1
    world.pass_(100, leads=False)
    assert len(world.asked) == 1
    world.pass_(9.5)
    assert len(world.asked) == 1


def test_what_fails_is_tried_again() -> None:
    """The next attempt comes a step later, with the window of that time."""
    world = World(AutoCompactor(PERIODIC, 10.0))
    world.works = False
    world.pass_(15)
    assert len(world.asked) > 3
    world.works = True
    world.asked.clear()
    world.pass_(2)
    assert len(world.asked) == 1
    assert world.age(*world.asked[0]) < 11.2


def test_a_process_that_stood_still() -> None:
    """The clock went on without samples. History is then kept rather too long than too short."""
    world = World(AutoCompactor(PERIODIC, 10.0))
    world.pass_(12)
    world.now += 1000
    world.asked.clear()
    world.pass_(0.2)
    assert all(revision <= 125 for _, revision in world.asked)


def test_by_revisions_when_there_are_twice_as_many() -> None:
    world = World(AutoCompactor(REVISION, revisions=1000), rate=50)
    world.pass_(39)
    assert world.asked == []
    world.pass_(200)
    assert 9 <= len(world.asked) <= 10
    for (sooner, _), (later, revision) in zip(world.asked, world.asked[1:], strict=False):
        assert later - sooner >= SPACING and 999 <= later * 50 + 1 - revision <= 1100


def test_by_revisions_every_five_minutes_otherwise() -> None:
    world = World(AutoCompactor(REVISION, revisions=1000), rate=4)
    world.pass_(1000)
    assert [round(at / FIVE_MINUTES) for at, _ in world.asked] == [1, 2, 3]
    world.rate = 0
    world.pass_(1000)
    assert len(world.asked) == 4, "what was written after the last one, and then nothing more"


def test_by_revisions_not_more_often_than_every_ten_seconds() -> None:
    world = World(AutoCompactor(REVISION, revisions=1), rate=10_000)
    world.pass_(100)
    assert 9 <= len(world.asked) <= 11


def test_history_that_somebody_else_compacted() -> None:
    world = World(AutoCompactor(REVISION, revisions=100), rate=1)
    world.pass_(50)
    world.compacted = 50
    world.pass_(140)
    assert world.asked == []
    world.pass_(100)
    assert len(world.asked) == 1


def test_little_room_does_not_wait_for_the_next_look() -> None:
    compactor = AutoCompactor("revision", revisions=100)
    assert compactor.lead(0.0, 250, 0) == 150
    compactor.compacted(0.1)
    assert compactor.lead(0.2, 1000, 150) == 0
    assert compactor.lead(0.3, 1000, 150, hurry=True) == 900
    assert compactor.lead(0.4, 320, 150, hurry=True) == 0, "what is to stay stays"
