"""A member shows, raises and clears alarms with the class of this module, which belongs to the loop's thread."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import errors
from .._core.member_turn import AlarmsFields
from .._core.op import ALARM
from ..replica.alarms import CORRUPT, NAMES, NOSPACE, Alarm, decode_alarms, encode_change
from .membership_client import hand_in
from .waiters import Reply

if TYPE_CHECKING:
    from ..ports import Caller
    from ..replica.driver import Driver

log = logging.getLogger("metastore.upkeep")

AlarmsDone = Callable[[list[Alarm], errors.MetaStoreError | None], object]


class MemberAlarms(AlarmsFields):
    """The `api.ports.Alarms` of a member. The owner calls `turn` at the end of every turn of the loop.

    `member` is this member's id. `disk_full` tells whether its disk has no room for the log; that shows as an alarm of
    this member, too.
    """

    def __init__(self, driver: Driver, member: int, now: Callable[[], float], disk_full: Callable[[], bool]) -> None:
        self._driver = driver
        self._kv = driver.kv
        self._member = member
        self._now = now
        self._disk_full = disk_full
        #: The alarms that the log has named. `turn` has nothing to do while they are the raised ones.
        self.logged = frozenset()

    @property
    def raised(self) -> frozenset[Alarm]:
        """The replicated alarms."""
        return self._driver.applier.alarms.raised

    @property
    def raised_here(self) -> bool:
        """Whether NOSPACE is raised for this member."""
        return (self._member, NOSPACE) in self.raised

    def turn(self) -> None:
        """Logs what has changed."""
        if self.raised != self.logged:
            self._log()

    def _log(self) -> None:
        now = self.raised
        for member, kind in sorted(now - self.logged):
            log.warning("alarm %s raised for member %016x", NAMES[kind], member)
        for member, kind in sorted(self.logged - now):
            log.warning("alarm %s of member %016x cleared", NAMES[kind], member)
        self.logged = now

    def alarms(self) -> list[Alarm]:
        """Returns the replicated alarms, and NOSPACE of this member while its disk has no room for the log."""
        local = {(self._member, NOSPACE)} if self._disk_full() else set()
        return sorted(self.raised | local)

    def change_alarm(
        self, action: int, member: int, alarm: int, done: AlarmsDone, caller: Caller | None = None
    ) -> None:
        """Raises or clears an alarm on all members, for `caller`. `done` gets the alarm if it is or was raised.

        Raises InvalidAlarm.
        """
        request = encode_change(action, member, alarm)

        def answer(reply: bytes, error: errors.MetaStoreError | None) -> None:
            done(decode_alarms(reply) if error is None else [], error)

        hand_in(self._kv, ALARM, request, Reply(answer), lambda op: self._kv.proposer.add(op, self._now()), caller)

    def stats(self) -> dict[str, float]:
        """Numbers for /metrics."""
        return {
            "alarms_nospace": sum(kind == NOSPACE for _, kind in self.raised),
            "alarms_corrupt": sum(kind == CORRUPT for _, kind in self.raised),
            "disk_full": int(self._disk_full()),
        }
