#!/usr/bin/env python3
"""Figures of three MetaStore nodes beside three nodes of etcd, in one run on one machine.

    python bench/cluster.py all
    python bench/cluster.py put failover --rounds 5 --requests 200000

Both clusters run all the time, with their default timing. The runs on them are paired (A B A B ...). The same code as
in `bench.py` measures the same figures as for single nodes. It also measures the CPU of a follower, and how long a kill
-9 of the leader keeps writers waiting.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import h2load  # noqa: E402
from options import chosen, make_parser  # noqa: E402
from support import messages as m  # noqa: E402
from support.client import Client, Failure  # noqa: E402
from support.cluster import Cluster, EtcdMember, Member, MetaStoreMember  # noqa: E402

from bench import Sample, check_build, distinct_sample, print_machine, put_sample, range_sample, report  # noqa: E402

KINDS: dict[str, type[Member]] = {"etcd": EtcdMember, "metastore": MetaStoreMember}
WARM_UP = 2000
# Seconds between two puts while there is no leader: the resolution of `failover`.
TRY_EVERY = 0.01
FAILOVER_SECONDS = 30.0


class Bench:
    """Two clusters, the options of the run, and the measurements."""

    def __init__(self, options: argparse.Namespace, clusters: dict[str, Cluster]) -> None:
        self.options = options
        self.clusters = clusters
        self.value = random.Random(options.seed).randbytes(options.value_size)
        self.many = h2load.Load(options.requests, 10, 100)
        self._number = 0
        self.lone_load = h2load.Load(max(100, options.requests // 50), 1, 1)

    def paired(self, run: Callable[[Cluster], Sample]) -> dict[str, list[Sample]]:
        """Do one run on each cluster, in turn, `rounds` times."""
        samples: dict[str, list[Sample]] = {kind: [] for kind in self.clusters}
        for _ in range(self.options.rounds):
            for kind, cluster in self.clusters.items():
                samples[kind].append(run(cluster))
        return samples

    def put(self) -> None:
        """Let many clients put one key and value on the leader, and measure the cost for the leader and a follower."""
        self._put("one key", lambda leader: put_sample(leader, self.many, self.value))

    def distinct(self) -> None:
        """Do the same with a key and value of its own for each put, which no codec makes small."""
        size = self.options.value_size

        def run(leader: Member) -> Sample:
            self._number += 1
            return distinct_sample(leader, self.many, size, self._number)

        self._put("a new key and value each (the generator takes part of a core)", run)

    def _put(self, what: str, measure: Callable[[Member], Sample]) -> None:
        others: dict[str, list[float]] = {kind: [] for kind in self.clusters}

        def run(cluster: Cluster) -> Sample:
            leader, follower = cluster.leader(), cluster.followers()[0].running()
            before = follower.cpu_ns()
            sample = measure(leader)
            cluster.same_everywhere()
            others[cluster.members[0].kind].append((follower.cpu_ns() - before) / 1000 / self.many.requests)
            return sample

        samples = self.paired(run)
        report(f"Put on the leader, {what}, 10 connections x 100 streams, durable on a quorum; CPU: leader", samples)
        medians = {kind: statistics.median(values) for kind, values in others.items()}
        ratios = [ours / etcd for etcd, ours in zip(others["etcd"], others["metastore"], strict=True)]
        text = ", ".join(f"{kind} {value:.2f}" for kind, value in medians.items())
        print(f"  CPU of a follower, us/req: {text}; metastore / etcd: x{statistics.median(ratios):.3f}")

    def lone(self) -> None:
        """Let one client put one key at a time, on the leader and through a follower."""
        samples = self.paired(lambda cluster: put_sample(cluster.leader(), self.lone_load, self.value))
        report("Put on the leader, one client, one at a time", samples)
        samples = self.paired(lambda cluster: put_sample(cluster.followers()[0], self.lone_load, self.value))
        report("Put through a follower, one client, one at a time; CPU of the follower", samples)

    def range(self) -> None:
        """Make linearizable reads."""
        samples = self.paired(lambda cluster: range_sample(cluster.leader(), self.many, self.value))
        report("Range of one key, linearizable, on the leader, 10 connections x 100 streams", samples)
        samples = self.paired(lambda cluster: range_sample(cluster.followers()[0], self.many, self.value))
        report("Range of one key, linearizable, through a follower; CPU of the follower", samples)

    def failover(self) -> None:
        """Kill the leader with SIGKILL, and measure until a put through a follower is acknowledged."""
        times: dict[str, list[float]] = {kind: [] for kind in self.clusters}
        for _ in range(self.options.kills):
            for kind, cluster in self.clusters.items():
                times[kind].append(fail_over(cluster))
        print("\nkill -9 of the leader, seconds until a put through a follower is acknowledged")
        for kind, values in times.items():
            every = " ".join(f"{value:.2f}" for value in values)
            print(f"  {kind:<12} median {statistics.median(values):.2f}, worst {max(values):.2f}   {every}")


def first_acknowledged(client: Client) -> float:
    """Return when the first of many puts was acknowledged. They are tried one after the other without waiting for
    each."""
    done = threading.Event()
    when: list[float] = []

    def note(call: object) -> None:
        if call.code().value[0] == 0:  # type: ignore[attr-defined]
            when.append(time.perf_counter())
            done.set()

    began = time.perf_counter()
    while not done.is_set():
        if time.perf_counter() - began > FAILOVER_SECONDS:
            raise SystemExit(f"no put was acknowledged within {FAILOVER_SECONDS} s")
        client.future(m.PutRequest(key=b"bench/failover"), FAILOVER_SECONDS).add_done_callback(note)
        done.wait(TRY_EVERY)
    return min(when)


def fail_over(cluster: Cluster) -> float:
    """Kill the leader, measure, and start it again."""
    leader, follower = cluster.leader(), cluster.followers()[0]
    with follower.client() as client:
        client.put(b"bench/failover")
        began = time.perf_counter()
        leader.kill()
        took = first_acknowledged(client) - began
    leader.launch().await_ready()
    cluster.same_everywhere(60)
    return took


WHAT = ("put", "distinct", "lone", "range", "failover")


def main() -> None:
    parser = make_parser(__doc__, WHAT, rounds=3, requests=50_000, value_size=256, seed=1)
    parser.add_argument("--kills", type=int, default=10, help="rounds of `failover` (default: %(default)s)")
    options = parser.parse_args()
    check_build()
    with tempfile.TemporaryDirectory(prefix="metastore-bench-", dir=options.dir) as folder:
        print_machine(options, Path(folder))
        clusters = {name: Cluster(Path(folder) / name, 3, kind) for name, kind in KINDS.items()}
        try:
            for cluster in clusters.values():
                for member in cluster.members:
                    member.settings = {}
                put_sample(cluster.start().leader(), h2load.Load(WARM_UP, 10, 100), b"x" * options.value_size)
            bench = Bench(options, clusters)
            for what in chosen(options, WHAT):
                getattr(bench, what)()
        except Failure as failure:
            raise SystemExit(f"a call failed: {failure}") from failure
        finally:
            for cluster in clusters.values():
                cluster.discard()


if __name__ == "__main__":
    main()
