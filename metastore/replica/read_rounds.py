"""Linearizable reads: they gather, a round confirms all of them at once, and the applied state serves them.

Pure. A read is linearizable when the member that serves it has applied everything that was committed before the read
came in. One ReadIndex round asks the leader for that index on behalf of every read that has gathered. A confirmed round
whose index is not applied yet waits for it; those rounds are confirmed in the order of their indexes, and served in
that order.

Reads that come in while a round is under way are not part of it. Where the members are near, they wait for the end of
that round: it comes soon, and each round costs messages. Where a round takes SEVERAL_FROM or more, the next one begins
meanwhile. Up to READ_ROUNDS rounds are then under way, spaced by the round trip over this number, but by SPACING at
least. That is how long a read waits for its round at most. The round trip is the shortest one of late, so a member that
has much to do is not taken for a distant one.

Members 20 ms apart there and back, 100 clients at the leader: half of the reads took at most 2.4 round trips with one
round at a time, 1.3 with four rounds, 1.23 with eight, and 1.16 with sixteen; a lone client had 1.1.

A round may be asked for more than once, because its messages may be lost or the leader may change. Each question gets a
number of its own. A round knows the number of its first question, which was given out after its reads had come in. An
answer to question n therefore serves every round whose first question is n or an earlier one, because the leader's
index is later than all of their reads. It says nothing about a round that began after question n.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from .. import errors
from .._core.driver_parts import ReadsFields
from .._core.raft import READ_ROUNDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._core.kv_server import KVServer
    from .._core.raft import RawNode
    from .._core.raft_types import ReadState

READ_RETRY: Final = 0.5  # seconds until an unanswered question is asked again: its messages may be lost
#: Several rounds are under way only if each takes so many seconds at least.
SEVERAL_FROM: Final = 0.004
#: Seconds between the beginnings of two rounds under way, at least. The loop's timers cannot keep a shorter time.
SPACING: Final = 0.001
#: Rounds that are remembered for the shortest round trip: so many, and the same once more.
REMEMBERED: Final = 256


class Round:
    """Reads that one question confirms. first: the number of their first question. asked: when it was asked (s)."""

    __slots__ = ("asked", "first", "reads")

    def __init__(self, first: int, reads: list[Any]) -> None:
        self.first = first
        self.reads = reads
        self.asked = math.inf


class RoundTrip:
    """The shortest time that a round has taken of late (seconds); 0 as long as none is known."""

    __slots__ = ("_before", "_counted", "_now", "seconds")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Another leader has another distance."""
        self.seconds = 0.0
        self._before = self._now = math.inf
        self._counted = 0

    def took(self, seconds: float) -> None:
        """One more round took so long."""
        self._now = min(self._now, seconds)
        self.seconds = min(self._before, self._now)
        self._counted += 1
        if self._counted == REMEMBERED:
            self._before, self._now = self._now, math.inf
            self._counted = 0


class ReadRounds(ReadsFields):
    """The reads of `kv` on their way to an answer. `raw` is asked for the index of each round."""

    def __init__(self, raw: RawNode, kv: KVServer) -> None:
        self._raw = raw
        self._kv = kv
        self.rounds: deque[Round] = deque()  # those under way, the oldest first
        self.trip = RoundTrip()
        # The number does not begin at 0: a late answer to a round before a restart must not match a round after it.
        self._number = kv.next_id  # number of the latest question
        self._begun = 0.0  # when the newest round began
        self._again = 0.0  # when the rounds under way are asked for again
        #: When reads that wait for it may begin another round (seconds); None: none waits for this.
        self.begin_at: float | None = None
        # Reads whose round is confirmed and whose index is not applied yet: (index, reads), the oldest first.
        self.confirmed_rounds: deque[tuple[int, list[Any]]] = deque()

    @property
    def waiting(self) -> bool:
        """Whether a round is under way, or a confirmed one waits for its index."""
        return bool(self.rounds or self.confirmed_rounds)

    def unanswered(self) -> list[Any]:
        """The reads of all rounds. This is for another thread, while the member's own one stands still."""
        under_way = [read for one in list(self.rounds) for read in one.reads]
        return under_way + [read for _, reads in list(self.confirmed_rounds) for read in reads]

    def start(self, now: float, leader: int) -> None:
        """Begins a round for all reads that have gathered, if it is time for one, and asks again for the rounds that
        nobody has answered in time.

        While there is no leader (`leader` is 0), no question is sent.
        """
        self.begin_at = None
        fresh = bool(self._kv.reads) and self._may_begin(now)
        if fresh:
            self.rounds.append(Round(self._number + 1, self._kv.take_reads()))
            self._begun = now
        if leader and self.rounds and (fresh or self._again <= now):
            self._ask(now)

    def go_on(self, now: float, leader: int) -> None:
        """A round is over, and other reads wait. Distant members are asked at once. Otherwise something else comes in
        soon, as a rule, and the reads of that turn then share the round: that is a tenth less messages at 1,000 reads a
        second.
        """
        if self.rounds or self.trip.seconds >= SEVERAL_FROM:
            self.start(now, leader)
        else:
            self.begin_at = now + SEVERAL_FROM

    def _may_begin(self, now: float) -> bool:
        """Whether another round may begin; if it may soon, `begin_at` says when."""
        if not self.rounds:
            self._again = now
            return True
        trip = self.trip.seconds
        if trip < SEVERAL_FROM or len(self.rounds) >= READ_ROUNDS:
            return False
        begin_at = self._begun + max(SPACING, trip / READ_ROUNDS)
        if begin_at <= now:
            return True
        self.begin_at = begin_at
        return False

    def _ask(self, now: float) -> None:
        """Sends a question, whose answer serves all rounds under way."""
        self._again = now + READ_RETRY
        self._number += 1
        newest = self.rounds[-1]
        if newest.first == self._number:
            newest.asked = now
        # A leader may refuse for the moment (too many, leadership in doubt); the rounds are then asked for again.
        try:
            self._raw.read_index(self._number.to_bytes(8, "little"), now)
        except (errors.NoLeader, errors.TooManyRequests):
            return

    def ask_again(self, now: float) -> None:
        """Questions were lost, or the leader has changed. The next `start` asks again."""
        self._again = now
        self.trip.forget()

    def confirmed(self, state: ReadState, applied: int, now: float) -> None:
        """The leader has answered a question; `applied` is the last applied entry."""
        number = int.from_bytes(state.request_ctx, "little")
        if not self.rounds or number < self.rounds[0].first:
            # This is a late answer to rounds that were over before the reads of these came in.
            return
        while self.rounds and self.rounds[0].first <= number:
            one = self.rounds.popleft()
            if one.first == number:
                self.trip.took(now - one.asked)
            # An older round may still wait although its index is applied: `passed` comes only with the engine's write,
            # and the engine may be busy. A later round does not go before it.
            self.confirmed_rounds.append((state.index, one.reads))
        self.passed(applied)

    def passed(self, applied: int) -> None:
        """Entry `applied` has been applied: serves the reads that waited for it."""
        while self.confirmed_rounds and self.confirmed_rounds[0][0] <= applied:
            self._kv.serve_reads(self.confirmed_rounds.popleft()[1])

    def give_up(self, error: type[errors.ApiError]) -> None:
        """Fails the reads that wait for their index, because the state will not reach it for some time."""
        while self.confirmed_rounds:
            self._kv.fail_reads(self.confirmed_rounds.popleft()[1], error)

    def fail(self, before: float, error: Callable[[], errors.ApiError]) -> None:
        """Fails the reads that came before this moment (seconds) and still wait for any reason."""
        if not (self.rounds or self.confirmed_rounds or self._kv.reads):
            return
        late: list[Any] = []
        confirmed = (reads for _, reads in self.confirmed_rounds)
        for reads in (*confirmed, *(one.reads for one in self.rounds), self._kv.reads):
            gone = [one for one in reads if one[3] <= before]
            if gone:
                reads[:] = [one for one in reads if one[3] > before]
                late += gone
        if late:
            self.confirmed_rounds = deque(one for one in self.confirmed_rounds if one[1])
            self.rounds = deque(one for one in self.rounds if one.reads)
            self.begin_at = None  # the next `start` finds out whether others still wait for this
            self._kv.fail_reads(late, error)
