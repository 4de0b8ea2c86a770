"""The quota of the store and the memory of the process bound the state. Writes are refused when either is used up.

This belongs to the loop's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from .. import errors
from .._core.leases import decode_revoke
from .._core.op import DELETE_RANGE, LEASE_REVOKE
from ..api import pb
from ..replica.alarms import ACTIVATE, NOSPACE, Alarm

if TYPE_CHECKING:
    from .._core.engine import Engine
    from .._core.kv_server import KVServer
    from .._core.waiter import Waiter
    from .alarms import MemberAlarms
    from .memory_guard import Memory

log = logging.getLogger("metastore.upkeep")

PUT_COST = 256  # bytes of contents that a put in flight counts for beside its own
TOMBSTONE = 512  # bytes of memory that the deletion of a key takes at most, in the batch and in the store together
LEAST_KEY = 160  # bytes that a key takes at least, with all its records
WARN_EVERY = 10.0  # seconds between two warnings that memory is short, and between two attempts to get some
MAX_HELD = 1000  # refused puts that wait until all members know of the alarm


def _ranges_deleted(kind: int, body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, range_end) of each range that an operation may delete."""
    if kind == DELETE_RANGE:
        one = pb.DeleteRangeRequest.FromString(body)
        yield one.key, one.range_end
        return
    waiting = [pb.TxnRequest.FromString(body)]
    while waiting:
        txn = waiting.pop()
        for op in (*txn.success, *txn.failure):
            if op.HasField("request_delete_range") and op.request_delete_range.range_end:
                yield op.request_delete_range.key, op.request_delete_range.range_end
            elif op.HasField("request_txn"):
                waiting.append(op.request_txn)


class Quota:
    """KVServer asks this object whether there is room (its Protocol `Quota`). The owner calls `tick` at each Raft tick.

    `member` is this member's id, for which NOSPACE is raised. `pack` begins to give back the gaps between records.
    """

    def __init__(
        self, memory: Memory, engine: Engine, kv: KVServer, alarms: MemberAlarms, member: int,
        pack: Callable[[], object],
    ) -> None:  # fmt: skip
        self._memory = memory
        self._engine = engine
        self._kv = kv
        self._alarms = alarms
        self._member = member
        self._pack = pack
        #: Bytes that the store may take; below 1 there is no quota.
        self.nbytes = memory.quota
        #: Whether the state is up to date and clients are served. Before that, refusals and alarms would help nobody.
        self.serving = False
        self._warned_at = self._packed_at = -WARN_EVERY
        self._last_revision = kv.store.revision
        self._stopped = False
        self._raising = False
        self._held: list[tuple[Waiter, errors.MetaStoreError]] = []
        if self.nbytes > 0:
            kv.quota = self
            kv.room = 0

    def tick(self, now: float) -> None:
        """Checks the room that is left, at `now` (seconds)."""
        revision = self._kv.store.revision
        self._watch_memory(now)
        if self._kv.quota is not None:
            self._kv.room = max(0, self.room())
            if self.serving and revision != self._last_revision and self._left() < 0:
                # What other members accept grows this store as well, even if no client asks this member.
                self._raise_nospace()
        self._last_revision = revision

    def stop(self) -> None:
        """Raises no alarm from now on."""
        self._stopped = True

    @property
    def tight(self) -> bool:
        """Whether less than a quarter of the room is left."""
        return self._kv.quota is not None and self._kv.room * 4 < self.nbytes

    # ---- what KVServer asks

    def room(self) -> int:
        """The bytes that puts may still take, by the quota and by memory."""
        return min(self._left(), self._memory_left())

    def check_delete(self, kind: int, body: bytes) -> None:
        """Refuses to delete so many keys at once that their tombstones do not fit into memory.

        KVServer calls this while memory could be too little. Raises TooManyRequests with the number that is allowed.
        Both branches of a transaction count.
        """
        most = max(0, self._memory_left()) // TOMBSTONE
        left = most
        for count in self._keys_deleted(kind, body):
            left -= count(left)
            if left < 0:
                raise errors.TooManyRequests(
                    f"metastore: there is memory to delete {most} keys and versions of keys at once, not more: delete "
                    "fewer at a time, and compact"
                )

    def _keys_deleted(self, kind: int, body: bytes) -> Iterator[Callable[[int], int]]:
        """For each part of a deletion a function that counts its keys, up to one more than its argument."""
        if kind == LEASE_REVOKE:
            yield partial(self._kv.store.leases.count_keys, decode_revoke(body)[0])
            return
        for key, end in _ranges_deleted(kind, body):
            count = pb.RangeRequest(key=key, range_end=end, count_only=True)
            yield partial(self._kv.count_some, count.SerializeToString())

    def exceeded(self) -> errors.MetaStoreError:
        """Returns the error for a put that finds no room. Raises the alarm, unless the lack will pass by itself."""
        if self._memory_left() < self._left():
            return errors.TooManyRequests()
        self._raise_nospace()
        return errors.NoSpace()

    def hold(self, waiter: Waiter, error: errors.MetaStoreError) -> bool:
        """Whether `waiter` gets its error later, when the alarm under way was raised.

        A client whose put was refused for lack of room, and that then asks for the alarms, must see it (as in etcd).
        """
        if not self._raising or len(self._held) >= MAX_HELD:
            return False
        self._held.append((waiter, error))
        return True

    # ---- how much there is

    def _left(self) -> int:
        """The bytes that are left of the quota. Requests that are admitted count as if they were applied."""
        contents = self._engine.size() if self._memory.plan is None else self._engine.size_in_use()
        return int(self.nbytes - contents - self._in_flight())

    def _in_flight(self) -> int:
        queue = self._kv.proposer
        return int(queue.queued_bytes + queue.inflight_bytes + PUT_COST * (queue.queued + queue.inflight))

    def _memory_left(self) -> int:
        """The bytes by which the contents may grow, together with what only views see and what waits to be freed."""
        plan = self._memory.plan
        return 1 << 62 if plan is None else int(plan.room - self._engine.size() - self._in_flight())

    def _watch_memory(self, now: float) -> None:
        """Refuses writes while memory is short, by what the contents hold or by what the process really uses.

        The process uses more than the contents if the gaps between records fit no record of today's sizes.
        """
        memory, engine = self._memory, self._engine
        short = self._memory_left() < 0 or memory.short()
        if short and now - self._packed_at >= WARN_EVERY:
            self._packed_at = now
            self._pack()
        if short and self.serving and now - self._warned_at >= WARN_EVERY:
            self._warned_at = now
            log.warning(
                "memory is short: %d bytes are used, %d of them by the store, whose contents are %d: writes are "
                "refused until it is less; what lies between them is being given back",
                memory.used(), engine.size(), engine.size_in_use(),
            )  # fmt: skip
        self._kv.short = short
        self._kv.careful = memory.plan is not None and (
            self._memory_left() < engine.size_in_use() * TOMBSTONE // LEAST_KEY
        )

    def _raise_nospace(self) -> None:
        if self._raising or self._stopped or self._alarms.raised_here:
            return
        log.warning("the quota of %d bytes is used up (limits.quota_bytes)", self.nbytes)
        self._raising = True

        def done(_alarms: list[Alarm], error: errors.MetaStoreError | None) -> None:
            self._raising = False
            held, self._held = self._held, []
            for waiter, why in held:
                waiter.fail(why)
            if error is not None:
                log.warning("the alarm NOSPACE could not be raised, the next put over the quota tries again: %s", error)

        self._alarms.change_alarm(ACTIVATE, self._member, NOSPACE, done)

    def stats(self) -> dict[str, float]:
        """Numbers for /metrics."""
        memory = self._memory
        return {
            "quota_bytes": max(0, self.nbytes),
            "engine_bytes": self._engine.size(),
            "engine_in_use_bytes": self._engine.size_in_use(),
            "memory_used_bytes": memory.used(),
            "memory_limit_bytes": memory.limit.nbytes if memory.limit is not None else 0,
            "memory_room_bytes": memory.plan.room if memory.plan is not None else 0,
            "memory_refused_total": self._kv.over_memory,
            "quota_refused_total": self._kv.over_quota,
        }
