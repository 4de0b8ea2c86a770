"""A watch stream as a client has it. Requests go out at any time, and tests wait for responses."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import grpc

from . import messages as m
from .client import Client, Failure

WatchRequest, WatchResponse = m.TYPES["WatchRequest"], m.TYPES["WatchResponse"]
PATH = "/etcdserverpb.Watch/Watch"
PATIENCE = 20.0  # seconds to wait for a response


class WatchStream:
    """One call of Watch on `client`'s channel. `responses` holds everything that came, in order."""

    def __init__(self, client: Client, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self.responses: list[Any] = []
        self.failure: Failure | None = None
        self.ended = False
        stub = client.stream(PATH)
        self._call = stub(iter(self._requests.get, None), metadata=metadata or client.metadata)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the call."""
        self._call.cancel()
        self._requests.put(None)
        self._reader.join(PATIENCE)

    def _read(self) -> None:
        try:
            for message in self._call:
                with self._changed:
                    self.responses.append(WatchResponse.FromString(message))
                    self._changed.notify_all()
        except grpc.RpcError as error:
            self.failure = Failure(error.code().value[0], error.details() or "")
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    # ---- requests

    def send(self, **fields: Any) -> None:
        """Send one WatchRequest with these fields."""
        self._requests.put(WatchRequest(**fields).SerializeToString())

    def send_bytes(self, message: bytes) -> None:
        """Send a request as it is."""
        self._requests.put(message)

    def half_close(self) -> None:
        """Say that no more requests follow."""
        self._requests.put(None)

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

    # ---- responses

    def wait(self, happened: Callable[[], Any]) -> Any:
        """Return what `happened` returns, once that is true. Raises AssertionError if it takes too long, and Failure at
        the end of the stream."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while not (found := happened()):
                if self.ended:
                    raise self.failure or Failure(0, "the stream ended")
                left = deadline - time.monotonic()
                assert left > 0, f"nothing of the kind among {self.responses[-5:]}"
                self._changed.wait(left)
            return found

    def wait_for(self, wanted: Callable[[Any], bool], since: int = 0) -> Any:
        """Return the first response from number `since` on for which `wanted` is true."""
        return self.wait(lambda: next((one for one in self.responses[since:] if wanted(one)), None))

    def wait_end(self) -> Failure | None:
        """Return how the stream ended."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while not self.ended:
                left = deadline - time.monotonic()
                assert left > 0, "the stream does not end"
                self._changed.wait(left)
        return self.failure

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
