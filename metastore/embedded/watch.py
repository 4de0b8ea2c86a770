"""Watching keys in the program of a node: `for event in node.watch("/jobs/", prefix=True)`.

One watch is one stream of the hub with one watcher (`mailbox.py`). Whatever interrupts the feeding inside of the node
(no leader, a snapshot that is installed, a consumer that is slow) ends in the hub's reading history from where it was;
so a watch goes on by itself, leaves nothing out and tells nothing twice.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from .. import errors, threads
from ..member.signals import kept_away
from . import forks
from .answers import end_of_a_fork
from .arguments import Key, flag, named, seconds
from .mailbox import Mailbox
from .requests import prefix_range, watch_request
from .results import WatchBatch, WatchEvent
from .taking import Taker
from .uncopied import Uncopied

log = logging.getLogger("metastore.embedded")

T = TypeVar("T")
W = TypeVar("W")


class Watchable(Generic[W]):
    """Calls that begin a watch. `Node` gives a `Watch`, and `node.aio` an `AsyncWatch`."""

    def _begun(self, request: bytes, start_revision: int) -> W:
        """A watch with an encoded request. Raises Stopped."""
        raise NotImplementedError

    def watch(
        self,
        key: Key,
        range_end: Key | None = None,
        *,
        prefix: bool = False,
        start_revision: int = 0,
        prev_kv: bool = False,
        puts: bool = True,
        deletes: bool = True,
    ) -> W:
        """Watch one key, all keys in [key, range_end), or with `prefix` all keys that begin with `key`.

        Events come in the order of revisions from `start_revision` on, which may lie in the past or the future. 0 is
        from now on: every write that is handed over after this call is seen. A start that is compacted ends the watch
        with WatchCompacted. `prev_kv` asks for each key as it was before. `puts` and `deletes` tell which changes to
        leave out.

        This call returns at once. It raises EmptyKey where the key is empty and no prefix, and Stopped where the node
        does not run. What the node refuses is raised where events are taken: WatchCanceled beyond
        `limits.max_watches_per_node`. A watch is to be closed; one that is forgotten is closed when Python collects it.
        """
        first, end = key, range_end
        if flag(prefix, "prefix"):
            if range_end is not None:
                raise ValueError("range_end must be None with a prefix")
            first, end = prefix_range(key)
        return self._begun(watch_request(first, end, start_revision, prev_kv, puts, deletes), start_revision)


class Watching(Uncopied):
    """What the watches of threads and of asyncio have in common."""

    def __init__(self, mailbox: Mailbox, start_revision: int) -> None:
        self._mailbox = mailbox
        self._taker = Taker(mailbox, start_revision)

    @property
    def revision(self) -> int:
        """All events up to this revision were taken, so a later watch goes on at `revision + 1`. Where the watch was to
        begin with the next revision, this is 0 until the program first looks for events."""
        return self._taker.revision

    def close(self) -> None:
        """End the watch: iterations end, and a wait for an event raises Canceled. From any thread, any number of times.
        What was not taken is dropped."""
        self._mailbox.close()

    def __del__(self) -> None:
        """A watch that nobody has any more is closed."""
        mailbox: Mailbox | None = getattr(self, "_mailbox", None)
        if mailbox is not None:
            mailbox.close()


class Watch(Watching):
    """A watch for threads: `node.watch(...)`.

    Iterating gives its events one by one, and `batches` those of one revision together. Both wait for what comes, and
    end where the watch is closed. They raise

    * `WatchCompacted`: the history that the watch needs is compacted; its `compact_revision` is where one can begin;
    * `WatchCanceled`: a limit of the node refuses or ends the watch;
    * `Stopped`: the node is over, and all events that it had sent are taken;
    * `Forked`: in a fork of the node's process.

    Any number of threads may take from one watch; each event goes to one of them. `with` closes the watch at the end.
    """

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[WatchEvent]:
        return self

    def __next__(self) -> WatchEvent:
        try:
            return self._taken(self._taker.event, None)
        except errors.Canceled:
            raise StopIteration from None

    def batches(self) -> Iterator[WatchBatch]:
        """All events of one revision together, again and again."""
        with contextlib.suppress(errors.Canceled):
            while True:
                yield self._taken(self._taker.batch, None)

    def next(self, timeout: float | None = None) -> WatchEvent:
        """The next event. Raises Timeout when there was none for `timeout` seconds; the watch goes on then."""
        return self._taken(self._taker.event, seconds(timeout))

    def next_batch(self, timeout: float | None = None) -> WatchBatch:
        """All events of the next revision, or those of it that `next` has left. Raises Timeout as `next` does."""
        return self._taken(self._taker.batch, seconds(timeout))

    def call(self, callback: Callable[[WatchEvent], object]) -> Watch:
        """Have a thread of its own call `callback` with each event, in their order, until the watch ends; this watch.

        What the callback raises is logged, and the next event follows. What ends the watch is logged too, unless it was
        `close` or the node's stop. Raises OutOfResources where there can be no thread."""
        if not callable(callback):
            raise TypeError(f"callback must be callable, and {named(callback)} is not")
        name = f"metastore-{self._mailbox.node}{threads.SEPARATOR}watch"
        thread = threading.Thread(target=self._calls, args=(callback,), name=name, daemon=True)
        with kept_away():  # signals are the affair of the program's threads
            threads.start(thread)
        return self

    def _calls(self, callback: Callable[[WatchEvent], object]) -> None:
        process = forks.process
        try:
            for event in self:
                raised: BaseException | None = None
                try:
                    callback(event)
                except BaseException as error:  # noqa: BLE001 - logged, whatever it was
                    raised = error
                if forks.process != process:
                    end_of_a_fork(raised)
                if raised is not None:
                    log.error("a callback of a watch raised; the watch goes on: %r", callback, exc_info=raised)
        except errors.Stopped:
            return
        except errors.ApiError as error:
            log.error("a watch with a callback has ended: %s", error.text)

    def _taken(self, take: Callable[[], T | None], timeout: float | None) -> T:
        """What `take` gives, as soon as it gives something. Raises Timeout."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            found = take()
            if found is not None:
                return found
            if not self._taker.decode() and not self._mailbox.bell.wait(self._taker.waits, until):
                raise no_event(timeout)


def no_event(timeout: float | None) -> errors.Timeout:
    """The error of a wait for an event that was too short."""
    return errors.Timeout(f"metastore: no event within {timeout:g} s; the watch goes on")
