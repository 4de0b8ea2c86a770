"""A member tells when its storage engine takes no writes for more than a moment. This belongs to the loop's thread."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..replica.driver import Driver

log = logging.getLogger("metastore.engine")

#: Seconds for which an engine may be busy before its member is not healthy any more.
PATIENCE = 3.0


class BusyEngine:
    """How long the engine called `name` has been busy. `tick` is called at each Raft tick."""

    def __init__(self, name: str, driver: Driver) -> None:
        self._name = name
        self._driver = driver
        self._since: float | None = None  # when the refusals under way began
        self._next = PATIENCE  # seconds after which the next line is due
        self._seconds = 0.0

    @property
    def trouble(self) -> bool:
        """Whether the engine has been busy for so long that this member is not healthy."""
        return self._seconds >= PATIENCE

    def tick(self, now: float) -> bool:
        """Look at the engine at `now` (seconds), and write the lines that are due: after 3, 6, 12... seconds, and at
        the end. Return whether `trouble` has changed."""
        before, since = self.trouble, self._driver.busy_since
        if since is None or since != self._since:
            if self.trouble:
                log.warning("storage engine %r takes writes again, after %.1f s", self._name, self._seconds)
            self._since, self._next = since, PATIENCE
        self._seconds = 0.0 if since is None else now - since
        if self._seconds >= self._next:
            log.warning("storage engine %r has taken no writes for %.1f s: it is busy", self._name, self._seconds)
            while self._seconds >= self._next:
                self._next *= 2
        return self.trouble != before

    def stats(self) -> dict[str, float]:
        """Numbers for /metrics."""
        return {"engine_busy_seconds": self._seconds}
