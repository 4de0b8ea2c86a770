"""Locks and elections in the program of a node: what each of their calls does, step by step.

The steps are generators. They yield Futures, and are sent the result or the error of each; so threads and tasks of
asyncio run the same steps (`run` here, and in `aio_locks.py`). The queue itself is that of the services Lock and
Election (`member/locks.py`), so programs and remote clients wait in one line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from .. import errors
from .arguments import Key, as_bytes, seconds
from .leases import KeptAlive, kept_alive, leave, unwanted
from .outcome import overdue
from .requests import SortOrder, SortTarget, messages, prefix_range
from .results import EventKind, KeyValue
from .transactions import Compare, Op

if TYPE_CHECKING:
    from .calls import Futures
    from .keeping import Keeper, Kept
    from .queued import Post, Queued
    from .watch import Watching

T = TypeVar("T")
#: What a call does: it yields what it waits for, and returns its result.
Steps = Generator[Future[Any], Any, T]
#: Seconds of the lease of a lock or a leadership, where the program gives none.
TTL: Final = 10


class Watches(Protocol):
    """Begins a watch, as `Node.watch`."""

    def __call__(
        self, key: Key, range_end: Key | None = None, *, start_revision: int = 0, deletes: bool = True
    ) -> Watching:
        """See `Watchable.watch`."""


class Place:
    """A place at the head of a queue: its key, the revision at which that was created, and its lease.

    own: whether the lease was granted for this place alone. leader: the LeaderKey, for an election.
    """

    def __init__(self, key: bytes, revision: int, kept: Kept, own: bool, leader: Any = None) -> None:
        self.key = key
        self.revision = revision
        self.kept = kept
        self.own = own
        self.leader = leader


class Queues:
    """The steps. `keeper` gives who keeps leases alive, and raises Stopped; `post` as in `queued.py`."""

    def __init__(self, futures: Futures, keeper: Callable[[], Keeper], post: Post) -> None:
        self.futures = futures
        self._keeper = keeper
        self._post = post

    def lock(self, name: bytes, ttl: int, lease: KeptAlive | None) -> Steps[Place]:
        """Wait for a lock."""
        kept = yield from self._lease(ttl, lease)
        call = None
        try:
            call = self.futures.queued("Lock", messages().LockRequest(name=name, lease=kept.ident), self._post)
            key = (yield call.future).key
            found = yield self.futures.range(key, keys_only=True)
            if not found.kvs:
                raise errors.LeaseLost()
            kept.check()
        except BaseException:
            self._give_up(kept, lease is None, call)
            raise
        return Place(key, found.kvs[0].create_revision, kept, lease is None)

    def campaign(self, name: bytes, value: Key, ttl: int, lease: KeptAlive | None) -> Steps[Place]:
        """Wait to lead. Raises TypeError, ValueError."""
        raw = as_bytes(value, "value")
        kept = yield from self._lease(ttl, lease)
        call = None
        try:
            request = messages().CampaignRequest(name=name, lease=kept.ident, value=raw)
            call = self.futures.queued("Campaign", request, self._post)
            leader = (yield call.future).leader
            kept.check()
        except BaseException:
            self._give_up(kept, lease is None, call)
            raise
        return Place(leader.key, leader.rev, kept, lease is None, leader)

    def release(self, place: Place) -> Steps[None]:
        """Leave a place. That it is lost is no error."""
        if place.own:
            place.kept.close()
            try:
                yield self.futures.revoke(place.kept.ident)
            except errors.LeaseNotFound:
                return
        else:
            yield self._deleted(place.key, place.revision)

    def leave(self, place: Place) -> None:
        """Leave a place without waiting for that."""
        if place.own:
            place.kept.close()
            leave(self.futures, place.kept.ident)
        else:
            self._deleted(place.key, place.revision)

    def proclaim(self, place: Place, value: bytes) -> Steps[None]:
        """Change the leader's value. Raises ElectionNotLeader."""
        request = messages().ProclaimRequest(leader=place.leader, value=value)
        yield self.futures.queued("Proclaim", request, self._post).future

    def leader(self, name: bytes) -> Steps[KeyValue | None]:
        """The leader's key, None where nobody leads."""
        found = yield self.futures.range(*_all_of(name), limit=1, **_FIRST)
        return found.kvs[0] if found.kvs else None

    def observe(self, name: bytes, watch: Watches) -> Generator[object, Any, None]:
        """All leaders, as they come. Yields Futures, watches whose next event is wanted, and KeyValues, which are what
        the program gets."""
        key, end = _all_of(name)
        while True:
            found = yield self.futures.range(key, end, limit=1, **_FIRST)
            if found.kvs:
                leader, revision = found.kvs[0], found.revision
            else:
                event = yield from _events(watch(key, end, start_revision=found.revision + 1, deletes=False))
                if event is None:
                    continue
                leader, revision = event.kv, event.revision
            yield leader
            yield from _events(watch(leader.key, start_revision=revision + 1), until=EventKind.DELETE)

    # ---- parts

    def _lease(self, ttl: int, lease: KeptAlive | None) -> Steps[Kept]:
        given = kept_alive(lease)
        if given is not None:
            given.check()
            return given._kept
        asked, keeper, future = time.monotonic(), self._keeper(), self.futures.grant(ttl)
        try:
            result = yield future
        except BaseException:
            unwanted(self.futures, future)
            raise
        return keeper.keep(result, asked)

    def _give_up(self, kept: Kept, own: bool, call: Queued | None) -> None:
        """Nobody wants the place any more, which may have come all the same."""
        if call is not None:
            call.give_up()
        if own:
            kept.close()
            leave(self.futures, kept.ident)
            return
        if call is None:
            return

        def end(done: Future[Any]) -> None:
            if done.exception() is None:
                reply = done.result()
                key = reply.leader.key if hasattr(reply, "leader") else reply.key
                self.futures.delete(key)

        try:
            call.future.add_done_callback(end)
        except errors.ApiError:
            return

    def _deleted(self, key: bytes, revision: int) -> Future[Any]:
        return self.futures.txn([Compare.create_revision(key, "=", revision)], [Op.delete(key)])


_FIRST: Final[dict[str, Any]] = {"sort_order": SortOrder.ASCEND, "sort_target": SortTarget.CREATE}


def _all_of(name: bytes) -> tuple[bytes, bytes]:
    return prefix_range(name + b"/")


def _events(watch: Watching, until: EventKind | None = None) -> Generator[Any, Any, Any]:
    """The first event of a watch; or each new value of a leader until an event of a kind. None where the history is
    gone."""
    try:
        while True:
            event = yield watch
            if until is None:
                return event
            if event.kind is until:
                return None
            yield event.kv
    except errors.WatchCompacted:
        return None
    finally:
        watch.close()


def named_queue(name: Key) -> bytes:
    """The name of a lock or an election. Raises TypeError, EmptyKey."""
    raw = as_bytes(name, "name")
    if not raw:
        raise errors.EmptyKey()
    return raw


def run(steps: Steps[T], timeout: float | None) -> T:
    """Take steps in this thread. Raises Timeout."""
    bound = seconds(timeout)
    until = None if bound is None else time.monotonic() + bound
    outcome: Any = None
    error: BaseException | None = None
    while True:
        try:
            future = steps.send(outcome) if error is None else steps.throw(error)
        except StopIteration as end:
            return end.value
        outcome, error = None, None
        try:
            outcome = future.result(None if until is None else max(0.0, until - time.monotonic()))
        except errors.Timeout as late:
            error = late if future.done() else overdue(bound)
        except BaseException as raised:  # noqa: BLE001 - raised in the steps, which clean up
            error = raised
