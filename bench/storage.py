#!/usr/bin/env python3
"""Figures of what a node keeps on its disk: snapshots and their transfer, engines, syncs, restarts.

    python bench/storage.py all
    python bench/storage.py snapshot transfer --scale 0.1

`snapshot` and `transfer` use one set of realistic metadata (see metadata.py), of a gigabyte at scale 1. The others run
each kind of node in turn, as bench.py does. `--scale` makes all sets smaller. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import h2load  # noqa: E402
import loader  # noqa: E402
import metadata  # noqa: E402
from options import chosen, make_parser  # noqa: E402
from support import messages as m  # noqa: E402
from support.client import Failure  # noqa: E402
from support.cluster import Cluster, Member  # noqa: E402
from support.processes import Node, Process, Server, StartError, wait_until  # noqa: E402
from support.proxy import Network  # noqa: E402

import bench  # noqa: E402

PUT = bench.PUT
MB = 1e6
NEVER = str((1 << 31) - 1)
CONNECTIONS, STREAMS = 10, 100
# The length of a run of puts in `snapshot`, in seconds.
CALM = 8.0
# Below this scale `transfer` slows the transfer down.
SMALL = 0.02
SLOW_SYNC = {"METASTORE_FAILPOINTS": "wal.before_sync=sleep(1.25)"}
ROCKSDB = {"storage.engine": '"rocksdb"'}
ASYNC = {"wal.sync": '"async"'}
TAKEN = re.compile(r"snapshot index=(\d+) records=(\d+) bytes=(\d+) of=(\d+) after=([\d.]+)s")
SENT = re.compile(r"snapshot sent bytes=(\d+) after=([\d.]+)s")


@dataclass(frozen=True)
class Taken:
    """A snapshot from a node's log: its file and its stream in bytes, when it began and ended (time.time())."""

    records: int
    size: int
    raw: int
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """The seconds from the view to the verified file."""
        return self.ended - self.began


def await_snapshot(process: Process, nth: int = 1, timeout: float = 600.0) -> Taken:
    """Wait for the nth snapshot of a process. Raises SystemExit if there is none in time."""

    def there() -> bool:
        return len(TAKEN.findall(process.log)) >= nth

    try:
        wait_until(there, timeout, f"snapshot {nth}")
    except AssertionError as error:
        raise SystemExit(f"{error}\n{process.log[-2000:]}") from None
    ended = time.time()
    _, records, size, raw, took = TAKEN.findall(process.log)[nth - 1]
    return Taken(int(records), int(size), int(raw), ended - float(took), ended)


def forget_peak(process: Process) -> None:
    """Let the peak of memory count from now on (proc(5), clear_refs)."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def cpu_seconds(process: Process) -> float:
    """Return the CPU time of all threads, also of those that have ended."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def applied(server: Server) -> int:
    with server.client(timeout=60) as client:
        return int(client.status().raftAppliedIndex)


def spread(values: list[float]) -> str:
    """Return the median and, in brackets, all values."""
    return f"{statistics.median(values):.2f} ({' '.join(f'{value:.2f}' for value in values)})"


class Storage:
    """The options of the run, a folder on the disk to measure, and the loaded member that two measurements share."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.network = Network()
        self.cluster: Cluster | None = None
        self.bench = bench.Bench(options, folder)
        self._pairs: Iterator[tuple[bytes, bytes]] | None = None
        self._experiments = 0
        self._last = 0  # the last entry that the member had applied when it was ended

    def close(self) -> None:
        """End all processes and remove their data."""
        if self.cluster is not None:
            self.cluster.discard()
        self.network.close()

    # ---- the data

    def loaded(self) -> Member:
        """Return a stopped member whose log holds all of the data, and which has taken no snapshot."""
        if self.cluster is not None:
            return self.cluster.members[0]
        wanted = int(self.options.size * self.options.scale)
        self._pairs = metadata.records(self.options.seed, 10 * wanted, metadata.read_packages(self.options.packages))
        self.cluster = Cluster(self.folder / "data", 1, via=self.network.via)
        member = self.cluster.members[0]
        self._settings(member, count=NEVER)
        with member:
            began = time.perf_counter()
            count, nbytes = self._feed(member, wanted)
            took = time.perf_counter() - began
            self._last = applied(member)
            print(f"\ndata: {count} records, {nbytes / MB:.0f} MB of keys and values, put in {took:.0f} s")
        return member

    def _end(self, member: Member) -> None:
        self._last = applied(member)
        member.kill()

    def _feed(self, member: Member, wanted: int) -> tuple[int, int]:
        """Put further records of `wanted` bytes. Return how many, and their bytes."""
        assert self._pairs is not None
        pairs, total = self._pairs, [0]

        def some() -> Iterator[tuple[bytes, bytes]]:
            for key, value in pairs:
                total[0] += len(key) + len(value)
                yield key, value
                if total[0] >= wanted:
                    return

        before = bench.revision(member)
        count, replies = loader.put_pairs(member.address, some(), CONNECTIONS, STREAMS)
        if replies != count:
            raise SystemExit(f"{count - replies} of {count} puts got an error")
        bench.check_puts(member, before, count)
        return count, total[0]

    def _settings(self, member: Member, count: str, **more: str) -> None:
        member.settings = {
            "maintenance.snapshot_count": count,
            "maintenance.snapshot_compression_codec": f'"{self.options.codec}"',
            **more,
        }

    # ---- snapshot

    def snapshot(self) -> None:
        """Take one snapshot in peace, and some while clients put at a steady rate, with runs before and after them."""
        member = self.loaded()
        calm_memory = self._in_peace(member)
        rows = [self._under_load(member) for _ in range(self.options.rounds)]
        rate = self.options.rate
        print(f"\nSnapshots while {rate} puts a second come in, {CONNECTIONS} connections, {len(rows)} rounds")
        print(f"  {'':<10} {'p50 ms':>9} {'p99 ms':>9} {'p99.9 ms':>9} {'worst ms':>9}   all p99.9")
        for index, name in enumerate(("before", "meanwhile", "after")):
            sets = [row[0][index] for row in rows]
            shares = [[bench.percentile(v, s) / 1000 for s in (0.5, 0.99, 0.999, 1.0)] for v in sets]
            medians = " ".join(f"{statistics.median(column):>9.2f}" for column in zip(*shares, strict=True))
            print(f"  {name:<10} {medians}   {' '.join(f'{row[2]:.2f}' for row in shares)}")
        above = [p999(sets[1]) - max(p999(sets[0]), p999(sets[2])) for sets, _, _ in rows]
        print(f"  p99.9 meanwhile, ms above the greater of the other two: {spread(above)} (goal: less than 10)")
        print(f"  seconds: {spread([taken.seconds for _, taken, _ in rows])}")
        print(f"  peak memory above before, MB, the puts' own included: {spread([mem for *_, mem in rows])}")
        print(f"  in peace {calm_memory:.1f} MB (goal: 3 chunks of 4 MiB, 12.6 MB)")

    def _experiment(self, member: Member, entries: int) -> tuple[int, int]:
        """Start the member so that it takes a snapshot when `entries` more are applied. Return (that index, the last
        one now)."""
        for path in member.data_dir.glob("snap/*"):
            path.unlink()
        index = self._last + entries
        self._settings(member, count=str(index))
        began = time.perf_counter()
        member.start(timeout=600)
        now = applied(member)
        print(f"  started from the log alone in {time.perf_counter() - began:.1f} s, {index - now} entries to go")
        return index, now

    def _pump(self, member: Member, index: int) -> None:
        """Put one key at a time, an entry each, until the applied index is just below `index`."""
        while (left := index - 3 - applied(member)) > 0:
            h2load.run(member.address, PUT, self._message(), h2load.Load(left, 1, 1))

    def _message(self) -> bytes:
        return bench.prefixed(m.PutRequest(key=bench.KEY, value=self.bench.value))

    def _in_peace(self, member: Member) -> float:
        print("\nA snapshot while nothing else happens")
        taken, before, above, cpu = self._take_one(member)
        raw, size = taken.raw / MB, taken.size / MB
        less = 1 - size / raw
        print(f"  {taken.records} records, {raw:.0f} MB raw, file {size:.0f} MB: {less:.1%} less (goal: 70 %)")
        print(f"  {taken.seconds:.2f} s with reading it back ({raw / taken.seconds:.0f} MB/s), CPU {cpu:.2f} s")
        print(f"  memory {before / MB:.0f} MB, peak {above:.1f} MB above it (goal: 12.6)")
        self._end(member)
        return above

    def _take_one(self, member: Member) -> tuple[Taken, int, float, float]:
        """Start the member and let it take a snapshot of everything. Return the snapshot, the memory before in bytes,
        the peak above it in MB, and CPU seconds."""
        index, _ = self._experiment(member, 100)
        process = member.running()
        self._pump(member, index)
        forget_peak(process)
        before, cpu = process.rss(), cpu_seconds(process)
        with member.client() as client:
            while applied(member) < index + 1:
                client.put(b"bench/last")
        taken = await_snapshot(process)
        return taken, before, (process.peak_rss() - before) / MB, cpu_seconds(process) - cpu

    def _under_load(self, member: Member) -> tuple[list[list[int]], Taken, float]:
        """Return latencies (us) before, during and after a snapshot, the snapshot, and the peak memory above that
        before, in MB."""
        rate, seconds = self.options.rate, CALM * max(0.1, min(1.0, self.options.scale))
        count = int(rate * seconds)
        load = h2load.Load(count, CONNECTIONS, STREAMS, max(1, rate // CONNECTIONS))
        self._experiments += 1
        index, _ = self._experiment(member, count + 100)
        process = member.running()
        calm = h2load.run(member.address, PUT, self._message(), load).latencies
        self._pump(member, index)
        forget_peak(process)
        before = process.rss()
        during, after, taken = self._until_taken(member, load)
        above = (process.peak_rss() - before) / MB
        after += h2load.run(member.address, PUT, self._message(), load).latencies
        self._end(member)
        return [calm, during, after], taken, above

    def _until_taken(self, member: Member, load: h2load.Load) -> tuple[list[int], list[int], Taken]:
        """Put until a snapshot is complete. Return the latencies during it, those after it, and the snapshot."""
        found: list[Taken] = []
        waiting = threading.Thread(target=lambda: found.append(await_snapshot(member.running())))
        waiting.start()
        runs = []
        while not found:
            runs.append(h2load.run(member.address, PUT, self._message(), load))
            if not waiting.is_alive() and not found:
                raise SystemExit("no snapshot was taken")
        waiting.join()
        taken = found[0]
        during, after = [], []
        for outcome in runs:
            for start, latency in zip(outcome.starts, outcome.latencies, strict=True):
                if start <= taken.ended * 1e6:
                    during.append(latency)
                else:
                    after.append(latency)
        return during, after, taken

    # ---- transfer

    def transfer(self) -> None:
        """Let a newcomer, a learner, get all of it: undisturbed, and with the link cut in the middle."""
        member = self.loaded()
        assert self.cluster is not None
        self._take_one(member)
        self._end(member)
        # The second snapshot lets the log begin at the first; only then a newcomer needs one. A small file is sent
        # slowly, in small chunks, because otherwise there would be nothing to cut.
        small = {"maintenance.snapshot_chunk_size": '"16KiB"', "maintenance.snapshot_send_rate": '"1MiB"'}
        self._settings(member, count="1", **(small if self.options.scale < SMALL else {}))
        member.start(timeout=600)
        process = member.running()
        while not TAKEN.search(process.log):
            self._feed(member, int(self.options.size * self.options.scale / 50))
        taken = await_snapshot(process)
        print(f"\nTransfer of a snapshot of {taken.size / MB:.0f} MB ({taken.raw / MB:.0f} MB raw) to a new learner")
        rows: dict[str, list[float]] = {"undisturbed": [], "cut in the middle": []}
        for _ in range(self.options.rounds):
            for name, times in rows.items():
                times.append(self._to_newcomer(member, taken.size, name != "undisturbed"))
        for name, times in rows.items():
            print(f"  {name}: {spread(times)} s until it serves with everything")
        self._end(member)

    def _to_newcomer(self, member: Member, size: int, cut: bool) -> float:
        """Return the seconds from the start of a new member's process until it has applied what the leader has."""
        assert self.cluster is not None
        newcomer = self.cluster.new_member()
        newcomer.settings = dict(member.settings)
        newcomer.existing = True
        newcomer.initial = {known.name: known.advertised for known in (member, newcomer)}
        with member.client() as client:
            url = f"http://{newcomer.advertised}"
            ident = client.call(m.MemberAddRequest(peerURLs=[url], isLearner=True)).member.ID
            own = client.status().header.member_id
        leader = member.running()
        forget_peak(leader)
        before, sent = leader.rss(), len(SENT.findall(leader.log))
        began, cut_at = time.perf_counter(), 0
        newcomer.launch()
        process = newcomer.running()
        if cut:
            cut_at = self._cut(newcomer, size, (own, ident))
            self.network.heal()
        wait_until(lambda: len(SENT.findall(leader.log)) > sent, 600, "a transfer that is complete")
        came, sending = time.perf_counter() - began, leader.peak_rss() - before
        newcomer.await_ready(600)
        target = applied(member)
        wait_until(lambda: applied(newcomer) >= target, 600, "the newcomer has everything")
        took = time.perf_counter() - began
        memory = (sending, leader.peak_rss() - before, process.peak_rss() - process.rss())
        self._tell(leader, process, memory, came, took, cut_at)
        with member.client() as client:
            client.call(m.MemberRemoveRequest(ID=ident))
        newcomer.discard()
        self.cluster.members.remove(newcomer)
        return took

    def _cut(self, newcomer: Member, size: int, link: tuple[int, int]) -> int:
        """Break the link when half of the file is there. Return after a second, with the bytes that were there."""

        def received() -> int:
            return sum(path.stat().st_size for path in newcomer.data_dir.glob("snap/*.part"))

        wait_until(lambda: received() >= size / 2 or list(newcomer.data_dir.glob("snap/*.snap")), 600, "half of it")
        self.network.sever([link, link[::-1]])
        have = received()
        threading.Event().wait(1.0)
        return have

    def _tell(
        self, leader: Process, process: Process, memory: tuple[int, int, int], came: float, took: float, cut_at: int
    ) -> None:
        sent, alone = SENT.findall(leader.log)[-1]
        line = f"  file there after {came:.2f} s, served after {took:.2f} s"
        if cut_at:
            on = re.findall(r"goes on at chunk (\d+)", process.log)
            where = on[-1] if on else "0: BEGAN ANEW"
            line += f"; cut at {cut_at / MB:.0f} MB for 1 s, went on at chunk {where}, then "
        else:
            line += "; "
        line += f"{int(sent) / MB:.0f} MB sent in {float(alone):.2f} s"
        # After the file comes the log behind it, through `wal.read_ahead_cache`, 16 MiB of its own.
        file, log, own = (size / MB for size in memory)
        print(
            f"{line}; peak memory: leader {file:+.1f} MB until the file is there, {log:+.1f} MB with the log that "
            f"follows (read_ahead_cache), newcomer {own:+.1f} MB above its state"
        )

    # ---- engines, syncs, restarts

    def engines(self) -> None:
        """Make the same puts on both engines and on etcd."""
        need_engine("rocksdb")
        bench.VARIANTS["rocksdb"] = ROCKSDB
        kinds = ("metastore", "rocksdb", "etcd")
        load = h2load.Load(self.options.requests, CONNECTIONS, STREAMS)
        samples = self.bench.paired(kinds, lambda s, _: bench.put_sample(s, load, self.bench.value))
        shape = f"{CONNECTIONS} connections x {STREAMS} streams, {self.options.value_size} bytes, durable"
        bench.report(f"Put, one key, {shape}", samples)
        size = self.options.value_size
        samples = self.bench.paired(kinds, lambda s, n: bench.distinct_sample(s, load, size, n))
        bench.report(f"Put, a new key and value each, {shape} (the generator takes part of a core)", samples)

    def sync(self) -> None:
        """Compare writes synced before and after they are acknowledged, and one proposal a sync, on the real disk and a
        slow one."""
        variants = {"always": {}, "async": ASYNC, "baseline": bench.VARIANTS["baseline"]}
        load = h2load.Load(self.options.requests, CONNECTIONS, STREAMS)
        for title, env in (("the real disk", {}), ("every sync 1.25 ms slower", SLOW_SYNC)):
            for shape, some in (("1,000 clients", load), ("a lone client", lone(load))):
                # The baseline needs minutes for what the others do in a second.
                shapes = dict.fromkeys(variants, some) | {
                    "baseline": h2load.Load(max(100, load.requests // 50), some.connections, some.streams)
                }
                samples = self._in_turn(
                    variants, env, lambda name, s, shapes=shapes: bench.put_sample(s, shapes[name], self.bench.value)
                )
                bench.report(f"Put, one key, {shape}, {title}", samples)
        print("  baseline: enable_batch_proposal and group_commit off; async acknowledges before it syncs")

    def _in_turn(
        self, variants: dict[str, dict[str, str]], env: dict[str, str], run: Callable[[str, Server], bench.Sample]
    ) -> dict[str, list[bench.Sample]]:
        samples: dict[str, list[bench.Sample]] = {name: [] for name in variants}
        self._experiments += 1
        folder = self.folder / f"sync-{self._experiments}"
        servers = {name: Node(folder / name, settings, env) for name, settings in variants.items()}
        try:
            for name, server in servers.items():
                try:
                    server.start()
                except StartError as error:
                    raise SystemExit(f"{name}: a node with {variants[name]} does not start: {error}") from None
                bench.put_sample(server, h2load.Load(bench.WARM_UP // 10, CONNECTIONS, 10), self.bench.value)
            for _ in range(self.options.rounds):
                for name, server in servers.items():
                    samples[name].append(run(name, server))
        finally:
            for server in servers.values():
                server.discard()
        return samples

    def restart(self) -> None:
        """Load many keys, kill -9, start: on both engines and on etcd."""
        need_engine("rocksdb")
        bench.VARIANTS["rocksdb"] = ROCKSDB
        self.bench.restarts("metastore", "rocksdb", "etcd")


def lone(load: h2load.Load) -> h2load.Load:
    """Return a load with a fiftieth of the requests, one at a time."""
    return h2load.Load(max(100, load.requests // 50), 1, 1)


def p999(latencies: list[int]) -> float:
    """Return the 99.9th percentile in ms."""
    return bench.percentile(latencies, 0.999) / 1000


def need_engine(name: str) -> None:
    """Raise SystemExit if there is no such engine, or if its library is missing."""
    found = {point.name: point for point in entry_points(group="metastore.storage")}
    if name not in found:
        raise SystemExit(f"no engine {name!r} is installed: {', '.join(sorted(found))} are")
    try:
        found[name].load()
    except ImportError as error:
        raise SystemExit(f"the engine {name!r} cannot be loaded: {error}") from error


WHAT = ("snapshot", "transfer", "engines", "sync", "restart")


def main() -> None:
    parser = make_parser(__doc__, WHAT, rounds=3, requests=100_000, value_size=256, seed=1)
    parser.add_argument("--scale", type=float, default=1.0, help="of data, requests and keys (default: %(default)s)")
    parser.add_argument("--size", type=float, default=1e9, help="bytes of metadata at scale 1 (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=5000, help="puts a second during snapshots (default: %(default)s)")
    parser.add_argument("--codec", default="zstd", help="of snapshots (default: %(default)s)")
    parser.add_argument("--packages", type=Path, default=metadata.STATUS, help="a Debian status file (%(default)s)")
    parser.add_argument("--keys", type=int, default=1_000_000, help="keys of `restart` (default: %(default)s)")
    options = parser.parse_args()
    options.requests = max(200, int(options.requests * options.scale))
    options.keys = max(200, int(options.keys * options.scale))
    bench.check_build()
    with tempfile.TemporaryDirectory(prefix="metastore-bench-", dir=options.dir) as folder:
        bench.print_machine(options, Path(folder))
        print(f"scale {options.scale:g}: {options.size * options.scale / MB:.0f} MB of metadata, {options.keys} keys")
        storage = Storage(options, Path(folder))
        try:
            for what in chosen(options, WHAT):
                getattr(storage, what)()
        except Failure as failure:
            raise SystemExit(f"a call failed: {failure}") from failure
        finally:
            storage.close()


if __name__ == "__main__":
    main()
