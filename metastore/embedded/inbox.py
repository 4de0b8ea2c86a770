"""The calls of this process on their way to the loop's thread."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence

from .. import errors
from .._core.kv_pieces import Piece
from ..member.running import RunningMember
from .bulk import Call

#: Calls of this process that one turn of the loop takes in: some two milliseconds of work.
INBOX_SLICE = 300
#: Puts of pieces that one turn takes in instead of a call: one takes a thirtieth of a call's time.
PIECE_PUTS = 16
#: Seconds until patient calls are looked at again for which there was no room.
ROOM_RETRY = 0.001


class Inbox:
    """Takes calls from any thread, and gives them to the member in its loop's thread.

    A caller may be interrupted anywhere, by the handler of a signal that raises or at the recursion limit, and harms
    nobody else then: who comes next relies on a wake-up only if it was done to its end.
    """

    def __init__(self) -> None:
        self._hasty: deque[Call] = deque()
        self._patient: deque[Call | Piece] = deque()
        self._begun = 0  # how often `_take` began
        self._posted = -1  # `_begun` as it was before a `_take` was posted: as long as they are equal, one is to come
        self._member: RunningMember | None = None
        self._refusal: Callable[[], errors.ApiError] | None = None

    def open(self, member: RunningMember) -> None:
        """The member that the calls are for."""
        self._member = member

    def put(self, calls: Sequence[Call]) -> None:
        """Hand calls to the loop thread, with one wake-up however many there are."""
        self._hasty.extend(calls)
        self._post()

    def put_patient(self, calls: Sequence[Call | Piece]) -> None:
        """The same for calls that wait, in their order, until there is room for them."""
        self._patient.extend(calls)
        self._post()

    def _post(self) -> None:
        member = self._member
        assert member is not None, "opened before the first call"
        begun = self._begun
        if self._posted != begun:
            member.loop.call_soon_threadsafe(self._take)
            self._posted = begun
        if self._refusal is not None:
            # The node stopped between the caller's check and the hand-over: nobody else would answer these.
            self._refuse()

    def _take(self) -> None:
        """A slice of what came in; the rest in the next turn, for others want the loop too."""
        member = self._member
        assert member is not None
        self._begun += 1
        left = INBOX_SLICE
        while self._hasty and left:
            left -= member.calls(self._hasty, left)
        while self._patient and left > 0 and not member.crowded():
            call = self._patient.popleft()
            if not isinstance(call, Piece):
                member.call(*call)
                left -= 1
                continue
            left -= 1 + member.put_piece(call, left * PIECE_PUTS) // PIECE_PUTS
            if call.next < call.size:
                self._patient.appendleft(call)
                if self._refusal is not None:
                    # Nobody else would answer it: the line was emptied meanwhile.
                    self._refuse()
        if (self._hasty or self._patient) and self._posted != self._begun:
            self._posted = self._begun
            member.loop.call_later(0 if self._hasty or left <= 0 else ROOM_RETRY, self._take)

    def close(self, refusal: Callable[[], errors.ApiError]) -> None:
        """From now on every call gets `refusal()`, those that are here already too."""
        self._refusal = refusal
        self._refuse()

    def _refuse(self) -> None:
        refusal = self._refusal
        assert refusal is not None
        with contextlib.suppress(IndexError):
            while True:
                _turn_away(self._hasty.popleft(), refusal())
        with contextlib.suppress(IndexError):
            while True:
                _turn_away(self._patient.popleft(), refusal())


def _turn_away(call: Call | Piece, error: errors.ApiError) -> None:
    error.not_done = True  # the member never saw it
    if isinstance(call, Piece):
        call.refuse(error)
    else:
        call[2].fail(error)
