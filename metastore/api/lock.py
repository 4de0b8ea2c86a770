"""v3lockpb.Lock: locks with waiters in order. `metastore.member.locks` serves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from .. import errors
from . import pb

if TYPE_CHECKING:
    from .._core.h2_request import Request
    from .common import Handler
    from .ports import Locks

SERVICE: Final = b"/v3lockpb.Lock/"


class Lock:
    """The Lock service of this member."""

    def __init__(self, locks: Locks) -> None:
        self._locks = locks

    def methods(self) -> Mapping[bytes, Handler]:
        """Path -> handler."""
        return {SERVICE + b"Lock": self.lock, SERVICE + b"Unlock": self.unlock}

    def lock(self, request: Request) -> None:
        """Waits for a lock. A client that gives up loses its place."""
        asked = pb.parse(pb.LockRequest, request.body)
        task = self._locks.lock(request, asked.name, asked.lease)
        request.when_closed(lambda: task.cancel(errors.Canceled()))

    def unlock(self, request: Request) -> None:
        """Deletes the key of a lock."""
        self._locks.unlock(request, pb.parse(pb.UnlockRequest, request.body).key)
