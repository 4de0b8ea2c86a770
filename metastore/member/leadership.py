"""A leader hands leadership to the member that a client names, or to the most suitable one. This belongs to the loop's
thread.
"""

from __future__ import annotations

import logging
from collections.abc import Container
from typing import TYPE_CHECKING

from .. import errors

if TYPE_CHECKING:
    from ..net.loop import Loop
    from ..ports import Done
    from ..replica.driver import Driver
    from ..settings import RaftTable
    from .membership_client import MembershipClient

log = logging.getLogger("metastore.node")


class Leadership:
    """The `api.ports.Leadership` of a member."""

    def __init__(self, raft: RaftTable, driver: Driver, membership: MembershipClient, loop: Loop) -> None:
        self._raft = raft
        self._driver = driver
        self._membership = membership
        self._loop = loop

    def move_leader(self, ident: int, done: Done) -> None:
        """Hands leadership to member `ident`. Calls `done` when that member leads, or when an election timeout is over.
        Raises NotLeader and BadLeaderTransferee.
        """
        driver, loop, raft = self._driver, self._loop, self._raft
        if not driver.is_leader:
            raise errors.NotLeader()
        target = driver.roster.members.get(ident)
        if target is None or target.is_learner:
            raise errors.BadLeaderTransferee()
        driver.raw.transfer_leader(ident)
        deadline = loop.now() + raft.tick_interval * raft.election_ticks

        def look() -> None:
            if driver.leader_id == ident:
                done(None)
            elif loop.now() >= deadline:
                done(errors.TimeoutDueToLeaderFail())
            else:
                loop.call_later(raft.tick_interval / 10, look)

        look()

    def hand_over(self, besides: Container[int] = ()) -> int:
        """Begins to hand leadership to another member that is not in `besides`. Returns its id, or 0 if this member
        does not lead or no other one can.
        """
        successor = self._membership.best_successor(besides) if self._driver.is_leader else 0
        if successor:
            log.info("handing leadership to %s", self._membership.label(successor))
            self._driver.raw.transfer_leader(successor)
        return successor
