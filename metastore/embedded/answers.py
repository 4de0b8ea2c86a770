"""The Future of a call: it gets its answer in the loop's thread, and nothing that the program does with it harms that.

No callback ends the loop's thread, whatever it raises, and no thread of a loop waits for an answer, which only a thread
of a loop could give.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import FINISHED, RUNNING
from typing import Any

from .. import errors
from .._core.kv_answers import resolve
from . import forks
from .locked import Locked
from .uncopied import Uncopied

log = logging.getLogger("metastore.embedded")

#: The threads in which loops of this process run; in a fork of it those that ran loops when they forked.
_loops: set[int] = set()


def _in_a_fork() -> None:
    """The numbers of threads that are not here may be given again."""
    global _locked
    _loops.intersection_update({threading.get_ident()})
    _locked = Locked(enter_loop, leave_loop)


def enter_loop() -> None:
    """The calling thread runs a loop from now on, or gives answers in the place of one."""
    _loops.add(threading.get_ident())


def leave_loop() -> None:
    """The calling thread does so no more. Its number may be given to another thread."""
    _loops.discard(threading.get_ident())


_locked = Locked(enter_loop, leave_loop)
os.register_at_fork(after_in_child=_in_a_fork)


def in_loop() -> bool:
    """Whether the calling thread runs a loop."""
    return threading.get_ident() in _loops


def may_block() -> None:
    """Raises RuntimeError in a loop's thread, which would wait for itself or keep its node from everything else, and
    Stopped at the end of the interpreter, where all threads of nodes stand still already."""
    if sys.is_finalizing():
        raise errors.Stopped("metastore: the interpreter ends, and no thread of the node runs any more")
    if in_loop():
        raise RuntimeError(
            "a blocking call in the loop's thread of a node, where callbacks of Futures run, would wait for ever: use "
            "`node.futures` there, or call from another thread"
        )


def belongs_to(process: int) -> errors.Forked:
    """The error of a call in a fork of the node's process."""
    return errors.Forked(
        f"metastore: this Node belongs to process {process}; this is process {forks.process}, which was forked from "
        "it: make a Node here, or dial the client port"
    )


def end_of_a_fork(error: BaseException | None) -> None:
    """A callback has forked, and the new process comes out of it. It has no loop to go on with, so it ends here."""
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        os._exit(error.code or 0)
    os._exit(0 if error is None else 1)


class _Condition(threading.Condition):
    """Its `with` calls the lock's own methods, which are compiled. The one of `threading.Condition` is Python, and the
    handler of a signal that raises in there, as Ctrl-C does, leaves the lock locked. The loop's thread then waited for
    it for ever, and all callers for the loop's thread: 1 of 3,000 such signals during `put` did that."""

    @property
    def __enter__(self) -> Any:
        return self._lock.__enter__  # type: ignore[attr-defined]

    @property
    def __exit__(self) -> Any:
        return self._lock.__exit__  # type: ignore[attr-defined]


class Answer(Uncopied, Future[Any]):
    """The outcome of one call. It cannot be cancelled, for what was handed over is done.

    `result` and `exception` raise RuntimeError where they would have to wait in a loop's thread. The callbacks run in
    the loop's thread; what they raise is logged.
    """

    _resolved_told = False
    #: Whether the loop's thread may come with the answer when somebody else has given one.
    late = False
    # As `concurrent.futures.Future` has them. What only those need who wait or add callbacks is made when it is first
    # asked for, for a condition takes longer to make than a put. The first state is what set_running_or_notify_cancel
    # leaves; no instance has it before it is resolved (`resolve`).
    _state = RUNNING
    _result: Any = None
    _exception: BaseException | None = None

    def __init__(self) -> None:
        # By the dictionary, so that it exists before another thread has the Future. Python 3.11 makes it when somebody
        # first asks for it, and the collector may run in there. Two threads could get one each, with a condition each,
        # and whoever waited then waited for ever.
        self.__dict__["_process"] = forks.process

    def __getattr__(self, name: str) -> Any:
        if name == "_condition":
            return self.__dict__.setdefault(name, _Condition())
        if name in ("_waiters", "_done_callbacks"):  # asked for by who holds the condition
            return self.__dict__.setdefault(name, [])
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def done(self) -> bool:
        """See `concurrent.futures.Future`."""
        return self._state != RUNNING

    def result(self, timeout: float | None = None) -> Any:
        """See `concurrent.futures.Future`."""
        if self._state == RUNNING:  # as `done`, without its lock
            self._may_wait()
        elif self._exception is None:
            return self._result  # needs no condition; the state is set last
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """See `concurrent.futures.Future`."""
        if self._state == RUNNING:
            self._may_wait()
        return super().exception(timeout)

    def _may_wait(self) -> None:
        if self._process != forks.process:
            raise belongs_to(self._process)
        may_block()

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """See `concurrent.futures.Future`. In a callback that is called right here, an exception that is no Exception
        passes, as it does there."""
        adder, adding = threading.get_ident(), True

        def guarded(future: Future[Any]) -> None:
            raised: BaseException | None = None
            try:
                fn(future)
            except BaseException as error:
                if adding and threading.get_ident() == adder and not isinstance(error, Exception):
                    raise  # an Exception would be logged by `concurrent.futures`, to a logger that is not ours
                raised = error
            if forks.process != self._process and threading.get_ident() in _loops:
                end_of_a_fork(raised)
            if raised is not None:
                log.error("a callback of a Future raised; the node goes on: %r", fn, exc_info=raised)

        try:
            super().add_done_callback(guarded)
        finally:
            adding = False

    def give(self, result: Any, error: BaseException | None = None) -> None:
        """Resolve with the result, or with the error, perhaps later. Never raises: the loop goes on whatever happens
        here."""
        if not resolve(self.__dict__, result, error):  # else nobody waits
            _locked.give(self, result, error)

    def unlocked(self, patience: float) -> bool:
        """See `Lockable`."""
        if not self._condition.acquire(timeout=patience):
            return False
        self._condition.release()
        return True

    def force(self, result: Any, error: BaseException | None) -> None:
        """See `Lockable`. Whoever waits for the lock waits on."""
        if not self.done():
            self._result, self._exception = result, error
            self._state = FINISHED
            self._invoke_callbacks()

    def settle(self, result: Any, error: BaseException | None) -> None:
        """See `Lockable`. Never raises."""
        try:
            if error is None:
                self.set_result(result)
            else:
                self.set_exception(error)
        except InvalidStateError:
            if not Answer._resolved_told and not self.late:
                Answer._resolved_told = True
                log.warning(
                    "a Future of a node was resolved by the program itself, so its answer is lost (said once only)"
                )
        except BaseException:
            # The callbacks are guarded. What gets here hit this thread from outside, or is a lack of memory.
            log.exception("a Future could not be resolved")
