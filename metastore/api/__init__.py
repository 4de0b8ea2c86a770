"""The client API: one module per etcd service, the HTTP pages, and `Services`, which puts them on one port.

The KV service is not here: its calls go from the DATA frame to the reply in compiled code. Its methods have the
ids below, everything else comes to `Services.dispatch`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from metastore import errors
from metastore._core.grpc import MethodTable
from metastore._core.h2_request import Request

log = logging.getLogger("metastore.api")

#: The etcd version we claim to be. Clients switch features on by it: Kubernetes uses watch progress requests from
#: 3.4.31 / 3.5.13 on, so it must be above those. It is not 3.6: a client would then expect what 3.6 alone has
#: (downgrade by etcdctl, the v3store version in Status), while all of the 3.5 API answers the same in 3.6.
ETCD_VERSION: Final = "3.5.17"
#: The version of the cluster as /version tells it: minor version of the oldest member.
CLUSTER_VERSION: Final = "3.5.0"

KV_RANGE: Final = 0
KV_PUT: Final = 1
KV_DELETE_RANGE: Final = 2
KV_TXN: Final = 3
KV_COMPACT: Final = 4
#: Ids from here on belong to `Services.dispatch`.
FIRST_OTHER: Final = 16

KV_PATHS: Final[dict[bytes, int]] = {
    b"/etcdserverpb.KV/Range": KV_RANGE,
    b"/etcdserverpb.KV/Put": KV_PUT,
    b"/etcdserverpb.KV/DeleteRange": KV_DELETE_RANGE,
    b"/etcdserverpb.KV/Txn": KV_TXN,
    b"/etcdserverpb.KV/Compact": KV_COMPACT,
}

Handler = Callable[[Request], None]


class MemberInfo(Protocol):
    """One member as the Cluster service shows it."""

    @property
    def id(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def peer_urls(self) -> Iterable[str]: ...
    @property
    def client_urls(self) -> Iterable[str]: ...
    @property
    def is_learner(self) -> bool: ...


class HashInfo(Protocol):
    """The sum over the state at a revision."""

    @property
    def hash(self) -> int: ...
    @property
    def revision(self) -> int: ...
    @property
    def current(self) -> int: ...
    @property
    def compact_revision(self) -> int: ...


class NodeView(Protocol):
    """What the services see of the node. Ids are unsigned 64-bit, sizes in bytes; `leader_id` is 0 without a leader."""

    @property
    def name(self) -> str: ...
    @property
    def member_id(self) -> int: ...
    @property
    def cluster_id(self) -> int: ...
    @property
    def revision(self) -> int: ...
    @property
    def raft_term(self) -> int: ...
    @property
    def raft_index(self) -> int: ...
    @property
    def applied_index(self) -> int: ...
    @property
    def leader_id(self) -> int: ...
    @property
    def db_size(self) -> int: ...
    @property
    def db_size_in_use(self) -> int: ...
    @property
    def quota_bytes(self) -> int: ...
    @property
    def is_learner(self) -> bool: ...

    def members(self) -> Iterable[MemberInfo]:
        """The members, in the order of their ids."""

    def alarms(self) -> Iterable[tuple[int, int]]:
        """Raised alarms as (member id, AlarmType number: 1 NOSPACE, 2 CORRUPT)."""

    def healthy(self) -> bool:
        """Whether this node can serve: it knows a leader, is not stopping and its disk works."""

    def disk_trouble(self) -> str:
        """What is wrong with the disk of the log, empty if nothing is: a sync has been under way for too long."""

    def local_read(self) -> None:
        """Read a key out of what this member has applied. Raises ApiError."""

    def about(self) -> Mapping[str, Any]:
        """What /status tells of the program and of the other members: version, engine, uptime_seconds, peers."""

    def confirm_read(self, done: Callable[[errors.MetaStoreError | None], object]) -> None:
        """Call `done` once a read is linearizable (ReadIndex), with an error when that cannot be had in time.
        May call it at once."""

    def add_member(
        self, peer_urls: list[str], learner: bool, done: Callable[[MemberInfo, errors.MetaStoreError | None], object]
    ) -> None:
        """Add a member; `done` gets its record, and the error if it was not added."""

    def remove_member(self, ident: int, done: Callable[[errors.MetaStoreError | None], object]) -> None:
        """Remove a member."""

    def update_member(
        self, ident: int, peer_urls: list[str], done: Callable[[errors.MetaStoreError | None], object]
    ) -> None:
        """Change a member's peer URLs."""

    def promote_member(self, ident: int, done: Callable[[errors.MetaStoreError | None], object]) -> None:
        """Make a learner a voter."""

    def move_leader(self, ident: int, done: Callable[[errors.MetaStoreError | None], object]) -> None:
        """Hand leadership to the member `ident`; only the leader can."""

    def backup(self, request: Request) -> None:
        """Stream a backup as the answer of `request`. Raises TooManyRequests."""

    def change_alarm(
        self,
        action: int,
        member: int,
        alarm: int,
        done: Callable[[list[tuple[int, int]], errors.MetaStoreError | None], object],
    ) -> None:
        """Raise (1) or clear (2) an alarm everywhere; `done` gets the one that is or was raised."""

    def defragment(self, done: Callable[[errors.MetaStoreError | None], object]) -> None:
        """Give back the room that is held and not needed."""

    def hash_kv(
        self,
        revision: int,
        whole: bool,
        gone: Callable[[], bool],
        done: Callable[[HashInfo | None, errors.MetaStoreError | None], object],
    ) -> None:
        """Sum up the state at `revision` (0: now); not needed any more once `gone` says so."""

    def stats(self) -> Mapping[str, float]:
        """Numbers for /metrics: name -> value; names ending in `_total` only ever grow."""


class Service(Protocol):
    """A gRPC service: its methods by full path. None of them is client-streaming unless `streaming` names it."""

    def methods(self) -> Mapping[bytes, Handler]:
        """Path -> handler. A handler answers its request now or later, or raises errors.ApiError."""


class Services:
    """All services but KV on one method table. `dispatch` takes the requests whose method id is not KV's."""

    def __init__(self, services: Iterable[Service], streaming: Iterable[bytes] = ()) -> None:
        self._handlers: list[Handler] = []
        paths = dict(KV_PATHS)
        for service in services:
            for path, handler in service.methods().items():
                paths[path] = FIRST_OTHER + len(self._handlers)
                self._handlers.append(handler)
        self.method_table = MethodTable(paths, streaming)

    def dispatch(self, request: Request) -> None:
        """Let the service of `request` answer it. Only errors that are the node's end come out of this."""
        try:
            self._handlers[request.method - FIRST_OTHER](request)
        except errors.ApiError as error:
            request.fail(error)
        except errors.MetaStoreError:
            raise
        except Exception:
            # A mistake of ours in one call must not take down what all clients share.
            log.exception("call %s failed", request.path.decode("latin-1"))
            request.fail(errors.MetaStoreError("metastore: internal error, see the server's log"))


def header(node: NodeView) -> Any:
    """A ResponseHeader with all its fields."""
    from metastore.api import pb

    return pb.ResponseHeader(
        cluster_id=node.cluster_id, member_id=node.member_id, revision=node.revision, raft_term=node.raft_term
    )


def make_services(node: NodeView) -> tuple[Services, Any]:
    """The services this server has, over `node`, and the Health service among them (its `changed()` is to be called
    when the node's health may have changed)."""
    from metastore.api.backup import Backup
    from metastore.api.cluster import Cluster
    from metastore.api.health import Health
    from metastore.api.maintenance import Maintenance

    health = Health(node)
    return Services([Maintenance(node), Backup(node), Cluster(node), health]), health
