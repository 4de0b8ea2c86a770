"""Locks and elections as a client has them."""

from __future__ import annotations

import queue
import threading
from typing import Any, Self

import grpc

from . import messages as m
from .client import Client, Failure

PATIENCE = 20.0  # seconds to wait for an answer


def lock(client: Client, name: bytes, lease: int = 0, timeout: float | None = None) -> Any:
    return client.call(m.TYPES["LockRequest"](name=name, lease=lease), timeout)


def unlock(client: Client, key: bytes) -> Any:
    return client.call(m.TYPES["UnlockRequest"](key=key))


def campaign(client: Client, name: bytes, lease: int = 0, value: bytes = b"", timeout: float | None = None) -> Any:
    return client.call(m.TYPES["CampaignRequest"](name=name, lease=lease, value=value), timeout)


def proclaim(client: Client, leader: Any, value: bytes) -> Any:
    return client.call(m.TYPES["ProclaimRequest"](leader=leader, value=value))


def leader(client: Client, name: bytes) -> Any:
    return client.call(m.TYPES["LeaderRequest"](name=name))


def resign(client: Client, leader: Any) -> Any:
    return client.call(m.TYPES["ResignRequest"](leader=leader))


class Waiting:
    """A call of Lock or Campaign that may have to wait. `cancel` takes it back."""

    def __init__(self, client: Client, request: Any, timeout: float = 60.0) -> None:
        kind = type(request).__name__.replace("Request", "Response")
        self._kind = m.TYPES[kind]
        self._future = client.future(request, timeout)

    @property
    def done(self) -> bool:
        return bool(self._future.done())

    def result(self) -> Any:
        """Return the answer, once it is there. Raises Failure."""
        try:
            return self._kind.FromString(self._future.result(PATIENCE))
        except grpc.RpcError as error:
            raise Failure(error.code().value[0], error.details() or "") from None

    def cancel(self) -> None:
        self._future.cancel()


def locking(client: Client, name: bytes, lease: int = 0, timeout: float = 60.0) -> Waiting:
    return Waiting(client, m.TYPES["LockRequest"](name=name, lease=lease), timeout)


def campaigning(client: Client, name: bytes, lease: int = 0, value: bytes = b"", timeout: float = 60.0) -> Waiting:
    return Waiting(client, m.TYPES["CampaignRequest"](name=name, lease=lease, value=value), timeout)


class Observer:
    """One call of Observe."""

    def __init__(self, client: Client, name: bytes, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self._call = client.observe(m.TYPES["LeaderRequest"](name=name).SerializeToString(), metadata)
        self._told: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._call.cancel()
        self._thread.join(PATIENCE)

    def _read(self) -> None:
        try:
            for message in self._call:
                self._told.put(m.TYPES["LeaderResponse"].FromString(message))
        except grpc.RpcError as error:
            self._told.put(Failure(error.code().value[0], error.details() or ""))

    def next(self) -> Any:
        """Return the next leader. Raises Failure at the end of the stream."""
        found = self._told.get(timeout=PATIENCE)
        if isinstance(found, Failure):
            raise found
        return found
