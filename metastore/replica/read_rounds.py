"""Linearizable reads: they gather, a round confirms all of them at once, and the applied state serves them.

Pure. A read is linearizable when the member that serves it has applied everything that was committed before the read
came in. One ReadIndex round asks the leader for that index on behalf of every read that has gathered. The reads that
come in meanwhile wait for the next round, so only one round is under way at a time. A confirmed round whose index is
not applied yet waits for it; those rounds are confirmed in the order of their indexes, and served in that order.

A round may be asked for more than once, because its messages may be lost or the leader may change. Each question gets a
number of its own. An answer counts if it belongs to any question of the round that is under way; an answer to an
earlier round says nothing about the reads that have come in since.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from .. import errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._core.kv_server import KVServer
    from .._core.raft import RawNode
    from .._core.raft_types import ReadState

READ_RETRY = 0.5  # seconds until an unanswered read round is asked for again: its messages may be lost


class ReadRounds:
    """The reads of `kv` on their way to an answer. `raw` is asked for the index of each round."""

    def __init__(self, raw: RawNode, kv: KVServer) -> None:
        self._raw = raw
        self._kv = kv
        self.round: list[Any] = []  # the reads of the round under way
        # The number does not begin at 0: a late answer to a round before a restart must not match a round after it.
        self._number = kv.next_id  # number of the latest question
        self._first = 0  # number of the first question of the round under way
        self._again = 0.0  # when that round is asked for again
        # Reads whose round is confirmed and whose index is not applied yet: (index, reads), the oldest first.
        self.confirmed_rounds: deque[tuple[int, list[Any]]] = deque()

    @property
    def waiting(self) -> bool:
        """Whether a round is under way, or a confirmed one waits for its index."""
        return bool(self.round or self.confirmed_rounds)

    def unanswered(self) -> list[Any]:
        """The reads of all rounds. This is for another thread, while the member's own one stands still."""
        return [*self.round, *(read for _, reads in list(self.confirmed_rounds) for read in reads)]

    def start(self, now: float, leader: int) -> None:
        """Begins a round for all reads that have gathered, or repeats the question of the present round when it is
        time.

        While there is no leader (`leader` is 0), no question is sent.
        """
        if not self.round:
            if not self._kv.reads:
                return
            self.round = self._kv.take_reads()
            self._first = self._number + 1
            self._again = now
        if self._again <= now and leader:
            self._again = now + READ_RETRY
            self._number += 1
            # A leader may refuse for the moment (too many, leadership in doubt); the round is then asked for again.
            try:
                self._raw.read_index(self._number.to_bytes(8, "little"), now)
            except (errors.NoLeader, errors.TooManyRequests):
                return

    def ask_again(self, now: float) -> None:
        """The question was lost, or the leader has changed. The next `start` asks again."""
        self._again = now

    def confirmed(self, state: ReadState, applied: int) -> None:
        """The leader has answered a question; `applied` is the last applied entry."""
        if not self.round or int.from_bytes(state.request_ctx, "little") < self._first:
            # This is a late answer to a round that was over before the reads of this one came in.
            return
        # An older round may still wait although its index is applied: `passed` comes only with the engine's write, and
        # the engine may be busy. A later round does not go before it.
        self.confirmed_rounds.append((state.index, self.round))
        self.round = []
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
        late: list[Any] = []
        for reads in (*(reads for _, reads in self.confirmed_rounds), self.round, self._kv.reads):
            gone = [one for one in reads if one[3] <= before]
            if gone:
                reads[:] = [one for one in reads if one[3] > before]
                late += gone
        if late:
            self.confirmed_rounds = deque(one for one in self.confirmed_rounds if one[1])
            self._kv.fail_reads(late, error)
