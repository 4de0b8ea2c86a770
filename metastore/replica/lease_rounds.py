"""Leases on one member: questions about them on their way to the leader, and what the leader puts into the log.

Pure. Renewals and remaining times are known to the leader alone (`_core/lessor`). All that clients ask a member in one
turn is one `Question`. The leader answers it itself; another member sends it to the leader on the control stream. A
leader answers only after a round of reads that began after the question had come (`read_rounds.py`). So a quorum took
it for the leader after that, and it has applied everything that was committed by then. It may have lost leadership in
that round; then the question goes to the next leader. A question that nobody could answer in `request_timeout` fails.
No answer is ever made of the state of a member that is not sure to lead.

A client that is told of a renewal can rely on its lease for the whole TTL from the moment on when it asked. The next
leader is elected after the round, and gives the lease its TTL again. If the log has a shorter remaining time of the
lease, that is cleared before the client is told (`Lessor`).

What the leader puts into the log goes there as entries of its own, never through the queue of the clients' operations:
that queue is forwarded when leadership is lost, and then a lease would end by the clock of a former leader.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from .. import errors
from .._core.lease_wire import (
    MOST_ASKED,
    RENEW,
    TIME_TO_LIVE,
    decode_answer,
    decode_question,
    encode_answer,
    encode_question,
)
from .._core.leases import MAX_CHECKPOINTS, encode_checkpoint, encode_revoke
from .._core.lessor import Lessor
from .._core.op import LEASE_CHECKPOINT, LEASE_REVOKE, encode_op
from .._core.replica_turn import RoundsFields
from .alarms import CORRUPT

if TYPE_CHECKING:
    from ..ports import Done
    from .driver import Driver

#: Leases that end in a second, at most, and the seconds between two entries of the log about them. While 100,000 ended,
#: the p99 of puts to three members with RocksDB rose from 2.8 to 4.8 ms (two processors, median of five runs). With
#: 60,000 it was 3.8 ms meanwhile, and 4.8 at 24,000 a second (medians of three runs in turn).
EXPIRY_RATE: Final = 20_000
PACE: Final = 0.002
#: Leases that end in one entry of the log, and those that may be on their way through the log at once. A put that comes
#: meanwhile waits until they are applied and told. To apply one takes 3 us with RocksDB, and three times as many in an
#: entry made puts wait longer: their p99 was 6.0 ms in place of 4.5 (60,000 leases, three members, three runs in turn).
#: With 250 and 750 half of the puts waited for 4 to 16 ms of the loop's work (RocksDB, a busy machine), now for 1 to 4.
EXPIRY_BATCH: Final = 80
MOST_ENDING: Final = 160
#: Seconds after which an entry is full at EXPIRY_RATE. While operations of clients are on their way through the log,
#: only full entries follow them. So most of them wait for nothing but the leases that were logged before they came, and
#: the pace stays where some are always on their way. The p90 of puts to three members with RocksDB was 2.7 and 3.4 ms
#: meanwhile in place of 4.2 and 4.9 (80,000 leases, a disk in memory).
FULL: Final = EXPIRY_BATCH / EXPIRY_RATE
#: Where the disk is so slow that leases end so many seconds late, so many times as many end at once. At EXPIRY_RATE
#: 100,000 leases end 4.0 s late. Four times as many ended no sooner where the processors were busy, and a turn of three
#: members with RocksDB took 27 ms once; with twice as many the longest took 5.5 ms.
LATE: Final = 4.2
HASTE: Final = 2
#: Seconds until the log is offered something again that it did not take: because of the moment, or for want of room.
RETRY: Final = 0.05
RETRY_BARRED: Final = 1.0
#: Seconds without news of leases that end, after which more are handed to the log all the same.
PATIENCE: Final = 10.0
#: Seconds until a question is sent again that nobody has answered, or that could not be sent.
ASK_AGAIN: Final = 0.5
SEND_AGAIN: Final = 0.02
#: Leases that a new leader looks at in one turn: 3 ms.
READ_PORTION: Final = 2000
#: Leases that the questions of other members may name together; more are not heard, and asked about again.
MOST_FOREIGN: Final = 100_000
#: Answers that may wait for the same lease before those are looked for whose time is over.
MANY_WAIT: Final = 64


class Question:
    """What clients of one member ask of leases in one turn.

    kind: RENEW or TIME_TO_LIVE. idents: the leases, at most MOST_ASKED. ttls: for each lease what is known of it, or
    None. A renewal has the TTL, 0 if there is no such lease. A question for the time to live has the remaining seconds,
    -1 if there is no such lease; `granted` has the granted TTLs. error: why no more answers come. on_news(question) is
    called whenever `ttls` has more, and once with `error`.
    """

    __slots__ = (
        "deadline", "error", "granted", "idents", "index", "kind", "left", "number", "on_news", "origin", "ttls",
    )  # fmt: skip

    def __init__(self, kind: int, idents: list[int], on_news: Callable[[Question], object]) -> None:
        self.kind = kind
        self.idents = idents
        self.ttls: list[int | None] = [None] * len(idents)
        self.granted = [0] * len(idents) if kind == TIME_TO_LIVE else []
        self.left = len(idents)
        self.error: errors.MetaStoreError | None = None
        self.on_news = on_news
        self.number = 0
        self.deadline = math.inf
        self.origin = 0  # the member that asks; 0: this one
        self.index = 0  # the entry that this member must have applied before the answer may be shown

    def open_places(self) -> Sequence[int]:
        """The places of the leases of which nothing is known yet."""
        if self.left == len(self.idents):
            return range(self.left)
        return [place for place, ttl in enumerate(self.ttls) if ttl is None]


class LeaseRounds(RoundsFields):
    """All that one member does for leases beside applying what the log says of them.

    lessor: the clock, which hears of the applied state. confirm(done): calls `done` when a round of reads has confirmed
    the leader and its index is applied, or with an error. extend: seconds that each lease gets on top when a leader
    begins. Times are in seconds, on the clock of the owner.
    """

    def __init__(
        self,
        driver: Driver,
        lessor: Lessor,
        confirm: Callable[[Done], object],
        *,
        extend: float,
        request_timeout: float,
    ) -> None:
        self._driver = driver
        self._kv = driver.kv
        self._leases = driver.applier.store.leases
        self._lessor = lessor
        self._confirm = confirm
        self._extend = extend
        self._timeout = request_timeout
        self._term = 0  # in which the clock runs
        self._leader = 0  # to whom the open questions went
        self._number = driver.kv.next_id  # of questions; a late answer to one of an earlier run meets none
        self._open: dict[int, Question] = {}  # of this member, by number, the oldest first
        self._foreign: dict[tuple[int, int], Question] = {}  # by member and number, the oldest first
        self._foreign_leases = 0
        self._asked: list[Question] = []  # that this leader has not begun a round for
        self._confirmed: list[Question] = []
        self._unconfirmed: list[Question] = []
        self._waiting: dict[int, list[tuple[Question, int]]] = {}  # by lease: for its end, or its cleared checkpoint
        self._behind: list[Question] = []  # answered by a leader that has applied more than this member
        self._propose_at = 0.0
        self._proposed_at = 0.0  # when the log took something
        self._paced_at = 0.0  # when something was to be proposed
        self._again = math.inf  # when questions are sent again
        self.renewed_total = 0
        #: While this is (leader, term) of the driver, and there is no lease, `gather`, `turn` and `next_turn` have
        #: nothing to do. `turn` sets it. Whoever brings work sets it to None: `ask`, `receive_question`,
        #: `receive_answer` and `_round_over`.
        self.rests_in = None

    # ---- for this member and the others

    @property
    def open_leases(self) -> int:
        """How many leases the open questions of this member name."""
        return sum(len(question.idents) for question in self._open.values())

    def ask(self, question: Question, now: float) -> None:
        """Answer a question of this member's clients."""
        self.rests_in = None
        if not self._open:
            self._leader = self._driver.leader_id
        self._number += 1
        question.number, question.deadline = self._number, now + self._timeout
        self._open[question.number] = question
        self._route(question, now)

    def receive_question(self, sender: int, data: bytes, now: float) -> None:
        """Another member asks. Raises FormatError."""
        self.rests_in = None
        kind, number, idents = decode_question(data)
        if not self._driver.is_leader:
            return  # it asks again when it knows of another leader, or after a while
        known = self._foreign.get((sender, number))
        if known is not None:
            self._tell(known, [place for place, ttl in enumerate(known.ttls) if ttl is not None])
            return
        if self._foreign_leases + len(idents) > MOST_FOREIGN:
            return
        question = Question(kind, idents, lambda _question: None)
        question.origin, question.number, question.deadline = sender, number, now + self._timeout
        self._foreign[sender, number] = question
        self._foreign_leases += len(idents)
        self._asked.append(question)

    def receive_answer(self, data: bytes) -> None:
        """A leader answers a question of this member. Raises FormatError."""
        self.rests_in = None
        kind, number, index, found = decode_answer(data)
        question = self._open.get(number)
        if question is None or question.kind != kind:
            return  # it came too late
        for place, ttl, granted in found:
            if place >= len(question.idents):
                raise errors.FormatError(f"questions about leases: an answer about lease {place} of a question")
            if question.ttls[place] is None:
                question.ttls[place] = ttl
                question.left -= 1
                if kind == TIME_TO_LIVE:
                    question.granted[place] = granted
        if kind == TIME_TO_LIVE:
            question.index = max(question.index, index)
        self._behind.append(question)

    # ---- one turn: `gather` comes before the driver's pump, `turn` behind it

    def gather(self, now: float) -> None:
        """Put into the log what is due, and begin a round for what was asked."""
        self._play_role(now)
        if self._lessor.leading:
            due = self._lessor.next_due()
            if due is not None and due <= now and now >= self._ready_at():
                self._propose(now)
        if self._open and (self._leader != self._driver.leader_id or now >= self._again):
            self._ask_again(now)
        if self._asked:
            questions, self._asked = self._asked, []
            self._confirm(partial(self._round_over, questions))

    def turn(self, now: float) -> None:
        """Answer what can be answered now."""
        self._play_role(now)
        if self._lessor.leading or self._lessor.busy:
            self._lessor.step(now, READ_PORTION)
        if self._confirmed:
            questions, self._confirmed = self._confirmed, []
            for question in questions:
                if question.error is None:
                    self._answer(question, question.open_places(), now)
        if self._unconfirmed:
            questions, self._unconfirmed = self._unconfirmed, []
            for question in questions:
                self._give_back(question, now)
        if self._waiting:
            self._go_on(now)
        if self._behind:
            self._show()
        self._expire(now)
        self.rests_in = self._may_rest()

    def _may_rest(self) -> tuple[int, int] | None:
        """See `rests_in`."""
        driver, lessor = self._driver, self._lessor
        busy = (
            self._open or self._foreign or self._asked or self._confirmed or self._unconfirmed or self._waiting
            or self._behind or self._leases.count or lessor.busy or lessor.next_due() is not None
        )  # fmt: skip
        # A leader that has not applied its first entry gets its role later.
        if busy or (driver.is_leader and not lessor.leading):
            return None
        return driver.leader_id, driver.term

    def next_turn(self, now: float) -> float | None:
        """When `gather` must be called although nothing comes in (seconds); None if it need not."""
        if self._asked or self._lessor.busy:
            return now
        times = []
        if self._lessor.leading:
            due = self._lessor.next_due()
            if due is not None:
                times.append(max(due, self._ready_at()))
        if self._open:
            times += [self._again, next(iter(self._open.values())).deadline]
        return min(times, default=None)

    def stop(self, error: Callable[[], errors.MetaStoreError]) -> None:
        """Fail all open questions of this member with `error()`."""
        for question in list(self._open.values()):
            self._fail(question, error())

    def stats(self) -> dict[str, float]:
        """Numbers for /metrics."""
        return {
            "leases": self._leases.count,
            "lease_renewed_total": self.renewed_total,
            "lease_expired_total": self._lessor.expired_total,
            "lease_questions": len(self._open) + len(self._foreign),
        }

    # ---- leading

    def _play_role(self, now: float) -> None:
        """The clock runs in the term in which this member leads, once it has applied what earlier leaders logged."""
        driver, lessor = self._driver, self._lessor
        leads = driver.is_leader and driver.applier.applied_index >= driver.raw.term_start
        if leads and self._term != driver.term:
            self._end_role()
            self._term = driver.term
            lessor.lead(now, self._extend)
        elif not leads and lessor.leading:
            self._end_role()

    def _end_role(self) -> None:
        self._term = 0
        self._lessor.follow()
        # The members that asked ask the next leader; the questions of this one are open until then.
        self._foreign.clear()
        self._foreign_leases = 0
        self._waiting.clear()
        self._leader = 0

    def _ready_at(self) -> float:
        """When the next entry may be proposed (seconds)."""
        clients = self._driver.proposer
        if clients.queued or clients.inflight:
            return max(self._propose_at, self._paced_at + FULL)
        return self._propose_at

    def _propose(self, now: float) -> None:
        """Put checkpoints and the end of leases into the log, as much as it should take now."""
        kv, lessor = self._kv, self._lessor
        self._propose_at = now + PACE
        if kv.closed_to_writes is not None or self._driver.applier.barred & CORRUPT:
            self._propose_at = now + RETRY_BARRED
            return
        pairs = lessor.checkpoints(now, MAX_CHECKPOINTS)
        haste = HASTE if lessor.late(now) > LATE else 1
        # Where turns of the loop take longer than PACE, an entry has more leases.
        some = min(round(EXPIRY_RATE * (now - self._paced_at)), haste * EXPIRY_BATCH)
        self._paced_at = now
        room = min(some, haste * MOST_ENDING - lessor.ending)
        if room <= 0 and now >= self._proposed_at + PATIENCE:
            room = EXPIRY_BATCH
        idents = lessor.due(now, room) if room > 0 else []
        if not pairs and not idents:
            return
        requests = [(LEASE_CHECKPOINT, encode_checkpoint(pairs))] if pairs else []
        requests += [(LEASE_REVOKE, encode_revoke(ident, True)) for ident in idents]
        try:
            for kind, request in requests:
                kv.check_forwarded(kind, request)
            # Nobody waits for these operations, so none has a request id.
            if self._driver.propose([encode_op(kind, 0, request) for kind, request in requests]):
                self._proposed_at = now
                return
            self._propose_at = now + RETRY
        except errors.ApiError:
            self._propose_at = now + RETRY_BARRED
        lessor.unlogged(pairs)
        lessor.put_back(idents)

    # ---- questions

    def _route(self, question: Question, now: float) -> None:
        """Have the leader answer a question of this member."""
        driver = self._driver
        if driver.is_leader:
            self._asked.append(question)
            return
        self._again = min(self._again, now + ASK_AGAIN)
        if not driver.leader_id or not driver.link.lease(
            driver.leader_id, True, encode_question(question.kind, question.number, question.idents)
        ):
            self._again = min(self._again, now + SEND_AGAIN)

    def _round_over(self, questions: list[Question], error: errors.MetaStoreError | None) -> None:
        """Without an error, this member led after the questions had come, and has applied what was committed by then.
        Or another one led: `_answer` sees to that."""
        self.rests_in = None
        if error is None:
            self._confirmed += questions
        else:
            self._unconfirmed += questions

    def _ask_again(self, now: float) -> None:
        """The leader has changed, or an answer is late. To renew a lease twice does no harm."""
        self._leader = self._driver.leader_id
        self._again = math.inf
        begun = {question.number for question in self._asked if not question.origin}
        for question in list(self._open.values()):
            if question.left and question.number not in begun:
                self._route(question, now)

    def _give_back(self, question: Question, now: float) -> None:
        """This member was not confirmed as the leader."""
        if question.origin:
            self._forget(question)
        elif question.number in self._open:
            self._again = min(self._again, now + SEND_AGAIN)

    def _answer(self, question: Question, places: Sequence[int], now: float) -> None:
        """Answer for the leases at these places, if this member leads."""
        lessor = self._lessor
        if not lessor.leading:
            self._give_back(question, now)
            return
        whole = len(places) == len(question.idents)
        idents = question.idents if whole else [question.idents[at] for at in places]
        if question.kind == TIME_TO_LIVE:
            found = [lessor.remaining(ident, now) for ident in idents]
        else:
            found = lessor.renew(idents, now)
        told = places
        if whole and question.left == len(idents) and (question.kind == TIME_TO_LIVE or min(found, default=0) >= 0):
            # Nearly all questions are answered at once. One lease after the other took a third of a renewal.
            question.ttls, question.left = [*found], 0
        else:
            told = [place for place, ttl in zip(places, found, strict=True) if self._note(question, place, ttl)]
        if question.kind == TIME_TO_LIVE:
            for place in told:
                question.granted[place] = self._leases.ttl(question.idents[place])
        else:
            self.renewed_total += len(told)
        self._tell(question, told)

    def _note(self, question: Question, place: int, ttl: int) -> bool:
        """Note what the clock says of the lease at a place. Whether that is something to tell."""
        if ttl < 0 and question.kind == RENEW:
            self._wait(question, place)
            return False
        if question.ttls[place] is not None:
            return False
        question.ttls[place] = ttl
        question.left -= 1
        return True

    def _wait(self, question: Question, place: int) -> None:
        """Answer this later: for its lease something is on its way through the log."""
        waiting = self._waiting.setdefault(question.idents[place], [])
        if len(waiting) >= MANY_WAIT:
            waiting[:] = [one for one in waiting if one[0].error is None]
        waiting.append((question, place))

    def _go_on(self, now: float) -> None:
        """Leases have ended, or are cleared of their checkpoints: answer those who waited for that."""
        for ident in self._lessor.take_news():
            for question, place in self._waiting.pop(ident, ()):
                if question.ttls[place] is None and question.error is None:
                    self._answer(question, [place], now)

    def _tell(self, question: Question, places: Sequence[int]) -> None:
        """Hand on what is known of the leases at these places."""
        if not places:
            return
        if question.origin:
            applied = self._driver.applier.applied_index
            granted = question.granted or [0] * len(question.idents)
            told = [(place, ttl, granted[place]) for place in places if (ttl := question.ttls[place]) is not None]
            self._driver.link.lease(
                question.origin, False, encode_answer(question.kind, question.number, applied, told)
            )
            if not question.left:
                self._forget(question)
            return
        if not question.left:
            self._open.pop(question.number, None)
        question.on_news(question)

    def _show(self) -> None:
        """Show answers of a leader, where this member has applied as much as it had."""
        applied = self._driver.applier.applied_index
        behind, self._behind = self._behind, []
        for question in behind:
            if question.error is not None:
                continue
            if question.index > applied:
                self._behind.append(question)
                continue
            if not question.left:
                self._open.pop(question.number, None)
            question.on_news(question)

    def _forget(self, question: Question) -> None:
        if self._foreign.pop((question.origin, question.number), None) is not None:
            self._foreign_leases -= len(question.idents)

    def _expire(self, now: float) -> None:
        """Fail the questions whose time is over."""
        while self._open:
            question = next(iter(self._open.values()))
            if question.deadline > now:
                break
            self._fail(question, errors.Timeout())
        while self._foreign:
            question = next(iter(self._foreign.values()))
            if question.deadline > now:
                break
            question.error = errors.Timeout()
            self._forget(question)

    def _fail(self, question: Question, error: errors.MetaStoreError) -> None:
        self._open.pop(question.number, None)
        question.error = error
        question.on_news(question)


def portions(idents: list[int]) -> list[list[int]]:
    """Lists that a question may name, in their order."""
    return [idents[at : at + MOST_ASKED] for at in range(0, len(idents), MOST_ASKED)]
