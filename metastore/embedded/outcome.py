"""The Future of a call, as `answers.py` has it: whoever asks for the result decodes the reply.

A reply of many keys takes long to decode, so that is done in the thread of the caller and not in the loop's, where
everybody else would wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures._base import RUNNING
from typing import Any

from .. import errors
from .._core.waiter import Waiter
from .answers import Answer
from .arguments import seconds


class Outcome(Answer):
    """An Answer that may come as an encoded reply, which `decode` decodes when the result is first asked for."""

    decode: Callable[[bytes], Iterator[Any]]
    _reply: bytes | None = None

    def result(self, timeout: float | None = None) -> Any:
        """As in `concurrent.futures`, but with `errors.Timeout` where the time is over. Where it has to wait it raises
        TypeError or ValueError for a timeout that is none."""
        # The state first: a reply is here before it says so.
        if self._state == RUNNING or self._reply is not None or self._exception is not None:
            for _ in self.steps(timeout):
                pass
        return self._result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As in `concurrent.futures`, but with `errors.Timeout` where the time is over."""
        bound = _bound(timeout)
        try:
            return super().exception(bound)
        except TimeoutError:
            raise overdue(bound) from None

    def steps(self, timeout: float | None = None) -> Iterator[None]:
        """Do what `result` does, in pieces of a millisecond or so. Raises the error of the call."""
        bound = _bound(timeout)
        try:
            super().result(bound)
        except TimeoutError as error:
            if type(error) is not TimeoutError:
                raise  # the store's own
            raise overdue(bound) from None
        reply = self._reply
        if reply is None:
            return  # it came as a result, was decoded before, or somebody else than the store has resolved it
        value: Any = None
        for value in self.decode(reply):
            if value is None:
                yield
        # In this order, for several threads may ask at the same time.
        self._result = value
        self._reply = None

    def answer(self, reply: bytes) -> None:
        """Resolve with the encoded reply. For the loop's thread; never raises."""
        if not self.done():  # else the program has resolved it, which `give` says
            self._reply = reply
        self.give(None)


class FutureCall(Waiter):
    """A waiter that resolves a Future with the reply."""

    def __init__(self, decode: Callable[[bytes], Iterator[Any]]) -> None:
        self.future = Outcome()
        self.future.decode = decode

    def complete(self, reply: bytes) -> None:
        """Resolve with the reply; it is decoded by who wants the result."""
        self.future.answer(reply)

    def fail(self, error: errors.MetaStoreError) -> None:
        """Resolve with the error."""
        self.future.give(None, error)


def _bound(timeout: float | None) -> float | None:
    """As `seconds`; but a time that is over already is no error, as in `concurrent.futures`."""
    over = isinstance(timeout, int | float) and timeout < 0
    return 0.0 if over else seconds(timeout)


def overdue(timeout: float | None) -> errors.Timeout:
    """The error of a call whose caller waits no longer."""
    after = "" if timeout is None else f" within {timeout:g} s"
    return errors.Timeout(f"{errors.Timeout.default}: no answer{after}; a write may be done all the same")
