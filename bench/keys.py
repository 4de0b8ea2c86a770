#!/usr/bin/env python3
"""What an operation costs over the number of keys that there are: puts of keys that exist, reads of one key, pages.

    python bench/keys.py                                   some minutes
    python bench/keys.py --keys 1000 1000000 --rounds 5
    python bench/keys.py --keys 10000 100000 1000000 10000000 --most-etcd 1000000 --workloads page count single \
        --value-size 200 --rounds 3 --out build/bench/lists.json       half an hour, 10 GB of memory, 20 GB of disk
    python bench/pictures.py build/bench/keys.json --into docs/performance.md

A node with each engine and an etcd hold the same number of keys, with random values. 1,000 calls at a time, in turn on
each of them, put or read keys at random. Reads are linearizable. A page is 500 keys from the start of all, with their
exact number; one client reads one after the other, one for each 400 calls of the others. `count` asks for the number of
all keys and `single` for one key, always the same, by ten clients with ten calls under way each.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import lists  # noqa: E402
import loader  # noqa: E402
import paired  # noqa: E402
import results  # noqa: E402
import workloads  # noqa: E402
from options import make_parser  # noqa: E402
from rich.progress import Progress  # noqa: E402
from support import messages as m  # noqa: E402
from support.processes import Etcd, Node, Server  # noqa: E402

from bench import PUT, RANGE, check_build, prefixed  # noqa: E402

ENGINES = ("memory", "rocksdb")
KINDS = (*ENGINES, "etcd")
WORKLOADS = ("overwrite", "read", "page")
SATURATED = ("count", "single")
PREFIX, END = b"keys/", b"keys0"


def make(kind: str, where: Path) -> Server:
    """Return a server that is not started."""
    if kind == "etcd":
        return Etcd(where, extra=["--quota-backend-bytes", str(8 << 30)])
    settings = {"storage.engine": f'"{kind}"', "limits.quota_bytes": paired.QUOTA, "wal.segment_size": '"64MiB"'}
    return Node(where, settings)


def measured(
    server: Server, workload: str, kind: str, keys: int, number: int, sizes: tuple[int, int]
) -> results.Sample:
    """Put or read keys at random, or read pages. `sizes` are the requests, and the bytes of a value."""
    requests, value_size = sizes
    if workload == "page":
        requests = -(-requests // 400)
    chance = random.Random(f"{workload} {keys} {number}")
    names = [PREFIX + b"%0*d" % (loader.DIGITS, chance.randrange(keys)) for _ in range(requests)]
    puts = workload == "overwrite"
    make_message = (
        (lambda name: loader.put_message(name, chance.randbytes(value_size))) if puts else loader.range_message
    )
    messages = [make_message(name) for name in names]
    shape: dict[str, int] = {}
    if workload == "page":
        messages = [prefixed(m.RangeRequest(key=PREFIX, range_end=END, limit=500))] * requests
        shape = {"connections": 1, "streams": 1}
    times, process = loader.Times(), server.running()
    with server.client() as client:
        before, cpu = client.revision(), process.cpu_ns()
        replies = loader.ask_timed(server.address, messages, times, PUT if puts else RANGE, **shape)
        cpu = process.cpu_ns() - cpu
        # A page is more than one frame, and each was counted.
        replies = len(times.latencies) if workload == "page" else replies
        if replies != requests or client.revision() - before != (requests if puts else 0):
            raise SystemExit(f"{kind}: {requests} calls, {replies} replies, revision {before} to {client.revision()}")
    return sample(server, workload, kind, keys, number, workloads.figures_of(times.reached, times.latencies, cpu))


def saturated(server: Server, workload: str, kind: str, keys: int, number: int, seconds: float) -> results.Sample:
    """Count all keys, or read the first one."""
    fields: dict[str, Any] = {"key": PREFIX + b"%0*d" % (loader.DIGITS, 0), "range_end": b""}
    if workload == "count":
        fields = {"key": PREFIX, "range_end": END, "count_only": True}
    with server.client(timeout=60) as client:
        found = client.range(**fields).count
        if found != (keys if workload == "count" else 1):
            raise SystemExit(f"{kind}: {found} keys instead of {keys}")
    rate, cpu, p50 = lists.burn(server, seconds, (10, 10), **fields)
    return sample(server, workload, kind, keys, number, {"rate": rate, "cpu_us": cpu, "p50_ms": p50})


def sample(
    server: Server, workload: str, kind: str, keys: int, number: int, figures: Mapping[str, float]
) -> results.Sample:
    step, engine = ("all", kind) if kind in ENGINES else (kind, results.OWN)
    more = {"rss_mib": server.running().rss() / (1 << 20)}
    return results.Sample(workload, step, engine, 1, 0.0, 0, number, **figures, more=more, keys=keys)


def kinds_at(options: argparse.Namespace, keys: int) -> list[str]:
    """Return what is measured at a number of keys."""
    return [kind for kind in options.kinds if kind != "etcd" or keys <= options.most_etcd]


def measure(
    options: argparse.Namespace, servers: Mapping[str, Server], told: Callable[[str], None]
) -> Iterator[results.Sample]:
    """Fill the servers up to each number of keys, and measure. `told` hears what comes next."""
    there = 0
    for keys in sorted(options.keys):
        there, before = keys, there
        kinds = kinds_at(options, keys)
        for kind in kinds:
            told(f"{kind}: filling up to {keys:,} keys")
            shape = (keys - before, options.value_size, options.seed)
            if keys > before and loader.put_keys(servers[kind].address, PREFIX, *shape, begin=before) != keys - before:
                raise SystemExit(f"{kind}: not every put was answered")
        for number, kind, workload in itertools.product(range(options.rounds), kinds, options.workloads):
            told(f"{kind}: {workload}, {keys:,} keys")
            if workload in SATURATED:
                yield saturated(servers[kind], workload, kind, keys, number, options.seconds)
            else:
                sizes = options.requests, options.value_size
                yield measured(servers[kind], workload, kind, keys, number, sizes)


def main() -> None:
    parser = make_parser(__doc__, rounds=3, requests=20_000, value_size=256, seed=1)
    sizes = [1_000, 10_000, 100_000, 1_000_000]
    parser.add_argument("--keys", type=int, nargs="+", default=sizes, help="default: %(default)s")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="default: all")
    parser.add_argument("--most-etcd", type=int, default=1_000_000, help="keys of etcd (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a load of `count` or `single`, about")
    choices = [*WORKLOADS, *SATURATED]
    parser.add_argument("--workloads", nargs="+", choices=choices, default=list(WORKLOADS), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("build/bench/keys.json"), help="default: %(default)s")
    options = parser.parse_args()
    check_build()
    began = results.now()
    asked = {key: value for key, value in vars(options).items() if key not in ("dir", "out")}
    samples: list[results.Sample] = []
    with (
        tempfile.TemporaryDirectory(prefix="metastore-bench-", dir=options.dir) as name,
        Progress() as progress,
        ExitStack() as stack,
    ):
        folder = Path(name)
        cells = sum(len(kinds_at(options, keys)) for keys in options.keys) * len(options.workloads)
        bar = progress.add_task("starting", total=cells * options.rounds)
        servers = {kind: stack.enter_context(make(kind, folder / kind)) for kind in options.kinds}
        for one in measure(options, servers, lambda what: progress.update(bar, description=what)):
            samples.append(one)
            progress.advance(bar)
            results.write(options.out, folder, {"began": began, **asked}, samples)
    print(f"{len(samples)} samples: {options.out}")


if __name__ == "__main__":
    main()
