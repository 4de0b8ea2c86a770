"""What the services see of a running member: its numbers, and what can be asked of it. Belongs to the loop's thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .. import __version__, errors
from ..api import pb
from ..net.accept import real_address
from ..replica.roster import PROMOTE, REMOVE, UPDATE, Change, Member, check_peer_urls
from ..storage.slow_disk import SLOW
from .membership_client import Done, DoneWith, Outcome

if TYPE_CHECKING:
    from .._core.h2_request import Request
    from ..snapshots.backup_stream import Result as BackupResult
    from .server import Server
    from .upkeep import AlarmsDone, HashDone

NOBODY = (1 << 64) - 1  # stands for an id of 0, which no member has; neither has any this one

#: The read of a health check: a key that is hardly there, so that its cost does not depend on the data.
PROBE = pb.RangeRequest(key=b"health", keys_only=True).SerializeToString()


class View:
    """The `api.NodeView` of a server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def name(self) -> str:
        """The member's name."""
        return self._server.config.node.name

    @property
    def member_id(self) -> int:
        """This member's id."""
        return self._server.identity.member_id

    @property
    def cluster_id(self) -> int:
        """The cluster's id."""
        return self._server.identity.cluster_id

    @property
    def revision(self) -> int:
        """The store's revision."""
        return int(self._server.store.revision)

    @property
    def raft_term(self) -> int:
        """The Raft term."""
        return self._server.driver.term

    @property
    def raft_index(self) -> int:
        """Index of the last committed entry."""
        return int(self._server.raw.status().commit)

    @property
    def applied_index(self) -> int:
        """Index of the last applied entry."""
        return int(self._server.applier.applied_index)

    @property
    def leader_id(self) -> int:
        """The leader's member id; 0 while none is known."""
        return self._server.driver.leader_id

    @property
    def db_size(self) -> int:
        """Bytes the engine takes."""
        return int(self._server.engine.size())

    @property
    def db_size_in_use(self) -> int:
        """Bytes of it that are in use."""
        return int(self._server.engine.size_in_use())

    @property
    def client_addresses(self) -> tuple[str, ...]:
        """What the client port listens on, port 0 resolved."""
        return tuple(self._server.listener.bound)

    @property
    def client_urls(self) -> tuple[str, ...]:
        """Where clients should dial this member: no address that only says "everywhere"."""
        told = self._server.config.advertise.client or self._server.listener.bound
        return tuple(f"http://{where}" for where in dict.fromkeys(map(real_address, told)))

    def members(self) -> Iterable[Member]:
        """The members, as this node has applied them."""
        return [member for _, member in sorted(self._server.roster.members.items())]

    @property
    def quota_bytes(self) -> int:
        """What the engine may take; 0: no limit."""
        return max(0, self._server.upkeep.quota_bytes)

    def alarms(self) -> Iterable[tuple[int, int]]:
        """(member id, alarm): those of all members, and NOSPACE of this one while its disk has no room for the log."""
        return self._server.upkeep.alarms()

    def change_alarm(self, action: int, member: int, alarm: int, done: AlarmsDone) -> None:
        """Raise or clear an alarm everywhere."""
        self._server.upkeep.change_alarm(action, member, alarm, done)

    def defragment(self, done: Done) -> None:
        """Give back the room that is held and not needed."""
        self._server.upkeep.defragment(done)

    def hash_kv(self, revision: int, whole: bool, gone: Callable[[], bool], done: HashDone) -> None:
        """Sum up the state at `revision` (0: now), with all in it that was acknowledged before. Then members that are
        asked after a compaction have all carried it out, and their sums can be compared. Who knows no leader tells what
        it has."""

        def current(error: errors.MetaStoreError | None) -> None:
            if error is None:
                try:
                    self._server.upkeep.hash_kv(revision, whole, gone, done)
                except errors.ApiError as refused:
                    error = refused
            if error is not None:
                done(None, error)

        if self.leader_id:
            self.confirm_read(current)
        else:
            current(None)

    def healthy(self) -> bool:
        """Whether this node serves."""
        return self._server.ready and self._server.drain is None and self.leader_id != 0

    def disk_trouble(self) -> str:
        """What is wrong with the disk of the log; empty if nothing is."""
        took = self._sync_pending()
        return f"a sync of the log has been under way for {took:.1f} s" if took >= SLOW else ""

    def _sync_pending(self) -> float:
        """Seconds for which the log has waited for the disk."""
        since = self._server.wal.sync_pending_since
        return time.monotonic() - since if since is not None else 0.0

    @property
    def is_learner(self) -> bool:
        """Whether this member has no vote."""
        return self._server.learner

    def local_read(self) -> None:
        """Read a key out of what this member has applied. Raises ApiError."""
        self._server.store.range_reply(PROBE)

    def about(self) -> dict[str, Any]:
        """What /status tells of the program and of the other members."""
        server = self._server
        return {
            "version": __version__, "engine": server.config.storage.engine,
            "uptime_seconds": round(time.monotonic() - server.started_at, 3),
            "peers": [self._peer(member) for member in self.members() if member.id != self.member_id],
        }  # fmt: skip

    def _peer(self, member: Member) -> dict[str, Any]:
        peers = self._server.peering.transport
        return {
            "id": f"{member.id:016x}", "name": member.name, "peer_urls": list(member.peer_urls),
            "client_urls": list(member.client_urls), "is_learner": member.is_learner,
            "connected": peers is not None and peers.connected(member.id),
        }  # fmt: skip

    def confirm_read(self, done: Callable[[errors.MetaStoreError | None], object]) -> None:
        """Call `done` when a read is linearizable, or with the error."""
        self._server.kv.confirm(Outcome(done))

    def backup(self, request: Request) -> None:
        """Stream a backup as the answer of `request`. Raises TooManyRequests."""
        self._server.backups.begin(request)

    def fresh(self, done: Callable[[BackupResult], object]) -> None:
        """Call `done` with a snapshot that holds all that was acknowledged before."""

        def confirmed(error: errors.MetaStoreError | None) -> None:
            if error is not None:
                done(error)
            else:
                # Not here: a view must be taken between two applies.
                self._server.loop.call_later(0, lambda: self._server.snapshots.fresh(done))

        self.confirm_read(confirmed)

    def add_member(self, peer_urls: list[str], learner: bool, done: DoneWith) -> None:
        """Add a member. `done` gets Unhealthy when it could not reach us; raises MemberBadURLs."""
        urls = check_peer_urls(peer_urls)

        def listening(error: errors.MetaStoreError | None) -> None:
            if error is not None:
                done(Member(0, "", urls, (), learner), error)
            else:
                self._server.membership.add(urls, learner, done, self._server.loop.now())

        # Now, for once the change is committed there is no way back.
        self._server.peering.listen(listening)

    def remove_member(self, ident: int, done: Done) -> None:
        """Remove a member."""
        self._change(REMOVE, Member(ident or NOBODY, "", (), ()), done)

    def update_member(self, ident: int, peer_urls: list[str], done: Done) -> None:
        """Change a member's peer URLs; raises MemberBadURLs."""
        self._change(UPDATE, Member(ident or NOBODY, "", check_peer_urls(peer_urls), ()), done)

    def promote_member(self, ident: int, done: Done) -> None:
        """Make a learner a voter."""
        self._change(PROMOTE, Member(ident or NOBODY, "", (), ()), done)

    def _change(self, action: str, member: Member, done: Done) -> None:
        self._server.membership.change(Change(action, member), done, self._server.loop.now())

    def move_leader(self, ident: int, done: Done) -> None:
        """Hand leadership to `ident`; raises NotLeader, BadLeaderTransferee."""
        server, raft = self._server, self._server.config.raft
        if not server.driver.is_leader:
            raise errors.NotLeader()
        target = server.roster.members.get(ident)
        if target is None or target.is_learner:
            raise errors.BadLeaderTransferee()
        server.raw.transfer_leader(ident)
        deadline = server.loop.now() + raft.tick_interval * raft.election_ticks

        def look() -> None:
            if server.driver.leader_id == ident:
                done(None)
            elif server.loop.now() >= deadline:
                done(errors.TimeoutDueToLeaderFail())
            else:
                server.loop.call_later(raft.tick_interval / 10, look)

        look()

    def stats(self) -> dict[str, float]:
        """Numbers for /metrics."""
        server, wal, proposer = self._server, self._server.config.wal, self._server.proposer
        log_stats = server.wal.stats()
        numbers = {f"wal_{name}": log_stats.pop(name) for name in ("segments", "first_index")}
        numbers |= {f"wal_{name}_total": value for name, value in log_stats.items()}
        numbers["wal_unsynced_bytes"], numbers["wal_unsynced_seconds"] = server.wal.unsynced
        numbers["wal_sync_pending_seconds"] = self._sync_pending()
        numbers["wal_sync_interval_seconds"] = wal.sync_interval if wal.sync == "async" else 0
        numbers["raft_doubt_term"] = server.raw.doubt
        numbers |= {f"read_ahead_{name}": value for name, value in server.reader.cache.stats().items()}
        numbers |= {f"snapshot_{name}_total": value for name, value in server.snapshots.stats().items()}
        numbers |= {f"kv_{name.lower()}_total": value for name, value in server.kv.call_counts.items()}
        numbers |= server.upkeep.stats()
        return numbers | {
            "kv_refused_total": server.kv.refused,
            "kv_late_requests": server.kv.late,
            "kv_late_bytes": server.kv.queue.held,
            "loop_turns_total": server.loop.turns,
            "loop_turn_seconds_total": server.loop.turn_seconds,
            "loop_longest_turn_seconds": server.loop.longest_turn,
            "loop_slow_turns_total": server.loop.slow_turns,
            "loop_longest_work_seconds": server.loop.longest_work,
            "engine_busy_total": server.driver.engine_busy,
            "inflight_requests": proposer.queued + proposer.inflight,
            "inflight_bytes": proposer.queued_bytes + proposer.inflight_bytes,
            "client_connections": len(server.listener.conns),
            "client_connections_refused_total": server.listener.refused,
            "client_connections_evicted_total": server.listener.evicted,
            "client_request_bytes": server.limits.total_buffered,
            "client_reply_bytes": server.limits.total_output,
            "payload_bytes_before_total": server.codec.bytes_in,
            "payload_bytes_after_total": server.codec.bytes_out,
        }
