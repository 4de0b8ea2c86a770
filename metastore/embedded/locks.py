"""Locks and elections for threads: `with node.lock("jobs") as lock:`."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from .. import errors
from . import forks
from .answers import may_block
from .arguments import Key, as_bytes, number, seconds
from .leases import KeptAlive, kept_alive
from .outcome import overdue
from .queues import TTL, Place, Queues, Watches, named_queue, run
from .results import KeyValue
from .uncopied import Uncopied
from .watch import Watching, no_event

LockForm = TypeVar("LockForm")
ElectionForm = TypeVar("ElectionForm")


class QueueCalls(Generic[LockForm, ElectionForm]):
    """Calls that make locks and elections. `Node` gives `Lock` and `Election`, `node.aio` their forms for asyncio."""

    def _lock_of(self, name: bytes, ttl: int, lease: KeptAlive | None, timeout: float | None) -> LockForm:
        raise NotImplementedError

    def _election_of(self, name: bytes) -> ElectionForm:
        raise NotImplementedError

    def lock(
        self, name: Key, *, ttl: int = TTL, lease: KeptAlive | None = None, timeout: float | None = None
    ) -> LockForm:
        """The lock of this name, for `with` or its `acquire`; it is not acquired yet.

        Each such object waits in line for itself, and is held by one holder. Its lease is granted with `ttl` seconds
        and kept alive while it waits and holds; or it is `lease`, which may then hold each name once. `timeout` is for
        the acquiring by `with`."""
        return self._lock_of(named_queue(name), number(ttl, "ttl"), kept_alive(lease), seconds(timeout))

    def election(self, name: Key) -> ElectionForm:
        """The election of this name."""
        return self._election_of(named_queue(name))


class Held(Uncopied):
    """A place at the head of a queue: a lock that is held, or a leadership."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._held: Place | None = None

    @property
    def _place(self) -> Place:
        if self._held is None:
            raise RuntimeError("it is not held")
        return self._held

    @property
    def key(self) -> bytes:
        """It exists for as long as the place is held. Raises RuntimeError where it is not held."""
        return self._place.key

    @property
    def revision(self) -> int:
        """At which the key was created. It grows from one holder to the next, so it serves as a fencing token. A write
        is safe as a transaction with `Compare.create_revision(key, "=", revision)`."""
        return self._place.revision

    @property
    def lost(self) -> bool:
        """Whether the lease is lost (`Lease.lost`), and with it the place. Raises RuntimeError where it is not held."""
        return self._place.kept.lost

    def check(self) -> None:
        """Raises LeaseLost where it is `lost`."""
        self._place.kept.check()

    def _entered(self, place: Place) -> None:
        self._held = place

    def _left(self) -> Place:
        place = self._place
        self._held = None
        return place

    def _free(self) -> None:
        if self._held is not None:
            raise RuntimeError("it is held already")

    def _leaves(self, kind: type[BaseException] | None) -> Place | None:
        """The end of `with`: the place that is to be left, with patience. Raises LeaseLost."""
        if self._held is None or self._held.kept.process != forks.process:
            return None
        place = self._left()
        if kind is not None or place.kept.lost:
            self._queues.leave(place)
            if kind is None:
                place.kept.check()
            return None
        return place


class Lock(Held):
    """A lock among all programs of the cluster: `node.lock(name)`.

    Those who wait get it in the order in which they came. It is lost with its lease, and then another one may hold it:
    `lost` and `check` tell that, and the end of `with` raises LeaseLost, unless another exception is on its way. Only a
    write that compares the `revision` is safe in any case.
    """

    def __init__(self, queues: Queues, name: bytes, ttl: int, lease: KeptAlive | None, timeout: float | None) -> None:
        super().__init__(queues)
        self._name, self._ttl, self._lease, self._timeout = name, ttl, lease, timeout

    def acquire(self, timeout: float | None = None) -> None:
        """Wait for the lock. Raises Timeout and leaves the line when that takes too long, LeaseLost or SessionExpired
        where the lease ends meanwhile, and RuntimeError where it is held already."""
        may_block()
        self._free()
        self._entered(run(self._queues.lock(self._name, self._ttl, self._lease), timeout))

    def release(self, timeout: float | None = None) -> None:
        """Let the next one have it. That it was lost is no error. Raises RuntimeError where it is not held."""
        may_block()
        run(self._queues.release(self._left()), timeout)

    def __enter__(self) -> Lock:
        self.acquire(self._timeout)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        place = self._leaves(kind)
        if place is not None:
            run(self._queues.release(place), None)


class Leadership(Held):
    """What `Election.campaign` gives: this program leads until it resigns or its lease is lost."""

    def proclaim(self, value: Key, timeout: float | None = None) -> None:
        """Change the value that others see. Raises ElectionNotLeader where it leads no more."""
        may_block()
        run(self._queues.proclaim(self._place, as_bytes(value, "value")), timeout)

    def resign(self, timeout: float | None = None) -> None:
        """Let the next one lead. That it was lost is no error. Raises RuntimeError where it has resigned."""
        may_block()
        run(self._queues.release(self._left()), timeout)

    def __enter__(self) -> Leadership:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        place = self._leaves(kind)
        if place is not None:
            run(self._queues.release(place), None)


class Election:
    """An election among all programs of the cluster: `node.election(name)`."""

    def __init__(self, queues: Queues, name: bytes, watch: Watches) -> None:
        self._queues = queues
        self._name = name
        self._watch = watch

    def campaign(
        self, value: Key = b"", *, ttl: int = TTL, lease: KeptAlive | None = None, timeout: float | None = None
    ) -> Leadership:
        """Wait to lead, with a value that others see; `ttl` and `lease` as in `Node.lock`. Raises Timeout and leaves
        the line when that takes too long, and LeaseLost or ElectionNotLeader where the lease ends meanwhile."""
        may_block()
        place = run(self._queues.campaign(self._name, value, ttl, lease), timeout)
        leadership = Leadership(self._queues)
        leadership._entered(place)
        return leadership

    def leader(self, timeout: float | None = None) -> KeyValue | None:
        """The key and value of who leads, None where nobody does."""
        may_block()
        return run(self._queues.leader(self._name), timeout)

    def observe(self) -> Observation:
        """Who leads, each new value of the leader, and each one who follows."""
        return Observation(self._queues.observe(self._name, self._watch))


class Observing:
    """The leaders of an election, as they come; what both forms of it have in common."""

    def __init__(self, steps: Generator[object, object, None]) -> None:
        self._steps = steps
        self._wanted: Any = None
        self._closed = False

    def _go_on(self, outcome: Any, error: BaseException | None = None) -> None:
        self._wanted = self._steps.send(outcome) if error is None else self._steps.throw(error)

    def _leader(self) -> KeyValue | None:
        """The next leader, if it is there; else `_wanted` is what to wait for. Raises Canceled."""
        if self._closed:
            raise errors.Canceled("metastore: the observation was closed")
        if self._wanted is None:
            self._go_on(None)
        if isinstance(self._wanted, KeyValue):
            found, self._wanted = self._wanted, None
            return found
        return None

    def close(self) -> None:
        """End it. From any thread, any number of times."""
        self._closed = True
        wanted = self._wanted
        if isinstance(wanted, Watching):
            wanted.close()


class Observation(Observing):
    """For one thread: iterating gives the leaders, and `close` from another thread ends that."""

    def __enter__(self) -> Observation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[KeyValue]:
        return self

    def __next__(self) -> KeyValue:
        try:
            return self.next()
        except errors.Canceled:
            raise StopIteration from None

    def next(self, timeout: float | None = None) -> KeyValue:
        """The leader, or the next one. Raises Timeout; the observation goes on then."""
        bound = seconds(timeout)
        until = None if bound is None else time.monotonic() + bound
        while True:
            found = self._leader()
            if found is not None:
                return found
            left = None if until is None else max(0.0, until - time.monotonic())
            wanted: Any = self._wanted
            try:
                outcome = wanted.result(left) if isinstance(wanted, Future) else wanted.next(left)
            except errors.Canceled:
                raise
            except errors.Timeout as late:
                if isinstance(wanted, Future) and wanted.done():
                    raise
                raise (no_event(bound) if bound is not None else overdue(None)) from late
            except errors.ApiError as error:
                self._go_on(None, error)
            else:
                self._go_on(outcome)
