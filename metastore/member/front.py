"""The front of a member faces its clients: ports, services and pages, and the bounds on all of these."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from .. import errors
from .._core.grpc import Limits
from .._core.member_turn import FrontTurn
from ..api import pb
from ..api.services import make_pages, make_services
from ..net.accept import real_address
from ..net.client_conn import ConnLimits, Listener
from ..net.descriptors import for_clients, reserved
from . import metrics
from .leaderless import needs_leader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .._core.h2_request import Request
    from ..api.answers import Answer, Later
    from ..api.ports import Ports
    from ..config import Config
    from ..net.loop import Loop
    from .assembly import Replica
    from .closing import Closing
    from .memory_guard import Memory

log = logging.getLogger("metastore.node")

STATUS, RANGE = b"/etcdserverpb.Maintenance/Status", b"/etcdserverpb.KV/Range"
SNAPSHOT = b"/etcdserverpb.Maintenance/Snapshot"
ETCD = (b"/etcdserverpb.", b"/v3lockpb.", b"/v3electionpb.")  # the beginnings of etcd's methods
GRPC_OVERHEAD = 512 * 1024  # what a gRPC message may be longer than the largest request, as in etcd


class Front(FrontTurn):
    """The `net.client_conn.RequestHandler` of a member. The constructor listens, and `closing` closes the ports.

    descriptors: the number of file descriptors that this process may have.
    sources: figures for /metrics, in addition to those of the connections.
    ports: given all figures, returns what the services need of the member.
    """

    def __init__(
        self, config: Config, memory: Memory, loop: Loop, replica: Replica, descriptors: int,
        closing: Closing, sources: Iterable[metrics.Source], ports: Callable[[metrics.Metrics], Ports],
    ) -> None:  # fmt: skip
        self._config = config
        self._loop = loop
        self._kv, self._proposer = replica.kv, replica.proposer
        self.most_requests = config.limits.max_inflight_requests
        self.most_bytes = config.limits.max_inflight_bytes
        self._driver, self._membership = replica.driver, replica.membership
        self.limits = call_limits(config, memory)
        bounds = connection_limits(config, descriptors)
        self.listener = Listener(loop, config.listen.client, self, limits=bounds)
        closing.callback(self.listener.close)
        self.metrics = metrics.Metrics((*sources, metrics.of_clients(loop, self.listener, self.limits)))
        member = ports(self.metrics)
        self._services, self.health = make_services(member)
        self.method_table = self._services.method_table
        self._pages = make_pages(member, metrics=config.metrics.enabled)

    def client_urls(self) -> tuple[str, ...]:
        """The URLs at which clients should dial this member. None of them is a wildcard address."""
        addresses = self._config.advertise.client or self.listener.bound
        return tuple(f"http://{where}" for where in dict.fromkeys(map(real_address, addresses)))

    # ---- for the connections, see also `FrontTurn.handle`

    def _without_leader(self, requests: list[Request]) -> list[Request]:
        """Returns the requests that may wait for a leader. The others demand one (etcd's clientv3.WithRequireLeader)
        and fail.
        """
        hasty = [request for request in requests if needs_leader(request)]
        for request in hasty:
            request.fail(errors.NoLeader())
        return [request for request in requests if request not in hasty] if hasty else requests

    def _for_learner(self, requests: list[Request]) -> list[Request]:
        """Returns the requests that a learner serves, as in etcd: Status, backups, serializable ranges and health.
        The others fail.
        """
        served = []
        for request in requests:
            allowed = request.path in (STATUS, SNAPSHOT) or not request.path.startswith(ETCD)
            if request.path == RANGE:
                with contextlib.suppress(errors.MalformedRequest):
                    allowed = pb.parse(pb.RangeRequest, request.body).serializable
            if allowed:
                served.append(request)
            else:
                request.fail(errors.NotSupportedForLearner())
        return served

    def expired(self, requests: list[Request]) -> None:
        """The deadlines of these requests have passed."""
        ids = [request.ident for request in requests if request.ident]
        if ids:
            self._driver.withdraw(ids)

    def http(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer | Later:
        """Answers one HTTP/1.1 request."""
        return self._pages.http(method, path, headers, body)


def call_limits(config: Config, memory: Memory) -> Limits:
    """The bounds on calls."""
    limits, calls = config.limits, memory.calls()
    # One half is for complete calls, the other for calls that are still coming in. With little memory there is less.
    calls["max_total_buffered"] = min(2 * limits.max_inflight_bytes, calls.get("max_total_buffered", 1 << 62))
    return Limits(
        max_message=limits.max_request_bytes + GRPC_OVERHEAD,
        max_header_list=limits.max_header_bytes,
        max_concurrent_streams=limits.max_concurrent_streams,
        max_output=limits.max_output_bytes,
        max_total_output=limits.max_reply_bytes,
        **calls,
        receive_timeout=limits.handshake_timeout,
        # A client may cancel all its calls at once.
        reset_burst=limits.max_concurrent_streams,
    )


def connection_limits(config: Config, descriptors: int) -> ConnLimits:
    """The bounds on connections. The number of connections is bounded by the file descriptors, too."""
    limits, allowed = config.limits, for_clients(config, descriptors)
    fewer = allowed < limits.max_connections
    if fewer:
        log.warning(
            "limits.max_connections is %d, but of %d file descriptors (ulimit -n) %d are for the node's own files: "
            "at most %d clients", limits.max_connections, descriptors, reserved(config), allowed,
        )  # fmt: skip
    why = f"as many as {descriptors} file descriptors allow, see ulimit -n" if fewer else "limits.max_connections"
    return ConnLimits(
        max_connections=min(limits.max_connections, allowed),
        why_max=why,
        max_unsent=limits.max_output_bytes,
        grace=limits.output_timeout,
        handshake=limits.handshake_timeout,
    )
