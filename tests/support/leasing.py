"""Leases as a client has them: the calls, and the stream that keeps leases alive."""

from __future__ import annotations

from typing import Any

from . import messages as m
from .client import Client
from .streams import MessageStream

KeepAlive, Kept = m.TYPES["LeaseKeepAliveRequest"], m.TYPES["LeaseKeepAliveResponse"]
PATH = "/etcdserverpb.Lease/LeaseKeepAlive"


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
        return stream.answers(1)[0]


class KeepAliveStream(MessageStream):
    """One call of LeaseKeepAlive. `responses` holds all answers, in order."""

    def __init__(self, client: Client, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(client, PATH, Kept, metadata)

    def send(self, *idents: int) -> None:
        """Ask to renew these leases, one request for each."""
        for ident in idents:
            self.send_bytes(KeepAlive(ID=ident).SerializeToString())

    def answers(self, count: int) -> list[Any]:
        """Return the answers, once there are so many. Raises Failure at the end of the stream."""
        self.wait(lambda: len(self.responses) >= count)
        return list(self.responses)
