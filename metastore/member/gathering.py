"""When the loop looks at its clients while several of them write: more writes then share a group of the log.

A group costs the same whether it holds one write or twenty: a sync, two changes of threads, a turn of the loop, and in
a cluster the same again on each follower. It was 180 us of processor time with 50 connections that write 20,000 times
a second. Therefore the clients' sockets are left alone at two times. While the disk works on a group, nothing that
comes in could be written anyway. When the disk rests, the first that is readable waits `gather_time` for others. Such a
write took 38 us of processor time before, in 0.27 turns and 0.12 groups. With 100 us it takes 26, in 0.14 turns and
0.07 groups, and with 200 us hardly less.

This pays only with clients that write whether or not they are answered. Clients that each wait for their answer come
back by themselves, all at once; ten of them lost a fifth of their rate to it. They are known by the writes that come on
a connection within a round of its last answer (`Limits.returned`). Nor is anybody left alone where groups are large
already, or where one client writes alone.

The disk and the peers wake the loop at all times. Whoever reads waits along with the writers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .._core.member_turn import GatheringFields

if TYPE_CHECKING:
    from .._core.batch import BatchProposer
    from .._core.grpc import Limits
    from ..net.loop import Loop
    from ..storage.wal import Wal

#: The longest that clients are left alone while the disk works on a group (seconds). A quick disk takes 150 us.
AT_MOST: Final = 0.0004
#: What is done is judged anew after so many groups.
JUDGED: Final = 32
#: Groups of fewer writes gain little for the time of those who wait, and groups of many more cost each write little.
FEW: Final = 2
MANY: Final = 64


class Gathering(GatheringFields):
    """Leaves the clients of `loop` alone for moments, by what the log does. `time` is in seconds; 0: never."""

    def __init__(self, loop: Loop, log: Wal, proposer: BatchProposer, limits: Limits, time: float) -> None:
        self._loop = loop
        self._log = log
        self._proposer = proposer
        self._limits = limits
        self._time = time
        #: Whether a group was in the hands of the disk at the end of the last turn.
        self.flying = False
        self._ended = 0  # groups that had ended then
        # What there was of each at the last judgement: groups, writes, requests, and those that came back.
        self._groups = self._writes = self._heard = self._returned = 0

    def turn(self) -> None:
        """Ends a turn of the loop. This is asked only while several writes are in flight, once more after them, and
        while the loop gathers."""
        was, self.flying = self.flying, not self._log.idle
        if not self._time:
            return
        before, self._ended = self._ended, self._log.groups
        self._limits.rounds = self._ended + 2
        if self._ended - self._groups >= JUDGED:
            self._judge(self._ended - self._groups)
        if was and not self.flying:
            self._loop.set_aside(0.0)
        elif self.flying and not (was and self._ended == before):
            # A group began in this turn.
            if self._loop.gather and self._proposer.inflight <= MANY:
                self._loop.set_aside(AT_MOST)

    def _judge(self, groups: int) -> None:
        limits, before = self._limits, (self._writes, self._heard, self._returned)
        self._groups += groups
        self._writes, self._heard, self._returned = self._proposer.ops_out, limits.heard, limits.returned
        writes, heard, returned = self._writes - before[0], self._heard - before[1], self._returned - before[2]
        pays = FEW * groups <= writes <= MANY * groups and 2 * returned < heard
        self._loop.gather = self._time if pays else 0.0
        self._log.tells_all = pays  # because the clients are left alone until the group ends
