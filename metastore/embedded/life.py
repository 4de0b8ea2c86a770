"""One run of an embedded node, from its start to its end.

Its threads know this object and not the `Node`. So a Node that the program has forgotten can be collected, and says so.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
import traceback

from .. import errors, threads
from .._core.kv_answers import FuturePut
from .._core.kv_direct import DirectReads
from .._core.kv_pieces import PiecePut
from ..config import Config
from ..failpoints import Failpoints
from ..member.drain import CLOSING
from ..member.running import RunningMember
from ..member.server import Server
from ..member.signals import kept_away
from . import forks
from .answers import enter_loop, in_loop, leave_loop
from .inbox import Inbox
from .keeping import Keeper
from .mailbox import Watches
from .outcome import FutureCall
from .results import KeyValue

log = logging.getLogger("metastore.node")


class Life:
    """Opens nothing but the loop when it is made; `begin` starts the thread.

    member: who answers calls, None before it serves and when it does so no more. failure: what ended the node, None as
    long as it runs and where that was `stop`. told: whether the log has the failure already. gave_up: whether `stop`
    left the node waiting for its disk. up: opens when the node serves or is down. down: opens when it is over, or
    given up.
    """

    def __init__(self, config: Config, failpoints: Failpoints) -> None:
        self.member: RunningMember | None = None
        self.failure: BaseException | None = None
        self.told = False
        self.gave_up = False
        self.stop_asked = False
        #: The process that the node belongs to, where this is a copy in another one; else 0.
        self.elsewhere = 0
        self._process = forks.process
        self._begun = False
        self._lock = threading.RLock()  # a handler of a signal may stop what the same thread is starting
        self.up = threads.Gate()
        self.down = threads.Gate()
        self.inbox = Inbox()
        self.direct: DirectReads | None = None
        self.watches = Watches(config.node.name)
        self.keeper = Keeper()
        self._patience = config.limits.drain_timeout + CLOSING
        self._server = Server(config, failpoints, on_ready=self._serves)
        self._thread = threads.loop_thread(config.node.name, self._run)

    def begin(self) -> None:
        """Start the thread. Raises OutOfResources; `stop` is to be called then, too."""
        with self._lock:
            if self.stop_asked:
                raise errors.Stopped()
            self._begun = True
        try:
            # The signals are the affair of whoever this process belongs to, and of its own threads.
            with kept_away():
                threads.start(self._thread)
        except errors.OutOfResources:
            self._begun = False
            raise

    # ---- in the node's thread

    def _serves(self, member: RunningMember) -> None:
        self.inbox.open(member)
        self.watches.serve(member)
        self.keeper.serve(member)
        self.direct = member.read_directly(KeyValue)
        self.member = member
        self.up.open()

    def _run(self) -> None:
        if self.down.is_open():
            return
        enter_loop()
        forks.watch(self)
        try:
            self._server.run()
        except BaseException as failure:  # noqa: BLE001 - carried to the thread that waits, whatever it is
            self._failed(failure)
        finally:
            forks.forget(self)
            self._over()
            leave_loop()

    def left_behind(self) -> None:
        """This is a copy in a fork of the node's process, where none of its threads is."""
        if self.elsewhere:
            return
        self.elsewhere = self._process
        self.member = None
        if self.direct is not None:
            self.direct.close()
        # Those threads may have held any of these.
        self._lock = threading.RLock()
        self.up, self.down = threads.Gate(), threads.Gate()
        self.up.open()
        self.down.open()
        self._server.left_behind()

    def _failed(self, failure: BaseException) -> None:
        if self.stop_asked and isinstance(failure, errors.Stopped):
            return
        self.failure = failure
        ours = isinstance(failure, errors.MetaStoreError)
        if self.up.is_open() or not ours:  # else start() raises it, and whoever called start() tells
            log.critical("the node stops: %s", errors.reason(failure), exc_info=not ours)
            self.told = True
            if isinstance(failure, errors.MetaStoreError):
                failure.told = True
        _let_go(failure)

    def _over(self) -> None:
        """Nobody answers calls any more."""
        self.member = None
        if self.direct is not None:
            self.direct.close()
        refusal = errors.caused(errors.Stopped, self.failure)
        self.inbox.close(refusal)
        self.watches.end(refusal)
        self.keeper.end(refusal)
        self.down.open()
        self.up.open()

    # ---- in other threads

    def stop(self) -> None:
        """See `Node.stop`."""
        if self.elsewhere:
            return
        with self._lock:
            self.stop_asked = True
            if not self._begun:
                self._server.close()
                self._over()
                return
        self._server.stop_soon()
        if in_loop():
            return  # two nodes whose callbacks stop each other would wait for each other
        deadline = time.monotonic() + self._patience
        while not self.down.wait(max(0.05, deadline - time.monotonic())):
            self._give_up()
        if not self.gave_up and self._thread.ident is not None:
            self._thread.join()

    def forgotten(self) -> None:
        """Nobody has the Node any more: stop, and wait for nothing. For the collector."""
        self.stop_asked = True
        self._server.forgotten()

    def _give_up(self) -> None:
        """Time is up: where it is the disk that is waited for, wait no more."""
        waits = self._server.disk_waits()
        if waits:
            log.warning("stopping without waiting any longer for the disk: %s", waits)
            self.gave_up = True
            member = self.member
            self._over()
            if member is not None:
                self._answer(member)

    def _answer(self, member: RunningMember) -> None:
        """Answer the calls of this process in the place of the loop's thread, which stands still. A write that it has
        begun with may be done."""
        for waiter in member.driver.unanswered():
            if isinstance(waiter, FutureCall | FuturePut):
                waiter.future.late = True
            if isinstance(waiter, FutureCall | FuturePut | PiecePut):
                waiter.fail(errors.Timeout())

    def fresh_failure(self) -> BaseException | None:
        """What ended the node as an exception that nobody has raised yet, from the one that ended it: the traceback of
        one that is raised again and again grows with each time."""
        failure = self.failure
        if failure is None:
            return None
        if isinstance(failure, Exception):
            try:
                again: BaseException = copy.copy(failure)
            except Exception as error:  # noqa: BLE001 - whatever a foreign exception says to that
                again = RuntimeError(f"{errors.reason(failure)} (its exception cannot be copied: {error})")
        else:
            # SystemExit and its like are meant for the thread that they end.
            again = RuntimeError(f"the node's thread ended with {failure!r}")
        again.__cause__ = failure
        return again


def _let_go(failure: BaseException) -> None:
    """Have the tracebacks of what ended a node hold nothing of it. Else its files, and all of its data in memory, would
    stay as long as somebody has the exception."""
    links: list[BaseException | None] = [failure]
    seen: set[int] = set()
    while links:
        one = links.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            links += [one.__cause__, one.__context__]
