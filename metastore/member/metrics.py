"""A member collects the figures of its parts for /metrics, under the names that `api/numbers.py` explains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._core.codec import PayloadCodec
    from .._core.grpc import Limits
    from ..net.client_conn import Listener
    from ..net.loop import Loop
    from ..replica.driver import Driver
    from ..settings import WalTable
    from ..storage.wal import Wal

Source = Callable[[], Mapping[str, float]]


class Metrics:
    """The `api.ports.Numbers` of a member, which joins the figures of all its parts."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._sources = tuple(sources)

    def stats(self) -> dict[str, float]:
        """Numbers for /metrics."""
        numbers: dict[str, float] = {}
        for source in self._sources:
            numbers |= source()
        return numbers


def named(stats: Source, prefix: str, suffix: str = "") -> Source:
    """The figures of `stats`, with `prefix` before and `suffix` behind each name."""
    return lambda: {f"{prefix}{name}{suffix}": value for name, value in stats().items()}


def of_log(wal: Wal, table: WalTable) -> Source:
    """What the log has written, and how much of it a power cut could take."""

    def stats() -> dict[str, float]:
        counts = wal.stats()
        numbers = {f"wal_{name}": counts.pop(name) for name in ("segments", "first_index")}
        numbers |= {f"wal_{name}_total": value for name, value in counts.items()}
        numbers["wal_unsynced_bytes"], numbers["wal_unsynced_seconds"] = wal.unsynced
        numbers["wal_sync_pending_seconds"] = wal.sync_pending_seconds
        numbers["wal_sync_interval_seconds"] = table.sync_interval if table.sync == "async" else 0
        return numbers

    return stats


def of_replica(driver: Driver, codec: PayloadCodec) -> Source:
    """Calls, what is in flight, and the outcomes."""
    kv, proposer = driver.kv, driver.proposer

    def stats() -> dict[str, float]:
        numbers = {f"kv_{name.lower()}_total": float(value) for name, value in kv.call_counts.items()}
        return numbers | {
            "kv_refused_total": kv.refused,
            "kv_late_requests": kv.late,
            "kv_late_bytes": kv.queue.held,
            "kv_range_streams": len(kv.streams),
            "raft_doubt_term": driver.raw.doubt,
            "engine_busy_total": driver.engine_busy,
            "inflight_requests": proposer.queued + proposer.inflight,
            "inflight_bytes": proposer.queued_bytes + proposer.inflight_bytes,
            "payload_bytes_before_total": codec.bytes_in,
            "payload_bytes_after_total": codec.bytes_out,
            "codec_failures_total": codec.failures,
        }

    return stats


def of_clients(loop: Loop, listener: Listener, limits: Limits) -> Source:
    """Connections of clients, and how long the turns of the loop are."""
    return lambda: {
        "loop_turns_total": loop.turns,
        "loop_turn_seconds_total": loop.turn_seconds,
        "loop_longest_turn_seconds": loop.longest_turn,
        "loop_slow_turns_total": loop.slow_turns,
        "loop_longest_work_seconds": loop.longest_work,
        "client_connections": len(listener.conns),
        "client_connections_refused_total": listener.refused,
        "client_connections_evicted_total": listener.evicted,
        "client_connections_stalled": listener.stalled,
        "client_request_bytes": limits.total_buffered,
        "client_reply_bytes": limits.total_output,
    }
