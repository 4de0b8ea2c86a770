"""Calls that this process makes in several steps on behalf of a caller, each written as a generator.

A generator yields what it waits for, and is sent the outcome:

* an `Ask`: a function that hands in one operation for a waiter. It always ends, because operations have a deadline. The
  outcome is the encoded reply, or the error is raised where the generator stands;
* a `KeyWatch`: the outcome is a list of WatchResponses that came, one at least. This may take for ever, so it is here
  that the error comes out with which a task is cancelled. The generator then cleans up by further operations;
* None: nothing, but that error comes out here, too.

What it returns is the encoded reply to its caller, and what it raises is the caller's error. Belongs to the loop's
thread. Outcomes come in the middle of other parts' work, so the generators go on at the end of the turn.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any, Final

from .. import errors
from .._core.member_turn import TasksFields
from .._core.watch_index import Sink, Stream
from .._core.watch_wire import decode_request
from ..api import pb
from .waiters import Reply

if TYPE_CHECKING:
    from .._core.waiter import Waiter
    from .._core.watch import WatchHub

log = logging.getLogger("metastore.node")

#: Steps that are taken in one turn of the loop; each takes up to 100 us with the operation that it hands in.
STEPS_PER_TURN: Final = 80
#: Bytes of events that wait for their generator. The watchers are fed from history when these are taken.
UNREAD: Final = 64 << 10

Ask = Callable[["Waiter"], object]


class KeyWatch(Sink):
    """Watchers of the keys that one task waits for. Whoever makes one closes it.

    wanted: encoded WatchRequests. full: whether whoever gets the outcome takes no more for the moment.
    """

    def __init__(self, tasks: Tasks, wanted: Iterable[bytes], full: Callable[[], bool] = lambda: False) -> None:
        self.task: Task | None = None  # the one that waits for this
        self.news: list[Any] = []
        self._unread = 0
        self._full = full
        self._hub = tasks.hub
        self._stream = Stream(self)
        for request in wanted:
            self._hub.handle(self._stream, decode_request(request), tasks.now())

    def full(self) -> bool:
        """Whether nothing more is to be sent at the moment."""
        return self._unread >= UNREAD or self._full()

    def send(self, message: bytes) -> None:
        """One encoded WatchResponse. That a watcher was made is no news."""
        response = pb.WatchResponse.FromString(message)
        if not response.canceled and not response.events:
            return
        self._unread += len(message)
        self.news.append(response)
        if self.task is not None:
            self.task.heard()

    def take(self) -> list[Any]:
        """The responses that came."""
        news, self.news = self.news, []
        self._unread = 0
        return news

    def close(self) -> None:
        """End the watchers."""
        self._hub.close(self._stream)


Wanted = Ask | KeyWatch | None
Steps = Generator[Wanted, Any, bytes | None]


class Task:
    """One call under way."""

    __slots__ = ("_cancelled", "_steps", "_watch", "call", "tasks")

    def __init__(self, tasks: Tasks, call: Waiter, steps: Steps) -> None:
        self.tasks = tasks
        self.call = call
        self._steps = steps
        self._watch: KeyWatch | None = None  # what it waits for; else it waits for an operation, or its next step
        self._cancelled: errors.MetaStoreError | None = None  # to be raised in the generator, once

    def cancel(self, error: errors.MetaStoreError) -> None:
        """End the call with `error`, unless it ends by itself before it would have to wait for a key. Idempotent."""
        if self not in self.tasks.running or self._cancelled is not None:
            return
        self._cancelled = error
        if self._watch is not None:
            self._watch.task, self._watch = None, None
            self.tasks.ready.append((self, None, error))

    def heard(self) -> None:
        """The watch that it waits for has news."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.task = None
            self.tasks.ready.append((self, watch, None))

    def go_on(self, outcome: Any, error: BaseException | None) -> None:
        """Take the next step."""
        if isinstance(outcome, KeyWatch):
            outcome = outcome.take()
        try:
            wanted = self._steps.send(outcome) if error is None else self._steps.throw(error)
            self._wait_for(wanted)
            return
        except StopIteration as end:
            self.tasks.running.pop(self, None)
            if end.value is not None:
                self.call.complete(end.value)
            return
        except errors.ApiError as failure:
            answer: errors.MetaStoreError = failure
        except errors.MetaStoreError:
            raise
        except Exception:
            # A bug in one call must not take down the node that all clients share.
            log.exception("a call failed")
            answer = errors.MetaStoreError("metastore: internal error, see the server's log")
        self.tasks.running.pop(self, None)
        self.call.fail(answer)

    def _told(self, reply: bytes, error: errors.MetaStoreError | None) -> None:
        self.tasks.ready.append((self, reply, error))

    def _wait_for(self, wanted: Wanted) -> None:
        if wanted is not None and not isinstance(wanted, KeyWatch):
            step = Reply(self._told)
            try:
                wanted(step)
            except errors.ApiError as error:
                step.fail(error)
        elif self._cancelled is not None:
            self.tasks.ready.append((self, None, self._cancelled))
        elif wanted is None or wanted.news:
            self.tasks.ready.append((self, wanted, None))
        else:
            self._watch, wanted.task = wanted, self


class Tasks(TasksFields):
    """The calls under way on one member, `most` at a time."""

    def __init__(self, hub: WatchHub, now: Callable[[], float], most: int) -> None:
        self.hub = hub
        self.now = now
        self.running: dict[Task, None] = {}
        #: What goes on in the next turn: (task, outcome, error).
        self.ready = deque()
        self._most = most
        self._stopped = False

    def begin(self, call: Waiter, steps: Steps) -> Task:
        """Begin a call. Raises TooManyRequests, Stopped."""
        if self._stopped:
            raise errors.Stopped()
        if len(self.running) >= self._most:
            raise errors.TooManyRequests()
        task = Task(self, call, steps)
        self.running[task] = None
        self.ready.append((task, None, None))
        return task

    def turn(self) -> bool:
        """Take the steps that can be taken. Whether a turn should follow at once."""
        busy = bool(self.ready)
        for _ in range(min(STEPS_PER_TURN, len(self.ready))):
            task, outcome, error = self.ready.popleft()
            if task in self.running:
                task.go_on(outcome, error)
        return busy

    def stop(self) -> None:
        """Cancel all calls, and begin none any more. The clients go on at another member."""
        self._stopped = True
        for task in list(self.running):
            task.cancel(errors.Stopped())

    def abandon(self, error: Callable[[], errors.MetaStoreError]) -> None:
        """Answer with `error()` all callers that still wait, because the member ends."""
        running, self.running = self.running, {}
        self.ready.clear()
        for task in running:
            task.call.fail(error())
