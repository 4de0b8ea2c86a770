"""Watch streams: the requests of clients go to the hub in portions, those of this process at once.

Belongs to the loop's thread.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from .. import errors
from .._core.member_turn import WatchingFields
from .._core.watch_index import Stream
from .._core.watch_sink import RequestSink
from .._core.watch_wire import decode_request
from .leaderless import Leaderless, needs_leader

if TYPE_CHECKING:
    from .._core.h2_request import Request
    from .._core.watch import WatchHub
    from .._core.watch_index import Sink
    from ..replica.driver import Driver

#: Requests of watch streams that are served in one turn of the loop. A create takes 6 to 8 us, and its answer as much.
REQUESTS_PER_TURN: Final = 400
#: Bytes of requests that may wait on all watch streams together; each waiting message counts MESSAGE bytes more.
MOST_WAITING: Final = 32 << 20
MESSAGE: Final = 128


class Call:
    """One call of the method Watch."""

    __slots__ = ("choked", "needs_leader", "request", "stream", "waiting", "watching")

    def __init__(self, watching: Watching, request: Request) -> None:
        self.watching = watching
        self.request = request
        self.stream = Stream(RequestSink(request))
        self.needs_leader = needs_leader(request)
        self.waiting: deque[bytes] = deque()
        self.choked = False

    def on_messages(self, messages: list[bytes]) -> None:
        """Some WatchRequests came."""
        self.watching.take(self, messages)

    def on_close(self) -> None:
        """The stream is gone."""
        self.watching.forget(self)


class Watching(WatchingFields):
    """The `api.ports.Watches` of a member.

    election_timeout: seconds.
    """

    def __init__(self, hub: WatchHub, driver: Driver, election_timeout: float) -> None:
        self._hub = hub
        self._leaderless = Leaderless(driver, election_timeout)
        self._calls: dict[Call, None] = {}
        #: Calls with requests that wait. Only with some has `turn` anything to do.
        self.ready = {}
        self._waiting_bytes = 0
        self._own = 0  # streams of this process
        self._stopped = False

    # ---- for the service

    def open(self, request: Request) -> None:
        """Serve a call. Raises Stopped."""
        if self._stopped:
            raise errors.Stopped()
        call = Call(self, request)
        self._calls[call] = None
        request.start(on_messages=call.on_messages, on_close=call.on_close, patient=True)

    def take(self, call: Call, messages: list[bytes]) -> None:
        """Queue requests for the end of this turn."""
        if call not in self._calls:
            return
        if self._waiting_bytes >= MOST_WAITING:
            self._end(call, errors.TooManyRequests())
            return
        call.waiting.extend(messages)
        self._waiting_bytes += sum(map(len, messages)) + MESSAGE * len(messages)
        self.ready[call] = None

    def forget(self, call: Call) -> None:
        """Its stream is gone."""
        if call not in self._calls:
            return
        del self._calls[call]
        self.ready.pop(call, None)
        self._waiting_bytes -= sum(map(len, call.waiting)) + MESSAGE * len(call.waiting)
        call.waiting.clear()
        self._hub.close(call.stream)

    def _end(self, call: Call, error: errors.MetaStoreError) -> None:
        call.request.finish(error.code, error.text)
        self.forget(call)

    # ---- for the process of the member

    def join(self, sink: Sink, request: bytes, now: float) -> Stream:
        """Serve a stream with one watcher, whose encoded WatchRequest is `request`, until it is let go of. A stop does
        not end it."""
        stream = Stream(sink)
        self._own += 1
        self._hub.handle(stream, decode_request(request), now)
        return stream

    def let_go(self, stream: Stream) -> None:
        """End a stream that has joined."""
        self._own -= 1
        self._hub.close(stream)

    # ---- for the member

    def turn(self, now: float) -> bool:
        """Serve requests that came; `now` in seconds. Whether there are more to serve at once."""
        if self.ready:
            self._serve(now)
        return bool(self.ready)

    def _serve(self, now: float) -> None:
        """Serve some requests of each call, in turn, so that a flood on one stream does not hold up the others."""
        left = REQUESTS_PER_TURN
        while left > 0 and self.ready:
            call = next(iter(self.ready))
            del self.ready[call]
            portion = max(1, left // (len(self.ready) + 1))
            left -= portion
            self._serve_some(call, portion, now)

    def _serve_some(self, call: Call, portion: int, now: float) -> None:
        try:
            while portion and call.waiting:
                portion -= 1
                message = call.waiting.popleft()
                self._waiting_bytes -= len(message) + MESSAGE
                self._hub.handle(call.stream, decode_request(message), now)
        except errors.ApiError as error:
            self._end(call, error)
            return
        if call.waiting:
            self.ready[call] = None
        if call.choked != bool(call.waiting):
            call.choked = not call.choked
            call.request.choke(call.choked)

    def tick(self, now: float) -> None:
        """Send progress notifications, and end streams that demand a leader when there has been none for long."""
        self._hub.tick(now)
        if self._leaderless.too_long(now):
            for call in [call for call in self._calls if call.needs_leader]:
                self._end(call, errors.NoLeader())

    def stop(self) -> None:
        """End all streams; their clients go on at another member."""
        self._stopped = True
        for call in list(self._calls):
            self._end(call, errors.Stopped())

    def stats(self) -> dict[str, float]:
        """Numbers for /metrics."""
        hub = self._hub
        return {
            "watch_streams": len(self._calls) + self._own,
            "watchers": hub.count,
            "watch_events_total": hub.events_sent,
            "watch_responses_total": hub.responses_sent,
        }
