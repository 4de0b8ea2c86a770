#!/usr/bin/env python3
"""A cluster under a steady load for hours, with snapshots, compactions and restarts: does anything grow?

    python bench/soak.py --hours 1 --rate 25000
    python bench/soak.py --minutes 2 --rate 2000 --turn 5         what CI runs
    python bench/pictures.py build/bench/soak.json --into docs/performance.md

One turn after the other puts at that rate through the leader, compacts the history behind it, and then looks at every
member: memory, open descriptors, files and bytes on the disk, processor time, and the latencies of the turn. Beside the
puts there are leases, some of which end by their time, and watchers that must hear of all of their keys. Every third
turn a follower is restarted while the puts go on, every tenth the leader after them. All members must then have the
same contents. The program fails if a figure of the last third is higher than it was in the second third, by more than
it may be.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import h2load  # noqa: E402
import results  # noqa: E402
import workloads  # noqa: E402
from options import make_parser  # noqa: E402
from support import messages as m  # noqa: E402
from support.client import prefix_end  # noqa: E402
from support.cluster import Cluster, Member  # noqa: E402
from support.leasing import grant, revoke  # noqa: E402
from support.watching import WatchStream  # noqa: E402

from bench import PUT, check_build, percentile, prefixed  # noqa: E402

#: The turns in which members are restarted: a follower during the puts, the leader after them.
FOLLOWER_EVERY, LEADER_EVERY = 3, 10
#: Keys that are written one after the other, and the revisions that a compaction leaves.
KEYS, KEPT = 1000, 20_000
LEAST_TURNS = 6
#: Leases of each turn with a key each, how many of them end by their time, the seconds of these and of the others, and
#: the watchers of all of these keys.
LEASES, ENDING, SHORT, LONG, WATCHERS = 60, 10, 2, 600, 20
LEASED = b"soak/leased/"
#: By how much the median of the last third may be above that of the second third: a factor, and an amount besides.
#: Memory is in MiB.
MAY_GROW = {"memory_mib": (1.0, 12.0), "descriptors": (1.0, 8.0), "files": (1.2, 6.0), "disk_mib": (1.3, 64.0)}
#: A short run reaches its steady state sooner with these. A restart replays what came after the last snapshot, and the
#: memory that this takes at its peak stays with the process.
SETTINGS = {
    "raft.max_tail_bytes": '"4MiB"',
    "wal.read_ahead_cache": '"4MiB"',
    "wal.segment_size": '"16MiB"',
    "maintenance.snapshot_count": "1000",
    "maintenance.snapshot_min_size": '"64KiB"',
}


def look(members: list[Member]) -> dict[str, float]:
    """Return the figures of all members now; of each the largest."""
    found: dict[str, list[float]] = {"memory_mib": [], "descriptors": [], "files": [], "disk_mib": []}
    for member in members:
        process = member.running()
        files = [path.stat() for path in member.data_dir.rglob("*") if path.is_file()]
        found["memory_mib"].append(process.rss() / (1 << 20))
        found["descriptors"].append(float(len(list(Path(f"/proc/{process.pid}/fd").iterdir()))))
        found["files"].append(float(len(files)))
        found["disk_mib"].append(sum(file.st_blocks * 512 for file in files) / (1 << 20))
    return {name: max(values) for name, values in found.items()}


class Leased:
    """Leases on the leader in one turn, each with a key, and watchers of these keys."""

    def __init__(self, leader: Member) -> None:
        self.client = leader.client()
        self.stream = WatchStream(self.client)
        self.watchers = [self.stream.create(LEASED, prefix_end(LEASED)).watch_id for _ in range(WATCHERS)]
        self.ids: list[int] = []
        # Each key comes right after its lease: on a busy machine 60 grants took longer than a short lease lasts.
        for number in range(LEASES):
            self.ids.append(grant(self.client, SHORT if number < ENDING else LONG).ID)
            self.client.put(LEASED + b"%d" % number, lease=self.ids[-1])

    def end(self) -> int:
        """End the leases, and wait until all watchers have heard of all. Return by how much the revision has risen."""
        for ident in self.ids[ENDING:]:
            revoke(self.client, ident)
        for watcher in self.watchers:
            self.stream.wait_events(2 * LEASES, watcher)
        self.stream.close()
        self.client.close()
        return 2 * LEASES


class Soak:
    """The turns of one soak. `series` has what each turn found."""

    def __init__(self, cluster: Cluster, rate: int, turn: float, value: bytes) -> None:
        self.cluster = cluster
        self.rate = rate
        self.turn_seconds = turn
        self.value = value
        self.turns = 0
        self.puts = 0
        self.restarts = 0
        self.compacted = 0
        self._beside = ThreadPoolExecutor(1)
        self.series: dict[str, list[float]] = {}
        self._began = time.monotonic()

    def turn(self) -> None:
        """Put for some seconds, compact, and look."""
        self.turns += 1
        leader = self.cluster.leader()
        with leader.client() as client:
            before = client.revision()
        leased = Leased(leader)
        cpu = leader.running().cpu_ns()
        outcome = self._put(leader)
        used = (leader.running().cpu_ns() - cpu) / 1000 / len(outcome.latencies)
        written = len(outcome.latencies) + leased.end()
        with leader.client() as client:
            revision = client.revision()
            if revision - before != written:
                raise SystemExit(f"{written} changes were acknowledged, {revision - before} are there")
            if revision - KEPT > self.compacted:
                self.compacted = revision - KEPT
                client.compact(self.compacted)
        self.puts += len(outcome.latencies)
        if self.turns % LEADER_EVERY == 0:
            self._restart(leader)
        self.cluster.same_everywhere(60)
        first, last = outcome.window
        figures = {
            "seconds": time.monotonic() - self._began,
            "rate": len(outcome.during(first, last)) / (last - first) * 1e6,
            "p50_ms": percentile(outcome.latencies, 0.5) / 1000,
            "p99_ms": percentile(outcome.latencies, 0.99) / 1000,
            "leader_cpu_us": used,
            **look(self.cluster.members),
        }
        for name, value in figures.items():
            self.series.setdefault(name, []).append(value)

    def _put(self, leader: Member) -> h2load.Outcome:
        key = b"soak/%04d" % (self.turns * 7 % KEYS)
        load = workloads.Shape(0, self.rate, self.turn_seconds, self.value, 0).load(100, 10)
        restarting: Future[None] | None = None
        if self.turns % FOLLOWER_EVERY == 0 and len(self.cluster.members) > 2:
            follower = next(member for member in self.cluster.members if member is not leader)
            restarting = self._beside.submit(self._restart, follower)
        outcome = h2load.run(leader.address, PUT, prefixed(m.PutRequest(key=key, value=self.value)), load)
        if restarting is not None:
            restarting.result()
        return outcome

    def _restart(self, member: Member) -> None:
        self.restarts += 1
        if member.stop() != 0:
            raise SystemExit(f"{member.name} did not stop well")
        member.launch().await_ready()

    def growth(self) -> list[str]:
        """Return a line about each figure that grew by more than it may."""
        found = []
        for name, (factor, amount) in MAY_GROW.items():
            values = self.series[name]
            third = len(values) // 3
            before, after = statistics.median(values[third : 2 * third]), statistics.median(values[2 * third :])
            if after > before * factor + amount:
                found.append(f"{name} grew from {before:.0f} to {after:.0f}")
        return found


def main() -> None:
    parser = make_parser(__doc__, value_size=256, seed=1)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--hours", type=float, default=1.0, help="default: %(default)s")
    length.add_argument("--minutes", type=float, help="instead of --hours")
    parser.add_argument("--rate", type=int, default=25_000, help="puts a second (default: %(default)s)")
    parser.add_argument("--turn", type=float, default=20.0, help="seconds of puts in one turn (default: %(default)s)")
    parser.add_argument("--nodes", type=int, choices=(1, 3, 5), default=3, help="default: %(default)s")
    parser.add_argument("--engine", choices=("memory", "rocksdb"), default="memory", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("build/bench/soak.json"), help="default: %(default)s")
    options = parser.parse_args()
    check_build()
    began, seconds = results.now(), 60 * (options.minutes if options.minutes is not None else 60 * options.hours)
    value = random.Random(options.seed).randbytes(options.value_size)
    with tempfile.TemporaryDirectory(prefix="metastore-bench-", dir=options.dir) as name:
        settings = {**SETTINGS, "storage.engine": f'"{options.engine}"'}
        with Cluster(Path(name) / "cluster", options.nodes, settings=settings) as cluster:
            soak = Soak(cluster, options.rate, options.turn, value)
            until = time.monotonic() + seconds
            while time.monotonic() < until or soak.turns < LEAST_TURNS:
                soak.turn()
                last = ", ".join(f"{key} {values[-1]:.1f}" for key, values in soak.series.items())
                print(f"turn {soak.turns}: {last}", flush=True)
        asked = {key: value for key, value in vars(options).items() if key not in ("dir", "out")}
        results.write(options.out, Path(name), {"began": began, **asked}, series=soak.series)
    print(f"{soak.puts} puts, {soak.restarts} restarts, in {soak.turns} turns: {options.out}")
    if grown := soak.growth():
        raise SystemExit("; ".join(grown))
    print("nothing grew")


if __name__ == "__main__":
    main()
