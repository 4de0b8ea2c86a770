"""What leaders have told the others of the commit index.

A leader may hold a commit index back for a moment, but not for long. It may not say that a read waits for an index that
it has not told the reader of, and it must tell a member of its removal before it knows that member no more. Nothing is
asked where the leader is paused, where the other may not be sent anything now, and where the other lacks entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from metastore._core.raft_types import MsgApp, MsgHeartbeat, MsgReadIndexResp, ProgressState

if TYPE_CHECKING:
    from .node import Member

CARRIERS = (int(MsgApp), int(MsgHeartbeat))
READ_ANSWER = int(MsgReadIndexResp)
#: Seconds for which a leader may hold back a commit index: 10 ms, and what a simulated turn may come too late.
LONGEST = 0.05


class Tidings:
    """All leaders of one simulation, which may each look back only on its own term. `fail` is called with a text."""

    def __init__(self, fail: Any) -> None:
        self._fail = fail
        # (leader, other member) -> (term, the highest commit index that a message to it had)
        self._told: dict[tuple[int, int], tuple[int, int]] = {}
        # (leader, other member) -> (term, since when that member might have been told of more, in seconds)
        self._owed: dict[tuple[int, int], tuple[int, float]] = {}

    def _known(self, member: Member, other: int) -> int:
        term, commit = self._told.get((member.id, other), (0, 0))
        return commit if term == member.raw.term else 0

    def sending(self, member: Member, messages: Iterable[Any]) -> None:
        """The messages of one Ready leave."""
        for message in messages:
            if message.type in CARRIERS and message.commit > self._known(member, message.to):
                self._told[member.id, message.to] = (message.term, message.commit)
                term, since = self._owed.pop((member.id, message.to), (0, 0.0))
                if term == message.term and member.clock.now - max(since, member.stood_still) > LONGEST:
                    self._fail(f"leader {member.id} has held a commit index back from {message.to} since {since:.3f}")
        for message in messages:
            if message.type == READ_ANSWER and message.index > self._known(member, message.to):
                progress = member.raw.status().progress.get(message.to)
                if progress is not None and level(member, progress):
                    self._fail(f"leader {member.id} has not told {message.to} of {message.index}, where a read waits")

    def observe(self, member: Member) -> None:
        """A turn has ended: note who might have been told of more."""
        raw = member.raw
        if not raw.is_leader:
            return
        others = {*raw.conf_state.voters, *raw.conf_state.learners} - {member.id}
        behind = {other for other in others if self._known(member, other) < raw.commit}
        progress = raw.status().progress if behind else {}
        for other in others:
            if other not in behind or not level(member, progress[other]):
                self._owed.pop((member.id, other), None)
            elif self._owed.get((member.id, other), (0, 0.0))[0] != raw.term:
                self._owed[member.id, other] = (raw.term, member.clock.now)

    def removed(self, member: Member, before: dict[int, Any], index: int) -> None:
        """Entry `index` has removed some of those whose progress was `before`."""
        conf = member.raw.conf_state
        stay = {member.id, *conf.voters, *conf.voters_outgoing, *conf.learners, *conf.learners_next}
        for other in before.keys() - stay:
            one = before[other]
            if one.match >= index and level(member, one) and self._known(member, other) < index:
                self._fail(f"leader {member.id} has not told {other} of its removal in entry {index}")


def level(member: Member, progress: Any) -> bool:
    """Whether this member may be sent anything now, and has been sent all that is committed."""
    return (
        progress.state == ProgressState.StateReplicate and not progress.is_paused and progress.next > member.raw.commit
    )
