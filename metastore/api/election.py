"""v3electionpb.Election: elections among clients. `metastore.member.locks` serves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from .. import errors
from . import pb

if TYPE_CHECKING:
    from .._core.h2_request import Request
    from .common import Handler
    from .ports import Elections

SERVICE: Final = b"/v3electionpb.Election/"


class Election:
    """The Election service of this member."""

    def __init__(self, elections: Elections) -> None:
        self._elections = elections

    def methods(self) -> Mapping[bytes, Handler]:
        """Path -> handler."""
        return {
            SERVICE + b"Campaign": self.campaign,
            SERVICE + b"Proclaim": self.proclaim,
            SERVICE + b"Leader": self.leader,
            SERVICE + b"Observe": self.observe,
            SERVICE + b"Resign": self.resign,
        }

    def campaign(self, request: Request) -> None:
        """Waits to lead. A client that gives up loses its place."""
        asked = pb.parse(pb.CampaignRequest, request.body)
        task = self._elections.campaign(request, asked.name, asked.lease, asked.value)
        request.when_closed(lambda: task.cancel(errors.Canceled()))

    def proclaim(self, request: Request) -> None:
        """Changes the value of the leader."""
        asked = _with_leader(pb.parse(pb.ProclaimRequest, request.body))
        self._elections.proclaim(request, asked.leader, asked.value)

    def leader(self, request: Request) -> None:
        """Tells who leads."""
        self._elections.leader(request, pb.parse(pb.LeaderRequest, request.body).name)

    def observe(self, request: Request) -> None:
        """Tells who leads, and who follows, until the client ends the stream."""
        asked = pb.parse(pb.LeaderRequest, request.body)
        task = self._elections.observe(request, asked.name)
        request.start(on_close=lambda: task.cancel(errors.Canceled()), patient=True)

    def resign(self, request: Request) -> None:
        """Ends a leadership."""
        self._elections.resign(request, _with_leader(pb.parse(pb.ResignRequest, request.body)).leader)


def _with_leader(asked: Any) -> Any:
    """The request, which must say by which key its caller leads. Raises MissingLeaderKey."""
    if not asked.HasField("leader"):
        raise errors.MissingLeaderKey()
    return asked
