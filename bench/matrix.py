#!/usr/bin/env python3
"""The matrix: each optimisation of the ladder, on each engine, under each workload, beside etcd and other stores.

    python bench/matrix.py --quick                 some minutes
    python bench/matrix.py --full                  about an hour
    python bench/matrix.py --steps baseline all --engines memory --workloads put parallel --delays 0 1.25
    python bench/pictures.py build/bench/*.json    tables and pictures of it

Every round measures all steps once, in turn (A B C A B C ...), each on servers of its own. The file of the run has all
raw samples. `tox -e bench-all-memory` runs one step on one engine for each Python.

The steps of the ladder add up: baseline (one proposal and one sync for each put) -> batch -> snappy or zstd (batches
are compressed) -> all (group commit: one sync for all that came meanwhile; these are the defaults) -> async (answered
before the sync). `--delays` slows each sync of our log by so many milliseconds; the other stores are then not measured.
Unless --steps names them, the steps before and after `all` have the workloads of the ladder only, and no steady rates.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import loader  # noqa: E402
import peers  # noqa: E402
import results  # noqa: E402
import workloads  # noqa: E402
from options import make_parser  # noqa: E402
from rich.progress import Progress  # noqa: E402
from support.cluster import Cluster, EtcdMember, MetaStoreMember  # noqa: E402

from bench import check_build  # noqa: E402

OFF = {
    "raft.enable_batch_proposal": "false",
    "performance.enable_compression": "false",
    "wal.group_commit": "false",
}
#: What each step of the ladder sets. What it does not name has its default.
STEPS: dict[str, dict[str, str]] = {
    "baseline": OFF,
    "batch": {**OFF, "raft.enable_batch_proposal": "true"},
    "snappy": {"wal.group_commit": "false", "performance.compression_codec": '"snappy"'},
    "zstd": {"wal.group_commit": "false", "performance.compression_codec": '"zstd"'},
    "all": {},
    "async": {"wal.sync": '"async"'},
}
#: The part of the requests for a step that takes a sync for each: it would take minutes otherwise.
SHARE = {"baseline": 0.05}
#: The workloads of the steps that nobody named, except `all`.
LADDER = ("put", "parallel", "compression")
ETCD = "etcd"
OTHERS = (ETCD, *peers.NODES)
#: Puts that a store gets first: ZooKeeper's machine compiles its code while it runs.
WARM_UP = 5000
ENGINES = ("memory", "rocksdb")
RATES = (1000, 5000, 20000)
#: rounds, requests of a saturating load, seconds of a steady one, rates, numbers of nodes, delays
QUICK: dict[str, Any] = {
    "rounds": 2, "requests": 10_000, "seconds": 1, "rates": [0, 5000], "nodes": [1], "delays": [0.0, 1.25],
}  # fmt: skip
FULL: dict[str, Any] = {
    "rounds": 3, "requests": 40_000, "seconds": 2, "rates": [0, *RATES], "nodes": [1, 3], "delays": [0.0, 1.25],
}  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """What is measured on servers of its own: a step on an engine, or another store, whose engine is its own."""

    step: str
    engine: str
    nodes: int
    delay: float
    runs: tuple[tuple[str, int], ...]  # workloads and rates; 0 comes first


def runs_of(options: argparse.Namespace, step: str) -> tuple[tuple[str, int], ...]:
    """Return the workloads and rates of a step or another store."""
    names = [name for name in options.workloads if step not in peers.NODES or name in workloads.PEER_WORKLOADS]
    rates = sorted(options.rates)
    if options.thin and step != "all" and step in STEPS:
        names, rates = [name for name in names if name in LADDER], [rate for rate in rates if not rate]
    return tuple((name, rate) for name in names for rate in rates if rate <= workloads.ALL[name].most)


def turns(options: argparse.Namespace) -> Iterator[list[Setup]]:
    """Yield what is measured in turn: everything with the same number of nodes and the same delay."""
    for nodes, delay in itertools.product(options.nodes, options.delays):
        others = [] if delay else [one for one in options.others if nodes in peers.NODES.get(one, (nodes,))]
        steps = [*((one, results.OWN) for one in others), *itertools.product(options.steps, options.engines)]
        yield [Setup(step, engine, nodes, delay, runs_of(options, step)) for step, engine in steps]


@contextmanager
def servers(folder: Path, setup: Setup) -> Iterator[Cluster | peers.Peers]:
    """Run the servers of one setup with data of their own."""
    cluster: Cluster | peers.Peers
    if setup.step in peers.NODES:
        cluster = peers.Peers(setup.step, folder, setup.nodes)
    else:
        settings = {
            **STEPS.get(setup.step, {}),
            "storage.engine": f'"{setup.engine}"',
            "wal.segment_size": '"64MiB"',
        }
        kind = EtcdMember if setup.step == ETCD else MetaStoreMember
        cluster = Cluster(folder, setup.nodes, kind, settings)
        for member in cluster.members:
            if setup.delay:
                member.env["METASTORE_FAILPOINTS"] = f"wal.before_sync=sleep({setup.delay})"
    try:
        yield cluster.start()
    finally:
        cluster.discard()


def samples_of(
    options: argparse.Namespace, setup: Setup, number: int, folder: Path, told: Callable[[str], None]
) -> Iterator[results.Sample]:
    """Measure one setup in one round."""
    value = random.Random(options.seed).randbytes(options.value_size)
    requests = int(options.requests * SHARE.get(setup.step, 1))
    holds: dict[str, float] = {}
    told(f"{setup.step} {setup.engine} x{setup.nodes}: starting")
    with servers(folder / f"{setup.step}-{setup.engine}-{setup.nodes}-{setup.delay}-{number}", setup) as cluster:
        if isinstance(cluster, peers.Peers):
            cluster.put(min(WARM_UP, requests), 50, 10, value, loader.Times())
        for name, rate in setup.runs:
            told(f"{setup.step} {setup.engine} x{setup.nodes} {name}" + (f" at {rate}/s" if rate else ""))
            shape = workloads.Shape(requests, rate, options.seconds, value, options.seed + number, holds.get(name, 0.0))
            if isinstance(cluster, peers.Peers):
                figures = workloads.of_peers(cluster, name, shape)
            else:
                figures = workloads.ALL[name].run(cluster, shape)
            if not rate:
                holds[name] = figures["rate"]
            yield results.Sample(name, setup.step, setup.engine, setup.nodes, setup.delay, rate, number, **figures)


def measure(options: argparse.Namespace, folder: Path, told: Callable[[str], None]) -> Iterator[results.Sample]:
    """Do all measurements, and yield each sample when it is there. `told` hears what comes next."""
    for setups in turns(options):
        for number, setup in itertools.product(range(options.rounds), setups):
            yield from samples_of(options, setup, number, folder, told)


def total(options: argparse.Namespace) -> int:
    """Return the number of samples."""
    return options.rounds * sum(len(setup.runs) for setups in turns(options) for setup in setups)


def arguments() -> argparse.Namespace:
    """Read the command line. `--quick` and `--full` set what was not given."""
    parser = make_parser(__doc__, value_size=256, seed=1)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="some minutes (the default)")
    size.add_argument("--full", action="store_true", help="about an hour")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), help="default: all")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--workloads", nargs="+", choices=list(workloads.ALL), default=list(workloads.ALL))
    parser.add_argument("--nodes", nargs="+", type=int, choices=(1, 3, 5), help="members of a cluster")
    parser.add_argument("--delays", nargs="+", type=float, help="milliseconds that each sync takes longer")
    parser.add_argument("--rates", nargs="+", type=int, help="operations a second; 0: as many as are answered")
    parser.add_argument("--rounds", type=int, help="runs of each")
    parser.add_argument("--requests", type=int, help="requests of a saturating run")
    parser.add_argument("--seconds", type=float, help="of a run at a steady rate")
    parser.add_argument("--others", nargs="*", choices=OTHERS, default=list(OTHERS), help="stores to measure beside it")
    parser.add_argument("--out", type=Path, default=Path("build/bench/matrix.json"), help="default: %(default)s")
    options = parser.parse_args()
    for name, default in (FULL if options.full else QUICK).items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    options.thin = options.steps is None
    options.steps = options.steps or list(STEPS)
    for other in [one for one in options.others if one in peers.NODES and peers.missing(one)]:
        print(f"{other} is not measured: it is not installed ({peers.missing(other)})", file=sys.stderr)
        options.others.remove(other)
    return options


def main() -> None:
    options = arguments()
    check_build()
    began, start = results.now(), time.monotonic()
    samples: list[results.Sample] = []
    with tempfile.TemporaryDirectory(prefix="metastore-bench-", dir=options.dir) as name, Progress() as progress:
        bar = progress.add_task("starting", total=total(options))
        asked = {key: value for key, value in vars(options).items() if key not in ("dir", "out")}
        for sample in measure(options, Path(name), lambda what: progress.update(bar, description=what)):
            samples.append(sample)
            progress.advance(bar)
            # A run that is stopped keeps what it has measured.
            results.write(options.out, Path(name), {"began": began, **asked}, samples)
    print(f"{len(samples)} samples in {time.monotonic() - start:.0f} s: {options.out}")


if __name__ == "__main__":
    main()
