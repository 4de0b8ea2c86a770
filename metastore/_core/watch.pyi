"""Watchers: who is told of which changes, in which order, and from where on."""

from collections.abc import Callable

from metastore._core.mvcc import Store
from metastore._core.watch_index import Stream
from metastore._core.watch_wire import WatchRequest

class WatchHub:
    """All watchers of a member. Times are in seconds, sizes in bytes; `jitter` gives 0 to 1."""

    pressed: Callable[[], bool] | None  # whether somebody waits for the next turn
    @property
    def store(self) -> Store: ...
    @property
    def seen(self) -> int: ...  # live watchers have been sent everything up to this revision
    @property
    def count(self) -> int: ...  # watchers
    @property
    def units(self) -> int: ...  # of these: one for each 512 bytes of keys, at least one each
    @property
    def max_per_stream(self) -> int: ...
    @property
    def max_per_node(self) -> int: ...
    @property
    def fragment_size(self) -> int: ...
    @property
    def max_response(self) -> int: ...
    @property
    def max_held(self) -> int: ...
    @property
    def batch(self) -> int: ...  # bytes of events that a feed collects before it delivers them
    @property
    def events_sent(self) -> int: ...
    @property
    def responses_sent(self) -> int: ...
    def __init__(
        self,
        store: Store,
        *,
        max_per_stream: int = ...,
        max_per_node: int = ...,
        fragment_size: int = ...,
        max_response: int = ...,
        max_held: int = ...,
        interval: float = ...,
        jitter: Callable[[], float] = ...,
        batch: int = ...,
    ) -> None: ...
    def handle(self, stream: Stream, request: WatchRequest, now: float) -> None: ...
    def create(self, stream: Stream, request: WatchRequest, now: float) -> None: ...
    def cancel(self, stream: Stream, ident: int) -> None: ...
    def close(self, stream: Stream) -> None: ...
    @property
    def idle(self) -> bool: ...
    @property
    def stuck(self) -> bool: ...
    @property
    def held(self) -> int: ...  # bytes of events that are collected and not sent yet
    @property
    def waiting(self) -> int: ...  # what waits for a time or a revision, watchers that are gone included
    @property
    def next_alarm(self) -> float: ...  # when `tick` has to be called next, in seconds; infinite if it need not
    @property
    def holds_history(self) -> bool: ...
    def step(self, budget: int, look: bool = True) -> bool: ...
    def tick(self, now: float) -> None: ...
