"""Leases in the program of a node: `with node.lease(10) as lease:`, and the plain calls of the service."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .. import errors
from . import forks
from .arguments import named, seconds
from .keeping import Kept
from .uncopied import Uncopied

if TYPE_CHECKING:
    from .calls import Futures

Granted = TypeVar("Granted")
Revoked = TypeVar("Revoked")
Renewed = TypeVar("Renewed")
Lifetime = TypeVar("Lifetime")
Listed = TypeVar("Listed")


class LeaseCalls(Generic[Granted, Revoked, Renewed, Lifetime, Listed]):
    """The calls of leases: `Node` gives their results, and `node.aio` gives what is awaited for them."""

    futures: Futures

    def _outcome(self, call: Callable[[], Future[Any]], timeout: float | None) -> Any:
        """What a call comes to."""
        raise NotImplementedError

    def grant(self, ttl: int, *, id: int = 0, timeout: float | None = None) -> Granted:
        """Grant a lease that ends `ttl` seconds after it was renewed last, and then deletes its keys. Nobody renews it;
        see `lease`. The store chooses the id where it is 0, and the TTL where `ttl` is shorter than it may be.

        Raises LeaseExist, and LeaseTTLTooLarge."""
        return self._outcome(lambda: self.futures.grant(ttl, id=id), timeout)

    def revoke(self, id: int, *, timeout: float | None = None) -> Revoked:
        """End a lease and delete its keys. Raises LeaseNotFound."""
        return self._outcome(lambda: self.futures.revoke(id), timeout)

    def keep_alive(self, id: int, *, timeout: float | None = None) -> Renewed:
        """Renew a lease once; its TTL. Raises LeaseNotFound."""
        return self._outcome(lambda: self.futures.keep_alive(id), timeout)

    def time_to_live(self, id: int, *, keys: bool = False, timeout: float | None = None) -> Lifetime:
        """How long a lease still lives, and with `keys` which keys have it. None if there is no such lease."""
        return self._outcome(lambda: self.futures.time_to_live(id, keys=keys), timeout)

    def leases(self, *, timeout: float | None = None) -> Listed:
        """The ids of all leases, in the state that this member has applied."""
        return self._outcome(self.futures.leases, timeout)


class KeptAlive(Uncopied):
    """What the leases of threads and of asyncio have in common."""

    def __init__(self, kept: Kept | None) -> None:
        self._kept_alive = kept

    @property
    def _kept(self) -> Kept:
        if self._kept_alive is None:
            raise RuntimeError("the lease is not granted yet: use `async with`, or await it")
        return self._kept_alive

    @property
    def id(self) -> int:
        """For `put(key, value, lease=lease.id)`."""
        return self._kept.ident

    @property
    def ttl(self) -> int:
        """In seconds, as it was granted."""
        return self._kept.ttl

    @property
    def lost(self) -> bool:
        """Whether the lease has ended, or may have, though the program has not ended it. It stays lost."""
        return self._kept.lost

    def check(self) -> None:
        """Raises LeaseLost where it is `lost`."""
        self._kept.check()

    def close(self) -> None:
        """Keep it alive no more; it ends when its TTL has passed. From any thread, any number of times."""
        if self._kept_alive is not None:
            self._kept_alive.close()


def kept_alive(lease: KeptAlive | None) -> KeptAlive | None:
    """`lease`, if it is one, or None. Raises TypeError."""
    if lease is not None and not isinstance(lease, KeptAlive):
        raise TypeError(f"lease must be what `node.lease` gives, or None, not {named(lease)}")
    return lease


class Lease(KeptAlive):
    """A lease that the node keeps alive: `node.lease(ttl)`.

    The node renews it in the background until `close` or `revoke`, or until the program has forgotten this object. The
    end of `with` revokes it, which deletes its keys. It is lost where somebody else revokes it, where it could not be
    renewed for its TTL, and when the node is over. `lost` and `check` tell that, `wait_lost` waits for it, and the end
    of `with` raises LeaseLost, unless another exception is on its way.
    """

    def __init__(self, futures: Futures, kept: Kept) -> None:
        super().__init__(kept)
        self._futures = futures

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        kept = self._kept
        if kept.process != forks.process:
            return
        if kind is None:
            kept.check()
            self.revoke()
            return
        kept.close()
        leave(self._futures, kept.ident)

    def revoke(self, timeout: float | None = None) -> None:
        """End it now and delete its keys. One that has ended already is no error."""
        bound = seconds(timeout)
        self.close()
        try:
            self._futures.revoke(self.id).result(bound)
        except errors.LeaseNotFound:
            return

    def wait_lost(self, timeout: float | None = None) -> bool:
        """Wait until it is lost or closed, at most `timeout` seconds; whether it is lost."""
        bound = seconds(timeout)
        until = None if bound is None else time.monotonic() + bound
        self._kept.bell.wait(self._kept.quiet, until)
        return self._kept.lost


def leave(futures: Futures, ident: int) -> None:
    """Revoke a lease without waiting for that. Where that fails it ends by itself."""
    try:
        futures.revoke(ident).add_done_callback(lambda future: future.exception())
    except errors.ApiError:
        return


def unwanted(futures: Futures, future: Future[Any]) -> None:
    """Nobody knows of the lease that a grant may still bring."""

    def end(done: Future[Any]) -> None:
        if done.exception() is None:
            leave(futures, done.result().id)

    future.add_done_callback(end)
