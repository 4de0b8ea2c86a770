#!/usr/bin/env python3
"""What an operation costs at the rates that people run at: spread over time and connections, not as fast as it goes.

    python bench/rates.py                                      one node and three, beside etcd: some minutes
    python bench/rates.py --nodes 1 --rates 1000 --no-etcd
    python bench/rates.py --floor                              also a plain program without a store, bench/floor.py
    python bench/rates.py --tree ../before                     also nodes of another checkout, which is built
    python bench/pictures.py build/bench/rates.json            the tables, and pictures of the CPU over the rate

All servers of one number of nodes live at the same time, and each round measures all of them in turn (A B A B ...).
The load is that of h2load on 50 connections, which begin one after the other; with three nodes it goes to the leader.
CPU is that of all members together, from schedstat. "x floor" says how many times that of the floor it is in the same
round; the puts of the floor come at the same moments as those of h2load, and those of the gathered floor wait for each
other. System calls are counted by perf (Debian: linux-perf) in a short run of their own, because counting costs time:
for the leader, and the mean of the followers.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import floor  # noqa: E402
import pictures  # noqa: E402
import results  # noqa: E402
import workloads  # noqa: E402
from options import make_parser  # noqa: E402
from support import messages as m  # noqa: E402
from support.cluster import Cluster, EtcdMember, Member, MetaStoreMember  # noqa: E402

from bench import KEY, PUT, RANGE, check_build  # noqa: E402

ETCD, OURS, OTHER = "etcd", "default", "other tree"
#: The floor, and the microseconds that the first put of a group waits for others there.
FLOORS = {"floor": 0, "gathered floor": floor.GATHER_US}
#: What is measured beside etcd: the defaults, and without the threads that keep processors awake.
STEPS: dict[str, dict[str, str]] = {OURS: {}, "no busy_poll": {"performance.busy_poll": '"0"'}}
WORKLOADS = ("put", "range")
WARM_UP = 2000
COUNTED_SECONDS = 1.0


def other(tree: Path) -> type[MetaStoreMember]:
    """Return the members that run the code of another checkout."""

    class Other(MetaStoreMember):
        def argv(self) -> list[str]:
            return [str(tree.resolve() / ".venv/bin/python"), *super().argv()[1:]]

    return Other


@contextmanager
def clusters(options: argparse.Namespace, folder: Path, nodes: int) -> Iterator[dict[str, Cluster]]:
    """Run all that is compared."""
    kinds: dict[str, tuple[type[Member], Mapping[str, str]]] = {} if options.no_etcd else {ETCD: (EtcdMember, {})}
    if options.tree is not None:
        kinds[OTHER] = (other(options.tree), {})
    kinds |= {step: (MetaStoreMember, STEPS[step]) for step in options.steps}
    settings = {"wal.segment_size": '"64MiB"'}
    with ExitStack() as stack:
        made: dict[str, Cluster] = {}
        for step, (kind, some) in kinds.items():
            made[step] = Cluster(folder / f"{step}-{nodes}", nodes, kind, {**settings, **some})
            stack.callback(made[step].discard)
            made[step].start()
        yield made


class Counter:
    """Counts the system calls of a process. It is over at the end of the `with`; `count` is None where perf fails."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.count: int | None = None

    def __enter__(self) -> Counter:
        command = ["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", str(self.pid)]
        # It counts until its child ends: `cat` ends when nothing more can come in.
        self.perf = subprocess.Popen(
            [*command, "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        text = self.perf.communicate(timeout=60)[1]
        found = re.search(r"^(\d+),.*raw_syscalls", text, re.MULTILINE)
        self.count = int(found[1]) if found else None


def perf_counts() -> bool:
    """Whether perf is there and may count system calls."""
    command = ["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "true"]
    try:
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    except OSError:
        return False


def run(cluster: Cluster, what: str, shape: workloads.Shape) -> workloads.Figures:
    """Make puts or linearizable ranges at the rate of `shape`, or one put after the other if that is 0."""
    if not shape.rate:
        return workloads.put(cluster, shape)
    request = m.PutRequest(key=KEY, value=shape.value) if what == "put" else m.RangeRequest(key=KEY)
    load = shape.steady(workloads.STEADY_CONNECTIONS, 10)
    return workloads.played(cluster, (PUT if what == "put" else RANGE, request, load), first=shape.value)


def system_calls(cluster: Cluster, what: str, shape: workloads.Shape) -> dict[str, float]:
    """Return the system calls an operation, idle ones included, of the leader and of a follower."""
    leader = workloads.leader_of(cluster)
    members = [leader, *(member for member in cluster.members if member is not leader)]
    counters = [Counter(member.running().pid) for member in members]
    with ExitStack() as stack:
        for counter in counters:
            stack.enter_context(counter)
        run(cluster, what, shape)
    operations = shape.steady(workloads.STEADY_CONNECTIONS, 10).requests
    counts = [counter.count / operations for counter in counters if counter.count is not None]
    more = {"calls": counts[0]} if counts else {}
    if len(counts) > 1:
        more["calls of a follower"] = sum(counts[1:]) / len(counts[1:])
    return more


class Floors:
    """What is measured beside the others with --floor. Each round begins with it."""

    def __init__(self, running: Mapping[str, floor.Floor]) -> None:
        self._running = running
        self._cpu_us: dict[str, float] = {}

    def measure(self, what: str, shape: workloads.Shape) -> Iterator[tuple[str, workloads.Figures]]:
        """Yield a name and the figures of each floor that there is for this work."""
        self._cpu_us = {}
        for step, one in self._running.items():
            if what == "put" and (shape.rate or not FLOORS[step]):  # a client that is alone has nobody to wait for
                figures = one.put(shape, "h2load")
                self._cpu_us[step] = figures["cpu_us"]
                yield step, figures

    def ratios(self, cpu_us: float) -> dict[str, float]:
        """Return how many times that of each floor of this round a cost is."""
        return {f"x {step}": cpu_us / one for step, one in self._cpu_us.items()}


@contextmanager
def floors(options: argparse.Namespace, folder: Path, nodes: int) -> Iterator[Floors]:
    """Run the floors, if they are asked for."""
    with ExitStack() as stack:
        some = FLOORS if options.floor else {}
        yield Floors({
            step: stack.enter_context(floor.running(folder / f"{step}-{nodes}", nodes, gather_us))
            for step, gather_us in some.items()
        })  # fmt: skip


def measure(options: argparse.Namespace, folder: Path) -> Iterator[results.Sample]:
    """Do all measurements, and yield each sample when it is there."""
    value = random.Random(options.seed).randbytes(options.value_size)
    counts = perf_counts()
    for nodes in options.nodes:
        with clusters(options, folder, nodes) as running, floors(options, folder, nodes) as below:
            for cluster in running.values():
                workloads.parallel(cluster, workloads.Shape(WARM_UP, 0, 0, value, options.seed))
            for number, what, rate in itertools.product(range(options.rounds), options.workloads, options.rates):
                shape = workloads.Shape(options.requests, rate, options.seconds, value, options.seed)
                for step, figures in below.measure(what, shape):
                    yield results.Sample(what, step, results.OWN, nodes, 0.0, rate, number, **figures)
                for step, cluster in running.items():
                    figures = run(cluster, what, shape)
                    more = below.ratios(figures["cpu_us"])
                    if rate and counts:
                        more |= system_calls(cluster, what, replace(shape, seconds=COUNTED_SECONDS))
                    engine = results.OWN if step == ETCD else "memory"
                    yield results.Sample(what, step, engine, nodes, 0.0, rate, number, **figures, more=more)


def show(samples: list[results.Sample]) -> None:
    """Print the medians: a block for each workload, number of nodes and rate."""
    title = ""
    for cell in results.cells(samples):
        one = cell.sample
        now = f"{one.workload}, nodes {one.nodes}" + (f", {one.asked:,} a second" if one.asked else ", one at a time")
        if now != title:
            title = now
            heads = ("a second", "mean ms", "p50 ms", "p99 ms", "CPU us")
            print(f"\n{title}\n  {'':<14}" + "".join(f" {head:>9}" for head in heads))
        figures = (one.rate, one.mean_ms, one.p50_ms, one.p99_ms, one.cpu_us)
        more = ", ".join(f"{name} {value:.1f}" for name, value in one.more.items())
        print(f"  {one.step:<14}" + "".join(f" {pictures.figure(value):>9}" for value in figures) + f"   {more}")


def main() -> None:
    parser = make_parser(__doc__, rounds=3, requests=40_000, value_size=256, seed=1)
    parser.add_argument("--nodes", nargs="+", type=int, choices=(1, 3, 5), default=[1, 3])
    parser.add_argument("--rates", nargs="+", type=int, default=[0, 1000, 5000, 20000], help="0: one after the other")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["put"])
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run at a steady rate")
    parser.add_argument("--no-etcd", action="store_true", help="measure no etcd beside it")
    parser.add_argument("--floor", action="store_true", help="measure a plain program without a store beside it")
    parser.add_argument("--tree", type=Path, help="another checkout, with its .venv, to measure beside this one")
    parser.add_argument("--out", type=Path, default=Path("build/bench/rates.json"), help="default: %(default)s")
    options = parser.parse_args()
    check_build()
    began, samples = results.now(), []
    asked = {key: value for key, value in vars(options).items() if key not in ("dir", "out", "tree")}
    with tempfile.TemporaryDirectory(prefix="metastore-bench-", dir=options.dir) as name:
        for sample in measure(options, Path(name)):
            samples.append(sample)
            results.write(options.out, Path(name), {"began": began, **asked}, samples)
    show(samples)


if __name__ == "__main__":
    main()
