"""A member closes its parts at its end, in the reverse order of their opening. Some of these may wait for a disk."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable


class Closing(contextlib.ExitStack):
    """Calls the functions that it was given, at its end. One thread opens and closes; any thread may call `waits`."""

    def __init__(self) -> None:
        super().__init__()
        self._now = ("", 0.0)  # the part that is being closed, if it may wait for the disk, and since when

    def at_end(self, what: str, close: Callable[[], object]) -> None:
        """Calls `close` at the end; `what` names the part. A stop may give up waiting for `close`. That does no harm,
        because the log has everything and the next start removes unfinished files.
        """

        def closing() -> None:
            self._now = (what, time.monotonic())
            try:
                close()
            finally:
                self._now = ("", 0.0)

        self.callback(closing)

    def waits(self, seconds: float) -> str:
        """Says which part has been closing for `seconds` or longer; empty if none has."""
        what, since = self._now
        took = time.monotonic() - since
        return f"closing {what} has taken {took:.1f} s" if what and took >= seconds else ""
