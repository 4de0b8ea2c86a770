#!/usr/bin/env python3
"""What watchers cost on a MetaStore node and on a real etcd, in one run on one machine.

    python bench/watch.py all
    python bench/watch.py hot --rounds 5

hot: 1,000 watchers of one key (10 connections with 100 streams each) while h2load puts that key 1,000 times a second.
idle: what 10,000 watchers on 100 connections take of memory, and what the server costs a second while nothing happens.
writer: the rate of puts at full speed with 100 watchers of other prefixes, and without watchers.
Runs are paired. The receiver counts bytes, so it is the same for both servers; that all events came is checked.
"""

from __future__ import annotations

import argparse
import selectors
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import h2load  # noqa: E402
from options import chosen, make_parser  # noqa: E402
from support import http2 as h  # noqa: E402
from support import messages as m  # noqa: E402
from support.processes import Etcd, Node, Server  # noqa: E402

import bench  # noqa: E402

PATH = b"/etcdserverpb.Watch/Watch"
WINDOW = (1 << 31) - 1 - 65_535
QUIET = 1.0  # seconds without a byte after which everything has come


class Receiver(threading.Thread):
    """Connections with watch streams. A thread reads what comes, and counts it."""

    def __init__(self, server: Server, connections: int, streams: int, keys: list[bytes], end: bytes = b"") -> None:
        super().__init__(daemon=True)
        self.received = 0
        self.last = time.monotonic()
        self._selector = selectors.DefaultSelector()
        self._stopped = False
        host, _, port = server.address.rpartition(":")
        for number in range(connections):
            sock = socket.create_connection((host, int(port)))
            sock.sendall(h.hello(WINDOW) + h.frame(h.SETTINGS, h.ACK, 0))
            for at in range(streams):
                key = keys[(number * streams + at) % len(keys)]
                fields = {"key": key, "range_end": key + end if end else b""}
                body = m.TYPES["WatchRequest"](create_request=fields).SerializeToString()
                stream = 2 * at + 1
                sock.sendall(
                    h.frame(h.HEADERS, h.END_HEADERS, stream, h.head(PATH))
                    + h.frame(h.DATA, 0, stream, h.message(body))
                )
            self._selector.register(sock, selectors.EVENT_READ)
        self.start()
        self.wait_quiet()

    def run(self) -> None:
        buffer = memoryview(bytearray(1 << 20))
        while not self._stopped:
            for key, _ in self._selector.select(0.1):
                count = key.fileobj.recv_into(buffer)  # type: ignore[union-attr]
                self.received += count
                self.last = time.monotonic()
                if not count:
                    raise SystemExit("the server closed a connection")

    def wait_quiet(self) -> float:
        """When the last byte came, once nothing has come for a while."""
        while time.monotonic() - self.last < QUIET:
            time.sleep(0.05)
        return self.last

    def close(self) -> None:
        self._stopped = True
        self.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]


def make(kind: str, folder: Path, number: int) -> Server:
    where = folder / f"{kind}-{number}"
    return Etcd(where) if kind == "etcd" else Node(where)


def show(title: str, columns: str, samples: dict[str, list[tuple[float, ...]]]) -> None:
    """Medians of each server, and of the paired ratios to the first."""
    print(f"\n{title}\n  {'':<12} {columns}")
    first = next(iter(samples))
    for kind, runs in samples.items():
        print(f"  {kind:<12}" + "".join(f" {statistics.median(column):>14.2f}" for column in zip(*runs, strict=True)))
        if kind != first:
            pairs = zip(samples[first], runs, strict=True)
            ratios = zip(*[[b / a for a, b in zip(x, y, strict=True)] for x, y in pairs], strict=True)
            print(f"  {'  / ' + first:<12}" + "".join(f" {statistics.median(column):>13.3f}x" for column in ratios))


def hot(server: Server, options: argparse.Namespace, value: bytes) -> tuple[float, ...]:
    """(events a second until the last one came, CPU us an event)."""
    watchers, puts = 1000, options.requests
    message = bench.prefixed(m.PutRequest(key=bench.KEY, value=value))
    h2load.run(server.address, bench.PUT, message, h2load.Load(100, 1, 1))
    receiver = Receiver(server, 10, 100, [bench.KEY])
    before, bytes_before, began = server.running().cpu_ns(), receiver.received, time.monotonic()
    h2load.run(server.address, bench.PUT, message, h2load.Load(puts, 10, 1, options.rate // 10))
    took = receiver.wait_quiet() - began
    cpu = (server.running().cpu_ns() - before) / 1000 / (puts * watchers)
    if receiver.received - bytes_before < puts * watchers * len(value):
        raise SystemExit(f"{server.kind}: not all events came")
    receiver.close()
    return puts * watchers / took, cpu


def idle(server: Server, options: argparse.Namespace, _value: bytes) -> tuple[float, ...]:
    """(bytes of memory a watcher, CPU ms a second)."""
    process = server.running()
    rss = process.rss()
    receiver = Receiver(server, 100, 100, [b"idle/%d/" % number for number in range(10_000)], b"\xff")
    more = process.rss() - rss
    before, began = process.cpu_ns(), time.monotonic()
    time.sleep(5)
    cpu = (process.cpu_ns() - before) / 1e6 / (time.monotonic() - began)
    receiver.close()
    return more / 10_000, cpu


def writer(server: Server, options: argparse.Namespace, value: bytes) -> tuple[float, ...]:
    """(puts a second without watchers, with 100 of them, the second to the first)."""
    message = bench.prefixed(m.PutRequest(key=bench.KEY, value=value))
    load = h2load.Load(10 * options.requests, 10, 100)
    h2load.run(server.address, bench.PUT, message, h2load.Load(2000, 10, 100))
    alone = h2load.run(server.address, bench.PUT, message, load).rate
    receiver = Receiver(server, 10, 10, [b"other/%d/" % number for number in range(100)], b"\xff")
    watched = h2load.run(server.address, bench.PUT, message, load).rate
    receiver.close()
    return alone, watched, watched / alone


WORKS = {
    "hot": (hot, "1,000 watchers of one key", f"{'events/s':>14} {'CPU us/event':>14}"),
    "idle": (idle, "10,000 watchers of prefixes", f"{'bytes/watcher':>14} {'CPU ms/s':>14}"),
    "writer": (writer, "Puts with 100 watchers of others", f"{'alone/s':>14} {'watched/s':>14} {'ratio':>14}"),
}


def main() -> None:
    parser = make_parser(__doc__, list(WORKS), rounds=3, requests=10_000, value_size=256, seed=1)
    parser.add_argument("--rate", type=int, default=1000, help="puts a second of `hot` (default: %(default)s)")
    options = parser.parse_args()
    value = bench.random.Random(options.seed).randbytes(options.value_size)
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = Path(name)
        bench.print_machine(options, folder)
        for what in chosen(options, list(WORKS)):
            work, title, columns = WORKS[what]
            samples: dict[str, list[tuple[float, ...]]] = {"etcd": [], "metastore": []}
            for number in range(options.rounds):
                for kind, runs in samples.items():
                    with make(kind, folder, number) as server:
                        runs.append(work(server, options, value))
                    server.discard()
            show(title, columns, samples)


if __name__ == "__main__":
    main()
