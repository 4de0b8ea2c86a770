"""These waiters call back. They are for operations that this process requests itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .._core.waiter import Waiter

if TYPE_CHECKING:
    from .. import errors
    from ..ports import Done


class Reply(Waiter):
    """Calls `done` with the reply, or with no bytes and the error. An error may leave the outcome open."""

    def __init__(self, done: Callable[[bytes, errors.MetaStoreError | None], object]) -> None:
        self.done = done

    def complete(self, reply: bytes) -> None:
        """The operation was carried out."""
        self.done(reply, None)

    def fail(self, error: errors.MetaStoreError) -> None:
        """The operation failed, or its outcome is open."""
        self.done(b"", error)


def outcome(done: Done) -> Reply:
    """A waiter for callers that need only the error, not the reply."""
    return Reply(lambda _reply, error: done(error))
