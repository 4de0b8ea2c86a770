"""`put_many`: any number of puts with bounded memory, and what became of each of them.

The pairs are handed over in slices. No more than WINDOW puts, or about WINDOW_BYTES, are under way at a time: whoever
drives a `Bulk` takes no further pair before the oldest slice is answered. The two drivers are `Node.put_many`, which
blocks, and the one of asyncio, which awaits.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from .. import errors
from .._core.waiter import Waiter
from .arguments import Pairs, as_bytes, named
from .requests import messages, put_request
from .results import PutManyResult

#: Method, request, and who waits for the answer.
Call = tuple[str, bytes, Waiter]
Pair = tuple[bytes, bytes]

#: What is handed over at a time, and how much of it may be under way.
SLICE, SLICE_BYTES = 500, 1 << 20
WINDOW, WINDOW_BYTES = 8 * SLICE, 8 * SLICE_BYTES

#: What a write may get that is done all the same, or will be. Any other error of the API refuses the write for good.
UNDECIDED = (errors.Timeout, errors.LeaderChanged, errors.Stopped, errors.Canceled, errors.DeadlineExceeded)


def pairs_of(pairs: Pairs) -> Iterator[object]:
    """The iterator over what `put_many` was given. Raises TypeError."""
    if isinstance(pairs, Mapping):
        return iter(pairs.items())
    if isinstance(pairs, str | bytes | bytearray | memoryview) or not isinstance(pairs, Iterable):
        raise TypeError(f"pairs must be an iterable of (key, value) or a mapping, not {named(pairs)}")
    return iter(pairs)


def checked(pair: object, place: int) -> Pair:
    """The key and the value of the pair at position `place`. Raises TypeError, ValueError."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        what = f"{named(pair)} of {len(pair)}" if isinstance(pair, tuple | list) else named(pair)
        raise TypeError(f"pairs[{place}] must be a tuple (key, value), not {what}")
    try:
        return as_bytes(pair[0], "key"), as_bytes(pair[1], "value")
    except (TypeError, ValueError) as error:
        raise type(error)(f"pairs[{place}]: {error}") from None


class Slice:
    """Puts that were handed over together. `news` is called when one of them fails, and when all have an outcome.

    begin: the position of the first one. nbytes: of all keys and values. outcomes: place of a put -> the encoded reply
    or the error, as soon as there is one. failed: whether one has an error. done: whether all have an outcome.
    """

    def __init__(self, begin: int, pairs: Sequence[Pair], nbytes: int, news: Callable[[], object]) -> None:
        self.begin = begin
        self.nbytes = nbytes
        self.outcomes: dict[int, bytes | errors.MetaStoreError] = {}
        self.failed = False
        self.done = False
        self._size = len(pairs)
        self._news = news
        # The loop's thread takes puts out of the line and answers them, the caller's thread may take back the others,
        # and a third one may refuse them at the end of the node. There is no lock, for the handler of a signal may stop
        # the node in the middle of any step here: `setdefault` and `next` are one step each, and the first one counts.
        self._takers: dict[int, bool] = {}
        self._count = itertools.count(1)

    def __len__(self) -> int:
        return self._size

    def take(self, place: int) -> bool:
        """The member is about to get a put; whether it still should."""
        return self._takers.setdefault(place, True)

    def withdraw(self) -> None:
        """Take back the puts that the member has not got yet. They are surely not done."""
        error = errors.Canceled()
        error.not_done = True
        for place in range(self._size):
            if not self._takers.setdefault(place, False):
                self.put(place, error)

    def put(self, place: int, outcome: bytes | errors.MetaStoreError, *, failed: bool = False) -> None:
        """The outcome of one put, the first one counts; `failed` makes it news."""
        if self.outcomes.setdefault(place, outcome) is not outcome:
            return
        news = failed and not self.failed
        self.failed = self.failed or failed  # before it can be done: nobody must take it for a success
        if next(self._count) == self._size:
            self.done = news = True
        if news:
            self._news()


class SlicePut(Waiter):
    """Waits for one put of a slice."""

    def __init__(self, owner: Slice, place: int) -> None:
        self.owner = owner
        self.place = place

    def complete(self, reply: bytes) -> None:
        """It was done."""
        self.owner.put(self.place, reply)

    def fail(self, error: errors.MetaStoreError) -> None:
        """It was not, or nobody knows."""
        self.owner.put(self.place, error, failed=True)


def wanted(waiter: Waiter) -> bool:
    """Whether a call that waited in line should still go to the member, which gets it now."""
    return not isinstance(waiter, SlicePut) or waiter.owner.take(waiter.place)


class Spans:
    """Positions, ascending, as ranges."""

    def __init__(self) -> None:
        self.ranges: list[range] = []

    def add(self, begin: int, end: int) -> None:
        """The positions from `begin` on, without `end`."""
        if self.ranges and self.ranges[-1].stop == begin:
            begin = self.ranges.pop().start
        if begin < end:
            self.ranges.append(range(begin, end))


class Bulk:
    """The account of one `put_many`.

    Call `add` for each pair, `hand_over` where it says so and `crowded` does not, `settle` for each slice in `window`
    that is done, oldest first, and at the end `result` or `failure`.
    """

    def __init__(self, submit: Callable[[Sequence[Call]], None]) -> None:
        self.window: deque[Slice] = deque()
        self.taken = 0
        self._submit = submit
        self._gathered: list[Pair] = []
        self._gathered_bytes = 0
        self._under_way = self._under_way_bytes = 0
        self._written, self._not_written, self._open = Spans(), Spans(), Spans()
        self._first: bytes | None = None
        self._last: bytes | None = None

    def add(self, pair: object) -> bool:
        """Take the next pair; whether a slice is complete. Raises TypeError, ValueError."""
        key, value = checked(pair, self.taken)
        self._gathered.append((key, value))
        self._gathered_bytes += len(key) + len(value)
        self.taken += 1
        return len(self._gathered) == SLICE or self._gathered_bytes >= SLICE_BYTES

    @property
    def gathered(self) -> bool:
        """Whether there are pairs to be handed over."""
        return bool(self._gathered)

    def crowded(self) -> bool:
        """Whether what was gathered has to wait until the oldest slice is answered."""
        count, size = len(self._gathered), self._gathered_bytes
        return bool(self.window) and (self._under_way + count > WINDOW or self._under_way_bytes + size > WINDOW_BYTES)

    def hand_over(self, news: Callable[[], object]) -> None:
        """Hand over what was gathered; for `news` see `Slice`, in whichever thread. Raises Stopped."""
        pairs, size = self._gathered, self._gathered_bytes
        part = Slice(self.taken - len(pairs), pairs, size, news)
        self._submit(
            [
                ("Put", put_request(key, value).SerializeToString(), SlicePut(part, place))
                for place, (key, value) in enumerate(pairs)
            ]
        )
        self._gathered, self._gathered_bytes = [], 0
        self.window.append(part)
        self._under_way, self._under_way_bytes = self._under_way + len(part), self._under_way_bytes + size

    def settled(self) -> bool:
        """Whether the oldest slice is done, or an error is known."""
        return self.window[0].done or any(part.failed for part in self.window)

    def ended(self) -> bool:
        """Whether all that was handed over has an outcome."""
        return all(part.done for part in self.window)

    @property
    def error(self) -> errors.MetaStoreError | None:
        """The error of the first put under way that is known to have one."""
        for part in self.window:
            if part.failed:
                known = sorted(part.outcomes.copy().items())
                return next((one for _, one in known if isinstance(one, errors.MetaStoreError)), None)
        return None

    def withdraw(self) -> None:
        """Take back all that the member has not got yet."""
        for part in self.window:
            part.withdraw()

    def settle(self) -> None:
        """Note what became of the oldest slice, answered or not."""
        part = self.window.popleft()
        self._under_way, self._under_way_bytes = self._under_way - len(part), self._under_way_bytes - part.nbytes
        for place, outcome in enumerate(map(part.outcomes.get, range(len(part))), part.begin):
            if isinstance(outcome, bytes) or isinstance(outcome, errors.ReplyTooLarge):
                self._written.add(place, place + 1)
                if isinstance(outcome, bytes):
                    self._first, self._last = self._first or outcome, outcome
            elif isinstance(outcome, errors.ApiError) and (outcome.not_done or not isinstance(outcome, UNDECIDED)):
                self._not_written.add(place, place + 1)
            else:
                self._open.add(place, place + 1)

    def _revision(self, reply: bytes | None) -> int:
        return messages().PutResponse.FromString(reply).header.revision if reply else 0

    def result(self) -> PutManyResult:
        """What was stored, where all of it was."""
        return PutManyResult(self.taken, self._revision(self._first), self._revision(self._last))

    def failure(self, reason: Exception) -> errors.PutManyFailed:
        """The exception for `reason`, with what became of all pairs."""
        while self.window:
            self.settle()
        self._not_written.add(self.taken - len(self._gathered), self.taken)
        kind = errors.PutManyFailed
        if isinstance(reason, errors.Timeout):
            kind = errors.PutManyTimeout
        elif isinstance(reason, TypeError | ValueError) and str(reason).startswith(f"pairs[{self.taken}]"):
            kind = errors.WrongPair
        return kind(
            reason, tuple(self._written.ranges), tuple(self._not_written.ranges), tuple(self._open.ranges), self.taken,
            self._revision(self._first), self._revision(self._last),
        )  # fmt: skip
