"""When clients are left alone so that more writes share a group. Clients, disk and loop are a model in virtual time."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator

import pytest

from metastore._core.loop_turn import LONGEST_ASIDE
from metastore.member.gathering import AT_MOST, JUDGED, MANY, Gathering

SYNC = 0.00018
TURN = 0.00006  # what a turn takes, in seconds
TURNAROUND = 0.00009  # how long a client that waits for its answers takes to write again
GATHER = 0.0002


class Model:
    """A loop, a log, a proposer and the sessions as `Gathering` sees them. `arrivals` gives (time, client) in order;
    the clients of `closed` write again when they are answered."""

    def __init__(
        self, arrivals: Iterator[tuple[float, int]], *, closed: bool = False, time: float = GATHER, sync: float = SYNC
    ) -> None:
        self.now = self.gather = 0.0
        self.inflight = self.ops_out = self.groups = self.rounds = self.heard = self.returned = 0
        self.idle = True
        self.tells_all = False
        self.asides: list[float] = []  # how long clients were left alone
        self.gathered: list[bool] = []  # whether the loop gathered, for each group
        self._arrivals, self._closed, self._sync = arrivals, closed, sync
        self._ready: list[tuple[float, int]] = []  # clients whose sockets are readable from a time on
        self._read: list[int] = []  # whose writes have been read and are in no group
        self._flying: list[int] = []
        self._answered: dict[int, int] = {}  # in which round each client was answered last
        self._done = self._until = 0.0
        self._next = next(arrivals, None)
        self.gathering = Gathering(self, self, self, self, time)  # type: ignore[arg-type]

    def set_aside(self, seconds: float) -> None:
        assert 0 <= seconds <= LONGEST_ASIDE
        if seconds:
            self.asides.append(seconds)
        self._until = self.now + seconds if seconds else 0.0

    def run(self, groups: int) -> Model:
        """Turns of the loop until so many groups are done."""
        while self.groups < groups:
            self._turn()
        return self

    def _wait(self) -> None:
        """Until the disk has finished, or somebody is readable who is not set aside."""
        times = [self._done] if self._flying else []
        if self._ready:
            times.append(max(self._ready[0][0], self._until))
        if self._next is not None:
            times.append(max(self._next[0], self._until))
        self.now = max(self.now, min(times))
        while self._next is not None and self._next[0] <= self.now:
            heapq.heappush(self._ready, self._next)
            self._next = next(self._arrivals, None)

    def _turn(self) -> None:
        self._wait()
        ends = bool(self._flying) and self.now >= self._done
        if self.gather and not ends and self.now > self._until:
            self.set_aside(self.gather)
            self._wait()
        while self.now >= self._until and self._ready and self._ready[0][0] <= self.now:
            client = heapq.heappop(self._ready)[1]
            self._read.append(client)
            self.heard += 1
            self.returned += self._answered.get(client, 0) + 1 >= self.rounds
        self.now += TURN
        if ends:
            self._end()
        if self._read and not self._flying:
            self._flying, self._read = self._read, []
            self.ops_out += len(self._flying)
            self._done = self.now + self._sync
        self.idle, self.inflight = not self._flying, len(self._flying)
        if self.inflight > 1 or self.gathering.flying or self.gather:
            self.gathering.turn()
        assert self.tells_all is (self.gather > 0), "clients that are set aside wait for the end of the group"

    def _end(self) -> None:
        self.groups += 1
        self.gathered.append(self.gather > 0)
        for client in self._flying:
            self._answered[client] = self.rounds
            if self._closed:
                heapq.heappush(self._ready, (self.now + TURNAROUND * (1 + client % 7 / 7), client))
        self._flying = []


def spread(rate: float) -> Iterator[tuple[float, int]]:
    """Clients that write whether or not they are answered."""
    chance, at = random.Random(1), 0.0
    while True:
        at += chance.expovariate(rate)
        yield at, chance.randrange(200)


def together(clients: int) -> Iterator[tuple[float, int]]:
    return iter([(0.0, client) for client in range(clients)])


@pytest.mark.parametrize(("rate", "least"), [(10_000, 1.3), (20_000, 1.5), (40_000, 1.5)])
def test_writes_that_are_spread_over_time_share_groups(rate: float, least: float) -> None:
    without, gathering = (Model(spread(rate), time=time).run(3000) for time in (0.0, GATHER))
    assert not without.asides and gathering.asides
    assert gathering.ops_out > least * without.ops_out


def test_clients_are_left_alone_no_longer_than_the_disk_works() -> None:
    model = Model(spread(20_000), sync=0.00005, time=0.0001).run(2000)
    assert AT_MOST in model.asides
    assert model.now < 2000 * (0.00005 + 0.0001 + 3 * TURN)


@pytest.mark.parametrize("clients", [1, 2, 5, 10, 32, MANY, 20 * MANY])
def test_clients_that_wait_for_their_answers_are_not_waited_for(clients: int) -> None:
    assert not Model(together(clients), closed=True).run(3000).asides


def test_clients_that_seldom_write_at_the_same_time_are_not_waited_for() -> None:
    assert not Model(spread(1_000)).run(1000).asides


def test_groups_that_are_large_without_it_get_no_larger() -> None:
    assert not Model(spread(3 * MANY / SYNC)).run(300).asides


def test_it_ends_when_one_client_is_left() -> None:
    def fewer() -> Iterator[tuple[float, int]]:
        many = spread(20_000)
        at = 0.0
        while at < 1.0:
            at, client = next(many)
            yield at, client
        while True:
            at += 0.0005
            yield at, 0

    model = Model(fewer()).run(1000)
    assert model.gather
    while model.now < 1.0:
        model.run(model.groups + 1)
    begun = model.groups
    model.run(begun + 3 * JUDGED)
    assert not any(model.gathered[begun + 2 * JUDGED :])


def test_a_slow_disk_is_not_waited_for_longer_still() -> None:
    """What came in while it worked is read before it has finished, and goes with the next group at once."""
    model = Model(spread(10_000), sync=10 * AT_MOST).run(500)
    assert max(model.asides) == AT_MOST
    assert model.now < 500 * (10 * AT_MOST + 3 * TURN)
