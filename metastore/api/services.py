"""The services on one port: their list, the ports that each needs, and the dispatch of requests to them.

The KV service is not here. Compiled code handles its calls from the DATA frame to the reply, by the method ids that
`_core/kv_server` assigns. All other methods come to `Services.dispatch`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from .. import errors
from .._core.grpc import MethodTable
from .._core.kv_server import METHODS
from .backup import Backup
from .checks import Checks
from .cluster import Cluster
from .election import Election
from .health import Health
from .lease import KEEP_ALIVE, Lease
from .lock import Lock
from .maintenance import Maintenance
from .pages import Pages
from .watch import PATH, Watch

if TYPE_CHECKING:
    from .._core.h2_request import Request
    from .common import Handler, Service
    from .ports import Ports

log = logging.getLogger("metastore.api")

#: Path -> id of the methods that KVServer answers. The request of the call "Compaction" is the method Compact.
KV_PATHS: Final[dict[bytes, int]] = {
    b"/etcdserverpb.KV/" + ("Compact" if call == "Compaction" else call).encode(): number
    for call, number in METHODS.items()
}
#: Ids from here on belong to `Services.dispatch`.
FIRST_OTHER: Final = 16


class Services:
    """All services except KV, on one method table. `dispatch` takes the requests whose method id does not
    belong to KV.
    """

    def __init__(self, services: Iterable[Service], streaming: Iterable[bytes] = ()) -> None:
        self._handlers: list[Handler] = []
        paths = dict(KV_PATHS)
        for service in services:
            for path, handler in service.methods().items():
                paths[path] = FIRST_OTHER + len(self._handlers)
                self._handlers.append(handler)
        self.method_table = MethodTable(paths, streaming)

    def dispatch(self, request: Request) -> None:
        """Lets the service of `request` answer it. Only errors that end the node leave this method."""
        try:
            self._handlers[request.method - FIRST_OTHER](request)
        except errors.ApiError as error:
            request.fail(error)
        except errors.MetaStoreError:
            raise
        except Exception:
            # A bug in one call must not take down the node that all clients share.
            log.exception("call %s failed", request.path.decode("latin-1"))
            request.fail(errors.MetaStoreError("metastore: internal error, see the server's log"))


def make_services(ports: Ports) -> tuple[Services, Health]:
    """Makes this server's services. Returns them and the Health service.

    Call `changed` of the Health service when the member's health may have changed.
    """
    health = Health(ports.serving)
    maintenance = Maintenance(ports.status, ports.reads, ports.leadership, ports.alarms, ports.upkeep)
    cluster = Cluster(ports.status, ports.reads, ports.membership)
    watch, lease = Watch(ports.watches), Lease(ports.leases)
    services: list[Service] = [maintenance, Backup(ports.backups), cluster, watch, lease, health]
    services += [Lock(ports.locks), Election(ports.elections)]
    return Services(services, streaming=[PATH, KEEP_ALIVE]), health


def make_pages(ports: Ports, *, metrics: bool = True) -> Pages:
    """Make the pages of HTTP/1. `metrics` says whether /metrics is among them."""
    checks = Checks(ports.status, ports.serving, ports.reads, ports.alarms)
    return Pages(ports.status, ports.serving, checks, ports.numbers, metrics=metrics)
