"""Definitions that the services share: the versions that we claim, the service interface, and the reply header."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from . import pb

if TYPE_CHECKING:
    from .._core.h2_request import Request
    from .ports import Position

#: The etcd version that we claim. Clients switch features on by it: Kubernetes uses watch progress requests from 3.4.31
#: / 3.5.13 on, so it must be above those. It is not 3.6: a client would then expect what 3.6 alone has (downgrade by
#: etcdctl, the v3store version in Status), while all of the 3.5 API answers the same in 3.6.
ETCD_VERSION: Final = "3.5.17"
#: The version of the cluster in /version: the minor version of the oldest member.
CLUSTER_VERSION: Final = "3.5.0"

Handler = Callable[["Request"], None]


class Service(Protocol):
    """A gRPC service: its methods by full path. `streaming` names the methods that are client-streaming, if
    there are any.
    """

    def methods(self) -> Mapping[bytes, Handler]:
        """Path -> handler. A handler answers its request now or later, or raises errors.ApiError."""


def header(position: Position) -> Any:
    """A ResponseHeader with all its fields."""
    return pb.ResponseHeader(
        cluster_id=position.cluster_id, member_id=position.member_id, revision=position.revision,
        raft_term=position.raft_term,
    )  # fmt: skip
