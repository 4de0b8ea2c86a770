"""The Ready driver: the order of persist, send, apply and reply.

Pure: no socket, file, thread or clock. The node drives it with real parts, the simulator with simulated ones;
acknowledgements before sync are born in this order, so there is one copy of it.

One turn (`pump`), see DESIGN "The life of a put":

1. Batches that are due become proposals. An idle disk makes everything due, so a lone client never waits for a
   timer; a busy one lets the next group gather.
2. For every Ready of the Raft core: first its entries go to the log and the disk is started, then its messages go
   out (the core has put nothing into them that depends on what is not yet durable), then committed entries are
   applied, then those who wait are answered. The disk so works on the next group while the finished one is applied.
3. `on_disk` tells the core what is durable. Only then does a sole voter's own vote count, the commit index move, and
   a reply leave.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import errors
from ._core.raftpb import ProposalDropped

if TYPE_CHECKING:
    from ._core.apply import Applier
    from ._core.batch import BatchProposer
    from ._core.codec import PayloadCodec
    from ._core.kvserve import KVServer
    from ._core.raft import RawNode, Ready

PUMP_READIES = 8  # at most this many Readies with committed entries in one call of pump


class Driver:
    """Carries Readies of one Raft node to its log, peers, state and waiters.

    `log` is the write-ahead log (`append`, `submit`, `idle`, `poll`, `mark`), `send` takes the list of messages of one
    Ready, `request_timeout` is in seconds, `passing` is told the failpoints "apply.before" and "apply.after". Not thread-safe: one thread calls all methods.
    """

    def __init__(
        self,
        raw: RawNode,
        log: Any,
        applier: Applier,
        proposer: BatchProposer,
        codec: PayloadCodec,
        kv: KVServer,
        send: Callable[[list[Any]], None],
        *,
        request_timeout: float,
        idle_mark_after: float = 0.1,
        passing: Callable[[str], None] = lambda _point: None,
    ) -> None:
        self.raw = raw
        self.log = log
        self.applier = applier
        self.proposer = proposer
        self.codec = codec
        self.kv = kv
        self.send = send
        self.request_timeout = request_timeout
        self.idle_mark_after = idle_mark_after
        self.passing = passing
        self.leader_id = 0
        self.term = 0
        self.stopping = False
        self.backlog = False
        # Readies handed out and not yet reported to the core: (number, whether a sync covers it).
        self._unreported: deque[tuple[int, bool]] = deque()
        # Our own proposals in the order of their entries: (index, operations, bytes) for the back pressure's account.
        self._proposed: deque[tuple[int, int, int]] = deque()
        # Marks for the timeout of operations: (deadline, all request ids below this one were there).
        self._marks: deque[tuple[float, int]] = deque()
        self._round: list[Any] = []
        self._round_number = 0
        self._round_deadline = 0.0
        self._waiting_reads: deque[tuple[int, list[Any]]] = deque()
        self._last_append = 0.0
        self._marked = True

    @property
    def is_leader(self) -> bool:
        """Whether this node is the leader it knows of."""
        return self.leader_id != 0 and self.leader_id == self.raw.id

    @property
    def quiet(self) -> bool:
        """Whether nothing is queued, in the log's hands or waited for."""
        return not (self.kv.waiters or self.proposer.queued or self._unreported or self._round or self._waiting_reads)

    def campaign(self) -> None:
        """Stand for election at once: what a sole voter does at its start."""
        self.raw.campaign()

    def pump(self, now: float) -> None:
        """Do what can be done at `now` (seconds, monotonic) without waiting for the disk or a peer.

        After PUMP_READIES Readies with committed entries it stops and leaves `backlog` set, so that a long replay at
        start does not keep the caller from its sockets, ticks and signals.
        """
        applied = 0
        self._propose(now)
        self._start_reads(now)
        while self.raw.has_ready():
            if applied == PUMP_READIES:
                self.backlog = True
                return
            ready = self.raw.ready()
            self._carry(ready, now)
            applied += ready.committed_last > 0
            self._propose(now)
        self.backlog = False

    def on_disk(self, now: float) -> None:
        """The log finished a group: report what is durable, then go on. Raises DiskFailed if it failed."""
        # The log does not go on by itself: what gathered meanwhile is to be in the very next group.
        self._durable(self.log.poll(start=False))
        self.pump(now)
        self.log.submit()

    def tick(self, now: float) -> None:
        """One Raft tick: elections and heartbeats, timeouts, the marker of an idle log."""
        self.raw.tick(now)
        self._expire(now)
        if not self._marked and self.log.idle and not self.proposer.queued and (
            self.stopping or now - self._last_append >= self.idle_mark_after
        ):
            self.log.mark()
            self._marked = True
        self.pump(now)

    def _propose(self, now: float) -> None:
        proposer = self.proposer
        while proposer.queued and self.is_leader:
            payload = proposer.take(now, self.log.idle and not self._unreported, self.stopping, self.codec)
            if payload is None:
                return
            try:
                index = self.raw.propose(payload)
            except ProposalDropped:
                # The core's bound on what is not committed yet: the batch stays first in line.
                proposer.untake()
                return
            self._proposed.append((index, proposer.taken_count, proposer.taken_bytes))

    def _carry(self, ready: Ready, now: float) -> None:
        """Persist, send, apply and reply for one Ready, in this order."""
        self._persist(ready, now)
        if ready.soft_state is not None:
            self._lead_changed(ready.soft_state.lead)
        if ready.messages:
            self.send(ready.messages)
        if ready.committed_last:
            self._apply(ready)
        for state in ready.read_states:
            self._round_confirmed(state.index)
        if not ready.must_sync:
            self._durable(0)

    def _persist(self, ready: Ready, now: float) -> None:
        state = ready.hard_state
        if state is not None:
            self.term = state.term
            self.applier.store.raft_term = state.term
        if ready.must_sync or state is not None:
            self.log.append(ready.number, ready.entry_images, state, ready.must_sync)
        self._unreported.append((ready.number, ready.must_sync))
        if ready.must_sync:
            self._last_append = now
            self._marked = False
            self.log.submit()

    def _durable(self, synced: int) -> None:
        """Report every Ready that is persisted: those up to `synced`, and those behind them that need no sync."""
        last = 0
        waiting = self._unreported
        while waiting and (waiting[0][0] <= synced or not waiting[0][1]):
            last = waiting.popleft()[0]
        if last:
            self.raw.on_persisted(last)

    def _apply(self, ready: Ready) -> None:
        self.passing("apply.before")
        changes = self.applier.apply_images(ready.committed_images)
        if changes:
            raise errors.Unimplemented("membership changes need the cluster, which this version does not have")
        self.applier.commit()
        self.passing("apply.after")
        last = ready.committed_last
        self.raw.on_applied(last)
        self.applier.release()
        while self._proposed and self._proposed[0][0] <= last:
            _, count, size = self._proposed.popleft()
            self.proposer.release(count, size)
        while self._waiting_reads and self._waiting_reads[0][0] <= last:
            self.kv.serve_reads(self._waiting_reads.popleft()[1])

    def _start_reads(self, now: float) -> None:
        """Begin a ReadIndex round for all reads gathered; one round is under way at a time."""
        if self._round or not self.kv.reads or not self.is_leader:
            return
        self._round = self.kv.take_reads()
        self._round_number += 1
        self._round_deadline = now + self.request_timeout
        self.raw.read_index(self._round_number.to_bytes(8, "little"))

    def _round_confirmed(self, index: int) -> None:
        reads, self._round = self._round, []
        if index <= self.applier.applied_index:
            self.kv.serve_reads(reads)
        else:
            self._waiting_reads.append((index, reads))

    def _lead_changed(self, lead: int) -> None:
        lost = self.is_leader and lead != self.raw.id
        self.leader_id = lead
        if lost:
            self._fail_writes(errors.LeaderChanged)
            self._fail_reads(errors.LeaderChanged)

    def _fail_writes(self, error: type[errors.ApiError]) -> None:
        waiters = list(self.kv.waiters.values())
        self.kv.waiters.clear()
        for waiter in waiters:
            waiter.fail(error())

    def _fail_reads(self, error: type[errors.ApiError]) -> None:
        reads, self._round = self._round + self.kv.take_reads(), []
        for _, later in self._waiting_reads:
            reads += later
        self._waiting_reads.clear()
        for waiter, _, _ in reads:
            waiter.fail(error())

    def _expire(self, now: float) -> None:
        """Fail what was admitted `request_timeout` ago; the granularity is one tick."""
        waiters = self.kv.waiters
        self._marks.append((now + self.request_timeout, self.kv.next_id))
        while self._marks and self._marks[0][0] <= now:
            limit = self._marks.popleft()[1]
            # Ids rise and dicts keep their order: the expired are the first ones.
            late = []
            for ident in waiters:
                if ident >= limit:
                    break
                late.append(ident)
            for ident in late:
                waiters.pop(ident).fail(errors.Timeout())
        if self._round and self._round_deadline <= now:
            self._fail_reads(errors.Timeout)

    def stop(self) -> None:
        """From now on everything queued is due at once; `quiet` tells when it is done."""
        self.stopping = True

    def abandon(self) -> None:
        """Answer everyone who still waits, at the end of a drain or when the disk failed: a write may have been logged,
        so its answer must leave the outcome open; a read was surely not served."""
        self._fail_writes(errors.Timeout)
        self._fail_reads(errors.Stopped)
