"""Whether a member whose log is empty may begin the cluster, and which of two processes of one member is the real one.

This module is pure: the transport reports what the handshakes said, and when. ARCHITECTURE.md, "Beginning", says which
cases can be told apart and which cannot.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from . import handshake as hs

#: A member that dials us and is not new blocks our beginning for this many seconds, unless it answers our hello sooner.
SHOWN: Final = 10.0
#: While a member's streams seem to be open, its first process has this many seconds to show a sign of life.
PROOF: Final = 1.0
MAX_LIVES: Final = 1024


class Founding:
    """A member that was configured to begin the cluster together with `initial` (ids), and whose log is empty.

    Such a member may be new like the others, or it may belong to a running cluster and have lost its data directory. It
    takes no part in the cluster until `may_begin` returns true. That needs two conditions. First, all other members
    have answered, or `patience` seconds have passed since the second condition became true. Second, a majority of the
    initial members is new, or a member that has a leader accepted this one. A member that is not new and cannot decide
    yet blocks the start for as long as it stays undecided.
    """

    def __init__(self, own: int, initial: Iterable[int], patience: float) -> None:
        self.others = frozenset(initial) - {own}
        self.quorum = (len(self.others) + 1) // 2 + 1
        self.patience = patience
        self.new: set[int] = set()
        self.took_in: set[int] = set()
        self.undecided: set[int] = set()
        self._shown: dict[int, float] = {}
        self._since: float | None = None

    def answered(self, member: int, status: int, flags: int) -> None:
        """`member` answered our hello with this status and describes itself by these flags."""
        if member not in self.others or status not in (hs.OK, hs.WAIT):
            return
        for known in (self.new, self.took_in, self.undecided):
            known.discard(member)
        self._shown.pop(member, None)
        if status == hs.WAIT:
            self.undecided.add(member)
        elif flags & hs.NEW:
            self.new.add(member)
        else:
            self.took_in.add(member)

    def greeted(self, member: int, flags: int, now: float) -> bool:
        """`member` dialled us, and its hello carries these flags. Returns whether we must dial it again to ask.

        A hello says only what the member is. What it thinks of us it says only in its answer to our own hello, and an
        answer that it gave as a new member is no longer valid when it is not new any more.
        """
        if member not in self.others or flags & hs.NEW or member in self.took_in:
            return False
        self._shown[member] = now
        before = member in self.new
        self.new.discard(member)
        return before

    def may_begin(self, now: float) -> bool:
        """Whether this member may take part in the cluster from now on."""
        if self.undecided or any(now - when < SHOWN for when in self._shown.values()):
            return False
        known = self.new | self.took_in
        if not self.took_in and len(self.new) + 1 < self.quorum:
            self._since = None
            return False
        if known == self.others:
            return True
        if self._since is None:
            self._since = now
        return now - self._since >= self.patience


class Lives:
    """The running process of each member. A member has one such process: the one whose streams are open.

    A second process of a member takes over when the first one shows no sign of life. If the first one does, the second
    one runs on a copy of the data directory and must end. No process ends because of a hello alone, since anybody could
    forge one.
    """

    def __init__(self) -> None:
        # When the streams of a member were asked, and which process challenged which other one then.
        self._asked: dict[int, tuple[float, tuple[tuple[int, int], tuple[int, int]]]] = {}
        self._alive: dict[int, float] = {}

    def judge(
        self, member: int, process: tuple[int, int], there: tuple[int, int] | None, now: float
    ) -> tuple[int, str, bool]:
        """Judges a hello of `member`. Returns (status, reason, whether to ask the member's open streams for a sign of
        life).

        process: (start number, random number of the process). there: the same pair for another process of the member
        that has streams open, or None. When the result is (OK, "", False) the caller closes those streams.
        """
        if there is None or there == process:
            self._asked.pop(member, None)
            return hs.OK, "", False
        pair = (process, there)
        asked, challenge = self._asked.get(member, (now, None))
        alive = self._alive.get(member, asked - 1) >= asked
        # A sign of life is soon out of date. And what one challenger was told says nothing about the next one, which
        # may be the member's next start. That there was no sign of life holds however late the same challenger comes
        # back.
        if challenge != pair or (alive and now - asked >= 2 * PROOF):
            if len(self._asked) >= MAX_LIVES:
                self._asked.clear()
                self._alive.clear()
            self._asked[member] = (now, pair)
            return hs.BUSY, "another process of this member seems to be connected: it is being asked", True
        if alive:
            reason = (
                f"another process runs as member {member:016x}, on a copy of the same data directory, and was "
                f"connected first (start {there[0]} of the directory; this is start {process[0]})"
            )
            return hs.TWIN, reason, False
        if now - asked >= PROOF:
            self._asked.pop(member, None)
            return hs.OK, "", False
        return hs.BUSY, "another process of this member seems to be connected: it is being asked", False

    def alive(self, member: int, now: float) -> None:
        """An open stream of the member gave a sign of life."""
        self._alive[member] = now

    def forget(self, member: int) -> None:
        """The cluster has removed this member."""
        self._asked.pop(member, None)
        self._alive.pop(member, None)
