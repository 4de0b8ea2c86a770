"""What a running member does to keep its state small and sound: quota, alarms, automatic compaction, defragmentation,
and sums over its state. Belongs to the loop's thread; nothing here holds the loop for more than a millisecond."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import errors
from .._core.engine import MemoryEngine
from .._core.mvcc_hash import Hasher
from .._core.op import ALARM, DELETE_RANGE
from .._core.waiter import Waiter
from ..api import pb
from ..replica.alarms import ACTIVATE, CORRUPT, NOSPACE, Alarm, Alarms, decode_alarms, encode_change
from ..replica.autocompact import AutoCompactor
from ..replica.driver import BUSY_RETRY
from .membership_client import hand_in

if TYPE_CHECKING:
    from .._core.engine import Engine
    from .._core.mvcc import Store
    from ..net.loop import Loop
    from ..replica.driver import Driver
    from .memory_guard import Memory

log = logging.getLogger("metastore.upkeep")

PUT_COST = 256  # bytes of contents that a put in flight is taken to become beside its own
TOMBSTONE = 512  # bytes of memory, at most, for a key that is being deleted: once in the batch, once in the store
LEAST_KEY = 160  # bytes that a key takes with all that is of it
SHORT_TOLD = 10.0  # seconds between two warnings that memory is short
HASH_SLICE = 1500  # records in memory summed up at a time: half a millisecond
HASH_SLICE_DISK = 200  # of other engines, whose cursors are slower
MAX_HASHES = 16  # that wait, those of one member together
MAX_HELD = 1000  # refused puts that wait until all know of the alarm
MAX_DEFRAGMENTS = 64  # callers that wait for the one that is under way
SWEEP_WAIT = 0.005  # seconds between two looks whether a compaction has given back its room

AlarmsDone = Callable[[list[Alarm], errors.MetaStoreError | None], object]
Done = Callable[[errors.MetaStoreError | None], object]
HashDone = Callable[[Hasher | None, errors.MetaStoreError | None], object]


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


class Reply(Waiter):
    """A waiter that calls `done` with the reply or with the error."""

    def __init__(self, done: Callable[[bytes, errors.MetaStoreError | None], object]) -> None:
        self.done = done

    def complete(self, reply: bytes) -> None:
        """It was done."""
        self.done(reply, None)

    def fail(self, error: errors.MetaStoreError) -> None:
        """It was not, or nobody knows."""
        self.done(b"", error)


@dataclass
class _Sum:
    """A sum that somebody wants."""

    revision: int
    whole: bool
    gone: Callable[[], bool]
    done: HashDone


class Upkeep:
    """See the module. `turn` and `tick` are to be called at the end of every turn of the loop and at every Raft tick;
    `loop_full` tells whether the disk has no room for the log, which shows as an alarm of this member too."""

    def __init__(
        self, memory: Memory, engine: Engine, store: Store, driver: Driver, loop: Loop, member: int,
        loop_full: Callable[[], bool],
    ) -> None:  # fmt: skip
        self.engine = engine
        self.store = store
        self.driver = driver
        self.kv = driver.kv
        self.loop = loop
        self.member = member
        self.loop_full = loop_full
        wanted = memory.config.maintenance
        self.compactor = AutoCompactor(
            wanted.auto_compaction_mode, wanted.auto_compaction_retention, wanted.auto_compaction_revisions
        )
        self.memory = memory
        self.quota_bytes = memory.quota
        self.short_told = -SHORT_TOLD
        self.looked_at = store.revision
        self.counts = dict.fromkeys(("auto_compactions", "auto_compactions_failed", "defragments", "hashes"), 0)
        self.stopped = False
        #: Whether the state is up to date and clients are served: before, nothing can be helped by refusing or alarms.
        self.serving = False
        self._compacting = False
        self._raising = False
        self._held: list[tuple[Waiter, errors.MetaStoreError]] = []
        self._told: frozenset[Alarm] = frozenset()
        self._sums: deque[_Sum] = deque()
        self._defragments: list[Done] = []
        self._reclaiming = False
        if self.quota_bytes > 0:
            self.kv.quota = self
            self.kv.room = 0

    @property
    def raised(self) -> Alarms:
        """The replicated alarms."""
        return self.driver.applier.alarms

    def turn(self) -> None:
        """What has changed is acted on: a leader refuses what would be refused when it is applied."""
        self.kv.barred = self.driver.applier.barred if self.driver.is_leader else 0
        if self.raised.raised != self._told:
            self._tell()

    def _tell(self) -> None:
        names = {NOSPACE: "NOSPACE", CORRUPT: "CORRUPT"}
        now = self.raised.raised
        for member, kind in sorted(now - self._told):
            log.warning("alarm %s raised for member %016x", names[kind], member)
        for member, kind in sorted(self._told - now):
            log.warning("alarm %s of member %016x cleared", names[kind], member)
        self._told = now

    def tick(self, now: float) -> None:
        """Look at the room that is left, and whether history is to be compacted; `now` in seconds."""
        self._watch_memory(now)
        if self.kv.quota is not None:
            self.kv.room = max(0, self.room())
            if self.serving and self.store.revision != self.looked_at and self._left() < 0:
                # Nobody may ask this member, and what the others take grows here too.
                self._raise_nospace()
        self.looked_at = self.store.revision
        if not self.driver.is_leader:
            self.compactor.follow()
        elif not self._compacting and not self.stopped:
            revision = self.compactor.lead(now, self.store.revision, self.store.compact_revision, hurry=self.tight)
            if revision:
                self._compact(revision, now)

    def stop(self) -> None:
        """Begin nothing more; those who wait are told so."""
        self.stopped = True
        sums, self._sums = self._sums, deque()
        for one in sums:
            one.done(None, errors.Stopped())
        waiting, self._defragments = self._defragments, []
        for done in waiting:
            done(errors.Stopped())

    # ---- quota and alarms

    def room(self) -> int:
        """Bytes that puts may still take: of the quota, and of memory where that is less."""
        return min(self._left(), self._memory_left())

    def _left(self) -> int:
        """Bytes that are left of the quota, what was admitted and is not applied yet counted as if it were."""
        contents = self.engine.size() if self.memory.plan is None else self.engine.size_in_use()
        return int(self.quota_bytes - contents - self._in_flight())

    def _in_flight(self) -> int:
        queue = self.kv.proposer
        return int(queue.queued_bytes + queue.inflight_bytes + PUT_COST * (queue.queued + queue.inflight))

    def _memory_left(self) -> int:
        """Bytes that the contents may grow by, with what only views still see and what waits to be freed."""
        plan = self.memory.plan
        return 1 << 62 if plan is None else int(plan.room - self.engine.size() - self._in_flight())

    def check_delete(self, kind: int, body: bytes) -> None:
        """Refuse to delete so many keys at once that there is no memory for what marks them as deleted. Called while
        that could be; raises TooManyRequests, with the number that is allowed. A transaction counts with both its
        branches."""
        most = max(0, self._memory_left()) // TOMBSTONE
        left = most
        for key, end in _ranges_deleted(kind, body):
            wanted = pb.RangeRequest(key=key, range_end=end, count_only=True)
            left -= self.kv.count_some(wanted.SerializeToString(), left)
            if left < 0:
                raise errors.TooManyRequests(
                    f"metastore: there is memory to delete {most} keys and versions of keys at once, not more: delete "
                    "fewer at a time, and compact"
                )

    @property
    def tight(self) -> bool:
        """Whether less than a quarter of the room is left."""
        return self.kv.quota is not None and self.kv.room * 4 < self.quota_bytes

    def _watch_memory(self, now: float) -> None:
        """Take no writes while memory is short: by what the contents hold, or by what the process really uses, which is
        more when malloc cannot use the gaps that were left by others sizes."""
        short = self._memory_left() < 0 or self.memory.short()
        if short and self.serving and now - self.short_told >= SHORT_TOLD:
            self.short_told = now
            log.warning(
                "memory is short: %d bytes are used, %d of them by the store, whose contents are %d: writes are "
                "refused until it is less; if that does not happen, a restart gives back what lies between them",
                self.memory.used(), self.engine.size(), self.engine.size_in_use(),
            )  # fmt: skip
        self.kv.short = short
        self.kv.careful = self.memory.plan is not None and (
            self._memory_left() < self.engine.size_in_use() * TOMBSTONE // LEAST_KEY
        )
        if not self._reclaiming:
            self._reclaim()

    def exceeded(self) -> errors.MetaStoreError:
        """A put was refused because there is no room: say so to all, if that does not pass by itself. Gives what the
        put is refused with."""
        if self._memory_left() < self._left():
            return errors.TooManyRequests()
        self._raise_nospace()
        return errors.NoSpace()

    def _raise_nospace(self) -> None:
        if self._raising or self.stopped or (self.member, NOSPACE) in self.raised.raised:
            return
        log.warning("the quota of %d bytes is used up (limits.quota_bytes)", self.quota_bytes)
        self._raising = True

        def done(_alarms: list[Alarm], error: errors.MetaStoreError | None) -> None:
            self._raising = False
            held, self._held = self._held, []
            for waiter, why in held:
                waiter.fail(why)
            if error is not None:
                log.warning("the alarm NOSPACE could not be raised, the next put over the quota tries again: %s", error)

        self.change_alarm(ACTIVATE, self.member, NOSPACE, done)

    def hold(self, waiter: Waiter, error: errors.MetaStoreError) -> bool:
        """Whether `waiter` gets its error only when the alarm that is under way was raised: who is refused for lack of
        room, and then asks for the alarms, must see it (as in etcd)."""
        if not self._raising or len(self._held) >= MAX_HELD:
            return False
        self._held.append((waiter, error))
        return True

    def change_alarm(self, action: int, member: int, alarm: int, done: AlarmsDone) -> None:
        """Have an alarm raised or cleared everywhere; `done` gets the alarm if it is or was raised.

        Raises InvalidAlarm."""
        request = encode_change(action, member, alarm)

        def answer(reply: bytes, error: errors.MetaStoreError | None) -> None:
            done(decode_alarms(reply) if error is None else [], error)

        hand_in(self.kv, ALARM, request, Reply(answer), lambda op: self.kv.proposer.add(op, self.loop.now()))

    def alarms(self) -> list[Alarm]:
        """What is raised: what all know of, and that this member's disk has no room for the log."""
        local = {(self.member, NOSPACE)} if self.loop_full() else set()
        return sorted(self.raised.raised | local)

    # ---- compaction

    def _compact(self, revision: int, now: float) -> None:
        self._compacting = True
        body = pb.CompactionRequest(revision=revision).SerializeToString()

        def done(_reply: bytes, error: errors.MetaStoreError | None) -> None:
            self._compacting = False
            if error is None or isinstance(error, errors.Compacted):
                self.compactor.compacted(self.loop.now())
                self.counts["auto_compactions"] += error is None
                log.info("compacted history before revision %d by itself", revision)
            else:
                self.counts["auto_compactions_failed"] += 1
                log.warning("history before revision %d could not be compacted, tried again: %s", revision, error)

        self.kv.call("Compaction", body, Reply(done), now)

    # ---- defragmentation

    def defragment(self, done: Done) -> None:
        """Give back the room that is held and not needed, that of a compaction under way included; `done` is called
        when that is done. Those who ask meanwhile share it. Raises TooManyRequests (MAX_DEFRAGMENTS), Stopped."""
        if self.stopped:
            raise errors.Stopped()
        if len(self._defragments) >= MAX_DEFRAGMENTS:
            raise errors.TooManyRequests()
        self._defragments.append(done)
        if len(self._defragments) == 1:
            self._defragment()

    def _defragment(self) -> None:
        if not self._defragments:
            return
        again = SWEEP_WAIT if self.kv.sweep_pending else self.engine.defragment()
        if again is not None:
            self.loop.call_later(again, self._defragment)
            return
        self.counts["defragments"] += 1
        waiting, self._defragments = self._defragments, []
        for done in waiting:
            done(None)

    def _reclaim(self) -> None:
        """Free what only a view still held, in slices."""
        self._reclaiming = not self.stopped and self.engine.reclaim()
        if self._reclaiming:
            self.loop.call_later(0, self._reclaim)

    # ---- sums

    def hash_kv(self, revision: int, whole: bool, gone: Callable[[], bool], done: HashDone) -> None:
        """Sum up the state at `revision` (0: now); see `_core/mvcc_hash.pyx`. `done` gets the finished hasher or the
        error; nobody is told once `gone` says so. One at a time. Raises TooManyRequests (MAX_HASHES), Stopped."""
        if self.stopped:
            raise errors.Stopped()
        if len(self._sums) >= MAX_HASHES:
            raise errors.TooManyRequests()
        self._sums.append(_Sum(revision, whole, gone, done))
        if len(self._sums) == 1:
            self._next_sum()

    def _next_sum(self) -> None:
        """Begin with the first one that waits, as soon as the engine has all that is applied."""
        while self._sums:
            if not self.driver.whole:
                self.loop.call_later(BUSY_RETRY, self._next_sum)
                return
            one = self._sums[0]
            if not one.gone():
                view = self.engine.view()
                try:
                    hasher = Hasher(view, one.revision, one.whole)
                except errors.ApiError as error:
                    view.close()
                    one.done(None, error)
                else:
                    self._sum_slice(one, hasher)
                    return
            self._sums.popleft()

    def _sum_slice(self, one: _Sum, hasher: Hasher) -> None:
        current = bool(self._sums) and self._sums[0] is one and not one.gone()
        size = HASH_SLICE if isinstance(self.engine, MemoryEngine) else HASH_SLICE_DISK
        if current and hasher.step(size):
            self.loop.call_later(0, lambda: self._sum_slice(one, hasher))
            return
        hasher.close()
        if not self._reclaiming:
            self._reclaim()
        if self.stopped:
            return
        self._sums.popleft()
        if current:
            self.counts["hashes"] += 1
            one.done(hasher, None)
        self._next_sum()

    # ---- numbers

    def stats(self) -> dict[str, float]:
        """Numbers for /metrics."""
        raised = self.raised.raised
        numbers: dict[str, float] = {f"{name}_total": count for name, count in self.counts.items()}
        return numbers | {
            "alarms_nospace": sum(kind == NOSPACE for _, kind in raised),
            "alarms_corrupt": sum(kind == CORRUPT for _, kind in raised),
            "disk_full": int(self.loop_full()),
            "compact_revision": max(0, self.store.compact_revision),
            "sweep_pending": int(self.kv.sweep_pending),
            "quota_bytes": max(0, self.quota_bytes),
            "engine_bytes": self.engine.size(),
            "engine_in_use_bytes": self.engine.size_in_use(),
            "memory_used_bytes": self.memory.used(),
            "memory_limit_bytes": self.memory.limit.nbytes if self.memory.limit is not None else 0,
            "memory_room_bytes": self.memory.plan.room if self.memory.plan is not None else 0,
            "memory_refused_total": self.kv.over_memory,
            "quota_refused_total": self.kv.over_quota,
        }
