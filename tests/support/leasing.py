"""Leases as a client has them: the calls, and the stream that keeps leases alive."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any, Self

import grpc

from . import messages as m
from .client import Client, Failure

KeepAlive, Kept = m.TYPES["LeaseKeepAliveRequest"], m.TYPES["LeaseKeepAliveResponse"]
PATH = "/etcdserverpb.Lease/LeaseKeepAlive"
PATIENCE = 20.0  # seconds to wait for an answer


def grant(client: Client, ttl: int, ident: int = 0) -> Any:
    return client.call(m.TYPES["LeaseGrantRequest"](TTL=ttl, ID=ident))


def revoke(client: Client, ident: int) -> Any:
    return client.call(m.TYPES["LeaseRevokeRequest"](ID=ident))


def lifetime(client: Client, ident: int, keys: bool = False) -> Any:
    return client.call(m.TYPES["LeaseTimeToLiveRequest"](ID=ident, keys=keys))


def leases(client: Client) -> list[int]:
    """The ids of all leases, as this member knows them."""
    return [one.ID for one in client.call(m.TYPES["LeaseLeasesRequest"]()).leases]


def keep_alive_once(client: Client, ident: int) -> Any:
    """Renew a lease on a stream of its own. Return the answer. Raises Failure."""
    with KeepAliveStream(client) as stream:
        stream.send(ident)
        stream.half_close()
        return stream.wait(1)[0]


class KeepAliveStream:
    """One call of LeaseKeepAlive. `answers` holds everything that came, in order."""

    def __init__(self, client: Client, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self.answers: list[Any] = []
        self.failure: Failure | None = None
        self.ended = False
        self._call = client.stream(PATH)(iter(self._requests.get, None), metadata=metadata or client.metadata)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._call.cancel()
        self._requests.put(None)
        self._reader.join(PATIENCE)

    def _read(self) -> None:
        try:
            for message in self._call:
                with self._changed:
                    self.answers.append(Kept.FromString(message))
                    self._changed.notify_all()
        except grpc.RpcError as error:
            self.failure = Failure(error.code().value[0], error.details() or "")
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def send(self, *idents: int) -> None:
        """Ask to renew these leases, one request for each."""
        for ident in idents:
            self._requests.put(KeepAlive(ID=ident).SerializeToString())

    def half_close(self) -> None:
        """Say that no more requests follow."""
        self._requests.put(None)

    def wait(self, count: int) -> list[Any]:
        """Return the answers, once there are so many. Raises Failure at the end of the stream."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while len(self.answers) < count:
                if self.ended:
                    raise self.failure or Failure(0, "the stream ended")
                left = deadline - time.monotonic()
                assert left > 0, f"{len(self.answers)} answers of {count}"
                self._changed.wait(left)
            return list(self.answers)

    def wait_end(self) -> Failure | None:
        """Return how the stream ended."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while not self.ended:
                left = deadline - time.monotonic()
                assert left > 0, "the stream does not end"
                self._changed.wait(left)
        return self.failure
