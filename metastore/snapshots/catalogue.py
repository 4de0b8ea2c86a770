"""The snapshot files that this member relies on, and those of them that must stay because another part needs them.
Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .files import Info

#: So many received snapshots are remembered. Each waits until its Ready is durable, and the next may come meanwhile.
RECEIVED: Final = 4


class Catalogue:
    """Belongs to the loop's thread. `begun` is the snapshot that filled the engine at the start, or None.

    good: verified snapshots of this member's own log whose files are there, the oldest first. sending: files on their
    way to other members, by their ids; these stay, and so does the log behind them. received: snapshots of leaders that
    arrived and are not installed yet, the oldest first.
    """

    def __init__(self, begun: Info | None) -> None:
        self.good: list[Info] = [begun] if begun is not None else []
        self.sending: dict[int, Info] = {}
        self.received: list[Info] = []

    def arrived(self, info: Info) -> None:
        """Note that a snapshot of a leader is on disk and verified."""
        self.received = [*self.received[1 - RECEIVED :], info]

    def passed(self, index: int) -> None:
        """Note that the state is at `index` or beyond: no received snapshot up to there will be installed any more."""
        self.received = [info for info in self.received if info.header.index > index]

    @property
    def needed(self) -> list[Info]:
        """Return the files that stay however many newer ones there are."""
        return [*self.sending.values(), *self.received]

    def find(self, index: int, term: int) -> Info | None:
        """Return a verified snapshot of that position. Newer files are searched first."""
        for info in (*reversed(self.received), *reversed(self.good)):
            if (info.header.index, info.header.term) == (index, term) and info.path.exists():
                return info
        return None
