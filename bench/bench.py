#!/usr/bin/env python3
"""Figures of a MetaStore node beside a real etcd, in one run on one machine.

    python bench/bench.py all
    python bench/bench.py put --rounds 5 --requests 200000

Runs are paired (A B A B ...). The program prints medians and the median of the paired ratios; nothing here is a test.
CPU is that of all threads of the server process, from schedstat. The revision shows that the puts were really done.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import h2load  # noqa: E402
import loader  # noqa: E402
from options import chosen, make_parser  # noqa: E402
from support import messages as m  # noqa: E402
from support.processes import Etcd, Node, Server, etcd_binary  # noqa: E402

# The kinds of node, with the settings that make them.
VARIANTS = {
    "metastore": {},
    "uncompressed": {"performance.enable_compression": "false"},
    "no busy_poll": {"performance.busy_poll": '"0"'},
    "baseline": {"raft.enable_batch_proposal": "false", "wal.group_commit": "false"},
}
PUT, RANGE, TXN = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Txn"
KEY = b"bench/key"
WARM_UP = 2000
PROBES = 200


@dataclass(frozen=True)
class Sample:
    """One run: requests per second, median and 99th percentile in ms (0: not measured), server CPU in us a request."""

    rate: float
    p50: float
    p99: float
    cpu: float


def percentile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile."""
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))])


def prefixed(request: object) -> bytes:
    """Return a request behind gRPC's 5-byte prefix."""
    body = request.SerializeToString()  # type: ignore[attr-defined]
    return b"\0" + len(body).to_bytes(4, "big") + body


def revision(server: Server) -> int:
    with server.client() as client:
        return client.revision()


def measured(server: Server, requests: int, work: Callable[[], tuple[float, list[int]]]) -> Sample:
    """Run `work` (which returns requests per second and latencies) between two looks at the server's CPU time."""
    process = server.running()
    before = process.cpu_ns()
    rate, latencies = work()
    cpu = (process.cpu_ns() - before) / 1000 / requests
    p50, p99 = (percentile(latencies, s) / 1000 if latencies else 0.0 for s in (0.5, 0.99))
    return Sample(rate, p50, p99, cpu)


def put_sample(server: Server, load: h2load.Load, value: bytes) -> Sample:
    """Put one key again and again by h2load."""
    message = prefixed(m.PutRequest(key=KEY, value=value))
    before = revision(server)

    def work() -> tuple[float, list[int]]:
        outcome = h2load.run(server.address, PUT, message, load)
        return outcome.rate, outcome.latencies

    sample = measured(server, load.requests, work)
    check_puts(server, before, load.requests)
    return sample


def check_puts(server: Server, before: int, count: int) -> None:
    done = revision(server) - before
    if done != count:
        raise SystemExit(f"{server.kind}: {count} puts were answered, but the revision rose by {done}")


def range_sample(server: Server, load: h2load.Load, value: bytes) -> Sample:
    """Make linearizable ranges of one key by h2load."""
    with server.client() as client:
        client.put(KEY, value)

    def work() -> tuple[float, list[int]]:
        outcome = h2load.run(server.address, RANGE, prefixed(m.RangeRequest(key=KEY)), load)
        if outcome.data < load.requests * len(value):
            raise SystemExit(f"{server.kind}: ranges gave {outcome.data} bytes, less than the values are long")
        return outcome.rate, outcome.latencies

    return measured(server, load.requests, work)


def eight_puts(value: bytes) -> object:
    """Return a TxnRequest of eight puts."""
    return m.TxnRequest(
        success=[m.RequestOp(request_put=m.PutRequest(key=b"txn/%d" % n, value=value)) for n in range(8)]
    )


def swap(value: bytes) -> object:
    """Return a TxnRequest that puts a key if its value is what it was, which is the same."""
    compare = m.Compare(key=KEY, result=m.EQUAL, target=m.CMP_VALUE, value=value)
    return m.TxnRequest(compare=[compare], success=[m.RequestOp(request_put=m.PutRequest(key=KEY, value=value))])


def txn_sample(server: Server, load: h2load.Load, request: object) -> Sample:
    """Make one transaction again and again by h2load. Each raises the revision."""
    before = revision(server)

    def work() -> tuple[float, list[int]]:
        outcome = h2load.run(server.address, TXN, prefixed(request), load)
        return outcome.rate, outcome.latencies

    sample = measured(server, load.requests, work)
    check_puts(server, before, load.requests)
    return sample


def distinct_sample(server: Server, load: h2load.Load, size: int, number: int) -> Sample:
    """Put a new key with a new value each time, by the generator in loader.py."""
    before = revision(server)

    def work() -> tuple[float, list[int]]:
        began = time.perf_counter()
        prefix = b"distinct/%d/" % number
        shape = (load.requests, size, number, load.connections, load.streams)
        replies = loader.put_keys(server.address, prefix, *shape)
        took = time.perf_counter() - began
        if replies != load.requests:
            raise SystemExit(f"{server.kind}: {load.requests - replies} puts got an error")
        return load.requests / took, []

    sample = measured(server, load.requests, work)
    check_puts(server, before, load.requests)
    return sample


def report(title: str, samples: dict[str, list[Sample]]) -> None:
    """Print medians of each server, and the median of the ratios of paired runs, first server to each other one."""
    print(f"\n{title}")
    print(f"  {'':<12} {'req/s':>10} {'p50 ms':>9} {'p99 ms':>9} {'CPU us/req':>11}   all req/s")
    for name, runs in samples.items():
        rate, p50, p99, cpu = (statistics.median(getattr(r, f) for r in runs) for f in ("rate", "p50", "p99", "cpu"))
        every = " ".join(f"{r.rate:.0f}" for r in runs)
        latencies = f"{p50:>9.3f} {p99:>9.3f}" if p50 else f"{'-':>9} {'-':>9}"
        print(f"  {name:<12} {rate:>10.0f} {latencies} {cpu:>11.2f}   {every}")
    first, *others = samples
    for other in others:
        pairs = list(zip(samples[first], samples[other], strict=True))
        line = f"  {other} / {first}: req/s x{statistics.median(b.rate / a.rate for a, b in pairs):.2f}"
        if pairs[0][0].p50:
            line += f", p50 x{statistics.median(b.p50 / a.p50 for a, b in pairs):.2f}"
        print(f"{line}, CPU x{statistics.median(b.cpu / a.cpu for a, b in pairs):.3f}")


class Bench:
    """Servers with data directories under one folder, and the options of the run."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.value = random.Random(options.seed).randbytes(options.value_size)
        self._count = 0

    def make(self, kind: str) -> Server:
        """Return a server that is not started; `kind` is etcd or one of VARIANTS."""
        self._count += 1
        data_dir = self.folder / f"{kind}-{self._count}"
        if kind == "etcd":
            # The default quota of 2 GiB would end a long run.
            return Etcd(data_dir, extra=["--quota-backend-bytes", str(8 << 30)])
        return Node(data_dir, VARIANTS[kind])

    @contextmanager
    def servers(self, *kinds: str) -> Iterator[dict[str, Server]]:
        """Run one server of each kind."""
        with ExitStack() as stack:
            yield {kind: stack.enter_context(self.make(kind)) for kind in kinds}

    def paired(self, kinds: tuple[str, ...], run: Callable[[Server, int], Sample]) -> dict[str, list[Sample]]:
        """Do a warm-up, then `rounds` times one run on each server, in turn."""
        samples: dict[str, list[Sample]] = {kind: [] for kind in kinds}
        with self.servers(*kinds) as servers:
            for server in servers.values():
                put_sample(server, h2load.Load(WARM_UP, 10, 100), self.value)
            for number in range(self.options.rounds):
                for kind, server in servers.items():
                    samples[kind].append(run(server, number))
        return samples

    def put(self) -> None:
        load = h2load.Load(self.options.requests, 10, 100)
        samples = self.paired(("etcd", *VARIANTS), lambda s, _: put_sample(s, load, self.value))
        report(f"Put, one key, 10 connections x 100 streams, {self.options.value_size} bytes, durable", samples)
        print("  h2load repeats one value, which the codec makes small in a batch: see uncompressed, and `distinct`")
        print("  baseline: enable_batch_proposal and group_commit off (one proposal, one sync)")

    def lone(self) -> None:
        load = h2load.Load(max(100, self.options.requests // 25), 1, 1)
        kinds = ("etcd", "metastore", "no busy_poll")
        samples = self.paired(kinds, lambda s, _: put_sample(s, load, self.value))
        report("Put, one client, one at a time", samples)

    def range(self) -> None:
        load = h2load.Load(self.options.requests, 10, 100)
        samples = self.paired(("etcd", "metastore"), lambda s, _: range_sample(s, load, self.value))
        report("Range of one key, linearizable, 10 connections x 100 streams", samples)

    def distinct(self) -> None:
        load = h2load.Load(self.options.requests, 10, 100)
        samples = self.paired(("etcd", "metastore"), lambda s, n: distinct_sample(s, load, self.options.value_size, n))
        report(
            "Put, a new key and value each, 10 connections x 100 streams (the generator takes part of a core)", samples
        )

    def txn(self) -> None:
        """Transactions of 1,000 clients."""
        load = h2load.Load(max(100, self.options.requests // 5), 100, 10)
        for title, request in (("of 8 puts", eight_puts(self.value)), ("compare and swap", swap(self.value))):
            samples = self.paired(("etcd", "metastore"), lambda s, _, r=request: txn_sample(s, load, r))  # type: ignore[misc]
            report(f"Transactions, {title}, 100 connections x 10 streams", samples)

    def million(self) -> None:
        """Load many keys, kill, start again: memory after both, and the time to a first linearizable answer."""
        self.restarts("etcd", "metastore")

    def restarts(self, *kinds: str) -> None:
        """Run `million` for these kinds."""
        keys = self.options.keys
        print(f"\n{keys} keys of {self.options.value_size} bytes: memory after loading, time to restart after kill -9")
        print(f"  {'':<12} {'load s':>8} {'RSS MB':>8} {'restart s':>10} {'RSS MB':>8} {'disk MB':>8}")
        for kind in kinds:
            with self.make(kind) as server:
                began = time.perf_counter()
                replies = loader.put_keys(server.address, b"million/", keys, self.options.value_size, self.options.seed)
                took = time.perf_counter() - began
                if replies != keys or revision(server) != keys + 1:
                    raise SystemExit(f"{kind}: {keys} puts, {replies} replies, revision {revision(server)}")
                loaded = server.running().rss()
                server.kill()
                disk = sum(p.stat().st_blocks * 512 for p in server.data_dir.rglob("*") if p.is_file())
                began = time.perf_counter()
                server.start(timeout=600)
                with server.client(timeout=600) as client:
                    count = client.range(b"million/", b"million0", count_only=True).count
                restart = time.perf_counter() - began
                if count != keys:
                    raise SystemExit(f"{kind}: {count} of {keys} keys after the restart")
                again = server.running().rss()
            numbers = f"{took:>8.1f} {loaded / 1e6:>8.0f} {restart:>10.2f} {again / 1e6:>8.0f} {disk / 1e6:>8.0f}"
            print(f"  {kind:<12} {numbers}")
            shutil.rmtree(server.data_dir)


def check_build() -> str:
    """Return a line about the build. Ends the program if it is a debug build."""
    from metastore._core import build_info

    info = build_info()
    if info["flavour"] != "release":
        raise SystemExit(f"this is a {info['flavour']} build: its figures mean nothing. Build without METASTORE_DEBUG.")
    return ", ".join(f"{key} {value}" for key, value in info.items())


def sync_latency(folder: Path) -> float:
    """Return the median microseconds of an append of 4 KiB and its fdatasync."""
    times = []
    with open(folder / "probe", "wb", buffering=0) as file:
        for _ in range(PROBES):
            began = time.perf_counter()
            file.write(b"p" * 4096)
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - began) * 1e6)
    (folder / "probe").unlink()
    return statistics.median(times)


def print_machine(options: argparse.Namespace, folder: Path) -> None:
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=True)
    etcd = subprocess.run([etcd_binary(), "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[
        0
    ]
    model = cpu[1] if cpu else platform.machine()
    print(f"machine: {os.cpu_count()} x {model}, {memory / 1e9:.1f} GB, Linux {platform.release()}")
    print(f"disk: {disk.stdout.strip()}, append of 4 KiB and fdatasync {sync_latency(folder):.0f} us (median)")
    print(f"load: {os.getloadavg()[0]:.2f} processes before the run")
    print(f"versions: {etcd}, {h2load.version()}, Python {platform.python_version()}")
    print(f"metastore: {check_build()}")
    sizes = f"{options.requests} requests, {options.value_size}-byte values, {options.rounds} rounds"
    print(f"sizes: {sizes}, seed {options.seed}")


WHAT = ("put", "lone", "range", "distinct", "txn", "million")


def main() -> None:
    parser = make_parser(__doc__, WHAT, rounds=3, requests=100_000, value_size=256, seed=1)
    parser.add_argument("--keys", type=int, default=1_000_000, help="keys of `million` (default: %(default)s)")
    options = parser.parse_args()
    check_build()
    with tempfile.TemporaryDirectory(prefix="metastore-bench-", dir=options.dir) as folder:
        bench = Bench(options, Path(folder))
        print_machine(options, Path(folder))
        for what in chosen(options, WHAT):
            getattr(bench, what)()


if __name__ == "__main__":
    main()
