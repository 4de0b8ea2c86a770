"""What is closed at the end of a member, in the reverse order of its opening, and what of that may wait for a disk."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable


class Closing(contextlib.ExitStack):
    """Closes at its end what it was told of. The thread that opens and closes owns it; any thread may ask `waits`."""

    def __init__(self) -> None:
        super().__init__()
        self._now = ("", 0.0)  # what is being closed, if it may wait for the disk, and since when

    def at_end(self, what: str, close: Callable[[], object]) -> None:
        """Have `close` called at the end. What it does is lost without harm where a stop gives up on it: the log has
        everything, and what is left of files is removed by the next start."""

        def closing() -> None:
            self._now = (what, time.monotonic())
            try:
                close()
            finally:
                self._now = ("", 0.0)

        self.callback(closing)

    def waits(self, seconds: float) -> str:
        """What has been closing for so many seconds by now; empty if nothing has."""
        what, since = self._now
        took = time.monotonic() - since
        return f"closing {what} has taken {took:.1f} s" if what and took >= seconds else ""
