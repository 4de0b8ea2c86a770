"""The members of a cluster compare their data now and then. This belongs to the loop's thread.

The leader takes the sum of its data at its present revision (HashKV), and asks each other member for its sum at that
revision. Sums can be compared if both members have carried out the same compaction. A member whose sum differs gets the
alarm CORRUPT, as in etcd, and all members then refuse writes. Layout of the messages: FORMATS.md, "Sums".
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from .. import errors
from ..peers.stream import SUM_ASKED, SUM_TOLD
from ..replica.alarms import ACTIVATE, CORRUPT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .._core.mvcc_hash import Hasher
    from ..replica.driver import Driver
    from .alarms import MemberAlarms
    from .hash_sums import HashSums

log = logging.getLogger("metastore.upkeep")

ASK: Final = struct.Struct("<QQ")  # number of the round, revision
TELL: Final = struct.Struct("<QQqI")  # number of the round, revision, compact revision, sum
KNOWS: Final = 2  # the operation level of the first version that answers
FIRST: Final = 60.0  # seconds: a new leader begins after this or the interval, whichever is shorter
ROUND: Final = 600.0  # seconds after which a round ends without the answers that are missing
PAUSE: Final = 0.01  # seconds between two slices of a sum, of half a millisecond each


@dataclass(frozen=True, slots=True)
class Sum:
    """The sum of a member's data at a revision, after a compaction."""

    revision: int
    compacted: int
    value: int


@dataclass(slots=True)
class _Round:
    """The members that were asked, and the sums that are there."""

    number: int
    until: float
    waiting: set[int] = field(default_factory=set)
    sums: dict[int, Sum] = field(default_factory=dict)


def differing(leader: int, sums: Mapping[int, Sum]) -> list[int]:
    """The members whose data is wrong, judging by the sums of all members. Sums that cannot be compared with the
    leader's say nothing.

    What most members agree on is taken for right. Where no sum has a majority the leader's is, as in etcd.
    """
    own = sums[leader]
    comparable = {
        member: one.value
        for member, one in sums.items()
        if (one.revision, one.compacted) == (own.revision, own.compacted)
    }
    values = list(comparable.values())
    right = next((value for value in values if 2 * values.count(value) > len(values)), own.value)
    return sorted(member for member, value in comparable.items() if value != right)


class CorruptionCheck:
    """One round of sums after the other, `interval` seconds apart, while this member leads; 0: never.

    others: the ids and operation levels of the other members. tell: sends a message to a member and returns whether it
    was taken. label: a member's name and id for people.
    """

    def __init__(
        self, interval: float, member: int, driver: Driver, sums: HashSums, alarms: MemberAlarms,
        others: Callable[[], Iterable[tuple[int, int]]], tell: Callable[[int, int, bytes], bool],
        label: Callable[[int], str],
    ) -> None:  # fmt: skip
        self._interval = interval
        self._member = member
        self._driver = driver
        self._sums = sums
        self._alarms = alarms
        self._others = others
        self._tell = tell
        self._label = label
        self._due: float | None = None
        self._round: _Round | None = None
        self._number = 0
        self._asked: dict[int, int] = {}  # member -> number of the round in which it last asked for a sum
        self.rounds = self.found = 0

    def tick(self, now: float) -> None:
        """Begin and end rounds at `now` (seconds)."""
        if not self._driver.is_leader or not self._interval:
            self._due = self._round = None
            return
        first = min(self._interval, FIRST)
        if self._due is None:
            self._due = now + first
        current = self._round
        if current is not None:
            if current.sums and (not current.waiting or now >= current.until):
                self._round = None
                self._end(current)
        elif now >= self._due:
            self._due = now + self._interval
            if any(True for _ in self._others()):
                self._begin(now)

    def _begin(self, now: float) -> None:
        self._number += 1
        current = self._round = _Round(self._number, now + ROUND)

        def done(hasher: Hasher | None, error: errors.MetaStoreError | None) -> None:
            if hasher is None or self._round is not current:
                if self._round is current:
                    self._round = None
                log.debug("a check of the members' data was given up: %s", error)
                return
            current.sums[self._member] = Sum(hasher.revision, hasher.compact_revision, hasher.hash)
            ask = ASK.pack(current.number, hasher.revision)
            for other, level in self._others():
                if level >= KNOWS and self._tell(other, SUM_ASKED, ask):
                    current.waiting.add(other)

        try:
            self._sums.hash_kv(0, False, lambda: self._round is not current, done, PAUSE)
        except errors.ApiError as error:
            done(None, error)

    def on_news(self, sender: int, tag: int, data: bytes) -> None:
        """`sender` asks for a sum, or tells its own. Raises FormatError."""
        if tag == SUM_ASKED:
            if len(data) != ASK.size:
                raise errors.FormatError(f"a request for a sum of {len(data)} bytes")
            self._answer(sender, *ASK.unpack(data))
            return
        if len(data) != TELL.size:
            raise errors.FormatError(f"a sum of {len(data)} bytes")
        number, revision, compacted, value = TELL.unpack(data)
        current = self._round
        if current is not None and number == current.number and sender in current.waiting:
            current.waiting.discard(sender)
            current.sums[sender] = Sum(revision, compacted, value)

    def _answer(self, sender: int, number: int, revision: int) -> None:
        """Tell `sender` the sum at a revision. A member that cannot tell it (it has not got there, or is past it) tells
        the sum of nothing, which cannot be compared."""
        self._asked[sender] = number

        def done(hasher: Hasher | None, _error: errors.MetaStoreError | None) -> None:
            found = Sum(0, 0, 0) if hasher is None else Sum(revision, hasher.compact_revision, hasher.hash)
            self._tell(sender, SUM_TOLD, TELL.pack(number, found.revision, found.compacted, found.value))

        try:
            self._sums.hash_kv(revision, False, lambda: self._asked.get(sender) != number, done, PAUSE)
        except errors.ApiError as error:
            done(None, error)

    def _end(self, current: _Round) -> None:
        self.rounds += 1
        own = current.sums[self._member]
        for member in differing(self._member, current.sums):
            self.found += 1
            log.error(
                "the data of member %s differs from that of the others at revision %d: its sum is %08x, that of this "
                "leader is %08x", self._label(member), own.revision, current.sums[member].value, own.value,
            )  # fmt: skip
            if (member, CORRUPT) not in self._alarms.raised:
                self._alarms.change_alarm(ACTIVATE, member, CORRUPT, lambda _alarms, _error: None)

    def stats(self) -> dict[str, float]:
        """Numbers for /metrics."""
        return {"corruption_checks_total": self.rounds, "corruption_found_total": self.found}
