#!/usr/bin/env python3
"""What lists cost on a MetaStore node and on a real etcd, in one run on one machine.

    python bench/lists.py all
    python bench/lists.py page --keys 100000

page: a page of 500 keys from the start of all keys, one after the other.
ten: ten keys from the start, by ten clients.
count: the number of all keys, by one client.
Each reply carries the exact number of keys, which is checked. `-rocksdb` does the same with that engine.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import h2load  # noqa: E402
import loader  # noqa: E402
import paired  # noqa: E402
from options import make_parser  # noqa: E402
from support import messages as m  # noqa: E402
from support.processes import Server  # noqa: E402

import bench  # noqa: E402

SECONDS = 10.0  # of one run, about
MOST = 20_000  # requests of one run


def ask(
    server: Server, options: argparse.Namespace, _value: bytes, limit: int, clients: int, count_only: bool = False
) -> tuple[float, ...]:
    """(requests a second, CPU us a request, p50 in ms)."""
    if loader.put_keys(server.address, b"lists/", options.keys, options.value_size, options.seed) != options.keys:
        raise SystemExit(f"{server.kind}: not all keys were put")
    fields = {"key": b"lists/", "range_end": b"lists0", "limit": limit, "count_only": count_only}
    request = m.RangeRequest(**fields)
    with server.client(timeout=60) as client:
        began = time.monotonic()
        reply = client.range(b"lists/", b"lists0", limit=limit, count_only=count_only)
        took = time.monotonic() - began
    if reply.count != options.keys:
        raise SystemExit(f"{server.kind}: {reply.count} keys instead of {options.keys}")
    requests = max(clients, min(MOST, int(SECONDS / took)))
    process = server.running()
    before = process.cpu_ns()
    outcome = h2load.run(server.address, bench.RANGE, bench.prefixed(request), h2load.Load(requests, clients, 1))
    cpu = (process.cpu_ns() - before) / 1000 / requests
    return outcome.rate, cpu, bench.percentile(outcome.latencies, 0.5) / 1000


COLUMNS = ("requests/s", "CPU us/request", "p50 ms")
WORKS = {
    "page": ("A page of 500 keys from the start, one client", partial(ask, limit=500, clients=1)),
    "ten": ("Ten keys from the start, ten clients", partial(ask, limit=10, clients=10)),
    "count": ("Count only, one client", partial(ask, limit=0, clients=1, count_only=True)),
}
MEASUREMENTS = {
    name + suffix: paired.Measurement(work, title + of, COLUMNS, settings)
    for suffix, of, settings in (("", ", memory", {}), ("-rocksdb", ", RocksDB", {"storage.engine": '"rocksdb"'}))
    for name, (title, work) in WORKS.items()
}


def main() -> None:
    parser = make_parser(__doc__, list(MEASUREMENTS), rounds=1, requests=0, value_size=200, seed=1)
    parser.add_argument("--keys", type=int, default=500_000, help="keys (default: %(default)s)")
    paired.run(parser.parse_args(), MEASUREMENTS)


if __name__ == "__main__":
    main()
