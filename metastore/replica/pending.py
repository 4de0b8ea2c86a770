"""Operations that wait for their outcome: forwards to the leader, refusals, deadlines, and back pressure.

This module is pure. Every waiting operation is answered exactly once, by the first of these events. The operation is
applied here, wherever it was proposed. Or the leader refuses it, and then it was surely not logged. Or it times out or
the leader changes; then it may have been logged, and it is never sent again. The applier handles the first event, and
this module handles the others.

Request ids rise, and `kv.waiters` keeps them in order. A single id therefore separates the operations that came before
a moment from those that came later, and no operation needs a deadline of its own.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import errors
from .._core.driver_accounts import PendingBatches
from .._core.kv_server import fail_each
from .._core.leases import decode_revoke
from .._core.op import LEASE_CHECKPOINT, LEASE_REVOKE, MEMBER, decode_op
from .peer_link import refusal_code, refusal_type

if TYPE_CHECKING:
    from .._core.batch import BatchProposer
    from .._core.kv_server import KVServer
    from .peer_link import PeerLink
    from .read_rounds import ReadRounds

LAST = (1 << 64) - 1  # no entry has a higher index
LEADER_GRACE = 1.0  # seconds that operations may still be applied after the leader they went to is gone

#: Takes a forwarded change of the membership: (member that asks, operation, deadline in seconds). Raises ApiError.
TakeChange = Callable[[int, bytes, float], None]


class Pending(PendingBatches):
    """Accounts for operations that are proposed or forwarded but not yet applied, and times out those that wait too
    long.

    `request_timeout` is in seconds. `take_change` gets the membership changes that other members forward.
    """

    def __init__(
        self, kv: KVServer, proposer: BatchProposer, link: PeerLink, reads: ReadRounds, take_change: TakeChange,
        request_timeout: float,
    ) -> None:  # fmt: skip
        super().__init__(kv, proposer)
        self._link = link
        self._reads = reads
        self._take_change = take_change
        self._request_timeout = request_timeout
        # Deadlines of waiting writes: (deadline, all request ids below this).
        self._marks: deque[tuple[float, int]] = deque()
        # Deadlines of operations whose leader is gone: (deadline, all request ids below this).
        self._orphans: deque[tuple[float, int]] = deque()

    # ---- on the way to the log

    def forward(self, leader: int, now: float) -> None:
        """Sends the queued operations to the leader, which does the batching. Only operations that were
        never sent go out.
        """
        proposer = self._proposer
        while (batch := proposer.take(now, True, True)) is not None:
            if not self._link.forward(leader, batch):
                # The batch was surely not sent, so it may wait for this leader's connection, or for the next leader.
                proposer.untake()
                return
            self._forwarded.add(self._kv.next_id)

    def _pass_on(self, data: bytes, kind: int, now: float) -> None:
        """Another member forwards an operation to this one, which does not lead. Raises ApiError."""
        if kind == MEMBER:
            raise errors.LeaderChanged()
        # The sender does not know yet that leadership has moved. The operation goes on to the leader that this member
        # knows of, or waits for one. It cannot go round in a circle: a member's known leader has led in that member's
        # term, and passes the operation on only to the leader of a later term.
        self._proposer.add(data, now)

    def _takes_itself(self, sender: int, data: bytes, now: float) -> bool:
        """Whether a forwarded operation of a rare kind is taken here. Otherwise it goes the way of the others. Raises
        ApiError."""
        operation = decode_op(data)
        if operation.kind == LEASE_CHECKPOINT or (
            operation.kind == LEASE_REVOKE and decode_revoke(operation.request)[1]
        ):
            # Only a leader says that the time of a lease is over, and only by its own clock.
            raise errors.LeaderChanged()
        if operation.kind == MEMBER:
            self._take_change(sender, data, now + self._request_timeout)
        return operation.kind == MEMBER

    def _refuse(self, sender: int, refused: list[tuple[errors.ApiError, int]]) -> None:
        """Tells a member why operations that it forwarded are not logged."""
        codes: dict[int, list[int]] = {}
        for error, ident in refused:
            codes.setdefault(refusal_code(error), []).append(ident)
        for code, ids in codes.items():
            self._link.refuse(sender, code, ids)

    def receive_refusal(self, code: int, ids: list[int]) -> None:
        """The leader did not log these operations of ours."""
        found = [self._kv.waiters.pop(ident, None) for ident in ids]
        fail_each([waiter for waiter in found if waiter is not None], refusal_type(code))
        self._settle_forwarded()

    def withdraw(self, ids: list[int], leader: int, member: int) -> None:
        """Nobody waits for these operations any more: those that are in no log yet must not get there.

        What is queued here is dropped. `leader` is the member to which operations are forwarded now, or 0; it hears of
        this on the way that the operations took, so it drops what it has not logged yet. `member` is the other member
        that the operations came from, or 0.
        """
        self._proposer.drop(ids, self._kv.waiters, member)
        if leader:
            self._link.withdraw(leader, ids)

    def confirm_withdrawals(self) -> None:
        """Refuses the operations of other members that were dropped from the queue, so their members stop counting
        them.
        """
        removed: dict[int, list[int]] = {}
        for member, ident in self._proposer.removed:
            removed.setdefault(member, []).append(ident)
        self._proposer.removed.clear()
        for member, ids in removed.items():
            self._link.refuse(member, refusal_code(errors.LeaderChanged()), ids)

    # ---- outcomes

    def leader_lost(self, now: float) -> None:
        """The known leader is gone. The next leader may still commit what was sent to it, so those
        operations get a little time.
        """
        self._orphans.append((now + LEADER_GRACE, self._kv.next_id))
        self._proposed.release(LAST)

    def expire(self, now: float, leader: int) -> list[int]:
        """Answers the callers whose timeout has passed. Returns the request ids of their operations.

        Each has then waited for `request_timeout`, plus at most the time between two calls of this method. `leader` is
        the leader that this member knows of, or 0.
        """
        late: list[int] = []
        self._marks.append((now + self._request_timeout, self._kv.next_id))
        while self._orphans and self._orphans[0][0] <= now:
            limit = self._orphans.popleft()[1]
            if leader:
                late += self._fail_writes(limit, errors.LeaderChanged)
        while self._marks and self._marks[0][0] <= now:
            late += self._fail_writes(self._marks.popleft()[1], errors.Timeout)
        # Request ids rise with admission. What waited for its turn before that came earlier than its id says.
        late += self._fail(self._kv.overdue(now - self._request_timeout), errors.Timeout)
        self._reads.fail(now - self._request_timeout, errors.Timeout)
        self._kv.expire(now, self._request_timeout)
        if self._forwarded.count:
            self._settle_forwarded()
        return late

    def abandon(self, cause: BaseException | None = None) -> None:
        """Answer all callers that still wait, because of `cause`. A write may have been logged, so its answer must
        leave the outcome open. A read was surely not served."""
        try:
            self._fail_writes(self._kv.next_id, errors.caused(errors.Timeout, cause))
        finally:
            self._reads.fail(math.inf, errors.caused(errors.Stopped, cause))

    def _fail_writes(self, below: int, error: Callable[[], errors.ApiError]) -> list[int]:
        """Fail the callers with request ids below `below`, and return these ids. They come first, because ids rise and
        dicts keep their order."""
        waiters = self._kv.waiters
        late = []
        for ident in waiters:
            if ident >= below:
                break
            late.append(ident)
        return self._fail(late, error)

    def _fail(self, late: list[int], error: Callable[[], errors.ApiError]) -> list[int]:
        """Answer those who wait with these request ids, and return the ids."""
        if late:
            fail_each([self._kv.waiters.pop(ident) for ident in late], error)
        return late
