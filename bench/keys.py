#!/usr/bin/env python3
"""What an operation costs over the number of keys that there are: puts of keys that exist, reads of one key, pages.

    python bench/keys.py                                   some minutes
    python bench/keys.py --keys 1000 1000000 --rounds 5
    python bench/pictures.py build/bench/keys.json --into docs/performance.md

A node with each engine and an etcd hold the same number of keys, with random values. 1,000 calls at a time, in turn on
each of them, put or read keys at random. Reads are linearizable. A page is 500 keys from the start of all, with their
exact number; one client reads one after the other, one for each 400 calls of the others.
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

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import loader  # noqa: E402
import results  # noqa: E402
import workloads  # noqa: E402
from options import make_parser  # noqa: E402
from rich.progress import Progress  # noqa: E402
from support import messages as m  # noqa: E402
from support.processes import Etcd, Node, Server  # noqa: E402

from bench import PUT, RANGE, check_build, prefixed  # noqa: E402

PREFIX = b"keys/"
ENGINES = ("memory", "rocksdb")
KINDS = (*ENGINES, "etcd")
WORKLOADS = ("overwrite", "read", "page")


def make(kind: str, where: Path) -> Server:
    """Return a server that is not started."""
    if kind == "etcd":
        return Etcd(where, extra=["--quota-backend-bytes", str(8 << 30)])
    return Node(where, {"storage.engine": f'"{kind}"', "wal.segment_size": '"64MiB"'})


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
        messages = [prefixed(m.RangeRequest(key=PREFIX, range_end=b"keys0", limit=500))] * requests
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
    step, engine = ("all", kind) if kind in ENGINES else (kind, results.OWN)
    figures = workloads.figures_of(times.reached, times.latencies, cpu)
    more = {"rss_mib": process.rss() / (1 << 20)}
    return results.Sample(workload, step, engine, 1, 0.0, 0, number, **figures, more=more, keys=keys)


def measure(
    options: argparse.Namespace, servers: Mapping[str, Server], told: Callable[[str], None]
) -> Iterator[results.Sample]:
    """Fill the servers up to each number of keys, and measure. `told` hears what comes next."""
    there = 0
    for keys in sorted(options.keys):
        for kind, server in servers.items():
            told(f"{kind}: filling up to {keys:,} keys")
            shape = (keys - there, options.value_size, options.seed)
            if keys > there and loader.put_keys(server.address, PREFIX, *shape, begin=there) != keys - there:
                raise SystemExit(f"{kind}: not every put was answered")
        there = keys
        for number, (kind, server) in itertools.product(range(options.rounds), servers.items()):
            for workload in WORKLOADS:
                told(f"{kind}: {workload}, {keys:,} keys")
                yield measured(server, workload, kind, keys, number, (options.requests, options.value_size))


def main() -> None:
    parser = make_parser(__doc__, rounds=3, requests=20_000, value_size=256, seed=1)
    sizes = [1_000, 10_000, 100_000, 1_000_000]
    parser.add_argument("--keys", type=int, nargs="+", default=sizes, help="default: %(default)s")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="default: all")
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
        bar = progress.add_task(
            "starting", total=len(options.keys) * len(options.kinds) * options.rounds * len(WORKLOADS)
        )
        servers = {kind: stack.enter_context(make(kind, folder / kind)) for kind in options.kinds}
        for sample in measure(options, servers, lambda what: progress.update(bar, description=what)):
            samples.append(sample)
            progress.advance(bar)
            results.write(options.out, folder, {"began": began, **asked}, samples)
    print(f"{len(samples)} samples: {options.out}")


if __name__ == "__main__":
    main()
