"""Membership changes, from the member that receives the request to the change's place in the log of every member.

This module is pure. There are three steps, and a class for each.

`MembershipChanges`: a change that was requested at this member waits for a leader, and for the way to it, like a put.

`Judge`: the leader's queue. All operations on the roster share state, so the earlier ones in the log decide whether a
later one is possible. The leader therefore judges and proposes one operation at a time. Before it does so, it must have
applied two things: every entry that its log held when the operation arrived, and the operation that it proposed before.
A follower may have applied, and told a client of, an operation that the leader has not applied yet: a quorum may be
durable before the leader's own disk is, and a new leader learns late what is committed. All such entries are in the
leader's log.

`CommittedChanges`: every member carries out the committed changes, each at its place in the log.

The log also repairs rosters that differ between members, whatever made them differ. The leader states its whole roster
(RESTATE) when its term begins, when a member has published itself (as each does at its start), and once in
RESTATE_EVERY. No operation on the roster lies between the state that RESTATE describes and its place in the log, so it
changes nothing where the rosters agree. A member with a different roster takes over the leader's and logs this.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, NamedTuple

from .. import errors
from .._core.batch import frame
from .._core.driver_parts import ChangesFields, CommittedFields, JudgeFields
from .._core.op import MEMBER, decode_op, encode_op
from .._core.raft_types import ConfChangeError, ProposalDropped, decode_conf_change
from .peer_link import refusal_code
from .roster import ADD, ADD_LEARNER, PROMOTE, PUBLISH, RESTATE, Change, check_healthy

if TYPE_CHECKING:
    from .._core.codec import PayloadCodec
    from .._core.entry import Entry
    from .._core.mvcc_apply import Applier
    from .._core.raft import RawNode
    from .._core.raft_types import ConfState
    from .._core.waiter import Waiter
    from .peer_link import PeerLink
    from .roster import Roster, RosterState

#: At most so many membership changes wait to be judged, and at most as many wait for a leader.
MAX_CHANGES = 100
# A change needs enough members that answer. In this many seconds after a leadership began, a change waits for their
# connections; etcd refuses it for five seconds.
FIRST_CONNECTIONS = 3.0
PROMOTE_RATIO = 0.9  # a learner may become a voter when it has this part of the leader's log (etcd's figure)
RESTATE_EVERY = 3600.0  # seconds


class Waiting(NamedTuple):
    """A change that waits until entry `behind` is applied, but no longer than `deadline` (seconds)."""

    behind: int
    sender: int
    operation: bytes
    change: Change
    deadline: float


Refuse = Callable[[int, bytes, errors.ApiError], None]


class Judge(JudgeFields):
    """The changes that wait to be judged by this member while it leads.

    `refuse` is called with (requesting member, operation, error) for an operation that is surely not logged. `silent`
    holds the members that have not been reached lately. A leader's `judge` has something to do only if some change is
    `waiting`, the roster must be stated (`restate`, or at `restate_at`), or `term` is not the core's.
    """

    def __init__(self, raw: RawNode, roster: Roster, codec: PayloadCodec, refuse: Refuse) -> None:
        self.raw = raw
        self.roster = roster
        self.codec = codec
        self.refuse = refuse
        self.silent = set()
        self.waiting: deque[Waiting] = deque()
        self._proposed = 0  # index of the last one in the log
        self.term = 0  # the term that `_proposed` and `_restate` belong to
        self.restate = False
        self.restate_at = 0.0
        self._leads_since = 0.0

    def queue(self, sender: int, operation: bytes, deadline: float) -> None:
        """Queues a change of `sender` (perhaps this member) to be judged in its turn.

        The change is dropped when no caller waits for it any more, at `deadline` (seconds). Raises FormatError,
        TooManyRequests, MemberBadURLs.
        """
        if len(self.waiting) >= MAX_CHANGES:
            raise errors.TooManyRequests()
        change = Change.decode(decode_op(operation).request)
        change.check_size()
        if change.action == RESTATE:
            raise errors.FormatError("membership operation: only a leader states its roster")
        self.waiting.append(Waiting(self.raw.last_index, sender, operation, change, deadline))

    def withdraw(self, ids: Collection[int]) -> list[Waiting]:
        """Removes the changes with these request ids, for which nobody waits any more, and returns them."""
        withdrawn = [one for one in self.waiting if decode_op(one.operation).request_id in ids]
        if withdrawn:
            self.waiting = deque(one for one in self.waiting if decode_op(one.operation).request_id not in ids)
        return withdrawn

    def drop(self) -> list[Waiting]:
        """Empties the queue and returns its changes, none of which is logged. Called when this member does
        not lead any more.
        """
        dropped = list(self.waiting)
        self.waiting.clear()
        return dropped

    def judge(self, now: float) -> None:
        """Proposes or refuses the changes that can be judged now. Only a leader calls this."""
        if self.raw.term != self.term:
            # Anything in the log of a new leader may be an operation on the roster.
            self.term, self._proposed, self.restate = self.raw.term, self.raw.last_index, True
            self._leads_since = now
        elif now >= self.restate_at:
            self.restate = True
        elif not self.waiting and not self.restate:
            return
        patient = 0  # how many changes wait for connections; those behind them go first
        while self.raw.applied >= self._proposed:
            try:
                if self.restate and not self.raw.changing:
                    self._state_roster()
                    self.restate, self.restate_at = False, now + RESTATE_EVERY
                elif patient < len(self.waiting) and self.waiting[0].behind <= self.raw.applied:
                    patient += self._next(now)
                else:
                    return
            except (ProposalDropped, errors.NotLeader, errors.NoLeader):
                # A leadership transfer is under way, or too much is uncommitted. The change stays first in line.
                return

    def _next(self, now: float) -> bool:
        """Judges the first change. Returns whether it has to wait for connections."""
        first = self.waiting[0]
        if first.deadline > now:
            try:
                self._propose(first.operation, first.change)
            except (ProposalDropped, errors.NotLeader, errors.NoLeader):
                raise
            except errors.Unhealthy as error:
                if now < self._leads_since + FIRST_CONNECTIONS:
                    self.waiting.rotate(-1)
                    return True
                self.refuse(first.sender, first.operation, error)
            except errors.ApiError as error:
                self.refuse(first.sender, first.operation, error)
        self.waiting.popleft()
        return False

    def _propose(self, operation: bytes, change: Change) -> None:
        if change.action not in (ADD, ADD_LEARNER):
            self.roster.check(change)
        conf_change = change.conf_change(operation)
        if conf_change is None:
            self._proposed = self.raw.propose(self.codec.encode(frame([operation])))
            self.restate = self.restate or change.action == PUBLISH
            return
        status = self.raw.status()
        # Raft notices only after an election timeout that a peer is gone; the peer's connection shows it at once.
        answering = {ident for ident, peer in status.progress.items() if peer.heard}
        active = frozenset(answering - self.silent | {self.raw.id})
        if change.action == PROMOTE:
            progress = status.progress.get(change.member.id)
            if progress is None or progress.match < status.last_index * PROMOTE_RATIO:
                raise errors.LearnerNotReady()
        check_healthy(self.roster, change, active, frozenset(answering | {self.raw.id}))
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


class MembershipChanges(ChangesFields):
    """The changes that were requested at this member and, while this member leads, the changes of all members.

    `waiters` maps request ids to the callers that wait for an operation of this member.
    """

    def __init__(
        self, raw: RawNode, roster: Roster, codec: PayloadCodec, waiters: dict[int, Waiter], link: PeerLink
    ) -> None:
        self._own_id = raw.id
        self._waiters = waiters
        self._link = link
        #: What proposes or refuses the changes whose turn it is. Only a leader has it `judge`.
        self.judging = Judge(raw, roster, codec, self._refuse)
        #: Changes that were requested here and wait for a leader: (operation, deadline in seconds).
        self.requests: deque[tuple[bytes, float]] = deque()

    def ask(self, operation: bytes, deadline: float) -> None:
        """Takes an encoded operation of kind MEMBER, whose waiter is registered already.

        The operation waits until `hand_on` gets a leader. It is dropped when its waiter has been answered. Raises
        TooManyRequests (MAX_CHANGES) when it is surely not logged; the caller then removes the waiter.
        """
        if len(self.requests) >= MAX_CHANGES:
            raise errors.TooManyRequests()
        self.requests.append((operation, deadline))

    def hand_on(self, leader: int) -> None:
        """Passes the changes that were requested here to the leader. `leader` 0 means that there is no leader."""
        while self.requests:
            operation, deadline = self.requests[0]
            if decode_op(operation).request_id in self._waiters:
                if leader == self._own_id:
                    try:
                        self.judging.queue(leader, operation, deadline)
                    except errors.ApiError as error:
                        self._refuse(leader, operation, error)
                elif not leader or not self._link.forward(leader, frame([operation])):
                    return
            self.requests.popleft()

    def take(self, sender: int, operation: bytes, deadline: float) -> None:
        """Queues a change that member `sender` forwarded to this leader, until `deadline` (seconds).

        Raises FormatError, TooManyRequests, MemberBadURLs.
        """
        self.judging.queue(sender, operation, deadline)

    def withdraw(self, ids: Iterable[int]) -> None:
        """Notes that nobody waits for these operations any more. `ids` are request ids of this member or another one.

        The operations that wait here, for a leader or to be judged, are not logged. Other members are told so.
        """
        withdrawn = set(ids)
        for operation, _ in self.requests:
            if (ident := decode_op(operation).request_id) in withdrawn:
                self._waiters.pop(ident, None)  # `hand_on` skips an operation without a waiter
        for change in self.judging.withdraw(withdrawn):
            self._waiters.pop(decode_op(change.operation).request_id, None)
            if change.sender != self._own_id:
                self._refuse(change.sender, change.operation, errors.LeaderChanged())

    def leader_changed(self) -> None:
        """Empties the queue of changes to judge. Our own changes wait for the next leader; all others are refused."""
        for change in self.judging.drop():
            if change.sender == self._own_id:
                # The change never left this member, so it may wait for the next leader.
                self.requests.append((change.operation, change.deadline))
            else:
                self._refuse(change.sender, change.operation, errors.LeaderChanged())

    def lost(self, member: int) -> None:
        """A message to this member was lost. It counts as not answering until a message from it comes in."""
        self.judging.silent.add(member)

    def _refuse(self, sender: int, operation: bytes, error: errors.ApiError) -> None:
        ident = decode_op(operation).request_id
        if sender != self._own_id:
            self._link.refuse(sender, refusal_code(error), [ident])
            return
        waiter = self._waiters.pop(ident, None)
        if waiter is not None:
            waiter.fail(error)


class CommittedChanges(CommittedFields):
    """Carries out the committed changes.

    The applier carries out changes of the roster alone. Changes for which Raft has entries of their own are carried out
    when the driver reaches such an entry. `changed` is called after a change of the roster. `mended` is called with the
    roster that this member had and the one that it took over from the leader.
    """

    def __init__(
        self, raw: RawNode, roster: Roster, applier: Applier, changed: Callable[[], None],
        mended: Callable[[RosterState, RosterState], None],
    ) -> None:  # fmt: skip
        self._raw = raw
        self._roster = roster
        self._applier = applier
        self._changed = changed
        self._mended = mended
        #: A membership that the core must work with before any further entry is applied, or None.
        self.due: ConfState | None = None

    def apply_operation(self, request: bytes) -> bytes:
        """Carries out a committed operation on the roster that is no entry of its own type. The applier calls this."""
        change = Change.decode(request)
        if change.roster is None:
            self._roster.apply(change)
        else:
            self._restate(change.roster)
        self._changed()
        return b""

    def _restate(self, state: RosterState) -> None:
        """Compares the roster with the one that the leader states at this place in the log, and takes that one over."""
        before = self._roster.restate(state)
        if before is None:
            return
        self._mended(before, state)
        if state.conf_state != (self.due or self._raw.conf_state):
            # No later entry is applied before the core works with this membership.
            self.due = state.conf_state
            self._applier.pause = True

    def apply(self, entry: Entry) -> None:
        """Carries out an entry that changes Raft's membership."""
        change = decode_conf_change(entry.type, entry.data)
        if not change.context:
            self._roster.set_conf_state(self._raw.apply_conf_change(change))
            return
        operation = decode_op(change.context)
        try:
            member_change = Change.decode(operation.request)
            self._roster.check(member_change)
            self._roster.apply(member_change, self._raw.apply_conf_change(change))
        except (errors.ApiError, ConfChangeError) as error:
            # The log alone decides this, so it is the same on every node. Raft's membership has not changed either.
            error = error if isinstance(error, errors.ApiError) else errors.Unhealthy()
            self._applier.answer(operation.request_id, error)
            return
        self._changed()
        self._applier.answer(operation.request_id, b"")

    def enter(self) -> None:
        """Lets the core work with the membership that is due."""
        assert self.due is not None, "only called when one is due"
        self._raw.enter_conf(self.due)
        self.due = None

    def replaced(self) -> None:
        """The state and the roster now come from a snapshot; the core works with the snapshot's membership already."""
        self.due = None
        self._roster.load()
        self._changed()
