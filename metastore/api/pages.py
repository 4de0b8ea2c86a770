"""The HTTP/1.1 pages: /version, /health, /livez, /readyz and /metrics as in etcd, and our own /status."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from .answers import JSON, TEXT, Answer, Later, to_json
from .common import CLUSTER_VERSION, ETCD_VERSION
from .numbers import meaning

if TYPE_CHECKING:
    from .checks import Checks, Query
    from .ports import Numbers, Serving, Status

#: Pages that answer HEAD. etcd's other pages refuse it. /status is our own.
HEAD_TOO: Final = {"/metrics", "/status"}


class Pages:
    """Answers GET requests. `http` has the form that `conn.Server` expects. `metrics` says whether /metrics
    is served.
    """

    def __init__(
        self, status: Status, serving: Serving, checks: Checks, numbers: Numbers, *, metrics: bool = True
    ) -> None:
        self._status = status
        self._serving = serving
        self._numbers = numbers
        self._registry: Any = None
        self._pages: dict[str, Callable[[Query], Answer | Later]] = {
            "/version": self._show_version,
            "/status": self._show_status,
            **checks.pages(),
        }
        if metrics:
            self._pages["/metrics"] = self._show_metrics

    def http(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer | Later:
        """Returns the answer to one request, or an object that gives it later. `path` includes the query."""
        try:
            parts = urlsplit(path)
            query = parse_qs(parts.query, keep_blank_values=True, max_num_fields=64)
        except ValueError:
            return 400, TEXT, b"malformed request target\n"
        page = self._pages.get(parts.path)
        if page is None:
            return 404, TEXT, b"404 page not found\n"
        if method != "GET" and not (method == "HEAD" and parts.path in HEAD_TOO):
            return 405, TEXT, b"Method Not Allowed\n"
        return page(query)

    def _show_version(self, _query: Query) -> Answer:
        return 200, JSON, to_json({"etcdserver": ETCD_VERSION, "etcdcluster": CLUSTER_VERSION})

    def _show_status(self, _query: Query) -> Answer:
        """Show what this member is, its position, its connections, and how much of its log a power cut could take."""
        status = self._status
        log = {name[4:]: value for name, value in sorted(self._numbers.stats().items()) if name.startswith("wal_")}
        about = {
            "name": status.name, "member_id": f"{status.member_id:016x}", "cluster_id": f"{status.cluster_id:016x}",
            "leader_id": f"{status.leader_id:016x}", "is_learner": status.is_learner,
            "raft_term": status.raft_term, "raft_index": status.raft_index, "applied_index": status.applied_index,
            "revision": status.revision, "db_size": status.db_size, "healthy": self._serving.healthy(),
            **status.about(), "log": log,
        }  # fmt: skip
        return 200, JSON, to_json(about)

    def _show_metrics(self, _query: Query) -> Answer:
        if self._registry is None:
            self._registry = CollectorRegistry(auto_describe=False)
            self._registry.register(NodeCollector(self._status, self._numbers))
            ProcessCollector(registry=self._registry)
        return 200, "text/plain; version=0.0.4; charset=utf-8", generate_latest(self._registry)


class NodeCollector:
    """The metrics of a node, read when a client requests them.

    They are `metastore_*` for all of `stats()`, and those few etcd names that etcd's dashboards and alerts use.
    """

    def __init__(self, status: Status, numbers: Numbers) -> None:
        self._status = status
        self._numbers = numbers

    def collect(self) -> Iterable[Any]:
        """The metric families with their present values."""
        status = self._status
        gauges: dict[str, tuple[float, str]] = {
            "etcd_server_has_leader": (1 if status.leader_id else 0, "Whether a leader is known."),
            "etcd_server_is_leader": (1 if status.leader_id == status.member_id else 0, "Whether this member leads."),
            "etcd_server_proposals_applied_total": (status.applied_index, "Index of the last applied entry."),
            "etcd_mvcc_db_total_size_in_bytes": (status.db_size, "Size of the store."),
            "etcd_mvcc_db_total_size_in_use_in_bytes": (status.db_size_in_use, "Size of what is used of it."),
            "etcd_server_quota_backend_bytes": (status.quota_bytes, "Quota of the store's size; 0: none."),
            "etcd_debugging_mvcc_current_revision": (status.revision, "Current revision."),
        }
        for name, (value, text) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        for name, value in sorted(self._numbers.stats().items()):
            full = f"metastore_{name}"
            text = meaning(name)
            if name.endswith("_total"):
                yield CounterMetricFamily(full, text, value=value)
            else:
                yield GaugeMetricFamily(full, text, value=value)
