"""A call that waits in a queue of the node, and is taken back where nobody waits for it any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .. import errors
from .outcome import FutureCall

if TYPE_CHECKING:
    from ..api.ports import Cancellable

#: Has the loop's thread make a call, if it still runs.
Post = Callable[[Callable[[], object]], object]


class Queued(FutureCall):
    """Waits for its turn. `began` and `fail` are called in the loop's thread."""

    def __init__(self, decode: Callable[[bytes], Iterator[Any]], post: Post) -> None:
        super().__init__(decode)
        self._post = post
        self._task: Cancellable | None = None
        self._unwanted = False

    def began(self, task: Cancellable) -> None:
        """The node has it."""
        self._task = task
        if self._unwanted:
            self._cancel()

    def give_up(self) -> None:
        """Nobody waits any more: leave the queue. From any thread, and it does not wait for that."""
        self._unwanted = True
        self._post(self._cancel)

    def fail(self, error: errors.MetaStoreError) -> None:
        """Resolve with the error. What clients get with the code UNKNOWN is of its own class here."""
        cause = error.__cause__
        super().fail(cause if type(error) is errors.ApiError and isinstance(cause, errors.ApiError) else error)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel(errors.Canceled())
