"""A member describes itself and the other members. This belongs to the loop's thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..storage.slow_disk import SLOW

if TYPE_CHECKING:
    from .._core.engine import Engine
    from ..config import Config
    from ..replica.driver import Driver
    from ..replica.roster import Identity, Member
    from ..storage.wal import Wal
    from .membership_client import MembershipClient


class MemberStatus:
    """The `api.ports.Status` of a member.

    quota_bytes: the bytes that the store may take, 0 for no limit.
    connected: whether the control stream to a member is open.
    started_at: the time when this process began (time.monotonic()).
    """

    def __init__(
        self,
        config: Config,
        identity: Identity,
        engine: Engine,
        driver: Driver,
        membership: MembershipClient,
        quota_bytes: int,
        connected: Callable[[int], bool],
        started_at: float,
    ) -> None:
        self.name = config.node.name
        self.member_id = identity.member_id
        self.cluster_id = identity.cluster_id
        self.quota_bytes = quota_bytes
        self._engine_name = config.storage.engine
        self._engine = engine
        self._driver = driver
        self._membership = membership
        self._connected = connected
        self._started_at = started_at

    @property
    def is_learner(self) -> bool:
        """Whether this member has no vote."""
        return self._membership.learner

    @property
    def revision(self) -> int:
        """The store's revision."""
        return self._driver.applier.store.revision

    @property
    def raft_term(self) -> int:
        """The Raft term."""
        return self._driver.term

    @property
    def raft_index(self) -> int:
        """The index of the last committed entry."""
        return self._driver.raw.status().commit

    @property
    def applied_index(self) -> int:
        """The index of the last applied entry."""
        return self._driver.applier.applied_index

    @property
    def leader_id(self) -> int:
        """The leader's member id; 0 while no leader is known."""
        return self._driver.leader_id

    @property
    def db_size(self) -> int:
        """The bytes that the engine takes."""
        return self._engine.size()

    @property
    def db_size_in_use(self) -> int:
        """The bytes of the engine that are in use."""
        return self._engine.size_in_use()

    def about(self) -> dict[str, Any]:
        """The description of the program and of the other members for /status."""
        state = self._engine.index_state
        counted = {} if state is None else {"engine_counted": state[0], "engine_counted_keys": state[1]}
        others = (member for member in self._membership.members() if member.id != self.member_id)
        return {
            "version": __version__,
            "engine": self._engine_name,
            **counted,
            "uptime_seconds": round(time.monotonic() - self._started_at, 3),
            "peers": [self._peer(member) for member in others],
        }

    def _peer(self, member: Member) -> dict[str, Any]:
        return {
            "id": f"{member.id:016x}",
            "name": member.name,
            "peer_urls": list(member.peer_urls),
            "client_urls": list(member.client_urls),
            "is_learner": member.is_learner,
            "connected": self._connected(member.id),
        }


class MemberServing:
    """The `api.ports.Serving` of a member. `serves` tells whether the member is ready and not stopping, and its engine
    takes writes."""

    def __init__(self, serves: Callable[[], bool], driver: Driver, wal: Wal) -> None:
        self._serves = serves
        self._driver = driver
        self._wal = wal

    def healthy(self) -> bool:
        """Whether this member serves."""
        return self._serves() and self._driver.leader_id != 0

    def disk_trouble(self) -> str:
        """Says what is wrong with the disk of the log; empty if nothing is."""
        took = self._wal.sync_pending_seconds
        return f"a sync of the log has been under way for {took:.1f} s" if took >= SLOW else ""
