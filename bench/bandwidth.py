#!/usr/bin/env python3
"""What goes to a follower for a small put, byte for byte: three nodes, keys of 8 and values of 15 bytes, a steady rate.

    python bench/bandwidth.py                               25,000 puts a second, all settings and both kinds of values
    python bench/bandwidth.py --rate 5000 --seconds 2 --settings zstd

The leader counts what it sends (metastore_peer_sent_bytes_total) and what its proposals take before and after
compression. From that, and the number of its log entries, follows what each layer costs. `metadata` are keys and values
of a registry of services, of which 6 bytes are random; `random` is nothing but random bytes, which no codec makes
shorter. 25 bytes a put are 5 Mbit/s at 25,000 puts a second.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import loader  # noqa: E402
import metadata  # noqa: E402
from options import make_parser  # noqa: E402
from support.cluster import Cluster  # noqa: E402
from workloads import cpu_ns, payload, sent_to_peers  # noqa: E402

from bench import check_build, percentile, print_machine  # noqa: E402

NODES = 3
KEY, VALUE = 8, 15
#: FORMATS.md: the fields of a put besides key and value, the head of an operation, an entry's image.
FIELDS, OPERATION, IMAGE = 4, 12, 32
ZSTD = {"performance.compression_codec": '"zstd"', "performance.compression_min_size": '"64"'}
SETTINGS: dict[str, dict[str, str]] = {
    "off": {"performance.enable_compression": "false"},
    "default": {},
    "snappy": {"performance.compression_min_size": '"64"'},
    "zstd": ZSTD,
    "packed": {"performance.enable_compression": "false", "performance.pack_peers": "true"},
    "zstd and packed": {**ZSTD, "performance.pack_peers": "true"},
}
VALUES = ("metadata", "random")
ROWS = (
    "key and value",
    "other fields of the request",
    "head of the operation",
    "separators of the batch",
    "saved by the codec",
    "entry images and flags",
    "frames, less what packing saves",
)


def pairs_of(values: str, seed: int, count: int) -> list[tuple[bytes, bytes]]:
    """Return keys and values of one kind."""
    if values == "metadata":
        return list(metadata.small(seed, count))
    chance = random.Random(seed)
    return [(chance.randbytes(KEY), chance.randbytes(VALUE)) for _ in range(count)]


def measure(cluster: Cluster, values: str, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Put at the steady rate, and return what each part of a put costs in bytes, and other figures."""
    leader = cluster.leader()
    count = int(options.rate * options.seconds)
    messages = [loader.put_message(*pair) for pair in pairs_of(values, seed, count)]
    times = loader.Times(options.rate)
    with leader.client() as client:
        revision, index = client.revision(), client.status().raftIndex
        before, sent, cpu = payload(leader), sent_to_peers(leader), cpu_ns(cluster)
        loader.ask_timed(leader.address, messages, times)
        after, total, used = payload(leader), sent_to_peers(leader) - sent, cpu_ns(cluster) - cpu
        entries = client.status().raftIndex - index
        if client.revision() - revision != count:
            raise SystemExit(f"{count} puts, {client.revision() - revision} revisions")
    cluster.same_everywhere(60)
    plain, packed = (after[0] - before[0]) / count, (after[1] - before[1] - entries) / count
    images = (IMAGE + 1) * entries / count
    each = total / count / (NODES - 1)
    raw = KEY + VALUE + FIELDS + OPERATION
    parts = (KEY + VALUE, FIELDS, OPERATION, plain - raw, packed - plain, images, each - packed - images)
    return {
        **dict(zip(ROWS, parts, strict=True)),
        "bytes a put": each,
        "Mbit/s at 25,000": each * 8 * 25_000 / 1e6,
        "puts in an entry": count / entries,
        "puts a second": times.reached,
        "p50 ms": percentile(times.latencies, 0.5) / 1000,
        "p99 ms": percentile(times.latencies, 0.99) / 1000,
        "CPU us, all members": used / 1000 / count,
    }


def run(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield a title and the medians of the rounds for each setting and kind of values."""
    for number, name in enumerate(options.settings):
        with Cluster(folder / str(number), NODES, settings=SETTINGS[name]) as cluster:
            for values in options.values:
                rounds = [measure(cluster, values, options, options.seed + n) for n in range(options.rounds)]
                yield f"{name}: {values}", {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def main() -> None:
    parser = make_parser(__doc__, rounds=3, seed=1)
    parser.add_argument("--rate", type=int, default=25_000, help="puts a second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run (default: %(default)s)")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="default: all")
    parser.add_argument("--values", nargs="+", choices=VALUES, default=list(VALUES), help="default: both")
    options = parser.parse_args()
    check_build()
    with tempfile.TemporaryDirectory(prefix="metastore-bench-", dir=options.dir) as name:
        options.requests, options.value_size = int(options.rate * options.seconds), VALUE
        print_machine(options, Path(name))
        for title, figures in run(options, Path(name)):
            print(f"\n{title}, bytes of a put that go to each follower")
            for row, figure in figures.items():
                print(f"  {row:<30} {figure:>10.2f}", flush=True)


if __name__ == "__main__":
    main()
