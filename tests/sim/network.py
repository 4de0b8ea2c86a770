"""The network of the simulation: messages are late, lost, doubled, overtake each other, and links are cut, also in one
direction only.

Raft messages travel as their wire bytes, so that nothing is shared between nodes. Forwarded operations and refusals
are late or lost, but never doubled: the real ones go over a connection, and are not sent again.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .clock import Clock

DOUBLED = frozenset({"raft", "hello", "answer"})


@dataclass
class Weather:
    """delay: usual seconds on the way. spread: how much of it is chance. spike: share of messages that take up to
    `spike_delay`. loss, double: shares. late: share of what a cut link holds back instead of losing it."""

    delay: float = 0.002
    spread: float = 1.0
    spike: float = 0.01
    spike_delay: float = 0.5
    loss: float = 0.01
    double: float = 0.01
    late: float = 0.1


class Network:
    """Carries bytes between members. `deliver(to, sender, kind, data)` is called when they arrive."""

    def __init__(self, clock: Clock, weather: Weather, deliver: Callable[[int, int, str, Any], None]) -> None:
        self.clock = clock
        self.weather = weather
        self.deliver = deliver
        self.cut: set[tuple[int, int]] = set()
        self.at_once = False  # whether a cut also takes what is on its way
        self.sent = self.lost = self.doubled = 0

    def send(self, sender: int, to: int, kind: str, data: Any, check: int) -> bool:
        """Give something to the network; `check` is a sum of it for the trace. False: the sender sees the loss."""
        weather, random = self.weather, self.clock.random
        self.sent += 1
        if (sender, to) in self.cut:
            if random.random() >= weather.late:
                self.lost += 1
                return random.random() < 0.5
            self._arrive(random.uniform(0.1, 3.0), sender, to, kind, data, check)
            return True
        if weather.loss and random.random() < weather.loss:
            self.lost += 1
            return random.random() < 0.5
        self._arrive(self.some_delay(), sender, to, kind, data, check)
        if kind in DOUBLED and weather.double and random.random() < weather.double:
            self.doubled += 1
            self._arrive(self.some_delay() * 3, sender, to, kind, data, check)
        return True

    def some_delay(self) -> float:
        """How long something is on its way."""
        weather, random = self.weather, self.clock.random
        if weather.spike and random.random() < weather.spike:
            return random.random() * weather.spike_delay
        return weather.delay * (1.0 + weather.spread * random.random())

    def _arrive(self, delay: float, sender: int, to: int, kind: str, data: Any, check: int) -> None:
        self.clock.after(delay, self._arrived, sender, to, kind, data, check)

    def _arrived(self, sender: int, to: int, kind: str, data: Any, check: int) -> None:
        if self.at_once and (sender, to) in self.cut:
            self.lost += 1
            return
        self.clock.note(b"%d>%d %s %d" % (sender, to, kind.encode(), check))
        self.deliver(to, sender, kind, data)

    # ---- cutting

    def separate(self, left: Iterable[int], right: Iterable[int]) -> None:
        """No message between the two groups."""
        left, right = list(left), list(right)
        for one in left:
            for other in right:
                self.cut.add((one, other))
                self.cut.add((other, one))

    def silence(self, senders: Iterable[int], receivers: Iterable[int]) -> None:
        """No message in this direction."""
        receivers = list(receivers)
        for one in senders:
            for other in receivers:
                if one != other:
                    self.cut.add((one, other))

    def heal(self) -> None:
        """All links work."""
        self.cut.clear()


def message_sum(parts: tuple[bytes, Any]) -> int:
    """A sum of a message for the trace."""
    return zlib.crc32(parts[1], zlib.crc32(parts[0]))
