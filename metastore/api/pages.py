"""The HTTP/1.1 pages: /version, /health, /livez, /readyz and /metrics, as etcd has them, and /status."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from metastore.api import CLUSTER_VERSION, ETCD_VERSION, NodeView

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"
ALARM_REASONS: Final = {1: "NOSPACE", 2: "CORRUPT"}

Answer = tuple[int, str, bytes]
Query = dict[str, list[str]]


def to_json(value: Any) -> bytes:
    """Compact JSON, as Go writes it."""
    return json.dumps(value, separators=(",", ":")).encode()


class Pages:
    """Answers GET and HEAD; `http` has the form that `conn.Server` asks for."""

    def __init__(self, node: NodeView) -> None:
        self._node = node
        self._registry: Any = None
        self._pages: dict[str, Callable[[Query], Answer]] = {
            "/version": self._version,
            "/health": self._health,
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/status": self._status,
        }

    def http(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """(status, content type, body) of one request; `path` has its query."""
        try:
            parts = urlsplit(path)
            query = parse_qs(parts.query, keep_blank_values=True, max_num_fields=64)
        except ValueError:
            return 400, TEXT, b"malformed request target\n"
        page = self._pages.get(parts.path)
        if page is None:
            return 404, TEXT, b"404 page not found\n"
        if method not in ("GET", "HEAD"):
            return 405, TEXT, b"Method Not Allowed\n"
        return page(query)

    def _version(self, _query: Query) -> Answer:
        return 200, JSON, to_json({"etcdserver": ETCD_VERSION, "etcdcluster": CLUSTER_VERSION})

    def _trouble(self, query: Query) -> str:
        """Why the member is not healthy, in etcd's words; empty when it is."""
        excluded = set(query.get("exclude", []))
        for _member, kind in self._node.alarms():
            name = ALARM_REASONS.get(kind, str(kind))
            if name not in excluded:
                return f"ALARM {name}"
        if "true" not in query.get("serializable", []) and self._node.leader_id == 0:
            return "RAFT NO LEADER"
        return "" if self._node.healthy() else "NOT SERVING"

    def _health(self, query: Query) -> Answer:
        reason = self._trouble(query)
        body = to_json({"health": "false" if reason else "true", "reason": reason})
        return (503 if reason else 200), JSON, body

    def _livez(self, query: Query) -> Answer:
        return self._checks("livez", query, [("serializable_read", "")])

    def _readyz(self, query: Query) -> Answer:
        corrupt = any(kind == 2 for _member, kind in self._node.alarms())
        return self._checks(
            "readyz",
            query,
            [
                ("data_corruption", "alarm activated: CORRUPT" if corrupt else ""),
                ("serializable_read", ""),
                ("linearizable_read", "" if self._node.leader_id and self._node.healthy() else "no leader"),
                ("disk", self._node.disk_trouble()),
            ],
        )

    def _checks(self, page: str, query: Query, checks: Iterable[tuple[str, str]]) -> Answer:
        """One line a check when something fails or `verbose` asks for it, and the verdict."""
        excluded = set(query.get("exclude", []))
        wanted = [(name, why) for name, why in checks if name not in excluded]
        failed = any(why for _name, why in wanted)
        lines = [f"[-]{name} failed: {why}" if why else f"[+]{name} ok" for name, why in wanted]
        if failed:
            return 503, TEXT, ("\n".join([*lines, f"{page} check failed"]) + "\n").encode()
        if "verbose" in query:
            return 200, TEXT, ("\n".join([*lines, "ok"]) + "\n").encode()
        return 200, TEXT, b"ok\n"

    def _status(self, _query: Query) -> Answer:
        """Where this member stands, and what of its log a power cut could take."""
        node = self._node
        log = {name[4:]: value for name, value in sorted(node.stats().items()) if name.startswith("wal_")}
        about = {
            "name": node.name, "member_id": f"{node.member_id:016x}", "leader_id": f"{node.leader_id:016x}",
            "raft_term": node.raft_term, "raft_index": node.raft_index, "applied_index": node.applied_index,
            "revision": node.revision, "db_size": node.db_size, "healthy": node.healthy(), "log": log,
        }  # fmt: skip
        return 200, JSON, to_json(about)

    def _metrics(self, _query: Query) -> Answer:
        # Imported at the first scrape: it costs a tenth of a second, which the start must not pay.
        from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

        if self._registry is None:
            self._registry = CollectorRegistry(auto_describe=False)
            self._registry.register(NodeCollector(self._node))
            ProcessCollector(registry=self._registry)
        return 200, "text/plain; version=0.0.4; charset=utf-8", generate_latest(self._registry)


class NodeCollector:
    """Metrics of a node, read when they are asked for: `metastore_*` for all of `stats()`, and the few names of
    etcd's that its dashboards and alerts are made of."""

    def __init__(self, node: NodeView) -> None:
        self._node = node

    def collect(self) -> Iterable[Any]:
        """The metric families of this moment."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        node = self._node
        gauges: dict[str, tuple[float, str]] = {
            "etcd_server_has_leader": (1 if node.leader_id else 0, "Whether a leader is known."),
            "etcd_server_is_leader": (1 if node.leader_id == node.member_id else 0, "Whether this member leads."),
            "etcd_server_proposals_applied_total": (node.applied_index, "Index of the last applied entry."),
            "etcd_mvcc_db_total_size_in_bytes": (node.db_size, "Size of the store."),
            "etcd_mvcc_db_total_size_in_use_in_bytes": (node.db_size_in_use, "Size of what is used of it."),
            "etcd_server_quota_backend_bytes": (node.quota_bytes, "Quota of the store's size; 0: none."),
            "etcd_debugging_mvcc_current_revision": (node.revision, "Current revision."),
        }
        for name, (value, text) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        for name, value in sorted(node.stats().items()):
            full = f"metastore_{name}"
            text = name.replace("_", " ")
            if name.endswith("_total"):
                yield CounterMetricFamily(full, text, value=value)
            else:
                yield GaugeMetricFamily(full, text, value=value)
