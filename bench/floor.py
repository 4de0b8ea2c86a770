#!/usr/bin/env python3
"""What a durable put costs without a store: the floor under the figures of bench/rates.py.

    python bench/floor.py                                            one member and three, a minute
    python bench/floor.py --nodes 1 --rates 1000 --arrivals poisson
    python bench/rates.py --floor                                    the floor beside etcd and MetaStore

bench/floor.c is the program, a server with plain epoll and a thread that writes and syncs, and the clients that load
it. It is compiled with cc. CPU is that of all members together, without the clients.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import workloads  # noqa: E402
from options import make_parser  # noqa: E402
from support.processes import Process  # noqa: E402

from bench import sync_latency  # noqa: E402

SOURCE, BUILT = HERE / "floor.c", HERE.parent / "build" / "bench" / "floor"
ARRIVALS = ("even", "poisson", "h2load")
#: Microseconds that the first put of a group waits for others, where puts are gathered.
GATHER_US = 250


@cache
def program() -> Path:
    """Compile the program if its source is newer, and return it."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise SystemExit("the floor needs a C compiler, cc")
    if not BUILT.exists() or BUILT.stat().st_mtime < SOURCE.stat().st_mtime:
        BUILT.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILT.parent) as folder:
            # Another run may be compiling, too.
            made = Path(folder) / BUILT.name
            subprocess.run([compiler, "-O2", "-pthread", "-o", str(made), str(SOURCE), "-lm"], check=True, timeout=120)
            made.replace(BUILT)
    return BUILT


class Floor:
    """The members of one group, the leader last."""

    def __init__(self, members: list[Process], port: str) -> None:
        self._members, self._port = members, port

    def put(self, shape: workloads.Shape, arrivals: str) -> workloads.Figures:
        """Put at the rate of `shape` on 50 connections, or one put after the other if that is 0."""
        if shape.rate:
            return self._run("load", self._port, arrivals, str(shape.rate), str(shape.seconds), str(shape.seed))
        return self._run("lone", self._port, str(workloads.lone_requests(shape)))

    def _run(self, *arguments: str) -> workloads.Figures:
        cpu = self._cpu_ns()
        done = subprocess.run([program(), *arguments], stdout=subprocess.PIPE, text=True, timeout=600, check=True)
        took, *latencies = map(int, done.stdout.split())
        return workloads.figures_of(len(latencies) / took * 1e9, latencies, self._cpu_ns() - cpu)

    def _cpu_ns(self) -> int:
        return sum(member.cpu_ns() for member in self._members)


@contextmanager
def running(folder: Path, nodes: int, gather_us: int = 0) -> Iterator[Floor]:
    """Run a group of members, with their files in an empty folder."""
    folder.mkdir()
    with ExitStack() as stack:
        members: list[Process] = []
        ports: list[str] = []
        # A follower gathers nothing: what the leader sends together stays together.
        for gathers in [0] * (nodes - 1) + [gather_us]:
            peers = ports if len(members) == nodes - 1 else []
            log = str(folder / f"log-{len(members)}")
            members.append(Process([str(program()), "serve", log, str(gathers), *peers]))
            stack.callback(members[-1].kill)
            ports.append(members[-1].wait_line(r"port (\d+)")[1])
        yield Floor(members, ports[-1])


#: Number of members, rate, arrivals, and microseconds of gathering.
What = tuple[int, int, str, int]


def measure(options: argparse.Namespace, folder: Path) -> dict[What, list[workloads.Figures]]:
    """Return the runs of all that was asked for. All groups are there from the beginning, and take turns."""
    found: dict[What, list[workloads.Figures]] = {}
    with ExitStack() as stack:
        floors = {
            (nodes, gather_us): stack.enter_context(running(folder / f"{nodes}-{gather_us}", nodes, gather_us))
            for nodes, gather_us in itertools.product(options.nodes, options.gather)
        }
        turns = itertools.product(range(options.rounds), options.rates, floors.items())
        for _, rate, ((nodes, gather_us), floor) in turns:
            for arrivals in options.arrivals if rate else ["lone"]:
                shape = workloads.Shape(options.requests, rate, options.seconds, b"", options.seed)
                found.setdefault((nodes, rate, arrivals, gather_us), []).append(floor.put(shape, arrivals))
    return found


def show(found: dict[What, list[workloads.Figures]]) -> None:
    """Print the medians."""
    heads = ("a second", "p50 ms", "p99 ms", "CPU us", "noise")
    print(f"{'nodes':>5} {'rate':>6} {'arrivals':<8} {'gather us':>9}" + "".join(f" {head:>9}" for head in heads))
    for (nodes, rate, arrivals, gather_us), runs in sorted(found.items()):
        second, p50, p99, cpu = (
            statistics.median(run[field] for run in runs) for field in ("rate", "p50_ms", "p99_ms", "cpu_us")
        )
        costs = [run["cpu_us"] for run in runs]
        noise = (max(costs) - min(costs)) / 2 / cpu * 100
        print(f"{nodes:>5} {rate:>6} {arrivals:<8} {gather_us:>9} {second:>9,.0f} {p50:>9.2f} {p99:>9.2f} {cpu:>9.1f} "
              f"{noise:>7.0f} %")  # fmt: skip


def main() -> None:
    parser = make_parser(__doc__, rounds=3, requests=40_000, seed=1)
    parser.add_argument("--nodes", nargs="+", type=int, choices=(1, 3, 5), default=[1, 3])
    parser.add_argument("--rates", nargs="+", type=int, default=[0, 1000, 5000, 20000], help="0: one after the other")
    parser.add_argument("--gather", nargs="+", type=int, default=[0, GATHER_US], help="microseconds, 0: not at all")
    parser.add_argument("--arrivals", nargs="+", choices=ARRIVALS, default=["even", "h2load"])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run at a steady rate")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="metastore-bench-", dir=options.dir) as name:
        print(f"an append of 4 KiB and its fdatasync took {sync_latency(Path(name)):.0f} us")
        show(measure(options, Path(name)))


if __name__ == "__main__":
    main()
