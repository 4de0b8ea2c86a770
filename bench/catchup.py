#!/usr/bin/env python3
"""What a follower that is catching up costs the writers: three nodes at half load, before, during and after.

    python bench/catchup.py
    python bench/catchup.py --backlog 400000 --rounds 5 --seconds 24

In each round a follower is stopped (SIGSTOP) while the leader takes `backlog` puts as fast as it can. The log's
segments are then put out of the page cache, so they must come from the disk. A load of half of what the three nodes
manage runs while the follower is woken up, catches up from the log, and is level again. Rounds alternate, so the
windows with and without catching up are paired: A B A B. The goal: the leader's puts are at most a tenth slower while
it catches up than when all are level.

All of this shares the processors and the disk of one machine, which a follower elsewhere would not. The more it takes,
the longer the leader, the other follower and the load generator wait. So there are two controls, in which all are level
and a process that has nothing to do with the cluster takes what the follower took for catching up. The first takes as
much of a processor ("like it: cpu"). The second also writes as many bytes to the same file system, with as many bytes
in each sync ("cpu, disk"). The cost of these is caused by the machine; the rest is caused by the leader.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import h2load  # noqa: E402
from options import make_parser  # noqa: E402
from support import messages as m  # noqa: E402
from support.client import Failure  # noqa: E402
from support.cluster import Cluster, Member  # noqa: E402

from bench import KEY, PUT, WARM_UP, check_build, percentile, prefixed, print_machine  # noqa: E402

# All of the log is kept on the disk and little in memory. Entries take their real size.
SETTINGS = {
    "raft.max_tail_bytes": '"1MiB"',
    "performance.enable_compression": "false",
    "maintenance.snapshot_count": "2000000000",
    "limits.quota_bytes": '"8GiB"',
}
CONNECTIONS = 10
LOOK_EVERY = 0.05
PATIENCE = 120.0
SETTLE = 0.5
WAL, READ_AHEAD = "metastore_wal_", "metastore_read_ahead_"
NAMES = ("asleep", "catching up", "level", "like it: cpu", "like it: cpu, disk")
# Takes a share of a processor by summing up bytes, as a follower does, and a share of the disk by writing and syncing
# pieces of a file whose room is reserved. It sleeps when it is ahead of both. Arguments: share, bytes a second and a
# sync, file.
BURNER = """
import os, sys, time, zlib
share, rate, piece = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
block, data, size, written = bytes(1 << 18), os.urandom(piece), 64 << 20, 0
if rate:
    fd = os.open(sys.argv[4], os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, size + piece)
began = time.monotonic()
while True:
    if written < rate * (time.monotonic() - began):
        os.pwrite(fd, data, written % size)
        os.fdatasync(fd)
        written += piece
    elif time.process_time() < share * (time.monotonic() - began):
        zlib.crc32(block)
    else:
        time.sleep(0.001)
"""


@dataclass(frozen=True)
class Span:
    """A stretch of time (seconds since 1970). `cpu` says how many processors each process had and `wait` how many it
    waited for, summed over its threads."""

    begin: float
    end: float
    cpu: dict[str, float]
    wait: dict[str, float]
    wal: dict[str, dict[str, float]]  # what each member's log counted meanwhile

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    def sync_ms(self, who: str) -> float:
        """Return the average time of a sync of its log, in ms."""
        return 1000 * self.wal[who]["sync_seconds_total"] / max(1.0, self.wal[who]["syncs_total"])


@dataclass(frozen=True)
class Window:
    """Puts that began in a stretch of time: how many were answered a second, latencies in ms."""

    span: Span
    rate: float
    p50: float
    p99: float


def window(outcome: h2load.Outcome, span: Span) -> Window:
    """Return what was answered in the span, and the latencies of what began then."""
    each = list(zip(outcome.starts, outcome.latencies, strict=True))
    answered = sum(span.begin <= (at + took) / 1e6 < span.end for at, took in each)
    latencies = [took for at, took in each if span.begin <= at / 1e6 < span.end]
    if not latencies:
        raise SystemExit("no put began while the follower caught up: the backlog is too short, see --backlog")
    return Window(span, answered / span.seconds, percentile(latencies, 0.5) / 1000, percentile(latencies, 0.99) / 1000)


def drop_cache(member: Member) -> None:
    """Put the log's segments out of the page cache."""
    for path in member.data_dir.glob("wal/*.wal"):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def metrics(member: Member, prefix: str) -> dict[str, float]:
    """Return the counters of /metrics whose names begin so."""
    with urllib.request.urlopen(f"http://{member.address}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return {line.split()[0][len(prefix) :]: float(line.split()[1]) for line in lines if line.startswith(prefix)}


def schedstat(pid: int) -> tuple[float, float]:
    """Return the seconds that the threads of a process have run, and waited for a processor (`h2load` may be gone)."""
    ran = waited = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            first, second, _ = (task / "schedstat").read_text().split()
            ran, waited = ran + int(first), waited + int(second)
    except FileNotFoundError:
        pass
    return ran / 1e9, waited / 1e9


def busiest_thread(pid: int) -> tuple[float, float]:
    """Return the same for the thread that ran longest; in a node that is the loop's."""
    each = [(task / "schedstat").read_text().split() for task in Path(f"/proc/{pid}/task").iterdir()]
    ran, waited = max((int(first), int(second)) for first, second, _ in each)
    return ran / 1e9, waited / 1e9


def children_named(name: str) -> list[int]:
    """Return the children of this process that run the program `name`."""
    own = str(os.getpid())
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = stat.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if head.partition("(")[2] == name and rest.split()[1] == own:
            pids.append(int(stat.parent.name))
    return pids


@contextmanager
def burner(share: float, rate: float, piece: int, file: Path) -> Iterator[list[int]]:
    """Run a process that takes `share` processors and writes `rate` bytes a second to `file`, with a sync each
    `piece`."""
    process = subprocess.Popen([sys.executable, "-c", BURNER, f"{share:.3f}", f"{rate:.0f}", str(piece), str(file)])
    try:
        yield [process.pid]
    finally:
        process.kill()
        process.wait()
        file.unlink(missing_ok=True)


class Bench:
    """The cluster, its leader and the follower that sleeps."""

    def __init__(self, options: argparse.Namespace, cluster: Cluster, folder: Path) -> None:
        self.options = options
        self.cluster = cluster
        self.folder = folder
        self.leader = cluster.leader()
        self.follower, self.other = cluster.followers()
        self.message = prefixed(m.PutRequest(key=KEY, value=random.Random(1).randbytes(options.value_size)))
        self.half = 0
        self.asking = [member.client(timeout=10) for member in (self.leader, self.follower)]

    def puts(self, load: h2load.Load) -> h2load.Outcome:
        return h2load.run(self.leader.address, PUT, self.message, load)

    def behind(self) -> int:
        """Return how many entries the leader has that the follower has not applied."""
        leads, follows = (client.status().raftAppliedIndex for client in self.asking)
        return int(leads - follows)

    def await_level(self, slack: int) -> None:
        """Return when the follower has all but `slack` entries."""
        end = time.monotonic() + PATIENCE
        while self.behind() > slack:
            if time.monotonic() > end:
                raise SystemExit(f"the follower did not catch up within {PATIENCE} s")
            time.sleep(LOOK_EVERY)

    def wait(self, seconds: float) -> None:
        """Let time pass, and look as often as while waiting for the follower, because looking costs a little, too."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.behind()
            time.sleep(LOOK_EVERY)

    def calibrate(self) -> None:
        self.puts(h2load.Load(WARM_UP, CONNECTIONS, 100))
        rate = self.puts(h2load.Load(self.options.requests, CONNECTIONS, 100)).rate
        self.half = self.options.rate or round(rate / 2)
        print(f"\nall level, as fast as they can: {rate:.0f} puts/s; the load is {self.half} puts/s")

    def watched(self, work: Callable[[], object], others: Iterable[int] = (), asleep: bool = False) -> Span:
        """Do something. Return who had the processors meanwhile."""
        members = {"leader": self.leader, "lagging": self.follower, "other": self.other}
        ids = {name: [member.running().pid] for name, member in members.items()}
        ids |= {"load": children_named("h2load"), "like it": list(others), "bench": [os.getpid()]}

        def look() -> dict[str, tuple[float, float]]:
            stats = {name: [schedstat(pid) for pid in pids] for name, pids in ids.items()}
            stats["its loop"] = [busiest_thread(ids["leader"][0])]
            return {name: (sum(s[0] for s in each), sum(s[1] for s in each)) for name, each in stats.items()}

        # A follower that sleeps answers nothing. It counts from when it was last asked.
        counted = {name: metrics(members[name], WAL) for name in ("leader", "other")}
        before, begin = look(), time.time()
        work()
        end, after = time.time(), look()
        cpu = {name: (after[name][0] - before[name][0]) / (end - begin) for name in after}
        wait = {name: (after[name][1] - before[name][1]) / (end - begin) for name in after}
        counted = {"lagging": self.counted} | counted
        wal = {}
        for name, old in counted.items():
            if name != "lagging" or not asleep:
                new = metrics(members[name], WAL)
                wal[name] = {key: new[key] - old.get(key, 0) for key in new if key.endswith("_total")}
                if name == "lagging":
                    self.counted = new
        return Span(begin, end, cpu, wait, wal)

    def controls(self, during: Span, number: int) -> dict[str, Span]:
        """Measure with all members level: with nothing else, then with a process that takes as much as the follower
        did; or the other way round."""
        seconds = min(max(during.seconds, 1.0), 4.0)
        spans = {}
        for name in NAMES[1:] if number % 2 == 0 else NAMES[:0:-1]:
            if name == "catching up":
                continue
            self.wait(SETTLE)
            self.counted = metrics(self.follower, WAL)
            if name == "level":
                spans[name] = self.watched(lambda: self.wait(seconds))
                continue
            # What it takes for the load, as all members do, is about what the other follower takes.
            share = max(0.05, during.cpu["lagging"] - during.cpu["other"])
            written = during.wal["lagging"]["bytes_total"] - during.wal["other"]["bytes_total"]
            piece = during.wal["lagging"]["bytes_total"] / max(1.0, during.wal["lagging"]["syncs_total"])
            rate = written / during.seconds if "disk" in name else 0
            with burner(share, rate, max(4096, int(piece)), self.folder / "burner") as others:
                self.wait(SETTLE)
                spans[name] = self.watched(lambda: self.wait(seconds), others)
        return spans

    def round(self, number: int) -> dict[str, Window]:
        """Run one load with the follower asleep, catching up, then level, without and with the controls."""
        process = self.follower.running()
        self.counted = metrics(self.follower, WAL)
        process.send_signal(signal.SIGSTOP)
        try:
            self.puts(h2load.Load(self.options.backlog, CONNECTIONS, 100))
            drop_cache(self.leader)
            before = metrics(self.leader, READ_AHEAD)
            with ThreadPoolExecutor(1) as pool:
                load = h2load.Load(self.half * self.options.seconds, CONNECTIONS, 100, self.half // CONNECTIONS)
                running = pool.submit(self.puts, load)
                threading.Event().wait(1)
                spans = {"asleep": self.watched(lambda: time.sleep(1), asleep=True)}
                process.send_signal(signal.SIGCONT)
                spans["catching up"] = during = self.watched(lambda: self.await_level(self.options.slack))
                spans |= self.controls(during, number)
                outcome = running.result()
        finally:
            process.send_signal(signal.SIGCONT)
        if self.cluster.leader() is not self.leader:
            raise SystemExit("the leader changed in mid-round: the machine is too busy for this to say anything")
        if max(span.end for span in spans.values()) > max(outcome.starts) / 1e6:
            raise SystemExit("the load ended before the last window did, see --seconds")
        after = metrics(self.leader, READ_AHEAD)
        text = ", ".join(f"{name} {after[name] - before[name]:.0f}" for name in sorted(after) if "total" in name)
        size = during.wal["lagging"]["bytes_total"] / 1e6
        print(f"  caught up on {size:.0f} MB in {during.seconds:.2f} s ({size / during.seconds:.0f} MB/s); {text}")
        self.await_level(slack=0)
        # Otherwise the history of all rounds together would fill the memory.
        self.asking[0].compact(self.asking[0].revision())
        return {name: window(outcome, span) for name, span in spans.items()}


WHO = ("leader", "its loop", "lagging", "other", "load", "like it", "bench")


def middle(windows: list[Window], value: Callable[[Window], float]) -> float:
    return statistics.median(value(w) for w in windows)


def shares(rounds: list[dict[str, Window]]) -> None:
    """Print who had the processors, and what a sync of the log took."""
    print(f"\n{os.cpu_count()} processors for three nodes, the load and this bench: of them each had + waited for;")
    print("milliseconds that a sync of the leader's and of the other follower's log took")
    print(f"{'':<18} " + " ".join(f"{who:>11}" for who in WHO) + f" {'syncs':>13}")
    for name in NAMES:
        spans = [windows[name].span for windows in rounds]
        cells = []
        for who in WHO:
            had, waited = (statistics.median(getattr(s, what)[who] for s in spans) for what in ("cpu", "wait"))
            cells.append(f"{had:.2f} +{waited:.2f}" if had else "-")
        syncs = " ".join(f"{statistics.median(s.sync_ms(who) for s in spans):.2f}" for who in ("leader", "other"))
        print(f"{name:<18} " + " ".join(f"{cell:>11}" for cell in cells) + f" {syncs:>13}")


def report(rounds: list[dict[str, Window]]) -> None:
    """Print medians of the rounds, and of the ratios within each."""
    print(f"\n{'follower':<18} {'seconds':>8} {'puts/s':>9} {'p50 ms':>8} {'p99 ms':>8}   p50/p99 of each round")
    for name in NAMES:
        each = [windows[name] for windows in rounds]
        figures = [middle(each, lambda w: w.span.seconds), middle(each, lambda w: w.rate)]
        figures += [middle(each, lambda w: w.p50), middle(each, lambda w: w.p99)]
        every = "  ".join(f"{w.p50:.1f}/{w.p99:.0f}" for w in each)
        print(f"{name:<18} {figures[0]:>8.2f} {figures[1]:>9.0f} {figures[2]:>8.2f} {figures[3]:>8.2f}   {every}")
    shares(rounds)
    print()
    for name in [name for name in NAMES if name not in ("asleep", "level")]:
        rate, p50, p99 = (
            statistics.median(getattr(w[name], what) / getattr(w["level"], what) for w in rounds)
            for what in ("rate", "p50", "p99")
        )
        goal = "" if name != "catching up" else f" (goal: at least 0.9, {'met' if rate >= 0.9 else 'missed'})"
        print(f"{name} / level: puts/s x{rate:.3f}{goal}, p50 x{p50:.2f}, p99 x{p99:.2f}")


def main() -> None:
    parser = make_parser(__doc__, rounds=3, value_size=1024)
    parser.add_argument("--requests", type=int, default=150_000, help="to find the full load (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=0, help="puts/s of the load (default: half of the full load)")
    parser.add_argument("--backlog", type=int, default=150_000, help="puts the follower misses (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=16, help="of half load in a round (default: %(default)s)")
    parser.add_argument("--slack", type=int, default=200, help="entries that count as level (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    check_build()
    with tempfile.TemporaryDirectory(prefix="metastore-bench-", dir=options.dir) as folder:
        print_machine(options, Path(folder))
        cluster = Cluster(Path(folder) / "metastore", 3)
        try:
            for member in cluster.members:
                member.settings = dict(SETTINGS)
            bench = Bench(options, cluster.start(), Path(folder))
            bench.calibrate()
            report([bench.round(number) for number in range(options.rounds)])
        except Failure as failure:
            raise SystemExit(f"a call failed: {failure}") from failure
        finally:
            cluster.discard()


if __name__ == "__main__":
    main()
