"""The calls of this process on their way to the loop's thread."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence

from .. import errors
from ..member.running import RunningMember
from .bulk import Call, wanted

#: Calls of this process that one turn of the loop takes in: some two milliseconds of work.
INBOX_SLICE = 300
#: Seconds until patient calls are looked at again for which there was no room.
ROOM_RETRY = 0.001


class Inbox:
    """Takes calls from any thread, and gives them to the member in its loop's thread."""

    def __init__(self) -> None:
        self._hasty: deque[Call] = deque()
        self._patient: deque[Call] = deque()
        self._posted = False
        self._member: RunningMember | None = None
        self._refusal: Callable[[], errors.ApiError] | None = None

    def open(self, member: RunningMember) -> None:
        """The member that the calls are for."""
        self._member = member

    def put(self, calls: Sequence[Call], *, patient: bool = False) -> None:
        """Hand calls to the loop thread, with one wake-up however many there are. `patient` ones wait, in their order,
        until there is room for them."""
        member = self._member
        assert member is not None, "opened before the first call"
        (self._patient if patient else self._hasty).extend(calls)
        if not self._posted:
            self._posted = True
            member.loop.call_soon_threadsafe(self._take)
        if self._refusal is not None:
            # The node stopped between the caller's check and the hand-over: nobody else would answer these.
            self._refuse()

    def _take(self) -> None:
        """A slice of what came in; the rest in the next turn, for others want the loop too."""
        member = self._member
        assert member is not None
        self._posted = False
        left = INBOX_SLICE
        for inbox, patient in ((self._hasty, False), (self._patient, True)):
            while inbox and left and not (patient and member.crowded()):
                call = inbox.popleft()
                if wanted(call[2]):
                    member.call(*call)
                left -= 1
        if (self._hasty or self._patient) and not self._posted:
            self._posted = True
            member.loop.call_later(0 if self._hasty or not left else ROOM_RETRY, self._take)

    def close(self, refusal: Callable[[], errors.ApiError]) -> None:
        """From now on every call gets `refusal()`, those that are here already too."""
        self._refusal = refusal
        self._refuse()

    def _refuse(self) -> None:
        refusal = self._refusal
        assert refusal is not None
        for inbox in (self._hasty, self._patient):
            with contextlib.suppress(IndexError):
                while True:
                    error = refusal()
                    error.not_done = True  # the member never saw it
                    inbox.popleft()[2].fail(error)
