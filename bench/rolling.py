#!/usr/bin/env python3
"""What a rolling restart costs clients that write meanwhile: errors, and the longest time without an answer.

    python bench/rolling.py
    python bench/rolling.py --kinds metastore --rounds 5 --writers 10

Three members of MetaStore, and three of etcd, are each restarted once a round by SIGTERM, the leader last. Then comes
one more round with a kill -9 of the leader in it. The writers' channels balance over all three endpoints, as etcd's
clients do.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from options import make_parser  # noqa: E402
from support.cluster import Cluster, EtcdMember, Member, MetaStoreMember  # noqa: E402
from support.rolling import Outcome, Writers, restart_all, stop_cleanly  # noqa: E402

from bench import check_build  # noqa: E402

KINDS: dict[str, type[Member]] = {"etcd": EtcdMember, "metastore": MetaStoreMember}


def measure(cluster: Cluster, writers: int, stop: Callable[[Member], None]) -> Outcome:
    """Do one rolling restart."""
    with Writers(cluster, writers) as load:
        restart_all(cluster, load, stop)
    return load.outcome


def killing(cluster: Cluster) -> Callable[[Member], None]:
    """Stop followers by SIGTERM and a leader by kill -9."""

    def stop(member: Member) -> None:
        if cluster.leader() is member:
            member.kill()
        else:
            stop_cleanly(member)

    return stop


def main() -> None:
    """Print the figures of all kinds."""
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=sorted(KINDS))
    parser.add_argument("--writers", type=int, default=6, help="threads that put (default: %(default)s)")
    options = parser.parse_args()
    print(check_build())
    for kind in options.kinds:
        with tempfile.TemporaryDirectory(dir=options.dir) as folder, Cluster(Path(folder), 3, KINDS[kind]) as cluster:
            for what, stop in (("SIGTERM", stop_cleanly), ("kill -9 of the leader", killing(cluster))):
                outcomes = [measure(cluster, options.writers, stop) for _ in range(options.rounds)]
                gaps = " ".join(f"{outcome.longest:.2f}" for outcome in outcomes)
                acked = sum(outcome.acked for outcome in outcomes)
                failed = [failure for outcome in outcomes for _, failure in outcome.errors]
                print(f"{kind}, {what}: {acked} puts, {len(failed)} errors, longest gaps {gaps} s", flush=True)
                for text in sorted({str(failure) for failure in failed}):
                    print(f"    {text}", flush=True)


if __name__ == "__main__":
    main()
