"""`put_many`: any number of puts with bounded memory, and what became of each of them.

The pairs are handed over in pieces (`_core/kv_pieces`). No more than WINDOW puts, or about WINDOW_BYTES, are under way
at a time: whoever drives a `Bulk` takes no further pair before the oldest piece is answered. The two drivers are
`Node.put_many`, which blocks, and the one of asyncio, which awaits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from .. import errors
from .._core.kv_pieces import NBYTES, NOT_WRITTEN, OPEN, PUTS, WRITTEN, Piece
from .._core.waiter import Waiter
from .arguments import Pairs, as_bytes, named
from .columns import Columns
from .results import PutManyResult

#: Method, request, and who waits for the answer.
Call = tuple[str, bytes, Waiter]
Pair = tuple[bytes, bytes]

#: What is handed over at a time, and how much of it may be under way.
SLICE, SLICE_BYTES = PUTS, NBYTES
WINDOW, WINDOW_BYTES = 8 * SLICE, 8 * SLICE_BYTES


def source_of(pairs: Pairs) -> Iterator[object] | Columns:
    """What a `Bulk` is filled from. Raises TypeError."""
    return pairs if isinstance(pairs, Columns) else pairs_of(pairs)


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

    Call `fill` for the pairs, `hand_over` where it says so and `crowded` does not, `settle` for each piece in `window`
    that is done, oldest first, and at the end `result` or `failure`.
    """

    def __init__(self, submit: Callable[[Sequence[Piece]], None]) -> None:
        self.window: deque[Piece] = deque()
        self._submit = submit
        self._gathered = Piece(0)
        self._under_way = self._under_way_bytes = 0
        self._spans = {WRITTEN: Spans(), NOT_WRITTEN: Spans(), OPEN: Spans()}
        self._first_revision = self._last_revision = 0

    @property
    def taken(self) -> int:
        """How many pairs were taken."""
        return self._gathered.begin + self._gathered.size

    def fill(self, pairs: Iterator[object] | Columns) -> bool:
        """Take the next pairs; whether a piece is complete, else there are no more. Raises TypeError, ValueError, and
        what the iterator raises."""
        if isinstance(pairs, Columns):
            return self._gathered.fill_columns(pairs.keys, pairs.values)
        return self._gathered.fill(pairs, checked)

    @property
    def full(self) -> bool:
        """Whether what was gathered must be handed over before the next pair is taken."""
        return self._gathered.full

    @property
    def gathered(self) -> bool:
        """Whether there are pairs to be handed over."""
        return self._gathered.size > 0

    def crowded(self) -> bool:
        """Whether what was gathered has to wait until the oldest piece is answered."""
        count, size = self._gathered.size, self._gathered.nbytes
        return bool(self.window) and (self._under_way + count > WINDOW or self._under_way_bytes + size > WINDOW_BYTES)

    def hand_over(self, news: Callable[[], object]) -> None:
        """Hand over what was gathered; for `news` see `Piece`. Raises Stopped."""
        piece = self._gathered
        piece.news, fresh = news, Piece(piece.begin + piece.size)
        try:
            # It is in the window first, for the handler of a signal that raises may have it in the member's hands.
            self._gathered = fresh
            self._under_way, self._under_way_bytes = self._under_way + piece.size, self._under_way_bytes + piece.nbytes
            self.window.append(piece)
            self._submit([piece])
        except BaseException:
            piece.withdraw()
            raise

    def settled(self) -> bool:
        """Whether the oldest piece is done, or an error is known."""
        return self.window[0].done or any(piece.failed for piece in self.window)

    def ended(self) -> bool:
        """Whether all that was handed over has an outcome."""
        return all(piece.done for piece in self.window)

    @property
    def error(self) -> errors.MetaStoreError | None:
        """The error of the first put under way that is known to have one."""
        return next((piece.error for piece in self.window if piece.failed), None)

    def withdraw(self) -> None:
        """Take back all that the member has not got yet."""
        for piece in self.window:
            piece.withdraw()

    def settle(self) -> None:
        """Note what became of the oldest piece, answered or not."""
        piece = self.window.popleft()
        self._under_way, self._under_way_bytes = self._under_way - piece.size, self._under_way_bytes - piece.nbytes
        for outcome, begin, end in piece.spans():
            self._spans[outcome].add(begin, end)
        self._first_revision = self._first_revision or piece.first_revision
        self._last_revision = piece.last_revision or self._last_revision

    def result(self) -> PutManyResult:
        """What was stored, where all of it was."""
        return PutManyResult(self.taken, self._first_revision, self._last_revision)

    def failure(self, reason: Exception) -> errors.PutManyFailed:
        """The exception for `reason`, with what became of all pairs."""
        while self.window:
            self.settle()
        self._spans[NOT_WRITTEN].add(self._gathered.begin, self.taken)
        kind = errors.PutManyFailed
        if isinstance(reason, errors.Timeout):
            kind = errors.PutManyTimeout
        elif isinstance(reason, TypeError | ValueError) and str(reason).startswith(f"pairs[{self.taken}]"):
            kind = errors.WrongPair
        written, refused, unknown = (tuple(self._spans[outcome].ranges) for outcome in (WRITTEN, NOT_WRITTEN, OPEN))
        return kind(reason, written, refused, unknown, self.taken, self._first_revision, self._last_revision)
