"""When a member ticks and looks around. The loop and the leader's heartbeats are a model in virtual time."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from functools import partial

import pytest

from metastore.member.ticks import LATE, Rest, Ticks

INTERVAL = 0.1


class Event:
    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        self.call = None


class Model:
    """A member and its loop. `heartbeat` sets when heartbeats come; `turns` counts the turns of the loop."""

    def __init__(self, rest: Rest) -> None:
        self.now, self.state, self.alarm = 1000.0, rest, float("inf")
        self.turns = 0
        self.heard, self.since = self.now, 0  # when the last heartbeat came, and how many ticks were before it
        self.ticks: list[float] = []
        self.looks: list[float] = []
        self._events: list[tuple[float, int, Event]] = []
        self._number = 0
        self.member = Ticks(
            INTERVAL, lambda: self.now, self.call_at, self.ticks.append, self.looks.append, lambda: self.state,
            lambda: self.alarm,
        )  # fmt: skip
        self.member.begin()

    def call_at(self, when: float, call: Callable[[], object]) -> Event:
        self._number += 1
        event = Event(call)
        heapq.heappush(self._events, (when, self._number, event))
        return event

    def turn(self) -> None:
        self.turns += 1
        if self.member.rests:
            self.member.turn(self.now)

    def run(self, seconds: float) -> Model:
        """Turns of the loop for so long."""
        until = self.now + seconds
        while self._events and self._events[0][0] <= until:
            when, _, event = heapq.heappop(self._events)
            if event.call is not None:
                self.now = max(self.now, when)
                event.call()
                self.turn()
        self.now = max(self.now, until)
        return self

    def heartbeat(self) -> None:
        """One comes, in a turn that follows."""
        self.member.catch_up()
        self.heard = self.now
        self.since = len(self.ticks)

    def heartbeats(self, count: int, first: float) -> None:
        """So many come, one for each interval, the first after `first` seconds. Each brings a turn."""
        for number in range(count):
            # A network that is a little late now and then.
            self.call_at(self.now + first + number * INTERVAL + 0.004 * (number % 3), self.heartbeat)


def test_an_awake_member_ticks_and_looks_in_time() -> None:
    model = Model(Rest.AWAKE).run(10)
    assert len(model.ticks) == len(model.looks) >= 100
    assert all(abs(at - 1000 - INTERVAL * n) < 1e-6 for n, at in enumerate(model.ticks))


@pytest.mark.parametrize("phase", [0.001, 0.03, 0.099])
def test_a_follower_ticks_in_the_turns_of_heartbeats(phase: float) -> None:
    model = Model(Rest.FOLLOWS)
    model.heartbeats(100, phase)
    model.run(10)
    assert abs(len(model.ticks) - 100) <= 2 and len(model.looks) <= 11
    assert model.turns <= 102, "a tick took a turn of its own"


def test_a_follower_without_heartbeats_loses_no_tick() -> None:
    """So an election comes at most LATE intervals later."""
    model = Model(Rest.FOLLOWS)
    model.heartbeats(50, 0.04)
    model.run(5)
    before = len(model.ticks)
    model.run(3)
    assert len(model.ticks) - before >= 29
    late = [at - 1000 - INTERVAL * n for n, at in enumerate(model.ticks)]
    assert max(late) <= LATE * INTERVAL + 1e-6


def test_a_follower_counts_no_time_before_a_heartbeat() -> None:
    """The leader's lease reads rely on it: the first tick after a heartbeat may come at once, and the second may make
    up for half of one. Ten take eight and a half intervals then."""
    for seed in range(300):
        chance = random.Random(seed)
        model = Model(Rest.FOLLOWS)
        model.heartbeats(20, chance.uniform(0, 0.13))
        for _ in range(chance.randrange(40)):
            # Clients bring turns at any time, and some of them end the rest.
            state = chance.choice([Rest.FOLLOWS] * 8 + [Rest.AWAKE])
            model.call_at(model.now + chance.uniform(0, 4), partial(setattr, model, "state", state))
        if chance.random() < 0.3:
            model.run(chance.uniform(0, 2))
            model.now += chance.uniform(0, 1)  # the process stood still
        model.run(5)
        assert model.ticks[model.since + 9] - model.heard >= 8.5 * INTERVAL - 1e-6, seed


def test_a_leader_ticks_in_time_and_looks_once_a_second() -> None:
    model = Model(Rest.LEADS).run(10)
    assert len(model.ticks) >= 100 and 10 <= len(model.looks) <= 12
    assert model.ticks[50] == pytest.approx(1005)


def test_a_member_alone_ticks_once_a_second_and_for_an_alarm() -> None:
    model = Model(Rest.ALONE).run(10)
    assert len(model.ticks) == len(model.looks) <= 12
    model.alarm = model.now + 0.35
    model.turn()
    model.run(0.36)
    assert model.looks[-1] == pytest.approx(model.now - 0.01)


@pytest.mark.parametrize("rest", [Rest.ALONE, Rest.LEADS, Rest.FOLLOWS])
def test_who_wakes_looks_within_an_interval(rest: Rest) -> None:
    model = Model(rest).run(0.55)
    looks = len(model.looks)
    model.state = Rest.AWAKE
    model.turn()
    assert not model.member.rests and model.member.due - model.now <= INTERVAL + 1e-6
    model.run(INTERVAL + 1e-6)
    assert len(model.looks) > looks
    model.run(1)
    assert len(model.looks) >= looks + 10


@pytest.mark.parametrize("rest", list(Rest))
def test_a_pause_is_not_made_up_for(rest: Rest) -> None:
    model = Model(rest).run(2)
    model.now += 30
    before = len(model.ticks)
    model.run(0.01)
    assert len(model.ticks) - before in (1, 2)
    model.run(1)
    assert len(model.ticks) - before <= 1 / INTERVAL + 2


def test_a_leader_that_follows_from_now_on_wakes() -> None:
    model = Model(Rest.LEADS).run(0.5)
    model.state = Rest.FOLLOWS
    model.turn()
    assert not model.member.rests
    model.run(INTERVAL + 1e-6)
    assert model.member.rest is Rest.FOLLOWS
