"""What the hub sends to a watch of this process, on its way from the loop's thread to whoever takes it.

The hub feeds a `Mailbox` as it feeds the stream of a client. One that is full is fed from history again when there is
room, so a consumer that takes nothing costs UNREAD bytes and one response, and holds up nobody.

No lock is taken here. A signal's handler may stop the node or close a watch in the middle of any step, and the
collector may close one anywhere. Each shared object is changed by one operation of the interpreter at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import errors
from .._core.watch_index import Sink
from . import forks
from .bell import Bell

if TYPE_CHECKING:
    from .._core.watch_index import Stream
    from ..member.running import RunningMember

#: Unread bytes of one watch beyond which it is sent nothing more: as many as a client may leave.
UNREAD = 128 << 10
#: All watches of a node share this part of `limits.max_reply_bytes`. One with nothing unread is sent something anyway.
SHARE = 4


class Account:
    """The unread bytes of all watches of a node. Belongs to the loop's thread, but for `taken`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.unread = 0
        #: What was taken out of which mailbox; any thread appends to it.
        self.taken: deque[tuple[Mailbox, int]] = deque()

    def settle(self) -> None:
        """Count what was taken."""
        while self.taken:
            mailbox, size = self.taken.popleft()
            if not mailbox.gone:
                mailbox.unread -= size
                self.unread -= size

    def drop(self, mailbox: Mailbox) -> None:
        """Nobody will take anything more out of this one."""
        self.settle()
        mailbox.gone = True
        self.unread -= mailbox.unread
        mailbox.unread = 0


class Mailbox(Sink):
    """The way of one watch.

    messages: the encoded responses that nobody has taken. closed: whether the program wants no more. end: makes the
    error with which the watch ends behind these messages, None as long as it goes on.
    """

    def __init__(self, watches: Watches, request: bytes) -> None:
        self.messages: deque[bytes] = deque()
        self.closed = False
        self.end: Callable[[], errors.ApiError] | None = None
        self.process = forks.process
        self._watches = watches
        self._request = request
        self._choked = False
        self._since = 0  # bytes that were taken since the loop was told of room
        self.bell = Bell()
        # The loop's thread has these.
        self.unread = 0
        self.gone = False
        self._stream: Stream | None = None

    @property
    def node(self) -> str:
        """The name of the node."""
        return self._watches.name

    # ---- in the loop's thread

    def full(self) -> bool:
        """Whether nothing more is to be sent at the moment."""
        account = self._watches.account
        # In this order: whoever takes something after the count sees that he must tell the loop.
        self._choked = True
        account.settle()
        full = self.unread >= UNREAD or (self.unread > 0 and account.unread >= account.most)
        self._choked = full
        return full

    def send(self, message: bytes) -> None:
        """One encoded WatchResponse."""
        if self.closed or self.gone:
            return
        self.unread += len(message)
        self._watches.account.unread += len(message)
        self.messages.append(message)
        self.bell.ring()

    def join(self) -> None:
        """Begin."""
        member = self._watches.member
        if member is not None and not self.closed:
            self._stream = member.watching.join(self, self._request, member.loop.now())

    def let_go(self) -> None:
        """Be over."""
        (stream, self._stream), member = (self._stream, None), self._watches.member
        if stream is not None and member is not None:
            member.watching.let_go(stream)
        self._watches.account.drop(self)

    # ---- in any thread

    def took(self, message: bytes) -> None:
        """A message was taken and is done with."""
        self._watches.account.taken.append((self, len(message)))
        self._since += len(message)
        if self._choked and (self._since >= UNREAD // 2 or not self.messages):
            self._since = 0
            self._choked = False
            self._watches.post(_nothing)

    def finish(self, end: Callable[[], errors.ApiError]) -> None:
        """Nothing more comes behind the messages that are here."""
        self.end = end
        self.bell.ring()

    def close(self) -> None:
        """The program wants no more. Never raises, and harmless where it was done before, or in a fork."""
        if self.closed:
            return
        self.closed = True
        if self.process == forks.process:
            self.bell.ring()
            self.leave()

    def leave(self) -> None:
        """The watch is over."""
        self._watches.close(self)


class Watches:
    """The watches of this process on one node.

    member: whom they are for, None before it serves and when it is over. A watch that the program keeps for longer
    keeps nothing of the node.
    """

    def __init__(self, name: str) -> None:
        #: Of the node.
        self.name = name
        self.account = Account(0)
        self.member: RunningMember | None = None
        self._known: dict[Mailbox, None] = {}
        self._refusal: Callable[[], errors.ApiError] | None = None

    def serve(self, member: RunningMember) -> None:
        """Take watches from now on."""
        self.member = member
        self.account.most = member.config.limits.max_reply_bytes // SHARE

    def open(self, request: bytes) -> Mailbox:
        """Begin a watch with an encoded WatchRequest. It stands before any call that the same thread makes later."""
        mailbox = Mailbox(self, request)
        self._known[mailbox] = None
        self.post(mailbox.join)
        if self._refusal is not None:
            mailbox.finish(self._refusal)
        return mailbox

    def close(self, mailbox: Mailbox) -> None:
        """A watch is over."""
        self._known.pop(mailbox, None)
        self.post(mailbox.let_go)

    def post(self, call: Callable[[], object]) -> None:
        """Have the loop's thread make a call, if it still runs."""
        member = self.member
        if member is not None:
            member.loop.call_soon_threadsafe(call)

    def end(self, refusal: Callable[[], errors.ApiError]) -> None:
        """The node is over: all watches end with `refusal()`, also those that are still to come."""
        self._refusal = refusal
        for mailbox in list(self._known):
            mailbox.finish(refusal)
        self._known.clear()
        self.member = None


def _nothing() -> None:
    """Brings about a turn of the loop, at the end of which the hub looks which streams take more."""
