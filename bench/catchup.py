#!/usr/bin/env python3
"""What a follower that is catching up costs the writers: three nodes at half load, before, while and after.

    python bench/catchup.py
    python bench/catchup.py --backlog 400000 --rounds 5

In each round a follower is stopped (SIGSTOP) while the leader takes `backlog` puts as fast as it can. The log's
segments are then put out of the page cache, so that they must come from the disk, and a load of half of what the three
nodes manage runs while the follower is woken up, catches up from the log, and is level again. The goal: the leader's
puts are at most a tenth slower while it catches up than when all are level.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import h2load  # noqa: E402
from support import messages as m  # noqa: E402
from support.client import Failure  # noqa: E402
from support.cluster import Cluster, Member  # noqa: E402

from bench import KEY, PUT, WARM_UP, check_build, percentile, prefixed, print_machine  # noqa: E402

# Of the log all is kept on the disk and little in memory; what is written takes its real size.
SETTINGS = {
    "raft.max_tail_bytes": '"1MiB"',
    "performance.enable_compression": "false",
    "maintenance.snapshot_count": "2000000000",
}
CONNECTIONS = 10
LOOK_EVERY = 0.05
PATIENCE = 120.0


@dataclass(frozen=True)
class Window:
    """Puts that began in a stretch of time: how many were offered and answered a second, latencies in ms."""

    seconds: float
    rate: float
    p50: float
    p99: float


def window(outcome: h2load.Outcome, begin: float, end: float) -> Window:
    """What was answered from `begin` to `end` (seconds since 1970), and the latencies of what began then."""
    each = list(zip(outcome.starts, outcome.latencies, strict=True))
    answered = sum(begin <= (at + took) / 1e6 < end for at, took in each)
    latencies = [took for at, took in each if begin <= at / 1e6 < end]
    if not latencies:
        raise SystemExit("no put began while the follower caught up: the backlog is too short, see --backlog")
    seconds = end - begin
    return Window(seconds, answered / seconds, percentile(latencies, 0.5) / 1000, percentile(latencies, 0.99) / 1000)


def drop_cache(member: Member) -> None:
    """Put the log's segments out of the page cache."""
    for path in member.data_dir.glob("wal/*.wal"):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def read_ahead(member: Member) -> dict[str, float]:
    """The counters of /metrics."""
    with urllib.request.urlopen(f"http://{member.address}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    name = "metastore_read_ahead_"
    return {line.split()[0][len(name) :]: float(line.split()[1]) for line in lines if line.startswith(name)}


class Bench:
    """The cluster, its leader and the follower that sleeps."""

    def __init__(self, options: argparse.Namespace, cluster: Cluster) -> None:
        self.options = options
        self.cluster = cluster
        self.leader, self.follower = cluster.leader(), cluster.followers()[0]
        self.message = prefixed(m.PutRequest(key=KEY, value=random.Random(1).randbytes(options.value_size)))
        self.half = 0

    def puts(self, load: h2load.Load) -> h2load.Outcome:
        return h2load.run(self.leader.address, PUT, self.message, load)

    def level(self, slack: int) -> bool:
        return self.follower.status().raftAppliedIndex + slack >= self.leader.status().raftAppliedIndex

    def await_level(self, slack: int) -> float:
        """When the follower had all but `slack` entries (seconds since 1970)."""
        end = time.monotonic() + PATIENCE
        while not self.level(slack):
            if time.monotonic() > end:
                raise SystemExit(f"the follower did not catch up within {PATIENCE} s")
            time.sleep(LOOK_EVERY)
        return time.time()

    def calibrate(self) -> None:
        self.puts(h2load.Load(WARM_UP, CONNECTIONS, 100))
        rate = self.puts(h2load.Load(self.options.requests, CONNECTIONS, 100)).rate
        self.half = round(rate / 2)
        print(f"\nall level, as fast as they can: {rate:.0f} puts/s; half load is {self.half} puts/s")

    def round(self) -> tuple[Window, Window, Window]:
        """Asleep, catching up, level."""
        process = self.follower.running()
        process.send_signal(signal.SIGSTOP)
        try:
            self.puts(h2load.Load(self.options.backlog, CONNECTIONS, 100))
            drop_cache(self.leader)
            before = read_ahead(self.leader)
            with ThreadPoolExecutor(1) as pool:
                began = time.time()
                seconds = self.options.seconds
                load = h2load.Load(self.half * seconds, CONNECTIONS, 100, self.half // CONNECTIONS)
                running = pool.submit(self.puts, load)
                threading.Event().wait(seconds / 5)
                woken = time.time()
                process.send_signal(signal.SIGCONT)
                caught = self.await_level(slack=self.options.slack)
                outcome = running.result()
        finally:
            process.send_signal(signal.SIGCONT)
        last = max(outcome.starts) / 1e6
        if caught > last - 1:
            raise SystemExit("the follower was not level before the load ended, see --seconds")
        after = read_ahead(self.leader)
        told = ", ".join(f"{name} {after[name] - before[name]:.0f}" for name in sorted(after) if "total" in name)
        print(f"  {caught - woken:.2f} s to catch up; read ahead: {told}")
        self.await_level(slack=0)
        return window(outcome, began + 0.5, woken), window(outcome, woken, caught), window(outcome, caught, last)


def report(rounds: list[tuple[Window, Window, Window]]) -> None:
    """Medians of the rounds, and of the ratios within each."""
    print(f"\n{'follower':<14} {'seconds':>8} {'puts/s':>9} {'p50 ms':>8} {'p99 ms':>8}   all puts/s")
    for name, windows in zip(("asleep", "catching up", "level"), zip(*rounds, strict=True), strict=True):
        figures = [statistics.median(getattr(w, field) for w in windows) for field in ("seconds", "rate", "p50", "p99")]
        every = " ".join(f"{w.rate:.0f}" for w in windows)
        print(f"{name:<14} {figures[0]:>8.2f} {figures[1]:>9.0f} {figures[2]:>8.2f} {figures[3]:>8.2f}   {every}")
    ratio = statistics.median(during.rate / after.rate for _, during, after in rounds)
    p50 = statistics.median(during.p50 / after.p50 for _, during, after in rounds)
    verdict = "met" if ratio >= 0.9 else "missed"
    print(f"catching up / level: puts/s x{ratio:.3f} (goal: at least 0.9, {verdict}), p50 x{p50:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, default=50_000, help="to find the full load (default: %(default)s)")
    parser.add_argument("--backlog", type=int, default=150_000, help="puts the follower misses (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=12, help="of half load in a round (default: %(default)s)")
    parser.add_argument("--slack", type=int, default=200, help="entries that count as level (default: %(default)s)")
    parser.add_argument("--value-size", type=int, default=1024, help="bytes of a value (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="on the disk to measure (default: here)")
    options = parser.parse_args()
    check_build()
    with tempfile.TemporaryDirectory(prefix="metastore-bench-", dir=options.dir) as folder:
        print_machine(options, Path(folder))
        cluster = Cluster(Path(folder) / "metastore", 3)
        try:
            for member in cluster.members:
                member.settings = dict(SETTINGS)
            bench = Bench(options, cluster.start())
            bench.calibrate()
            report([bench.round() for _ in range(options.rounds)])
        except Failure as failure:
            raise SystemExit(f"a call failed: {failure}") from failure
        finally:
            cluster.discard()


if __name__ == "__main__":
    main()
