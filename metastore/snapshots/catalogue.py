"""Which snapshot files of this member are relied on, and which of them stay because somebody needs them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .files import Info


class Catalogue:
    """Belongs to the loop's thread. `begun`: what the engine was filled from at the start, if it was.

    good: snapshots of this member's own log that verified and whose files are there, the oldest first. sending: files
    on their way to other members, by their ids; these stay, and so does the log behind them.
    """

    def __init__(self, begun: Info | None) -> None:
        self.good: list[Info] = [begun] if begun is not None else []
        self.sending: dict[int, Info] = {}
        self._received: Info | None = None

    def arrived(self, info: Info) -> None:
        """A snapshot of a leader's is on disk, verified."""
        self._received = info

    def find(self, index: int, term: int) -> Info | None:
        """A verified snapshot of that position, newest files first."""
        for info in (self._received, *reversed(self.good)):
            if info is not None and (info.header.index, info.header.term) == (index, term) and info.path.exists():
                return info
        return None
