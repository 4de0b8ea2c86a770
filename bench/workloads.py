"""The workloads of the matrix. Each runs against a cluster of any kind and returns the figures of a results.Sample."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import h2load
import loader
import metadata
from support import messages as m
from support.cluster import Cluster, Member
from support.processes import metric

from bench import KEY, PUT, RANGE, TXN, eight_puts, percentile, prefixed, swap

#: Connections of a load at a steady rate, and the period in which each of them sends its share.
STEADY_CONNECTIONS = 50


@dataclass(frozen=True)
class Shape:
    """The size of one run: `requests` if it is to saturate, else `rate` operations a second for `seconds`."""

    requests: int
    rate: int
    seconds: float
    value: bytes
    seed: int

    def load(self, connections: int, streams: int, part: int = 1) -> h2load.Load:
        """Return the load of h2load. A `part` of n is for n loads that run at the same time."""
        if not self.rate:
            return h2load.Load(max(connections * streams, self.requests // part), connections, streams)
        rate = self.rate // part
        return h2load.Load(int(rate * self.seconds), STEADY_CONNECTIONS, 10, rate // STEADY_CONNECTIONS, spread=True)


Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Workload:
    """`steady` is whether it can be asked at a steady rate. `text` says what it does."""

    run: Callable[[Cluster, Shape], Figures]
    text: str
    steady: bool = False


def cpu_ns(cluster: Cluster) -> int:
    """Return the processor time of all members, in nanoseconds."""
    return sum(member.running().cpu_ns() for member in cluster.members)


def leader_of(cluster: Cluster) -> Member:
    return cluster.leader() if len(cluster.members) > 1 else cluster.members[0]


def played(cluster: Cluster, *runs: tuple[str, object, h2load.Load], first: bytes = b"") -> Figures:
    """Send loads to the leader at the same time: (path, request, load). Every write must have raised the revision.
    `first` is the value that the key has at the beginning."""
    leader = leader_of(cluster)
    outcomes: list[h2load.Outcome] = []

    def play(path: str, request: object, load: h2load.Load) -> None:
        outcomes.append(h2load.run(leader.address, path, prefixed(request), load))

    with leader.client() as client:
        client.put(KEY, first)
        before, cpu = client.revision(), cpu_ns(cluster)
        threads = [threading.Thread(target=play, args=run) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(cluster.members) > 1:
            cluster.same_everywhere(60)
        used = cpu_ns(cluster) - cpu
        writes = sum(load.requests for path, _, load in runs if path != RANGE)
        if len(outcomes) != len(runs) or client.revision() - before != writes:
            raise SystemExit(f"{leader.kind}: {writes} writes were sent, the revision rose from {before} to "
                             f"{client.revision()}")  # fmt: skip
    count = sum(load.requests for _, _, load in runs)
    latencies = [latency for outcome in outcomes for latency in outcome.latencies]
    return {
        "rate": count / max(outcome.seconds for outcome in outcomes),
        "p50_ms": percentile(latencies, 0.5) / 1000,
        "p90_ms": percentile(latencies, 0.9) / 1000,
        "p99_ms": percentile(latencies, 0.99) / 1000,
        "cpu_us": used / 1000 / count,
    }


def put(cluster: Cluster, shape: Shape) -> Figures:
    """One client puts one key, and waits for each answer."""
    load = h2load.Load(max(100, shape.requests // 20), 1, 1)
    return played(cluster, (PUT, m.PutRequest(key=KEY, value=shape.value), load))


def parallel(cluster: Cluster, shape: Shape) -> Figures:
    """1,000 clients on 100 connections put one key."""
    return played(cluster, (PUT, m.PutRequest(key=KEY, value=shape.value), shape.load(100, 10)))


def mixed(cluster: Cluster, shape: Shape) -> Figures:
    """500 clients put one key, and 500 read it (linearizable)."""
    load = shape.load(50, 10, part=2)
    return played(
        cluster, (PUT, m.PutRequest(key=KEY, value=shape.value), load), (RANGE, m.RangeRequest(key=KEY), load)
    )


def txn(cluster: Cluster, shape: Shape) -> Figures:
    """1,000 clients make transactions of eight puts."""
    return played(cluster, (TXN, eight_puts(shape.value), _fewer(shape).load(100, 10)))


def compare_and_swap(cluster: Cluster, shape: Shape) -> Figures:
    """1,000 clients make transactions that compare a value and put it."""
    return played(cluster, (TXN, swap(shape.value), _fewer(shape).load(100, 10)), first=shape.value)


def _fewer(shape: Shape) -> Shape:
    return replace(shape, requests=max(1000, shape.requests // 4))


def compression(cluster: Cluster, shape: Shape) -> Figures:
    """Puts of real metadata, each key once: what a codec makes of them, and what goes to the other members."""
    leader = leader_of(cluster)
    pairs = list(metadata.records(shape.seed, shape.requests * 400, metadata.read_packages()))[: shape.requests]
    size = sum(len(key) + len(value) for key, value in pairs)
    cpu, sent, sizes = cpu_ns(cluster), sent_to_peers(leader), payload(leader)
    with leader.client() as client:
        before = client.revision()
        seconds = _timed(lambda: loader.put_pairs(leader.address, pairs))
        if client.revision() - before != len(pairs):
            raise SystemExit(f"{leader.kind}: {len(pairs)} puts, {client.revision() - before} revisions")
    if len(cluster.members) > 1:
        cluster.same_everywhere(60)
    more = {"bytes": size / len(pairs)}
    after = payload(leader)
    if after[1] > sizes[1]:
        more["ratio"] = (after[0] - sizes[0]) / (after[1] - sizes[1])
    if len(cluster.members) > 1 and leader.kind == "metastore":
        more["bytes_to_follower"] = (sent_to_peers(leader) - sent) / len(pairs) / (len(cluster.members) - 1)
    return {"rate": len(pairs) / seconds, "cpu_us": (cpu_ns(cluster) - cpu) / 1000 / len(pairs), "more": more}


def sent_to_peers(member: Member) -> float:
    """Return the bytes that a node has sent to all other members."""
    return metric(member, "metastore_peer_sent_bytes_total") if member.kind == "metastore" else 0.0


def payload(member: Member) -> tuple[float, float]:
    """Return the bytes of a node's proposals before and after compression."""
    if member.kind != "metastore":
        return 0.0, 0.0
    return metric(member, "metastore_payload_bytes_before_total"), metric(member, "metastore_payload_bytes_after_total")


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


ALL = {
    "put": Workload(put, "one client, one put at a time"),
    "parallel": Workload(parallel, "1,000 clients put", steady=True),
    "mixed": Workload(mixed, "500 clients put, 500 read", steady=True),
    "txn": Workload(txn, "1,000 clients, transactions of 8 puts"),
    "swap": Workload(compare_and_swap, "1,000 clients compare and swap"),
    "compression": Workload(compression, "1,000 calls at a time put real metadata, each key once"),
}
