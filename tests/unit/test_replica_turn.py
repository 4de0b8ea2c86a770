"""When a member asks for its next turn: `Replica.next_turn`, which a node and a simulated member both follow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sim.engines import BusyEngine
from sim.model import Call
from sim.node import Member
from support.hubs import TestSink, watch
from support.lone_member import Lone

from metastore._core.driver_budgets import Budgets
from metastore._core.driver_path import TELL_AFTER
from metastore._core.replica_turn import BATCH_RETRY
from metastore._core.watch_index import Stream
from metastore.replica import sweep as sweep_module
from metastore.replica.driver import BUSY_RETRY
from metastore.replica.sweep import Sweep


def test_an_idle_member_needs_no_turn() -> None:
    assert Lone().next_turn() is None


def test_a_batch_wants_its_turn_when_it_is_due_and_is_not_asked_for_without_pause() -> None:
    lone = Lone(members=3)  # two of them are down, so there is no leader
    assert not lone.member.driver.leader_id
    lone.put()
    assert lone.next_turn() == pytest.approx(0.5)
    lone.clock.run(lone.clock.now + 1.0)
    assert lone.next_turn() == pytest.approx(BATCH_RETRY)


def test_a_read_that_no_round_has_taken_yet_keeps_a_stop_waiting() -> None:
    """A member ends its stop when its driver is quiet. Such a read would have got Stopped."""
    lone = Lone()
    driver = lone.member.driver
    assert driver.quiet
    lone.ask(Call("read", (b"k", b"k"), serializable=False))
    assert lone.member.kv.reads and not driver.quiet
    lone.member.act(lambda: None)
    lone.clock.run(lone.clock.now + 1.0)
    assert driver.quiet


def test_a_leader_tells_its_commit_index_when_nothing_carries_it() -> None:
    """The others are to learn of it in 10 ms at most, and a leader with nothing to tell needs no turn."""
    lone = Lone(members=3)
    cluster, clock = lone.simulation.cluster, lone.clock
    for ident in (2, 3):
        cluster.members[ident].start()
    clock.run(clock.now + 5.0)
    leader = cluster.leader()
    assert leader is not None and leader.replica.next_turn(leader.now()) is None
    lone.member = leader
    revision = leader.store.revision
    leader.act(lone.put)
    while leader.store.revision == revision:
        clock.run(clock.now + 0.0001)
    others = [member for member in cluster.members.values() if member is not leader]
    assert all(member.store.revision == revision for member in others)
    due = lone.next_turn()
    assert due is not None and TELL_AFTER / 2 < due <= TELL_AFTER < 0.01
    clock.run(clock.now + 0.02)
    assert all(member.store.revision == revision + 1 for member in others)
    assert lone.next_turn() is None


def test_a_busy_engine_is_tried_again() -> None:
    lone = Lone(busy=1e-9)
    engine = lone.member.engine
    assert isinstance(engine, BusyEngine)
    engine.until = lone.clock.now + 1.0
    lone.member.act(lone.put)
    lone.clock.run(lone.clock.now + 0.1)
    due = lone.next_turn()
    assert due is not None and 0 < due <= BUSY_RETRY
    lone.clock.run(lone.clock.now + 2.0)
    assert lone.next_turn() is None and lone.member.driver.whole


def test_what_was_too_long_for_a_turn_goes_on_at_once() -> None:
    lone = Lone()
    member, clock = lone.member, lone.clock
    member.budgets.serve = 1

    def puts() -> None:
        for number in range(9):
            lone.put(b"k%d" % number)

    member.act(puts)
    clock.run(clock.now + 1.0)
    assert member.store.revision == 10 and lone.next_turn() is None
    lone.ask(Call("read", (b"k", b"k"), serializable=True))
    waiting: list[int] = []
    member.replica.send = lambda: waiting.append(member.kv.late)
    turns = 0
    while turns == 0 or lone.next_turn() is not None:
        assert turns == 0 or lone.next_turn() == 0.0
        member.replica.turn(member.now())
        turns += 1
    assert 1 < turns < 100
    assert waiting == [1] * (turns - 1) + [0]  # answers go out before it goes on; at last its memory is given back
    member.replica.turn(member.now())
    assert len(waiting) == turns


def test_answers_go_out_before_history_goes_on() -> None:
    lone = Lone()
    member, clock = lone.member, lone.clock
    hub, stream, sent = member.replica.watches, Stream(TestSink()), []

    def puts() -> None:
        for number in range(20):
            lone.put(b"k%d" % number)

    member.act(puts)
    clock.run(clock.now + 1.0)
    member.replica.send = lambda: sent.append(hub.events_sent)
    watch(hub, stream, key=b"\0", range_end=b"\0")
    member.replica.turn(member.now())
    assert sent == [], "nobody is sent history"
    watch(hub, stream, key=b"\0", range_end=b"\0", start_revision=2)
    member.budgets.watch = 2
    turns = 0
    while hub.events_sent < 20:
        member.replica.turn(member.now())
        turns += 1
    assert turns > 5 and len(sent) == turns - 1, "all but the first, which begins"


def turns_of_a_deletion(ticks: int, share: float = 1.0, again: int = 0) -> int:
    """How many turns a deletion of 90 keys takes, with so many ticks in each, and this share of each turn left."""
    lone = Lone()
    member, clock = lone.member, lone.clock

    def puts() -> None:
        for number in range(90):
            lone.put(b"k%02d" % number)

    member.act(puts)
    clock.run(clock.now + 1.0)
    member.budgets.apply, member.budgets.share = 200, lambda: share
    member.budgets.again = again
    member.replica.turn(member.now())
    member.act(lone.ask, Call("clear", (b"k", b"l")))
    while not member.driver.backlog:
        clock.run(clock.now + 0.0001)
    turns = 0
    while member.driver.backlog:
        for _ in range(ticks):
            member.driver.tick(member.now())
        member.replica.turn(member.now())
        turns += 1
    assert member.store.revision == 92
    return turns


def test_what_comes_in_a_turn_does_not_make_it_longer() -> None:
    """Ticks, and news of the disk, go on with what is applied in pieces, and the end of the turn has what they leave of
    the budget. Each of them had a whole budget once."""
    turns = turns_of_a_deletion(0)
    assert turns > 5 and turns_of_a_deletion(2) >= turns - 1


def test_a_turn_that_was_long_already_does_less_of_what_can_wait() -> None:
    """The budgets of its parts added up to 28 ms with RocksDB. Where no time is left, an eighth is done."""
    whole, half, least = (turns_of_a_deletion(0, share) for share in (1.0, 0.5, 0.0))
    assert whole * 1.5 < half < whole * 3 and half * 2 < least < whole * 12


def test_the_clock_is_asked_only_for_more_than_the_least_part() -> None:
    """To ask it for each put took as long as to apply the put."""
    asked: list[int] = []
    lone = Lone()
    lone.member.budgets.share = lambda: asked.append(1) or 1.0  # type: ignore[func-returns-value]

    def puts() -> None:
        for _ in range(20):
            lone.put()

    for budget, asks in ((32768, False), (8, True)):
        revision = lone.member.store.revision
        lone.member.budgets.apply = budget
        lone.member.act(puts)
        lone.clock.run(lone.clock.now + 1.0)
        assert lone.member.store.revision == revision + 20 and bool(asked) is asks


def test_no_part_of_a_budget_is_nothing_or_more_than_is_left() -> None:
    budgets = Budgets(share=lambda: 0.25)
    assert [budgets.part(800, spent) for spent in (0, 50, 150, 700, 900)] == [200, 200, 200, 100, 1]
    budgets.share = lambda: 0.0
    assert [budgets.part(800, spent) for spent in (0, 50, 100)] == [100, 50, 1]
    budgets.share = lambda: 1.0
    assert [budgets.part(800, spent) for spent in (0, 50, 799, 800)] == [800, 750, 1, 1]


def unswept() -> Member:
    """A member with 60 versions that a compaction has ended, and that nobody sweeps."""
    lone = Lone()
    member, clock = lone.member, lone.clock
    member.sweep = Sweep(member.driver, lambda _seconds, _call: None, lambda: False)  # the member's own waits for ever
    for number in range(60):
        member.act(lone.put, b"k%d" % (number % 3))
        clock.run(clock.now + 0.1)
    member.act(lone.ask, Call("compact", (), revision=member.store.revision))
    clock.run(clock.now + 1.0)
    assert member.kv.sweep_pending
    return member


def turns_of_a_sweep(share: float) -> int:
    """How many turns an urgent sweep takes, with this share of each turn left."""
    member = unswept()
    later: list[Callable[[], None]] = []
    sweep = Sweep(member.driver, lambda _seconds, call: later.append(call), lambda: True, 2, share=lambda: share)
    sweep.turn()
    turns = 0
    while later:
        later.pop()()
        sweep.turn()
        turns += 1
    assert not member.kv.sweep_pending
    return turns


def test_urgent_slices_of_a_sweep_end_with_the_turn() -> None:
    least = turns_of_a_sweep(0.0)
    assert least > 20 and turns_of_a_sweep(1.0) <= least // 9


def slices_of(
    monkeypatch: pytest.MonkeyPatch, turns: int, took: list[float], waits: list[bool], share: float = 1.0
) -> list[int]:
    """The records of each slice that a sweep does in so many turns. `took`: how long each takes (seconds). `waits`:
    whether somebody waits behind each."""
    member = unswept()
    budgets: list[int] = []
    clock = [0.0]

    def swept(_store: object, records: int) -> None:
        budgets.append(records)
        clock[0] += took[min(len(budgets), len(took)) - 1]

    monkeypatch.setattr(sweep_module, "sweep_slice", swept)
    sweep = Sweep(
        member.driver, lambda _seconds, _call: None, lambda: False, 500, share=lambda: share,
        pressed=lambda: waits[len(budgets) - 1], worked=lambda: clock[0],
    )  # fmt: skip
    for _ in range(turns):
        sweep._sweep()
    return budgets


def test_slice_follows_slice_until_somebody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slices_of(monkeypatch, 1, [0.0001], [False, False, False, True]) == [500] * 4
    assert slices_of(monkeypatch, 3, [0.0001], [True] * 3) == [500] * 3
    assert slices_of(monkeypatch, 3, [0.0001], [False] * 3, share=0.8) == [500] * 3  # a turn that is long anyway


def test_a_slice_that_takes_long_makes_the_next_ones_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    took = [0.0002, 0.001, 0.001, 0.001, 0.001, 0.0001, 0.00005, 0.00005]
    assert slices_of(monkeypatch, 9, took, [True] * 9) == [500, 250, 125, 62, 60, 60, 60, 120, 240]
    assert slices_of(monkeypatch, 3, [0.00001], [True] * 3) == [500] * 3


def test_a_turn_with_time_left_applies_more() -> None:
    whole = turns_of_a_deletion(0)
    assert turns_of_a_deletion(0, again=2) <= whole // 2
    assert turns_of_a_deletion(0, 0.7, again=2) >= whole
