#!/usr/bin/env python3
"""What lists cost on a MetaStore node and on a real etcd, in one run on one machine.

    python bench/lists.py all
    python bench/lists.py page-rocksdb --keys 100000

page: a page of 500 keys from the start of all keys, again and again.
large: the same over a tenth of the keys, with values of 1,000 bytes. The kernel's share is what sending takes.
ten: ten keys from the start, by ten clients.
count: the number of all keys, and single keys beside it, ten clients with ten calls under way each.
versions: the same, five versions of each key.
keys: the keys of three tenths of all, without values.
pinned: a page at a revision 10,000 births before the newest one.
whole: all keys, page by page, and as one reply. The client (bench/paged.py) knows the keys beforehand.
waits: single gets and puts by one client, alone and while two others read pages.
compact: 1,000 keys with 400 versions each of 1,000 bytes for 500,000 keys: what a compaction costs, and puts meanwhile.
puts: puts of new keys and of these keys again.
start: a start with all keys on the disk, until reads are served, and until RocksDB has counted its keys. Before that,
the same with 1,000 keys, and with all keys by the program of --tree.

The number of keys in a reply is checked. `-rocksdb` does the same with that engine. bench/keys.py measures a page over
the number of keys.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import h2load  # noqa: E402
import loader  # noqa: E402
import paged  # noqa: E402
import paired  # noqa: E402
from options import make_parser  # noqa: E402
from support import messages as m  # noqa: E402
from support.processes import Node, Server, metric  # noqa: E402

import bench  # noqa: E402
import metastore  # noqa: E402

PREFIX, END = b"lists/", b"lists0"
MOST = 100_000  # requests of one run
SLOW = 0.05  # seconds of a request, from which on few are made
PAGE = 500
PAGE_RUNS = {"etcd": 100, "metastore": 2000}  # pages in one go, of 5 s or less; between two nobody reads for some ms
CHANGES = 10_000
FEW = 1000
SHARE = 5000  # puts of one call
TURNS = 5  # of two loads that are compared
Figures = tuple[float, ...]


def fill(server: Server, keys: int, size: int, seed: int, begin: int = 0) -> None:
    if loader.put_keys(server.address, PREFIX, keys, size, seed, begin=begin) != keys:
        raise SystemExit(f"{server.kind}: not all keys were put")


def ask(server: Server, count: int, **fields: Any) -> Any:
    """Return the reply to a range over all keys. Its number of keys must be right."""
    with server.client(timeout=60) as client:
        reply = client.range(PREFIX, END, **fields)
    if reply.count != count:
        raise SystemExit(f"{server.kind}: {reply.count} keys instead of {count}")
    return reply


def burn(server: Server, seconds: float, shape: tuple[int, int], **fields: Any) -> tuple[float, float, float]:
    """Ask for the same again and again for about so long, with (connections, streams on each). Return requests a
    second, CPU microseconds a request, and the median in ms."""
    fields = {"key": PREFIX, "range_end": END, **fields}
    message = bench.prefixed(m.RangeRequest(**fields))
    requests = requests_of(server, seconds, shape, message, fields)
    load = h2load.Load(requests, *shape)
    process = server.running()
    before = process.cpu_ns()
    outcome = h2load.run(server.address, bench.RANGE, message, load)
    cpu = (process.cpu_ns() - before) / 1000 / requests
    return outcome.rate, cpu, bench.percentile(outcome.latencies, 0.5) / 1000


def requests_of(server: Server, seconds: float, shape: tuple[int, int], message: bytes, fields: dict[str, Any]) -> int:
    """Return how many requests take about so long. Too few would show what connections cost."""
    least = 2 * shape[0] * shape[1]
    with server.client(timeout=60) as client:
        client.range(**fields)  # this connects
        began = time.monotonic()
        client.range(**fields)
    took = time.monotonic() - began
    if took > SLOW:
        return max(2 * shape[0], min(least, int(seconds / took)))
    rate = h2load.run(server.address, bench.RANGE, message, h2load.Load(5 * least, *shape)).rate
    return max(least, min(MOST, int(rate * seconds)))


def pages(server: Server, options: argparse.Namespace, _value: bytes, limit: int, clients: int) -> Figures:
    fill(server, options.keys, options.value_size, options.seed)
    ask(server, options.keys, limit=limit)
    return burn(server, options.seconds, (clients, 1), limit=limit)


def large(server: Server, options: argparse.Namespace, _value: bytes) -> Figures:
    keys = max(PAGE, options.keys // 10)
    fill(server, keys, 1000, options.seed)
    ask(server, keys, limit=PAGE)
    process = server.running()
    user, system = process.cpu_ticks()
    rate, cpu, p50 = burn(server, options.seconds, (1, 1), limit=PAGE)
    users, systems = (after - before for after, before in zip(process.cpu_ticks(), (user, system), strict=True))
    return rate, cpu, cpu * users / max(users + systems, 1), p50


def counts(server: Server, options: argparse.Namespace, _value: bytes, versions: int) -> Figures:
    for turn in range(versions):
        fill(server, options.keys, options.value_size, options.seed + turn)
    ask(server, options.keys, count_only=True)
    turns: list[Figures] = []
    for _ in range(TURNS):  # other programs make one turn dearer than the next
        rate, cpu, _ = burn(server, options.seconds / TURNS, (10, 10), count_only=True)
        single, single_cpu, _ = burn(server, options.seconds / TURNS, (10, 10), key=key_of(0), range_end=b"")
        turns.append((rate, cpu, single, single_cpu, cpu / single_cpu))
    return tuple(statistics.median(column) for column in zip(*turns, strict=True))


def keys_only(server: Server, options: argparse.Namespace, _value: bytes) -> Figures:
    keys = options.keys * 3 // 10
    fill(server, keys, options.value_size, options.seed)
    ask(server, keys, limit=1)
    return burn(server, options.seconds, (1, 1), keys_only=True)


def pinned(server: Server, options: argparse.Namespace, _value: bytes) -> Figures:
    fill(server, options.keys, options.value_size, options.seed)
    revision = bench.revision(server)
    fill(server, CHANGES, options.value_size, options.seed, begin=options.keys)
    ask(server, options.keys, limit=PAGE, revision=revision)
    ask(server, options.keys + CHANGES, limit=PAGE)
    then = burn(server, options.seconds, (1, 1), limit=PAGE, revision=revision)[1]
    now = burn(server, options.seconds, (1, 1), limit=PAGE)[1]
    return then, now, then - now


def whole(server: Server, options: argparse.Namespace, _value: bytes) -> Figures:
    fill(server, options.keys, options.value_size, options.seed)
    starts = [PREFIX, *(key_of(n - 1) + b"\0" for n in range(PAGE, options.keys, PAGE))]
    for at in {0, len(starts) // 2, len(starts) - 1}:
        check_page(server, starts[at], at * PAGE, options.keys)
    requests = [m.RangeRequest(key=start, range_end=END, limit=PAGE).SerializeToString() for start in starts]
    process = server.running()
    once, size = at_once(server)
    cpu = process.cpu_ns()
    pages = paged.read(server.address, bench.RANGE.encode(), requests)
    cpu = process.cpu_ns() - cpu
    # Each reply has a header and a number of its own.
    if len(pages.sizes) != len(starts) or not size <= sum(pages.sizes) <= size + 64 * len(starts):
        raise SystemExit(f"{server.kind}: {sum(pages.sizes)} bytes in pages, {size} at once")
    once = (once + at_once(server)[0]) / 2
    client = pages.client_cpu * 1000 / len(starts)
    return options.keys / pages.seconds, cpu / 1e6, once / 1e6, cpu / once, client


def key_of(number: int) -> bytes:
    return PREFIX + b"%0*d" % (loader.DIGITS, number)


def check_page(server: Server, start: bytes, first: int, keys: int) -> None:
    """Check that a page has what must follow it: the keys from `first` on, in order, and the number of all the rest."""
    with server.client(timeout=60) as client:
        reply = client.range(start, END, limit=PAGE)
    last = min(first + PAGE, keys)
    expected = [key_of(n) for n in range(first, last)], keys - first, last < keys
    if ([kv.key for kv in reply.kvs], reply.count, reply.more) != expected:
        raise SystemExit(f"{server.kind}: the page from {first} on is wrong")


def at_once(server: Server) -> tuple[int, int]:
    """Ask for all keys in one reply. Return CPU nanoseconds and the bytes of the message."""
    process = server.running()
    cpu = process.cpu_ns()
    request = m.RangeRequest(key=PREFIX, range_end=END).SerializeToString()
    (size,) = paged.read(server.address, bench.RANGE.encode(), [request]).sizes
    return process.cpu_ns() - cpu, size


def lone(
    server: Server, probes: int, call: Callable[[Any, int], object], most: Callable[[], bool] = lambda: True
) -> list[float]:
    """Make so many single calls one after the other, as long as `most` says so. Return what each took, in ms."""
    took: list[float] = []
    with server.client(timeout=60) as client:
        while len(took) < probes and (most() or not took):
            began = time.perf_counter()
            call(client, len(took))
            took.append((time.perf_counter() - began) * 1000)
    return took


def median(took: list[float]) -> float:
    return bench.percentile(took, 0.5)


def waits(server: Server, options: argparse.Namespace, value: bytes) -> Figures:
    """The single calls come from h2load as well: a client in Python adds 0.2 ms to each, and 0.3 where others want the
    processors."""
    fill(server, options.keys, options.value_size, options.seed)
    ask(server, options.keys, limit=PAGE)
    key = key_of(7)
    calls = ((bench.RANGE, m.RangeRequest(key=key)), (bench.PUT, m.PutRequest(key=key, value=value)))

    def single() -> list[float]:
        load = h2load.Load(options.probes, 1, 1)
        runs = [h2load.run(server.address, path, bench.prefixed(message), load) for path, message in calls]
        return [bench.percentile(run.latencies, 0.5) / 1000 for run in runs]

    message = bench.prefixed(m.RangeRequest(key=PREFIX, range_end=END, limit=PAGE))
    stop = threading.Event()

    def page() -> None:
        while not stop.is_set():
            h2load.run(server.address, bench.RANGE, message, h2load.Load(PAGE_RUNS[server.kind], 2, 1))

    alone = single()
    pager = threading.Thread(target=page)
    pager.start()
    try:
        meanwhile = single()
    finally:
        stop.set()
        pager.join()
    return alone[0], meanwhile[0], alone[1], meanwhile[1]


def compact(server: Server, options: argparse.Namespace, _value: bytes) -> Figures:
    keys = max(10, options.keys // 500)
    for turn in range(options.versions):
        fill(server, keys, 1000, options.seed + turn)
    ask(server, keys, limit=1)
    process, value = server.running(), b"x" * 200
    alone = median(lone(server, options.probes, lambda client, n: client.put(b"other%d" % n, value)))
    cpu, done = process.cpu_ns(), threading.Event()

    def collect() -> None:
        with server.client(timeout=600) as client:
            client.compact(client.revision() - 1, physical=True)
        done.set()

    compactor = threading.Thread(target=collect)
    compactor.start()
    took = lone(server, options.probes, lambda client, n: client.put(b"other%d" % n, value), lambda: not done.is_set())
    compactor.join()
    cpu = process.cpu_ns() - cpu
    return cpu / 1000 / (keys * (options.versions - 1)), alone, median(took), median(took) / alone, len(took)


def puts(server: Server, options: argparse.Namespace, _value: bytes) -> Figures:
    fill(server, options.keys // 2, options.value_size, options.seed)
    process, half = server.running(), options.keys // 2
    figures: list[float] = []
    for begin in (half, 0):
        began, cpu = time.monotonic(), process.cpu_ns()
        fill(server, half, options.value_size, options.seed + 1, begin=begin)
        figures += [half / (time.monotonic() - began), (process.cpu_ns() - cpu) / 1000 / half]
    return tuple(figures)


def start(server: Server, options: argparse.Namespace, value: bytes) -> Figures:
    few = min(FEW, options.keys // 2)
    fill(server, few, options.value_size, options.seed)
    server.stop()
    small = ready(server)
    if isinstance(server, Node):
        server.stop()
        fill_here(server, few, options.keys, options.value_size)
    else:
        fill(server, options.keys - few, options.value_size, options.seed, begin=few)
        server.stop()
    other = 0.0
    if options.tree is not None and isinstance(server, Node):
        with paired.OtherTree(options.tree, server.data_dir, server.settings) as before:
            before.stop()
            other = ready(before)
            before.stop()
    began = time.monotonic()
    large = ready(server)
    meanwhile: list[float] = []

    def put(client: Any, n: int) -> object:
        return client.put(key_of(n * 997 % options.keys), value)

    while counting(server):
        meanwhile += lone(server, options.probes, put)
    built = time.monotonic() - began
    ask(server, options.keys, count_only=True)
    after = lone(server, max(options.probes, len(meanwhile)), put)
    then, now = (bench.percentile(took or [0.0], 0.99) for took in (meanwhile, after))
    return small, large, other, built, then, now, then / now


def fill_here(server: Node, first: int, end: int, size: int) -> None:
    """Put keys into a node that does not run, in this process: over the wire ten million take three times as long."""
    limits = {"quota_bytes": paired.QUOTA.strip('"')}
    engine = server.settings.get("storage.engine", "memory").strip('"')
    listen = {"client": "127.0.0.1:0", "peer": "127.0.0.1:0"}
    place = {"name": "n1", "data_dir": str(server.data_dir)}  # as in the file that the server is started with
    draw = random.Random(first)
    with metastore.Node(metastore.Config(node=place, storage={"engine": engine}, limits=limits, listen=listen)) as node:
        for at in range(first, end, SHARE):
            node.put_many([(key_of(n), draw.randbytes(size)) for n in range(at, min(end, at + SHARE))])


def ready(server: Server) -> float:
    """Start a server that has stopped. Return the seconds until it has answered a read."""
    began = time.monotonic()
    server.start(timeout=600)
    with server.client(timeout=600) as client:
        client.get(PREFIX)
    return time.monotonic() - began


def counting(server: Server) -> bool:
    """Whether a node's engine is still counting its keys."""
    if server.kind == "etcd":
        return False
    try:
        return metric(server, "metastore_engine_counted") == 0
    except StopIteration:
        return False  # this engine need not count


RATE = ("requests/s", "CPU us/request", "p50 ms")
WORKS: dict[str, tuple[str, paired.Work, tuple[str, ...]]] = {
    "page": ("A page of 500 keys from the start, one client", partial(pages, limit=PAGE, clients=1), RATE),
    "large": ("A page of 500 keys of 1,000 bytes", large, ("requests/s", "CPU us/request", "not kernel us", "p50 ms")),
    "ten": ("Ten keys from the start, ten clients", partial(pages, limit=10, clients=10), RATE),
    "count": (
        "Count only beside single keys, saturated",
        partial(counts, versions=1),
        ("counts/s", "CPU us/count", "gets/s", "CPU us/get", "count/get"),
    ),
    "versions": (
        "Count only beside single keys, five versions of each, saturated",
        partial(counts, versions=5),
        ("counts/s", "CPU us/count", "gets/s", "CPU us/get", "count/get"),
    ),
    "keys": ("Keys only, of three tenths of the keys", keys_only, RATE),
    "pinned": ("A page 10,000 births back", pinned, ("CPU us/page then", "CPU us/page now", "more us")),
    "whole": (
        "All keys, page by page and at once",
        whole,
        ("keys/s by pages", "CPU ms by pages", "CPU ms at once", "pages/once", "client ms/page"),
    ),
    "waits": (
        "Single calls while two clients read pages, p50",
        waits,
        ("get alone ms", "get ms", "put alone ms", "put ms"),
    ),
    "compact": (
        "A compaction, and puts meanwhile",
        compact,
        ("CPU us/revision", "put alone ms", "put ms", "ratio", "puts"),
    ),
    "puts": ("Puts, ten clients with 100 calls each", puts, ("new/s", "CPU us/new", "old/s", "CPU us/old")),
    "start": (
        "A start with all keys, and puts until they are counted and after",
        start,
        ("ready s, few keys", "ready s", "other tree s", "counted s", "put p99 ms then", "put p99 ms after", "ratio"),
    ),
}
MEASUREMENTS = {
    name + suffix: paired.Measurement(work, title + of, columns, settings, beside=name != "start")
    for suffix, of, settings in (("", ", memory", {}), ("-rocksdb", ", RocksDB", {"storage.engine": '"rocksdb"'}))
    for name, (title, work, columns) in WORKS.items()
}


def main() -> None:
    parser = make_parser(__doc__, list(MEASUREMENTS), rounds=1, requests=0, value_size=200, seed=1)
    parser.add_argument("--keys", type=int, default=500_000, help="keys (default: %(default)s)")
    parser.add_argument("--probes", type=int, default=300, help="single calls of a median (default: %(default)s)")
    parser.add_argument("--versions", type=int, default=400, help="of each key for `compact` (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of one load, about (default: %(default)s)")
    parser.add_argument("--alone", action="store_true", help="without an etcd beside it")
    parser.add_argument("--tree", type=Path, help="another checkout, with its .venv, to measure beside this one")
    options = parser.parse_args()
    kinds = (*(() if options.alone else ("etcd",)), *(() if options.tree is None else (paired.OTHER,)), "metastore")
    paired.run(options, MEASUREMENTS, kinds)


if __name__ == "__main__":
    main()
