"""A watch stream as a client has it."""

from __future__ import annotations

from typing import Any

from . import messages as m
from .client import Client
from .streams import MessageStream

WatchRequest, WatchResponse = m.TYPES["WatchRequest"], m.TYPES["WatchResponse"]
PATH = "/etcdserverpb.Watch/Watch"


class WatchStream(MessageStream):
    """One call of Watch on `client`'s channel. `responses` holds everything that came, in order."""

    def __init__(self, client: Client, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(client, PATH, WatchResponse, metadata)

    def send(self, **fields: Any) -> None:
        """Send one WatchRequest with these fields."""
        self.send_bytes(WatchRequest(**fields).SerializeToString())

    def create(self, key: bytes, range_end: bytes = b"", **fields: Any) -> Any:
        """Make a watcher. Return the answer."""
        before = len(self.responses)
        self.send(create_request={"key": key, "range_end": range_end, **fields})
        return self.wait_for(lambda response: response.created, before)

    def cancel(self, ident: int) -> Any:
        """End a watcher. Return the answer."""
        before = len(self.responses)
        self.send(cancel_request={"watch_id": ident})
        return self.wait_for(lambda response: response.canceled and response.watch_id == ident, before)

    def events(self, watch_id: int | None = None) -> list[Any]:
        """Return all events so far (of one watcher), in order."""
        with self._changed:
            return [
                event
                for response in self.responses
                if watch_id is None or response.watch_id == watch_id
                for event in response.events
            ]

    def wait_events(self, count: int, watch_id: int | None = None) -> list[Any]:
        """Return the events, once there are so many."""
        self.wait(lambda: sum(len(r.events) for r in self.responses if watch_id in (None, r.watch_id)) >= count)
        return self.events(watch_id)
