"""etcdserverpb.Lease: keys that go away when nobody keeps them alive. `metastore.member.leasing` serves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from .._core.lease_wire import decode_call
from . import pb

if TYPE_CHECKING:
    from .._core.h2_request import Request
    from .common import Handler
    from .ports import Leases

SERVICE: Final = b"/etcdserverpb.Lease/"
KEEP_ALIVE: Final = SERVICE + b"LeaseKeepAlive"


class Lease:
    """The Lease service of this member."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases

    def methods(self) -> Mapping[bytes, Handler]:
        """Path -> handler."""
        return {
            SERVICE + b"LeaseGrant": self.grant,
            SERVICE + b"LeaseRevoke": self.revoke,
            SERVICE + b"LeaseTimeToLive": self.time_to_live,
            SERVICE + b"LeaseLeases": self.leases,
            KEEP_ALIVE: self.keep_alive,
        }

    def grant(self, request: Request) -> None:
        """Grants a lease; the server chooses the id if the client does not."""
        ttl, ident = decode_call(request.body, "LeaseGrantRequest")
        self._leases.grant(request, ident, ttl)

    def revoke(self, request: Request) -> None:
        """Ends a lease and deletes its keys."""
        ident, _ = decode_call(request.body, "LeaseRevokeRequest")
        self._leases.revoke(request, ident)

    def time_to_live(self, request: Request) -> None:
        """Tells what is left of a lease, and on demand its keys."""
        ident, keys = decode_call(request.body, "LeaseTimeToLiveRequest")
        self._leases.time_to_live(request, ident, bool(keys))

    def leases(self, request: Request) -> None:
        """Lists all leases that this member knows."""
        pb.parse(pb.LeaseLeasesRequest, request.body)
        self._leases.list_all(request)

    def keep_alive(self, request: Request) -> None:
        """Renews leases until the client ends the stream."""
        self._leases.open(request)
