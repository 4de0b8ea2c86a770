"""When a member ticks, and when it looks around at what else is due.

Raft counts time in ticks (section 9.3 of the Raft dissertation). What a member does now and then beside that, as to
measure its disk and its memory, is a look. An awake member does both at each tick. At rest it saves turns of the loop:
ten ticks a second, with a look each, took 0.5 % of a processor alone and 0.65 % in a cluster that did nothing.

- ALONE: nothing needs a tick. One comes each second, with a look.
- LEADS: the ticks come in time, for the heartbeats. A look comes each second.
- FOLLOWS: a look comes each second. A tick waits up to LATE intervals for the turn that the leader's next heartbeat
  brings, so the two share a turn. No tick is lost. If the leader is gone, each tick is so much late, and the election
  too. It is never early: a tick that is due comes before the heartbeat is received, and counts for the time before it.
  Lease reads (`RaftTable.lease_seconds`) rely on that.

This module is pure: it is told the time, and `call_at` calls back.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Protocol

from .._core.member_turn import TicksFields
from ..net.loop import shared_time

REST = 1.0  # seconds between two looks of a member that rests
LATE = 1.2  # intervals, so that a heartbeat that is a fifth of one late still comes first


class Rest(enum.Enum):
    """What a member at rest can do without; AWAKE is a member that does not rest."""

    AWAKE = 0
    ALONE = 1
    LEADS = 2
    FOLLOWS = 3


class Alarm(Protocol):
    """A call that is still to come."""

    def cancel(self) -> object:
        """It does not come any more."""


class Ticks(TicksFields):
    """The ticks and looks of one member.

    interval: seconds between two ticks. now: the time in seconds. call_at(when, call): calls back at `when`.
    tick(now): one tick of Raft. look(now): whatever else is due. rest: how the member may rest at this moment.
    alarm: when a look is needed in any case (seconds).
    """

    def __init__(
        self, interval: float, now: Callable[[], float], call_at: Callable[[float, Callable[[], object]], Alarm],
        tick: Callable[[float], object], look: Callable[[float], object], rest: Callable[[], Rest],
        alarm: Callable[[], float],
    ) -> None:  # fmt: skip
        self.rest = Rest.AWAKE
        #: Whether the member rests. Then `turn` is to be called in each of its turns.
        self.rests = False
        #: When the next tick is due (seconds).
        self.due = 0.0
        self._interval = interval
        self._now = now
        self._call_at = call_at
        self._tick = tick
        self._look = look
        self._may_rest = rest
        self._alarm = alarm
        self._look_at = 0.0
        self._timer: Alarm | None = None

    def begin(self) -> None:
        """The first tick, at once."""
        self.due = self._now()
        self._run()

    def catch_up(self) -> None:
        """To be called before a Raft message is received."""
        if self.rest is Rest.FOLLOWS and self._now() >= self.due:
            self._run()

    def turn(self, now: float) -> None:
        """A turn of a member that rests: something may have come that needs a tick soon, or a look earlier."""
        if self.rest is Rest.FOLLOWS and now >= self.due:
            self._run()
        elif self._may_rest() is not self.rest:
            self.wake(now)
        elif self.rest is Rest.ALONE and (alarm := self._alarm()) < self.due:
            self._due_at(min(self.due, max(now + self._interval, alarm)))

    def wake(self, now: float) -> None:
        """The rest is over: the next tick comes within an interval, with a look."""
        if self.rests:
            self.rest, self.rests = Rest.AWAKE, False
            self._due_at(max(now, min(self.due, now + self._interval)))

    def _run(self) -> None:
        now, interval = self._now(), self._interval
        self._tick(now)
        if not self.rests or now >= self._look_at or now >= self._alarm():
            self._look_at = shared_time(now, REST)
            self._look(now)
        self.rest = self._may_rest()
        self.rests = self.rest is not Rest.AWAKE
        if self.rest is Rest.ALONE:
            self._due_at(max(now + interval, min(self._look_at, self._alarm())))
        else:
            # After a pause of the process the missed ticks are not made up for. One tick is enough to catch up.
            ahead = 1 - LATE if self.rest is Rest.FOLLOWS else 0.5
            self._due_at(max(self.due + interval, now + ahead * interval))

    def _due_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.due = when
        late = LATE * self._interval if self.rest is Rest.FOLLOWS else 0.0
        self._timer = self._call_at(when + late, self._run)
