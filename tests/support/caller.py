"""A caller that waits for the outcome of an operation."""

from __future__ import annotations

from typing import Any

from metastore import errors
from metastore._core.waiter import Waiter


class Caller(Waiter):
    """Keeps the outcome in `reply` or `error`; both are None before. A second outcome is an error."""

    def __init__(self) -> None:
        self.reply: Any = None
        self.error: Any = None

    def complete(self, reply: bytes) -> None:
        assert not self.told
        self.reply = reply

    def fail(self, error: errors.MetaStoreError) -> None:
        assert not self.told
        self.error = error

    @property
    def told(self) -> bool:
        return self.reply is not None or self.error is not None

    @property
    def result(self) -> Any:
        """The reply, or the class of the error."""
        return self.reply if self.error is None else type(self.error)
