"""Automatic compaction of history. Pure: the clock comes in as an argument (seconds, monotonic).

There are two modes, as in etcd:

- periodic: The last `retention` seconds of history are kept. An interval is the shorter of the retention and one hour,
  and the revision is sampled ten times per interval. The first compaction comes after a whole retention, and the
  following ones after each interval. Each compacts up to the newest sample that is old enough.
- by revisions: The last `revisions` revisions are kept. A compaction comes every five minutes, as in etcd, and also as
  soon as there are twice as many revisions, so heavy writing cannot pile up five minutes of history. A compaction
  makes the node look at every key. Therefore at least ten seconds pass between two compactions, unless there is
  little room.

Only the leader asks for compactions. A new leader begins with an empty window, so it keeps too much rather than too
little.
"""

from __future__ import annotations

from collections import deque

OFF, PERIODIC, REVISION = "off", "periodic", "revision"
HOUR = 3600.0
SAMPLES = 10  # in one interval between compactions
FIVE_MINUTES = 300.0
SPACING = 10.0  # seconds between two compactions by revisions
LOOK = 1.0  # seconds between two looks at the revision


class AutoCompactor:
    """Decides when to compact and up to which revision.

    `mode` is OFF, PERIODIC (with `retention` in seconds) or REVISION (with `revisions`, a count).
    """

    def __init__(self, mode: str, retention: float = HOUR, revisions: int = 10_000) -> None:
        if mode not in (OFF, PERIODIC, REVISION):
            raise ValueError(f"mode {mode!r}")
        self.mode = mode
        self.retention = retention
        self.revisions = revisions
        self.interval = min(retention, HOUR) if mode == PERIODIC else FIVE_MINUTES
        self._step = self.interval / SAMPLES if mode == PERIODIC else LOOK
        self._leading = False
        self._next_look = 0.0
        self._last = 0.0  # when the last compaction was done, or leadership began
        self._first = True  # none was done since leadership began
        self._samples: deque[tuple[float, int]] = deque()

    def follow(self) -> None:
        """Forgets the window, because this member does not lead (any more)."""
        self._leading = False

    def lead(self, now: float, revision: int, compact_revision: int, *, hurry: bool = False) -> int:
        """Returns the revision to compact to now, or 0. Call this often while this member leads.

        `revision` is the current revision. `compact_revision` is the one up to which any member last compacted. The
        same result comes again at the next look until `compacted` is called. `hurry` means that there is little room;
        revisions that may go then do not wait for SPACING.
        """
        if self.mode == OFF or (self._leading and now < self._next_look and not hurry):
            return 0
        if not self._leading:
            self._leading = True
            self._last = now
            self._first = True
            self._samples.clear()
        self._next_look = now + self._step
        if self.mode == PERIODIC:
            target = self._periodic(now, revision)
        else:
            target = self._counted(now, revision, compact_revision, 0.0 if hurry else SPACING)
        return target if target > max(compact_revision, 1) else 0

    def compacted(self, now: float) -> None:
        """The compaction that `lead` asked for was done."""
        self._last = now
        self._first = False

    def _periodic(self, now: float, revision: int) -> int:
        samples = self._samples
        samples.append((now, revision))
        while len(samples) > 1 and samples[1][0] <= now - self.retention:
            samples.popleft()
        when, target = samples[0]
        wait = self.retention if self._first else self.interval
        # A sample may come a little early or late; half a step is no reason to let a whole one pass.
        early = self._step / 2
        return target if when <= now - self.retention and now - self._last >= wait - early else 0

    def _counted(self, now: float, revision: int, compact_revision: int, spacing: float) -> int:
        waited = now - self._last
        if waited < spacing and not self._first:
            return 0
        due = waited >= FIVE_MINUTES or revision - max(compact_revision, 0) >= 2 * self.revisions
        return revision - self.revisions if due else 0
