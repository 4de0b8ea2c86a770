"""Members compare the sums of their data, as `metastore/member/corruption.py` has them do.

The rounds, the sums and the judgement are the real ones, and each slice of a sum is an event of its own. What comes of
it is not: who is found to differ is told to the cluster, where a violation is the answer, and no alarm is raised.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from metastore._core.op import LEVEL
from metastore.member.corruption import CorruptionCheck
from metastore.member.hash_sums import HashSums

if TYPE_CHECKING:
    from .node import Member

PATIENCE = 1.0  # seconds that a round waits for answers; nobody sends a lost one again


class SimCheck(CorruptionCheck):
    """The comparison of one member in one of its lives."""

    def __init__(self, member: Member) -> None:
        self._of = member
        loop: Any = SimpleNamespace(now=member.now, call_later=member.later)
        alarms: Any = SimpleNamespace(raised=frozenset(), change_alarm=self._accuse)
        super().__init__(
            member.cluster.settings.compare, member.id, member.driver,
            HashSums(member.engine, member.driver, loop, lambda: None), alarms, self._peers, self._say, str,
        )  # fmt: skip

    def _peers(self) -> Iterable[tuple[int, int]]:
        return [(ident, LEVEL) for ident in self._of.roster.members if ident != self._of.id]

    def _say(self, to: int, tag: int, data: bytes) -> bool:
        return self._of.post(to, "news", (tag, data), zlib.crc32(data, tag))

    def _accuse(self, _action: int, accused: int, _kind: int, _done: object) -> None:
        self._of.cluster.accused(self._of, accused)

    def _begin(self, now: float) -> None:
        super()._begin(now)
        if self._round is not None:
            self._round.until = now + PATIENCE

    def _end(self, current: Any) -> None:
        own = current.sums[self._member]
        comparable = [
            one for one in current.sums.values() if (one.revision, one.compacted) == (own.revision, own.compacted)
        ]
        self._of.cluster.checker.count("compared", len(comparable) > 1)
        super()._end(current)
