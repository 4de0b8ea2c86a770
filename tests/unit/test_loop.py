"""The event loop: readiness, timers, calls from other threads, and the effect of an exception."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from metastore import errors
from metastore._core.loop_turn import LONGEST_ASIDE, SLOW_TURN, TURN_TIME, UNSURE
from metastore._core.quiet import Quiet
from metastore.net.loop import (
    CALLBACKS_TIME,
    MANY_CANCELLED,
    POSTED_TIME,
    READ,
    TIMERS_TIME,
    WRITE,
    Loop,
    shared_time,
)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()
    loop.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, two = socket.socketpair()
    with one, two:
        yield one, two


def test_what_comes_behind_a_turn_waits_for_all_others_and_brings_another_turn(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, two = pair
    order: list[str] = []

    def behind() -> None:
        assert not loop.quiet.open
        order.append("behind")
        if len(order) < 8:
            loop.call_behind(behind)

    def turn() -> None:
        order.append("turn")
        loop.quiet.open = True

    loop.add(one.fileno(), READ, lambda _events: order.append("descriptor"))
    loop.call_behind(behind)
    loop.call_at(loop.now(), lambda: order.append("timer"))
    two.send(b"x")
    loop.run_once(turn=turn)
    assert order == ["descriptor", "timer", "turn", "behind"]
    loop.remove(one.fileno())
    loop.run_once(turn=turn)  # it does not wait, although nothing comes in
    loop.run_once(turn=turn)
    assert order[4:] == ["turn", "behind", "turn", "behind"]
    loop.run_once(turn=turn)
    assert order[8:] == ["turn"] and loop.quiet.open


def test_what_comes_behind_a_turn_hears_of_those_who_wait(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, two = pair
    now = [0.0]
    heard: list[bytes] = []
    loop.now = lambda: now[0]
    loop.add(one.fileno(), READ, lambda _events: heard.append(one.recv(10)))
    loop.run_once(timeout=0.0)
    assert not loop.pressed()
    two.send(b"x")
    assert loop.pressed() and loop.pressed()  # asking takes nothing away
    loop.run_once()
    assert heard == [b"x"] and not loop.pressed()
    loop.posted_time = 0.0
    loop.call_soon_threadsafe(lambda: None)
    loop.call_soon_threadsafe(lambda: None)
    loop.run_once()
    assert loop.pressed()  # one of them is left
    loop.run_once()
    assert not loop.pressed()
    loop.call_at(1.0, lambda: None)
    assert not loop.pressed()
    now[0] = 1.0
    assert loop.pressed()
    loop.run_once()
    assert not loop.pressed()
    loop.stop()
    assert loop.pressed()


def test_readiness_and_masks(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    one, two = pair
    events: list[int] = []
    loop.add(one.fileno(), READ, events.append)
    loop.run_once(0)
    assert events == []
    two.send(b"x")
    loop.run_once()
    assert events == [READ]
    loop.run_once(0)
    assert events == [READ, READ]  # level-triggered
    loop.modify(one.fileno(), WRITE)
    loop.run_once()
    assert events[2:] == [WRITE]
    loop.modify(one.fileno(), 0)
    loop.run_once(0)
    assert len(events) == 3
    two.close()
    loop.run_once()
    assert len(events) == 4 and events[3] & ~(READ | WRITE)  # a hang-up is always reported
    loop.remove(one.fileno())
    loop.remove(one.fileno())
    loop.run_once(0)
    assert len(events) == 4


def test_add_twice_and_modify_nothing(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    fd = pair[0].fileno()
    loop.add(fd, READ, lambda _events: None)
    with pytest.raises(ValueError):
        loop.add(fd, READ, lambda _events: None)
    loop.remove(fd)
    with pytest.raises(KeyError):
        loop.modify(fd, READ)


def test_removed_in_the_same_turn_is_not_called(loop: Loop) -> None:
    sockets = [socket.socketpair() for _ in range(2)]
    events: list[int] = []

    def callback(index: int) -> None:
        events.append(index)
        other = sockets[1 - index][0]
        loop.remove(other.fileno())

    for index, (one, two) in enumerate(sockets):
        two.send(b"x")
        loop.add(one.fileno(), READ, lambda _events, index=index: callback(index))
    loop.run_once()
    assert len(events) == 1
    for one, two in sockets:
        one.close()
        two.close()


def test_timers_in_order_and_not_before_time(loop: Loop) -> None:
    clock = [100.0]
    loop.now = lambda: clock[0]
    events: list[str] = []
    loop.call_at(103, lambda: events.append("c"))
    loop.call_at(101, lambda: events.append("a"))
    loop.call_at(101, lambda: events.append("b"))
    cancelled = loop.call_later(1, lambda: events.append("never"))
    cancelled.cancel()
    cancelled.cancel()
    loop.run_once(0)
    assert events == []
    clock[0] = 102
    loop.run_once(0)
    assert events == ["a", "b"]
    clock[0] = 103
    loop.run_once()
    assert events == ["a", "b", "c"]


def test_a_timer_set_by_a_timer_waits_for_the_next_turn(loop: Loop) -> None:
    count = [0]

    def again() -> None:
        count[0] += 1
        loop.call_later(0, again)

    loop.call_later(0, again)
    loop.run_once()
    assert count == [1]
    loop.run_once()
    assert count == [2]


def test_cancelled_timers_do_not_pile_up(loop: Loop) -> None:
    loop.call_later(1000, lambda: None)
    for _ in range(20 * MANY_CANCELLED):
        loop.call_later(1000, lambda: None).cancel()
    assert len(loop._timers) <= MANY_CANCELLED + 2


def test_the_wait_ends_with_the_timer(loop: Loop) -> None:
    events: list[int] = []
    loop.call_later(0.01, lambda: events.append(1))
    before = loop.now()
    while not events:
        loop.run_once()
    assert 0.009 <= loop.now() - before < 5


def test_calls_from_other_threads_wake_the_loop(loop: Loop) -> None:
    events: list[int] = []

    def post() -> None:
        for i in range(100):
            loop.call_soon_threadsafe(lambda i=i: events.append(i))

    thread = threading.Thread(target=post)
    loop.call_soon_threadsafe(thread.start)
    while len(events) < 100:
        loop.run_once(5)
    thread.join()
    assert events == list(range(100))


def test_a_posted_call_that_posts_again_does_not_starve_the_rest(loop: Loop) -> None:
    count = [0]

    def again() -> None:
        count[0] += 1
        loop.call_soon_threadsafe(again)

    loop.call_soon_threadsafe(again)
    loop.run_once()
    assert count == [1]


def test_run_until_stopped_from_another_thread(loop: Loop) -> None:
    turns = [0]
    running = threading.Event()

    def turn() -> None:
        turns[0] += 1
        running.set()

    loop.call_soon_threadsafe(lambda: None)
    thread = threading.Thread(target=loop.run, args=(turn,))
    thread.start()
    assert running.wait(10)
    loop.stop()
    thread.join(10)
    assert not thread.is_alive() and turns[0] >= 1


def test_an_error_in_a_callback_ends_the_run(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    def fail(_events: int) -> None:
        raise errors.DiskFailed("sync failed")

    loop.add(pair[0].fileno(), READ, fail)
    pair[1].send(b"x")
    with pytest.raises(errors.DiskFailed, match="sync failed"):
        loop.run()
    loop.remove(pair[0].fileno())
    loop.call_soon_threadsafe(loop.stop)
    loop.run()


def test_the_owners_turn_runs_once_after_everything_else(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    order: list[str] = []
    loop.add(pair[0].fileno(), READ, lambda _events: order.append("socket"))
    pair[1].send(b"x")
    loop.call_later(0, lambda: order.append("timer"))
    loop.call_soon_threadsafe(lambda: order.append("posted"))
    loop.run_once(turn=lambda: order.append("turn"))
    assert order == ["socket", "timer", "posted", "turn"]


def test_closing_gives_back_the_descriptors() -> None:
    before = len(os.listdir("/proc/self/fd"))
    loop = Loop()
    assert len(os.listdir("/proc/self/fd")) == before + 3
    loop.close()
    assert len(os.listdir("/proc/self/fd")) == before
    loop.call_soon_threadsafe(lambda: None)
    loop.stop()
    other = Loop()  # it has the numbers of the first one's descriptors
    try:
        with pytest.raises(OSError, match="epoll_wait"):
            loop.run_once(0)
    finally:
        other.close()


class Aside:
    """A loop with a clock that stands still, an urgent descriptor and three others, all of them ready."""

    def __init__(self, loop: Loop, stack: contextlib.ExitStack) -> None:
        self.loop = loop
        self.time = 100.0
        loop.now = lambda: self.time
        self.called: list[int] = []
        self.pairs = [socket.socketpair() for _ in range(4)]
        for at, (one, two) in enumerate(self.pairs):
            stack.enter_context(one)
            stack.enter_context(two)
            two.send(b"x")
            loop.add(one.fileno(), READ, lambda _events, at=at: self.called.append(at), urgent=at == 0)

    def turn(self) -> list[int]:
        """The descriptors that one turn looks at."""
        self.called.clear()
        self.loop.run_once()
        return sorted(self.called)


@pytest.fixture
def aside(loop: Loop) -> Iterator[Aside]:
    with contextlib.ExitStack() as stack:
        yield Aside(loop, stack)


def test_what_is_set_aside_waits_and_the_urgent_does_not(aside: Aside) -> None:
    loop = aside.loop
    loop.set_aside(LONGEST_ASIDE / 2)
    assert aside.turn() == [0]
    aside.time += LONGEST_ASIDE / 4
    assert aside.turn() == [0]
    aside.time += LONGEST_ASIDE / 2
    assert aside.turn() == [0, 1, 2, 3]
    assert aside.turn() == [0, 1, 2, 3]  # it was for once
    loop.set_aside(LONGEST_ASIDE)
    loop.set_aside(0.0)
    assert aside.turn() == [0, 1, 2, 3]


def test_an_eventfd_that_nobody_reads_does_not_end_a_wait_twice(aside: Aside) -> None:
    loop, waits = aside.loop, []

    def wait(fd: int, _seconds: float, _quiet: Quiet) -> None:
        waits.append(bool(select.select([fd], [], [], 0)[0]))

    loop.await_readable = wait
    aside.pairs[0][0].recv(1)
    loop.call_soon_threadsafe(lambda: None)
    aside.turn()
    loop.set_aside(LONGEST_ASIDE)
    assert aside.turn() == [] and waits == [False]
    loop.call_soon_threadsafe(lambda: None)
    assert aside.turn() == [] and waits == [False]  # it is new: there is no wait


def test_the_first_waits_for_others(aside: Aside) -> None:
    """But not where an urgent one is ready, too."""
    loop, waits = aside.loop, []

    def wait(_fd: int, seconds: float, _quiet: Quiet) -> None:
        waits.append(seconds)
        aside.time += seconds
        aside.pairs[2][1].send(b"x")

    loop.await_readable = wait
    loop.gather = LONGEST_ASIDE / 2
    assert aside.turn() == [0, 1, 2, 3] and not waits
    for at in (0, 2, 3):
        aside.pairs[at][0].recv(1)
    assert aside.turn() == [1, 2] and waits == [pytest.approx(LONGEST_ASIDE / 2)]
    loop.gather = 0.0
    assert aside.turn() == [1, 2] and len(waits) == 1


def test_nothing_is_set_aside_for_longer_than_the_limit(aside: Aside) -> None:
    """However often the owner says so."""
    for _ in range(4):
        aside.loop.set_aside(1.0)
        assert aside.turn() == [0]
        aside.time += LONGEST_ASIDE / 4
    aside.loop.set_aside(1.0)
    assert aside.turn() == [0, 1, 2, 3]


def test_what_is_left_over_is_not_set_aside(aside: Aside) -> None:
    aside.loop.callbacks_time = 0.0
    aside.pairs[0][0].recv(1)  # the urgent one would be the only one
    called = []
    for _ in range(3):
        called += aside.turn()
        aside.loop.set_aside(LONGEST_ASIDE)
    assert sorted(called) == [1, 2, 3]


def test_a_wait_aside_ends_by_itself_and_by_other_threads(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    events: list[int] = []
    loop.add(pair[0].fileno(), READ, events.append)
    pair[1].send(b"x")
    loop.set_aside(LONGEST_ASIDE)
    while not events:
        loop.run_once()
    posted: list[int] = []
    loop.now = lambda: 100.0  # this wait does not end with the time
    loop.set_aside(LONGEST_ASIDE)
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(lambda: posted.append(1),))
    thread.start()
    while not posted:
        loop.run_once()
    thread.join()
    assert len(events) == 1


def test_a_turn_that_is_too_short_goes_on_where_it_stopped(loop: Loop) -> None:
    """However many descriptors are ready all the time, each gets its turn, and urgent ones get it each time."""
    with contextlib.ExitStack() as stack:
        events: list[int] = []
        pairs = [socket.socketpair() for _ in range(9)]
        for number, (one, two) in enumerate(pairs):
            stack.enter_context(one)
            stack.enter_context(two)

            def busy(_events: int, number: int = number) -> None:
                events.append(number)
                burn(CALLBACKS_TIME * 0.6)

            loop.add(one.fileno(), READ, busy, urgent=number == 8)
            two.send(b"x")
        turns = []
        while len(set(events)) < 9 and len(turns) < 100:
            before = len(events)
            loop.run_once(0)
            turns.append(events[before:])
    assert all(len(turn) <= 2 for turn in turns)
    assert all(turn[0] == 8 for turn in turns[1:])
    # No descriptor comes again before all others had their turn.
    others = [number for number in events if number != 8]
    assert sorted(others[:8]) == list(range(8))


@pytest.mark.parametrize(("now", "interval", "when"), [
    (0.0, 1.0, 1.0), (7.0, 1.0, 8.0), (7.09, 1.0, 8.0), (7.11, 1.0, 9.0), (7.99, 1.0, 9.0), (7.01, 0.5, 7.5),
    (83782.0234, 1.0, 83783.0), (83782.0234, 0.25, 83782.25),
])  # fmt: skip
def test_what_is_done_now_and_then_comes_at_shared_times(now: float, interval: float, when: float) -> None:
    assert shared_time(now, interval) == when
    assert 0.9 * interval <= when - now < 2 * interval


def test_an_eventfd_is_told_of_once_and_never_forgotten(loop: Loop) -> None:
    """Nobody reads it. A turn that is too short leaves what it was told to the next one."""
    told: list[str] = []
    signals = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(3)]
    try:
        for number, signal in enumerate(signals):

            def busy(_events: int, number: int = number) -> None:
                told.append(f"signal {number}")
                burn(CALLBACKS_TIME)

            loop.add(signal, READ, busy, edge=True)
        for times in range(1, 4):
            for signal in signals:
                os.eventfd_write(signal, 1)
            for _ in range(5):
                loop.run_once(0)
            assert sorted(told) == sorted(times * ["signal 0", "signal 1", "signal 2"])
    finally:
        for signal in signals:
            loop.remove(signal)
            os.close(signal)


def burn(seconds: float) -> None:
    """Keep this thread busy."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def test_timers_that_take_long_share_the_turn(loop: Loop) -> None:
    """One that is due always runs, the others wait for the next turn and keep their order."""
    done: list[int] = []
    for number in range(4):

        def busy(number: int = number) -> None:
            done.append(number)
            burn(TIMERS_TIME)

        loop.call_later(0, busy)
    for turn in range(4):
        loop.run_once(0)
        assert done == list(range(turn + 1))
    loop.run_once(0)
    assert len(done) == 4


def test_posted_calls_that_take_long_share_the_turn(loop: Loop) -> None:
    done: list[int] = []
    for number in range(3):

        def busy(number: int = number) -> None:
            done.append(number)
            burn(POSTED_TIME)

        loop.call_soon_threadsafe(busy)
    for turn in range(3):
        loop.run_once()  # which does not wait while calls are left
        assert done == list(range(turn + 1))


def test_the_parts_of_a_turn_share_its_time(loop: Loop) -> None:
    """A long call leaves what comes after it no time."""
    done: list[str] = []
    shares: list[float] = []
    loop.call_soon_threadsafe(lambda: work_for(TURN_TIME))
    loop.call_soon_threadsafe(lambda: done.append("second call"))
    loop.run_once(0, lambda: shares.append(loop.share()))
    assert done == [] and shares == [0.0]
    loop.run_once(0, lambda: shares.append(loop.share()))
    assert done == ["second call"] and shares[1] > 0


def test_the_clock_of_the_thread_is_asked_only_where_it_matters(loop: Loop) -> None:
    """Each question is a system call. Slow turns are noticed all the same, whatever came before them."""
    asked: list[None] = []
    clock = time.thread_time
    loop.thread_time = lambda: (asked.append(None), clock())[1]
    for _ in range(500):
        loop.run_once(0, loop.share)
    assert len(asked) <= 2 + 2 * loop.turn_seconds / UNSURE
    assert loop.slow_turns == 0 or loop.longest_turn > SLOW_TURN
    slow = loop.slow_turns
    loop.run_once(0, lambda: work_for(SLOW_TURN + UNSURE))
    assert loop.slow_turns == slow + 1 and loop.longest_work > SLOW_TURN


def work_for(seconds: float) -> None:
    """Use up so much processor time."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_what_comes_during_a_nap_shares_a_turn(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A nap comes once, and not before calls that were posted."""
    told: list[bytes] = []
    slept: list[float] = []
    pairs = [socket.socketpair() for _ in range(2)]
    for here, _ in pairs:
        loop.add(here.fileno(), READ, lambda _events, here=here: told.append(here.recv(1)))

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        for _, there in pairs:
            there.send(b"x")

    monkeypatch.setattr(time, "sleep", sleep)
    loop.nap(0.25)
    loop.run_once(5)
    assert slept == [0.25] and told == [b"x", b"x"]
    loop.nap(3600)
    loop.call_soon_threadsafe(lambda: told.append(b"posted"))
    loop.run_once(0)
    loop.run_once(0)
    assert slept == [0.25] and told[2:] == [b"posted"]
    for here, there in pairs:
        loop.remove(here.fileno())
        here.close()
        there.close()
