#!/usr/bin/env python3
"""Where the processor time of a put, a get and a transaction goes, stage by stage, for one node and for three.

    python bench/breakdown.py put range txn
    python bench/breakdown.py put --nodes 3 --requests 200000

perf (Debian: linux-perf) samples all threads of a node 4,000 times a second while h2load keeps it busy with 1,000
calls. A sample in the kernel counts for the system call that it is in, one in a library or a compiled module for the
stage that this belongs to. The stages add up to the processor time that the kernel charged. libnghttp2 has no symbols
for its inner functions, so requests and replies stand in one stage.
"""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import h2load  # noqa: E402
from options import chosen, make_parser  # noqa: E402
from support import messages as m  # noqa: E402
from support.cluster import Cluster, Member  # noqa: E402

from bench import KEY, PUT, RANGE, TXN, check_build, eight_puts, prefixed, print_machine  # noqa: E402

FREQUENCY = 4000
#: The stage of a sample in the kernel, by the system call or the kind of interrupt that its stack names.
KERNEL = (
    ("socket", r"sys_(sendto|recvfrom|sendmsg|recvmsg|accept4|shutdown|close)\b|net_rx|napi"),
    ("waiting and waking", r"sys_(epoll|futex|poll|eventfd|nanosleep|clock_nanosleep|sched_yield)|schedule"),
    (
        "disk",
        r"sys_(fdatasync|fsync|pwrite|pwritev|write|writev|fallocate|ftruncate|openat|unlink|rename)|ext4|jbd2|blk",
    ),
    ("new memory", r"page_fault|sys_(mmap|munmap|brk|madvise|mremap)"),
)
#: The stage of a sample outside of the kernel, by the file that its instruction is in.
LIBRARIES = (
    ("HTTP/2 and replies", r"nghttp2|^(h2|h2_\w+|grpc|waiter|kv_answers)\."),
    ("decode and admission", r"^(kv_\w+|op|varint|build)\."),
    ("batch and compression", r"^(batch|codec)\.|snappy|zstd"),
    ("driver", r"^driver_\w+\."),
    ("Raft", r"^(raft|raft_\w+|entry)\."),
    ("WAL", r"^(wal_\w+|crc|idle_poll|brief_wait)\."),
    ("apply", r"^((mvcc|ordered_map|engine|work)\w*|record|slabs|recent_keys|file_reads|stretches|gaps)\.|rocksdict"),
    ("snapshots", r"^snap_\w+\."),
    ("watch and leases", r"^(watch|watch_\w+|leases|lessor|lease_\w+)\."),
    ("the end of a turn", r"^((loop|replica|member)_turn|quiet)\."),
    ("peers", r"^peer_\w+\."),
    ("interpreter", r"python"),
    ("allocation and copies (libc)", r"^libc\.|jemalloc"),
)
OTHER = "other"


def stage_of(stack: list[tuple[str, str]]) -> str:
    """Return the stage of a sample. `stack` has (symbol, file) pairs, the innermost first."""
    where = stack[0][1]
    if where.startswith("[") or where == "([kernel.kallsyms])":
        text = " ".join(symbol for symbol, file in stack if file.startswith("["))
        return next((stage for stage, pattern in KERNEL if re.search(pattern, text)), "kernel, other")
    return next((stage for stage, pattern in LIBRARIES if re.search(pattern, where)), OTHER)


def samples(text: str) -> Iterator[list[tuple[str, str]]]:
    """Yield the stack of each sample of what `perf script` prints."""
    for block in text.split("\n\n"):
        stack = []
        for line in block.splitlines():
            if found := re.match(r"\s+[0-9a-f]+ (.+?)(?:\+0x[0-9a-f]+)? \((.*)\)$", line):
                stack.append((found[1], Path(found[2]).name if found[2].startswith("/") else found[2]))
        if stack:
            yield stack


def profile(member: Member, folder: Path, load: h2load.Load, path: str, request: object, others: list[Member]) -> None:
    """Sample `member` while h2load does its work on `others[0]`, and print the table."""
    data = folder / "perf.data"
    process = member.running()
    command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(FREQUENCY), "--call-graph", "fp"]
    with subprocess.Popen(
        [*command, "-p", str(process.pid), "-o", str(data)], stderr=subprocess.PIPE, text=True
    ) as perf:
        before = process.cpu_ns()
        h2load.run(others[0].address, path, prefixed(request), load)
        cpu = (process.cpu_ns() - before) / 1000 / load.requests
        perf.send_signal(signal.SIGINT)
        _, trouble = perf.communicate(timeout=60)
    shown = subprocess.run(
        ["perf", "script", "-i", str(data), "-F", "ip,sym,dso"], capture_output=True, text=True, check=False
    )
    data.unlink(missing_ok=True)
    counts = Counter(stage_of(stack) for stack in samples(shown.stdout))
    if not counts:
        raise SystemExit(f"perf gave no samples (is kernel.perf_event_paranoid above 1?): {trouble}{shown.stderr}")
    total = counts.total()
    for stage, count in counts.most_common():
        print(f"  {stage:<30} {cpu * count / total:>8.2f} us {100 * count / total:>5.1f} %")
    print(f"  {'all':<30} {cpu:>8.2f} us   ({total} samples)")


WHAT = ("put", "range", "txn")


def main() -> None:
    parser = make_parser(__doc__, WHAT, rounds=1, requests=200_000, value_size=256, seed=1)
    parser.add_argument("--nodes", type=int, nargs="+", choices=(1, 3), default=[1, 3], help="default: both")
    parser.add_argument("--engine", choices=("memory", "rocksdb"), default="memory", help="default: %(default)s")
    options = parser.parse_args()
    check_build()
    try:
        subprocess.run(["perf", "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"perf does not work here (Debian: linux-perf): {error}") from error
    value = random.Random(options.seed).randbytes(options.value_size)
    requests = {
        "put": (PUT, m.PutRequest(key=KEY, value=value), options.requests),
        "range": (RANGE, m.RangeRequest(key=KEY), options.requests),
        "txn": (TXN, eight_puts(value), options.requests // 4),
    }
    with tempfile.TemporaryDirectory(prefix="metastore-bench-", dir=options.dir) as name:
        folder = Path(name)
        print_machine(options, folder)
        for nodes in options.nodes:
            with Cluster(folder / str(nodes), nodes, settings={"storage.engine": f'"{options.engine}"'}) as cluster:
                leader = cluster.leader() if nodes > 1 else cluster.members[0]
                looked = {"one node": leader} if nodes == 1 else {"leader": leader, "follower": cluster.followers()[0]}
                h2load.run(leader.address, *_load(requests["put"], 2000))
                for what in chosen(options, WHAT):
                    path, request, count = requests[what]
                    for role, member in list(looked.items()) * options.rounds:
                        print(f"\n{what}, {role}{' of 3' if nodes > 1 else ''}: processor time for each")
                        profile(member, folder, h2load.Load(count, 100, 10), path, request, [leader])


def _load(request: tuple[str, object, int], count: int) -> tuple[str, bytes, h2load.Load]:
    return request[0], prefixed(request[1]), h2load.Load(count, 10, 100)


if __name__ == "__main__":
    main()
