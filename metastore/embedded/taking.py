"""What was sent to a watch becomes events, in the thread of whoever takes them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

from .. import errors
from . import forks
from .answers import belongs_to
from .mailbox import Mailbox
from .requests import PIECE, messages, split, watch_event
from .results import WatchBatch, WatchEvent


class Taker:
    """Takes the events out of a mailbox, in their order, for any number of threads.

    revision: all events up to it were taken; 0 where the watch begins with the next revision and that is not known yet.
    """

    def __init__(self, mailbox: Mailbox, start_revision: int) -> None:
        self.mailbox = mailbox
        self.revision = max(0, start_revision - 1)
        self._lock = threading.RLock()  # a signal's handler may take something as well
        self._batches: deque[WatchBatch] = deque()
        self._rest: deque[WatchEvent] = deque()  # of the batch that is taken event by event
        self._known = 0  # the revision of the last batch that was decoded
        self._pieces: Iterator[None] | None = None  # of the message that is being decoded
        self._end: Callable[[], errors.ApiError] | None = None  # behind the batches

    def event(self) -> WatchEvent | None:
        """The next event, None where there is none yet. Raises what ended the watch."""
        self._check()
        with self._lock:
            if not self._rest:
                batch = self._next()
                if batch is None:
                    return None
                self._rest.extend(batch.events)
            event = self._rest.popleft()
            if not self._rest:
                self.revision = event.revision
            return event

    def batch(self) -> WatchBatch | None:
        """The next batch, or what is left of one that was begun; None where there is none yet. Raises what ended the
        watch."""
        self._check()
        with self._lock:
            if self._rest:
                batch: WatchBatch | None = WatchBatch(self._rest[0].revision, tuple(self._rest))
                self._rest.clear()
            else:
                batch = self._next()
            if batch is not None:
                self.revision = batch.revision
            return batch

    def _check(self) -> None:
        """Raises Forked, and Canceled where the program has closed the watch."""
        mailbox = self.mailbox
        if mailbox.process != forks.process:
            raise belongs_to(mailbox.process)
        if mailbox.closed:
            raise errors.Canceled("metastore: the watch was closed")

    def _next(self) -> WatchBatch | None:
        if self._batches:
            return self._batches.popleft()
        if self._end is not None:
            raise self._end()
        end = self.mailbox.end  # before the look at the messages, all of which come before it
        if end is not None and not self.mailbox.messages:
            raise end()
        return None

    # ---- decoding

    def waits(self) -> bool:
        """Whether nothing can be taken before there is news."""
        mailbox = self.mailbox
        return not (self._batches or self._rest or mailbox.messages or mailbox.closed or mailbox.end or self._end)

    def decode(self) -> bool:
        """Decode some more, for a millisecond or so; whether there was something to decode."""
        with self._lock:
            if self._end is not None or not self.mailbox.messages:
                return False
            if self._pieces is None:
                self._pieces = self._decoded(self.mailbox.messages[0])
            try:
                next(self._pieces)
            except StopIteration:
                self._pieces = None
                self.mailbox.took(self.mailbox.messages.popleft())
            except BaseException:
                # Something hit this thread from outside. The message is decoded again, and what is known left out.
                self._pieces = None
                raise
            return True

    def _decoded(self, message: bytes) -> Iterator[None]:
        """Decode a message, which has whole revisions."""
        kind = messages().WatchResponse
        events: list[WatchEvent] = []
        canceled, compacted, reason = False, 0, ""
        for piece in split(message, PIECE):
            part = kind.FromString(piece)
            if part.created and not self.revision:
                self.revision = part.header.revision
            canceled, compacted = canceled or part.canceled, compacted or part.compact_revision
            reason = reason or part.cancel_reason
            for one in part.events:
                event = watch_event(one)
                if events and events[-1].revision != event.revision:
                    self._complete(events)
                    events = []
                events.append(event)
            if len(message) > PIECE:
                yield
        self._complete(events)
        if canceled:
            self._end = lambda: errors.WatchCompacted(compacted) if compacted else errors.WatchCanceled(reason or None)
            self.mailbox.leave()

    def _complete(self, events: list[WatchEvent]) -> None:
        if events and events[-1].revision > self._known:
            self._batches.append(WatchBatch(events[-1].revision, tuple(events)))
            self._known = events[-1].revision
