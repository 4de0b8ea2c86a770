"""grpc.health.v1.Health, gRPC's health checking protocol: Check and Watch, for the server as a whole (service "")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .. import errors
from . import pb

if TYPE_CHECKING:
    from .._core.h2_request import Request
    from .common import Handler
    from .ports import Serving


class UnknownService(errors.ApiError):
    """unknown service"""

    code = errors.NOT_FOUND
    default = "unknown service"


class Health:
    """Call `changed` when the node's health may have changed. The watchers get a message if it did change."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._watchers: set[Request] = set()
        self._last = 0
        self._shutting_down = False

    def methods(self) -> Mapping[bytes, Handler]:
        """Path -> handler."""
        return {b"/grpc.health.v1.Health/Check": self.check, b"/grpc.health.v1.Health/Watch": self.watch}

    def _status(self) -> int:
        kind = pb.HealthCheckResponse
        healthy = not self._shutting_down and self._serving.healthy()
        return int(kind.SERVING if healthy else kind.NOT_SERVING)

    def check(self, request: Request) -> None:
        """The present state; NOT_FOUND for the name of a single service."""
        if pb.parse(pb.HealthCheckRequest, request.body).service:
            raise UnknownService
        request.complete(pb.HealthCheckResponse(status=self._status()).SerializeToString())

    def watch(self, request: Request) -> None:
        """Send the present state at once, and a message for each change, until the client ends the call."""
        service = pb.parse(pb.HealthCheckRequest, request.body).service
        request.start(on_close=lambda: self._watchers.discard(request))
        if service:
            request.send(pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVICE_UNKNOWN).SerializeToString())
            return
        if not self._watchers:
            self._last = self._status()
        self._watchers.add(request)
        request.send(pb.HealthCheckResponse(status=self._last).SerializeToString())

    def changed(self) -> None:
        """Tells the watchers if the state differs from the one that they were told last."""
        if not self._watchers:
            return
        now = self._status()
        if now != self._last:
            self._last = now
            message = pb.HealthCheckResponse(status=now).SerializeToString()
            for request in list(self._watchers):
                request.send(message)

    def shutdown(self) -> None:
        """Reports NOT_SERVING from now on and ends all watches, because an open stream would delay the
        server's stop.
        """
        self._shutting_down = True
        self.changed()
        for request in list(self._watchers):
            request.finish(errors.UNAVAILABLE, errors.Stopped.default)
