"""Who gives way to a newcomer, without sockets: the rules one by one, and random crowds against a plain version of the
rules."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from metastore.net.places import CROWD, IDLE, LOOKS, NEW, Places, Tally


@dataclass(eq=False)
class One:
    """A connection whose properties the test sets."""

    origin: str
    since: float = 0.0
    has_asked: bool = False
    busy: bool = False
    asked_at: float = 0.0
    at: int = 0
    settled: bool = False


def filled(most: int, *ones: One) -> Places[One]:
    places: Places[One] = Places(most)
    for one in ones:
        places.take(one)
    return places


@pytest.mark.parametrize("seed", range(20))
def test_a_tally_knows_who_has_most(seed: int) -> None:
    rng = random.Random(seed)
    tally, plain = Tally(), Counter[str]()
    for _ in range(2000):
        name = rng.choice("abcdefgh"[: rng.choice((1, 3, 8))])
        if plain[name] and rng.random() < 0.5:
            plain[name] -= 1
            tally.less(name)
        else:
            plain[name] += 1
            tally.more(name)
        assert tally.most == max(plain.values())
        assert tally.top() == "" if not tally.most else plain[tally.top()] == tally.most
        assert tally.count(name) == plain[name]


def test_a_flood_displaces_its_own() -> None:
    """This holds whatever else is there: slow connections, idle ones, and those of others."""
    now = 100.0
    others = [One(f"10.0.0.{n}", since=now - 5) for n in range(40)]
    idle = [One("10.1.0.1", has_asked=True, asked_at=now - 2 * IDLE) for _ in range(40)]
    flood = [One("6.6.6.6", since=now) for _ in range(20)]
    places = filled(100, *others, *idle, *flood)
    for _ in range(1000):
        loser = places.who_gives_way("6.6.6.6", now)
        assert loser in flood
        flood.remove(loser)
        places.leave(loser)
        flood.append(One("6.6.6.6", since=now))
        places.take(flood[-1])
    # If the address has no crowd any more, the connection that was idle for longest goes first.
    for one in flood[100 // CROWD :]:
        places.leave(one)
    assert places.who_gives_way("6.6.6.6", now) in idle


def test_within_an_address_the_silent_go_first_and_the_young_by_chance() -> None:
    now = 100.0
    silent = [One("a", since=now - NEW - n) for n in range(4)]
    young = [One("a", since=now - 0.1) for _ in range(4)]
    places = filled(8, *silent, *young)
    for expected in reversed(silent):
        assert places.who_gives_way("a", now) is expected
        places.leave(expected)
    many = [One("a", since=now) for _ in range(10 * LOOKS)]
    places = filled(10 * LOOKS, *many)
    assert len({id(places.who_gives_way("a", now)) for _ in range(200)}) > LOOKS


def test_who_has_asked_unnoticed_is_noticed() -> None:
    """Requests that were compressed, or are the first message of a stream, become known later."""
    connections = [One("a", has_asked=True, asked_at=99.0) for _ in range(50)]
    fresh = One("b", since=100.0)
    places = filled(51, *connections, fresh)
    assert places.who_gives_way("c", 100.0) is fresh
    assert all(one.settled for one in connections)


def test_the_longest_idle_goes_first() -> None:
    now = 1000.0
    ones = [One("a", has_asked=True, asked_at=now - IDLE - n) for n in (3, 1, -1, 4, 2)]
    ones.append(One("a", has_asked=True, asked_at=0.0, busy=True))
    places = filled(6, *ones)
    for one in ones:
        places.settle(one)
    order = [ones[3], ones[0], ones[4], ones[1]]
    for expected in order:
        assert places.who_gives_way("b", now) is expected
        places.leave(expected)
    # The fifth is not idle yet, but its address has more than its share. The sixth is busy.
    assert places.who_gives_way("a", now) is None
    assert places.who_gives_way("b", now) is ones[2]


@pytest.mark.parametrize("most", [12, 48])
@pytest.mark.parametrize("seed", range(15))
def test_random_crowds(seed: int, most: int) -> None:
    """There are at most LOOKS of an address, so chance decides only what the rules leave open."""
    rng, now = random.Random(seed), 1000.0
    names = [f"n{n}" for n in range(most // 4)]
    places = filled(most)
    counts = Counter[bool]()
    for _ in range(600):
        now += NEW
        name = rng.choice(names)
        if len(places.taken) == places.most:
            loser = places.who_gives_way(name, now)
            expected = allowed(places, name, now)
            assert loser in expected if loser else not expected
            counts[loser is not None] += 1
            places.leave(loser or rng.choice(sorted(places.taken, key=lambda one: (one.origin, one.since))))
        if sum(one.origin == name for one in places.taken) < LOOKS:
            ago = rng.choice((0.5, 30.0, 30.0, IDLE + 1))
            one = One(name, now - rng.random() * 3 * NEW, rng.random() < 0.9, rng.random() < 0.6, now - ago)
            places.take(one)
            if one.has_asked:
                places.settle(one)
    assert counts[True] > 50


def allowed(places: Places[One], name: str, now: float) -> list[One]:
    """Return the connections of which the rules allow any to go. If several addresses have most, the tally names
    one."""
    fresh, every = (
        Counter(one.origin for one in ones)
        for ones in ([one for one in places.taken if not one.has_asked], places.taken)
    )
    silent, top = places._fresh.tally.top(), places.crowd()[0]
    assert fresh[silent] == max(fresh.values(), default=0) and every[top] == max(every.values())
    free = [one for one in places.taken if one.origin == silent and not one.has_asked and not one.busy]
    if fresh[silent] > places.most // CROWD and free:
        return free
    idle = [one for one in places.taken if one.has_asked and not one.busy and now - one.asked_at >= IDLE]
    if idle or free:
        return idle or free
    if every[name] + 2 > every[top]:
        return []
    candidates = [one for one in places.taken if one.has_asked and one.origin == top]
    return [one for one in candidates if not one.busy] or (candidates if 2 * every[top] > places.most else [])
