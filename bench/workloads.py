"""The workloads of the matrix. Each runs against a cluster of any kind and returns the figures of a results.Sample."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import h2load
import loader
import metadata
import peers
from support import messages as m
from support.cluster import Cluster, Member
from support.processes import metric

from bench import KEY, PUT, RANGE, TXN, eight_puts, percentile, prefixed, swap

#: Connections of a load at a steady rate: more where each would have to send more than so many requests a second.
#: h2load looks at its clock every 10 ms, and a connection then sends at once what is due.
STEADY_CONNECTIONS, MOST_CONNECTIONS, EACH = 50, 250, 100
#: Seconds between two readings of the processor time.
READ_EVERY = 0.05


@dataclass(frozen=True)
class Shape:
    """The size of one run: `requests` if it is to saturate, else `rate` operations a second for `seconds`.

    `holds` is the rate at which the servers saturate, if that is known (0: it is not). A run at a rate that they do not
    hold has as many requests as they answer in `seconds`; it would take minutes otherwise.
    """

    requests: int
    rate: int
    seconds: float
    value: bytes
    seed: int
    holds: float = 0.0

    def load(self, connections: int, streams: int, part: int = 1) -> h2load.Load:
        """Return the load of h2load. A `part` of n is for n loads that run at the same time."""
        if not self.rate:
            return h2load.Load(max(connections * streams, self.requests // part), connections, streams)
        wanted = min(MOST_CONNECTIONS, max(STEADY_CONNECTIONS, self.rate // part // EACH))
        return self.steady(wanted, max(1, 1000 // wanted), part)

    def steady(self, connections: int, streams: int, part: int = 1) -> h2load.Load:
        """Return a load at the steady rate: its ramp and then `seconds`."""
        each = max(1, self.rate // part // connections)
        load = h2load.Load(1, connections, streams, each, spread=True)
        rate = min(each * connections, self.holds / part) if self.holds else each * connections
        return replace(load, requests=max(connections * streams, int(rate * (self.seconds + load.ramp))))


Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Workload:
    """`run` measures it, `text` says what it does. `most` is the highest steady rate at which it is asked."""

    run: Callable[[Cluster, Shape], Figures]
    text: str
    most: int = 1 << 30


class Readings:
    """Reads the processor time of all members again and again, beside a load: `with Readings(cluster) as readings`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._found: list[tuple[float, int]] = []

    def _note(self) -> None:
        self._found.append((time.time() * 1e6, cpu_ns(self._cluster)))

    def _read(self) -> None:
        while not self._ended.wait(READ_EVERY):
            self._note()

    def __enter__(self) -> Readings:
        self._note()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._note()

    def inside(self, first: float, last: float) -> tuple[float, float, int]:
        """Return the times of the first and the last reading of a time (microseconds since the epoch), and the
        nanoseconds between them. If there are not two, the run was short, and all of it counts."""
        found = [reading for reading in self._found if first <= reading[0] <= last]
        if len(found) < 2:
            found = self._found
        return found[0][0], found[-1][0], found[-1][1] - found[0][1]


def cpu_ns(cluster: Cluster | peers.Peers) -> int:
    """Return the processor time of all members, in nanoseconds."""
    return sum(member.running().cpu_ns() for member in cluster.members)


def leader_of(cluster: Cluster) -> Member:
    return cluster.leader() if len(cluster.members) > 1 else cluster.members[0]


def figures_of(rate: float, latencies: Sequence[float], cpu: float) -> Figures:
    """Return the figures of a run: latencies in microseconds, processor time in nanoseconds for all of them."""
    return {
        "rate": rate,
        "mean_ms": sum(latencies) / len(latencies) / 1000,
        "p50_ms": percentile(latencies, 0.5) / 1000,
        "p90_ms": percentile(latencies, 0.9) / 1000,
        "p99_ms": percentile(latencies, 0.99) / 1000,
        "cpu_us": cpu / 1000 / len(latencies),
    }


def played(cluster: Cluster, *runs: tuple[str, object, h2load.Load], first: bytes = b"") -> Figures:
    """Send loads to the leader at the same time: (path, request, load). Every write must have raised the revision.
    `first` is the value that the key has at the beginning. Of loads at a steady rate only the time counts in which all
    connections send."""
    leader = leader_of(cluster)
    outcomes: list[h2load.Outcome] = []

    def play(path: str, request: object, load: h2load.Load) -> None:
        outcomes.append(h2load.run(leader.address, path, prefixed(request), load))

    with leader.client() as client:
        client.put(KEY, first)
        before, cpu = client.revision(), cpu_ns(cluster)
        with Readings(cluster) as readings:
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
    if runs[0][2].rate:
        window = max(outcome.window[0] for outcome in outcomes), min(outcome.window[1] for outcome in outcomes)
        began, ended, used = readings.inside(*window)
        latencies = [latency for outcome in outcomes for latency in outcome.during(began, ended)]
        return figures_of(len(latencies) / (ended - began) * 1e6, latencies, used)
    latencies = [latency for outcome in outcomes for latency in outcome.latencies]
    return figures_of(len(latencies) / max(outcome.seconds for outcome in outcomes), latencies, used)


def put(cluster: Cluster, shape: Shape) -> Figures:
    """One client puts one key, and waits for each answer."""
    load = shape.steady(1, 1) if shape.rate else h2load.Load(lone_requests(shape), 1, 1)
    return played(cluster, (PUT, m.PutRequest(key=KEY, value=shape.value), load))


def lone_requests(shape: Shape) -> int:
    """Return how many requests a client makes that waits for each answer."""
    return max(100, shape.requests // 20)


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
    count = _count(shape)
    pairs = list(islice(metadata.records(shape.seed, 1 << 40, metadata.read_packages()), count))
    return stored(cluster, pairs, shape)


def small(cluster: Cluster, shape: Shape) -> Figures:
    """Puts of small metadata, keys of 8 and values of 15 bytes: what goes to the other members."""
    return stored(cluster, list(metadata.small(shape.seed, _count(shape))), shape)


def _count(shape: Shape) -> int:
    rate = min(shape.rate, shape.holds) if shape.holds else shape.rate
    return int(rate * shape.seconds) if shape.rate else shape.requests


def stored(cluster: Cluster, pairs: list[tuple[bytes, bytes]], shape: Shape) -> Figures:
    """Put keys with their values, 1,000 calls at a time or at a steady rate. `more` has what was sent for them."""
    leader = leader_of(cluster)
    size = sum(len(key) + len(value) for key, value in pairs)
    times = loader.Times(shape.rate)
    cpu, sent, sizes = cpu_ns(cluster), sent_to_peers(leader), payload(leader)
    with leader.client() as client:
        before = client.revision()
        loader.ask_timed(leader.address, [loader.put_message(*pair) for pair in pairs], times)
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
    return {**figures_of(times.reached, times.latencies, cpu_ns(cluster) - cpu), "more": more}


def sent_to_peers(member: Member) -> float:
    """Return the bytes that a node has sent to all other members."""
    return metric(member, "metastore_peer_sent_bytes_total") if member.kind == "metastore" else 0.0


def payload(member: Member) -> tuple[float, float]:
    """Return the bytes of a node's proposals before and after compression."""
    if member.kind != "metastore":
        return 0.0, 0.0
    return metric(member, "metastore_payload_bytes_before_total"), metric(member, "metastore_payload_bytes_after_total")


def of_peers(cluster: peers.Peers, name: str, shape: Shape) -> Figures:
    """Measure another store: `put` or `parallel`."""
    times = loader.Times(shape.rate)
    if name == "put":
        count, connections, streams = (_count(shape) if shape.rate else lone_requests(shape)), 1, 1
    elif shape.rate:
        count, connections, streams = max(1000, _count(shape)), STEADY_CONNECTIONS, 10
    else:
        count, connections, streams = max(1000, shape.requests), 100, 10
    before = cpu_ns(cluster)
    cluster.put(count, connections, streams, shape.value, times)
    return figures_of(times.reached, times.latencies, cpu_ns(cluster) - before)


#: What other stores than etcd are asked for.
PEER_WORKLOADS = ("put", "parallel")
ALL = {
    "put": Workload(put, "one client, one put at a time", most=1000),
    "parallel": Workload(parallel, "1,000 clients put"),
    "mixed": Workload(mixed, "500 clients put, 500 read"),
    "txn": Workload(txn, "1,000 clients, transactions of 8 puts"),
    "swap": Workload(compare_and_swap, "1,000 clients compare and swap"),
    "compression": Workload(compression, "1,000 calls at a time put real metadata, each key once"),
    "small": Workload(small, "1,000 calls at a time put keys of 8 and values of 15 bytes"),
}
