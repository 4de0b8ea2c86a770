#!/usr/bin/env python3
"""What linearizable ranges and puts take where members are far from each other, in round trips between them.

    python bench/distance.py                               three nodes 20 ms apart there and back, 100 clients
    python bench/distance.py --tree ../before              also nodes of another checkout, which is built
    python bench/distance.py --etcd --round-trip 40

All that members send each other goes through a proxy, which passes each byte on half a round trip later. Each client
asks again as soon as it has its answer (h2load, a connection a client). The clusters take turns (A B A B ...).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import selectors
import statistics
import sys
import tempfile
import threading
from collections import deque
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import h2load  # noqa: E402
from options import make_parser  # noqa: E402
from rates import other  # noqa: E402
from support import messages as m  # noqa: E402
from support.cluster import Cluster, EtcdMember, Member, MetaStoreMember  # noqa: E402
from workloads import cpu_ns  # noqa: E402

from bench import KEY, PUT, RANGE, check_build, percentile, prefixed  # noqa: E402


class Delayed(asyncio.Protocol):
    """One end of a connection. What it receives goes to `peer`, the other end, `delay` seconds later."""

    def __init__(self, delay: float, target: tuple[str, int] | None = None) -> None:
        self.delay = delay
        self.target = target
        self.peer: asyncio.Future[asyncio.Transport] = asyncio.get_running_loop().create_future()
        self.waiting: deque[bytes] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self.target is not None:
            self.dialling = asyncio.ensure_future(self._dial(*self.target))

    async def _dial(self, host: str, port: int) -> None:
        there = Delayed(self.delay)
        there.peer.set_result(self.transport)
        try:
            await asyncio.get_running_loop().create_connection(lambda: there, host, port)
        except OSError:
            self.transport.abort()
        else:
            self.peer.set_result(there.transport)

    def data_received(self, data: bytes) -> None:
        self.waiting.append(data)
        asyncio.get_running_loop().call_later(self.delay, self.pass_on)

    def pass_on(self) -> None:
        """Sends the oldest bytes, so their order stays even if two timers are due at once."""
        self.peer.add_done_callback(lambda peer: peer.result().write(self.waiting.popleft()))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.peer.done():
            self.peer.result().close()


class Distance:
    """Proxies in front of the members of a cluster. `via` is what `Cluster` wants. delay: seconds on each way."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        # epoll would round every delay up to a millisecond.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def via(self, target: str) -> str:
        """Return the address of a new proxy in front of `target` (host:port)."""
        host, _, port = target.rpartition(":")
        made = self._loop.create_server(lambda: Delayed(self._delay, (host, int(port))), "127.0.0.1", 0)
        server = asyncio.run_coroutine_threadsafe(made, self._loop).result(10)
        return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def kinds_of(options: argparse.Namespace) -> dict[str, type[Member]]:
    """Return what is compared, by name."""
    kinds: dict[str, type[Member]] = {"this tree": MetaStoreMember}
    if options.tree is not None:
        kinds["other tree"] = other(options.tree)
    if options.etcd:
        kinds["etcd"] = EtcdMember
    return kinds


#: What the clients ask for: name, method and request.
WORKS = (
    ("range", RANGE, prefixed(m.RangeRequest(key=KEY))),
    ("put", PUT, prefixed(m.PutRequest(key=KEY, value=bytes(256)))),
)


def measure(options: argparse.Namespace, folder: Path) -> dict[tuple[str, str, str], list[tuple[float, ...]]]:
    """Return for each work, cluster and place of the clients the runs: p50, p90 and p99 in milliseconds, calls a
    second, and processor time of all members for each in microseconds."""
    found: dict[tuple[str, str, str], list[tuple[float, ...]]] = {}
    load = h2load.Load(options.requests, options.clients, 1)
    with ExitStack() as stack:
        clusters = {}
        for name, kind in kinds_of(options).items():
            via = Distance(options.round_trip / 2000).via
            clusters[name] = Cluster(folder / name.replace(" ", "-"), 3, kind, via=via)
            stack.callback(clusters[name].discard)
            clusters[name].start()
            with clusters[name].leader().client() as client:
                client.put(KEY, bytes(256))
        for _ in range(options.rounds):
            for (work, method, request), (name, cluster) in itertools.product(WORKS, clusters.items()):
                for place, member in (("leader", cluster.leader()), ("follower", cluster.followers()[0])):
                    before = cpu_ns(cluster)
                    outcome = h2load.run(member.address, method, request, load)
                    cpu = (cpu_ns(cluster) - before) / 1000 / options.requests
                    figures = (percentile(outcome.latencies, share) / 1000 for share in (0.5, 0.9, 0.99))
                    found.setdefault((work, name, place), []).append((*figures, outcome.rate, cpu))
    return found


def main() -> None:
    parser = make_parser(__doc__, rounds=3, requests=10_000)
    parser.add_argument("--clients", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--round-trip", type=float, default=20.0, help="milliseconds there and back (%(default)s)")
    parser.add_argument("--tree", type=Path, help="another checkout, with its .venv, to measure beside this one")
    parser.add_argument("--etcd", action="store_true", help="measure etcd beside it")
    options = parser.parse_args()
    check_build()
    with tempfile.TemporaryDirectory(prefix="metastore-bench-", dir=options.dir) as name:
        found = measure(options, Path(name))
    unit = options.round_trip or 1.0
    print(f"{options.clients} clients; latencies in units of {unit:g} ms; medians")
    print(
        f"  {'work':<6} {'cluster':<12} {'clients at':<10} {'p50':>6} {'p90':>6} {'p99':>6} {'per s':>9} {'CPU us':>7}"
    )
    for (work, name, place), runs in found.items():
        p50, p90, p99, rate, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
        times = " ".join(f"{one / unit:6.2f}" for one in (p50, p90, p99))
        print(f"  {work:<6} {name:<12} {place:<10} {times} {rate:9,.0f} {cpu:7.0f}")


if __name__ == "__main__":
    main()
