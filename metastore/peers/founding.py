"""Whether a member whose log is empty may begin the cluster, and which of two processes of one member is the member.

Pure: the transport tells what the greetings said, and when. What can and cannot be told apart: ARCHITECTURE.md,
"Beginning".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from . import handshake as hs

#: Seconds for which a member that dials us, and is no new one, keeps us from beginning a cluster until it has answered.
SHOWN: Final = 10.0
#: Seconds that another process of a member has to show that it lives, while the member's streams seem to be open.
PROOF: Final = 1.0
MAX_LIVES: Final = 1024


class Founding:
    """A member that was made to begin the cluster together with `initial` (ids), and has nothing in its log.

    It may be new like the others, or one of a running cluster that lost its directory. It takes part in nothing until
    `may_begin`: all the others have answered, or for `patience` seconds no more than those that did; and either a
    majority of the initial members is new, or a member that has a leader took this one in. One that is no new member
    and cannot tell yet stops it for as long as it takes.
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
        """`member` answered our hello with this status, and says this of itself."""
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
        """`member` said this of itself when it dialled us; what it thinks of us it only says when we dial it. Whether
        it must be asked again, for what it answered before does not hold any more."""
        if member not in self.others or flags & hs.NEW or member in self.took_in:
            return False
        self._shown[member] = now
        before = member in self.new
        self.new.discard(member)
        return before

    def may_begin(self, now: float) -> bool:
        """Whether to take part from now on."""
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
    """The processes that greet as members: one for each member, the one whose streams are open.

    Another process of a member takes its place when it shows no sign of life; while it does, the other one runs on a
    copy of the data directory, and must end. Nobody ends for a greeting alone, which anybody could forge.
    """

    def __init__(self) -> None:
        self._asked: dict[int, float] = {}
        self._alive: dict[int, float] = {}

    def judge(
        self, member: int, process: tuple[int, int], there: tuple[int, int] | None, now: float
    ) -> tuple[int, str, bool]:
        """(status, reason, whether to ask the member's open streams for a sign of life) for a greeting of `member`.

        process: (start number, number drawn by the process). there: those of another process of the member that has
        streams open, if there is one. With (OK, "", False) the caller closes these streams.
        """
        if there is None or there == process:
            self._asked.pop(member, None)
            return hs.OK, "", False
        asked = self._asked.get(member, now - 2 * PROOF)
        if now - asked >= 2 * PROOF:
            if len(self._asked) >= MAX_LIVES:
                self._asked.clear()
                self._alive.clear()
            self._asked[member] = now
            return hs.BUSY, "another process of this member seems to be connected: it is being asked", True
        if self._alive.get(member, asked - 1) >= asked:
            return (
                hs.TWIN,
                (
                    f"another process runs as member {member:016x}, on a copy of the same data directory, and was "
                    f"connected first (start {there[0]} of the directory; this is start {process[0]})"
                ),
                False,
            )
        if now - asked >= PROOF:
            self._asked.pop(member, None)
            return hs.OK, "", False
        return hs.BUSY, "another process of this member seems to be connected: it is being asked", False

    def alive(self, member: int, now: float) -> None:
        """An open stream of the member gave a sign of life."""
        self._alive[member] = now

    def forget(self, member: int) -> None:
        """The member is none any more."""
        self._asked.pop(member, None)
        self._alive.pop(member, None)
