"""The leader's queue of operations on the roster: judged and proposed one by one.

Pure. All of them share state, the roster: whether one is possible depends on those before it in the log. So each is
judged only when everything that the leader's log held as it came in, and the one proposed before it, is applied here. A
follower may have applied, and told a client of, what the leader has not: a quorum is durable before the leader's own
disk is, and a new leader knows late what is committed. All of that is in the leader's log.

Rosters that differ between members, whatever made them so, are mended by the log too. The leader states its whole
roster (RESTATE) when its term begins, when a member has published itself, as each does at its start, and once in
RESTATE_EVERY. There is no operation on the roster between the state that it tells and its place in the log, so it
changes nothing where all is well; a member whose roster is another one takes it over, and says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from .. import errors
from .._core.batch import frame
from .._core.op import MEMBER, decode_op, encode_op
from .._core.raft_types import ConfChangeError, ProposalDropped
from .roster import ADD, ADD_LEARNER, PROMOTE, PUBLISH, RESTATE, Change, check_healthy

if TYPE_CHECKING:
    from .._core.codec import PayloadCodec
    from .._core.raft import RawNode
    from .roster import Roster

MAX_CHANGES = 100  # changes of the membership that wait for their turn
# Seconds since a leadership began in which a change that others are not heard enough for waits for their connections.
# etcd refuses it for five seconds.
FIRST_CONNECTIONS = 3.0
PROMOTE_RATIO = 0.9  # a learner may become a voter when it has this part of the leader's log (etcd's figure)
RESTATE_EVERY = 3600.0  # seconds


class Asked(NamedTuple):
    """A change that waits until entry `behind` is applied, and not beyond `deadline` (seconds)."""

    behind: int
    sender: int
    operation: bytes
    change: Change
    deadline: float


Refuse = Callable[[int, bytes, errors.ApiError], None]


class Changes:
    """What waits to be judged by this member while it leads. `silent` are members that were not reached lately (the
    driver's own set); `refuse` is told (member that asked, operation, error) of what is surely not logged."""

    def __init__(self, raw: RawNode, roster: Roster, codec: PayloadCodec, silent: set[int], refuse: Refuse) -> None:
        self.raw = raw
        self.roster = roster
        self.codec = codec
        self.silent = silent
        self.refuse = refuse
        self._queue: deque[Asked] = deque()
        self._proposed = 0  # index of the last one in the log
        self._term = 0  # that `_proposed` and `_restate` are of
        self._restate = False
        self._restate_at = 0.0
        self._leads_since = 0.0

    def queue(self, sender: int, operation: bytes, deadline: float) -> None:
        """Have a change of `sender` (perhaps this member) judged in its turn, or forgotten when nobody waits for it any
        more, at `deadline` (seconds). Raises FormatError, TooManyRequests, MemberBadURLs."""
        if len(self._queue) >= MAX_CHANGES:
            raise errors.TooManyRequests()
        change = Change.decode(decode_op(operation).request)
        change.check_size()
        if change.action == RESTATE:
            raise errors.FormatError("membership operation: only a leader states its roster")
        self._queue.append(Asked(self.raw.last_index, sender, operation, change, deadline))

    def drop(self) -> list[Asked]:
        """Somebody else leads, or leads no more: what waited, and is not logged."""
        dropped = list(self._queue)
        self._queue.clear()
        return dropped

    def judge(self, now: float) -> None:
        """Propose or refuse those whose time has come; only on a leader."""
        if self.raw.term != self._term:
            # Anything in the log of a new leader may be an operation on the roster.
            self._term, self._proposed, self._restate = self.raw.term, self.raw.last_index, True
            self._leads_since = now
        elif now >= self._restate_at:
            self._restate = True
        elif not self._queue and not self._restate:
            return
        patient = 0  # how many wait for connections; those behind them go first
        while self.raw.applied >= self._proposed:
            try:
                if self._restate and not self.raw.changing:
                    self._state_roster()
                    self._restate, self._restate_at = False, now + RESTATE_EVERY
                elif patient < len(self._queue) and self._queue[0].behind <= self.raw.applied:
                    patient += self._next(now)
                else:
                    return
            except (ProposalDropped, errors.NotLeader, errors.NoLeader):
                # Leadership is on its way to somebody else, or too much is not committed: it stays first in line.
                return

    def _next(self, now: float) -> bool:
        """Judge the first one; whether it has to wait for connections."""
        asked = self._queue[0]
        if asked.deadline > now:
            try:
                self._propose(asked.operation, asked.change)
            except (ProposalDropped, errors.NotLeader, errors.NoLeader):
                raise
            except errors.Unhealthy as error:
                if now < self._leads_since + FIRST_CONNECTIONS:
                    self._queue.rotate(-1)
                    return True
                self.refuse(asked.sender, asked.operation, error)
            except errors.ApiError as error:
                self.refuse(asked.sender, asked.operation, error)
        self._queue.popleft()
        return False

    def _propose(self, operation: bytes, change: Change) -> None:
        if change.action not in (ADD, ADD_LEARNER):
            self.roster.check(change)
        conf_change = change.conf_change(operation)
        if conf_change is None:
            self._proposed = self.raw.propose(self.codec.encode(frame([operation])))
            self._restate = self._restate or change.action == PUBLISH
            return
        status = self.raw.status()
        # Raft forgets a peer after an election timeout only; its connection tells at once.
        heard = {ident for ident, peer in status.progress.items() if peer.heard}
        active = frozenset(heard - self.silent | {self.raw.id})
        if change.action == PROMOTE:
            progress = status.progress.get(change.member.id)
            if progress is None or progress.match < status.last_index * PROMOTE_RATIO:
                raise errors.LearnerNotReady()
        check_healthy(self.roster, change, active, frozenset(heard | {self.raw.id}))
        self.roster.check(change)
        try:
            self._proposed = self.raw.propose_conf_change(conf_change)
        except ConfChangeError as error:
            raise errors.Unhealthy() from error

    def _state_roster(self) -> None:
        own = self.roster.members.get(self.raw.id)
        if own is None or len(self.roster.members) < 2:
            return
        operation = encode_op(MEMBER, 0, Change(RESTATE, own, self.roster.state).encode())
        self._proposed = self.raw.propose(self.codec.encode(frame([operation])))
