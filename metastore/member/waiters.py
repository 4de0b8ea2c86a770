"""Waiters that call back, for operations that this process itself asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .._core.waiter import Waiter

if TYPE_CHECKING:
    from .. import errors
    from ..ports import Done


class Reply(Waiter):
    """Calls `done` with the reply, or with no bytes and the error: it was not done, or nobody knows."""

    def __init__(self, done: Callable[[bytes, errors.MetaStoreError | None], object]) -> None:
        self.done = done

    def complete(self, reply: bytes) -> None:
        """It was done."""
        self.done(reply, None)

    def fail(self, error: errors.MetaStoreError) -> None:
        """It was not, or nobody knows."""
        self.done(b"", error)


def outcome(done: Done) -> Reply:
    """A waiter that only wants to know whether it worked."""
    return Reply(lambda _reply, error: done(error))
