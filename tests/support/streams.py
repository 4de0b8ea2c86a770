"""A call with streams in both directions. Requests go out at any time, and tests wait for responses."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import grpc

from .client import Client, Failure

PATIENCE = 20.0  # seconds to wait for a response


class MessageStream:
    """One call of the method at `path` on `client`'s channel. `responses` holds everything that came, in order, as
    messages of class `kind`."""

    def __init__(self, client: Client, path: str, kind: Any, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._kind = kind
        self.responses: list[Any] = []
        self.failure: Failure | None = None
        self.ended = False
        self._call = client.stream(path)(iter(self._requests.get, None), metadata=metadata or client.metadata)
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
                    self.responses.append(self._kind.FromString(message))
                    self._changed.notify_all()
        except grpc.RpcError as error:
            self.failure = Failure(error.code().value[0], error.details() or "")
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    # ---- requests

    def send_bytes(self, message: bytes) -> None:
        """Send a request as it is."""
        self._requests.put(message)

    def half_close(self) -> None:
        """Say that no more requests follow."""
        self._requests.put(None)

    # ---- responses

    def wait(self, happened: Callable[[], Any], patience: float = PATIENCE) -> Any:
        """Return what `happened` returns, once that is true. Raises AssertionError if it takes too long (seconds), and
        Failure at the end of the stream."""
        deadline = time.monotonic() + patience
        with self._changed:
            while not (found := happened()):
                if self.ended:
                    raise self.failure or Failure(0, "the stream ended")
                left = deadline - time.monotonic()
                assert left > 0, f"nothing of the kind among {str(self.responses[-5:])[:2000]}"
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
