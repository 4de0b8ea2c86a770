#!/usr/bin/env python3
"""The matrix: each optimisation of the ladder, on each engine, under each workload, beside a real etcd.

    python bench/matrix.py --quick                 some minutes
    python bench/matrix.py --full                  about an hour
    python bench/matrix.py --steps baseline all --engines memory --workloads put parallel --delays 0 1.25
    python bench/pictures.py build/bench/*.json    tables and pictures of it

Every round measures all steps once, in turn (A B C A B C ...), each on servers of its own. The file of the run has all
raw samples. `tox -e bench-all-memory` runs one step on one engine for each Python.

The steps of the ladder add up: baseline (one proposal and one sync for each put) -> batch -> snappy or zstd (batches
are compressed) -> all (group commit: one sync for all that came meanwhile; these are the defaults) -> async (answered
before the sync). `--delays` slows each sync of our log by so many milliseconds; etcd is then measured without.
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
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

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
ETCD = "etcd"
ENGINES = ("memory", "rocksdb")
RATES = (1000, 5000, 20000)
#: rounds, requests of a saturating load, seconds of a steady one, rates, numbers of nodes, delays
QUICK: dict[str, Any] = {
    "rounds": 3, "requests": 20_000, "seconds": 2, "rates": [0, 5000], "nodes": [1], "delays": [0.0, 1.25],
}  # fmt: skip
FULL: dict[str, Any] = {
    "rounds": 5, "requests": 200_000, "seconds": 5, "rates": [0, *RATES], "nodes": [1, 3], "delays": [0.0, 1.25],
}  # fmt: skip


def cells(options: argparse.Namespace) -> Iterator[tuple[int, float, str, list[str]]]:
    """Yield nodes, delay, engine, and the steps that are measured in turn."""
    for nodes, delay, engine in itertools.product(options.nodes, options.delays, options.engines):
        peers = [] if options.no_etcd or delay else [ETCD]
        yield nodes, delay, engine, [*peers, *options.steps]


@contextmanager
def servers(folder: Path, step: str, engine: str, nodes: int, delay: float) -> Iterator[Cluster]:
    """Run the servers of one step with data of their own."""
    settings = {**STEPS.get(step, {}), "storage.engine": f'"{engine}"', "wal.segment_size": '"64MiB"'}
    cluster = Cluster(folder, nodes, EtcdMember if step == ETCD else MetaStoreMember, settings)
    for member in cluster.members:
        if delay:
            member.env["METASTORE_FAILPOINTS"] = f"wal.before_sync=sleep({delay})"
    try:
        yield cluster.start()
    finally:
        cluster.discard()


def measure(options: argparse.Namespace, folder: Path, told: Callable[[str], None]) -> Iterator[results.Sample]:
    """Do all measurements, and yield each sample when it is there. `told` hears what comes next."""
    value = random.Random(options.seed).randbytes(options.value_size)
    for nodes, delay, engine, steps in cells(options):
        for number, step in itertools.product(range(options.rounds), steps):
            where = folder / f"{step}-{engine}-{nodes}-{number}"
            with servers(where, step, engine, nodes, delay) as cluster:
                for name, rate in itertools.product(options.workloads, options.rates):
                    work = workloads.ALL[name]
                    if rate and not work.steady:
                        continue
                    told(f"{step} {engine} x{nodes} {name}" + (f" at {rate}/s" if rate else ""))
                    requests = int(options.requests * SHARE.get(step, 1))
                    shape = workloads.Shape(requests, rate, options.seconds, value, options.seed + number)
                    figures = work.run(cluster, shape)
                    yield results.Sample(name, step, engine, nodes, delay, rate, number, **figures)


def total(options: argparse.Namespace) -> int:
    """Return the number of samples."""
    each = sum(1 for name in options.workloads for rate in options.rates if not rate or workloads.ALL[name].steady)
    return sum(len(steps) for *_, steps in cells(options)) * options.rounds * each


def arguments() -> argparse.Namespace:
    """Read the command line. `--quick` and `--full` set what was not given."""
    parser = make_parser(__doc__, value_size=256, seed=1)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="some minutes (the default)")
    size.add_argument("--full", action="store_true", help="about an hour")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--workloads", nargs="+", choices=list(workloads.ALL), default=list(workloads.ALL))
    parser.add_argument("--nodes", nargs="+", type=int, choices=(1, 3, 5), help="members of a cluster")
    parser.add_argument("--delays", nargs="+", type=float, help="milliseconds that each sync takes longer")
    parser.add_argument("--rates", nargs="+", type=int, help="operations a second; 0: as many as are answered")
    parser.add_argument("--rounds", type=int, help="runs of each")
    parser.add_argument("--requests", type=int, help="requests of a saturating run")
    parser.add_argument("--seconds", type=float, help="of a run at a steady rate")
    parser.add_argument("--no-etcd", action="store_true", help="measure no etcd beside it")
    parser.add_argument("--out", type=Path, default=Path("build/bench/matrix.json"), help="default: %(default)s")
    options = parser.parse_args()
    for name, default in (FULL if options.full else QUICK).items():
        if getattr(options, name) is None:
            setattr(options, name, default)
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
