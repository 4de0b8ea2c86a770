#!/usr/bin/env python3
"""What watchers cost on a MetaStore node and on a real etcd, in one run on one machine.

    python bench/watch.py all
    python bench/watch.py hot --rounds 5

hot: 1,000 watchers of one key (10 connections with 100 streams each) while h2load puts that key 1,000 times a second.
latency: from a put to its event at one more watcher of that key, at a steady pace.
idle: what 10,000 watchers on 100 connections take of memory, and what the server costs a second while nothing happens.
writer: the rate of puts at full speed with 100 watchers of other prefixes, and without watchers.
behind: a watcher that begins a million revisions in the past, and what lone puts take before and meanwhile. If not all
events have come after two minutes, the rate is that of those that have: etcd 3.5.1 would take twenty.
Runs are paired. The receiver counts bytes, so it is the same for both servers; that all events came is checked.
"""

from __future__ import annotations

import argparse
import re
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import h2load  # noqa: E402
import loader  # noqa: E402
import paired  # noqa: E402
from options import make_parser  # noqa: E402
from support import http2 as h  # noqa: E402
from support import messages as m  # noqa: E402
from support.processes import Server  # noqa: E402

import bench  # noqa: E402

PATH = b"/etcdserverpb.Watch/Watch"
WINDOW = (1 << 31) - 1 - 65_535
NUMBER = re.compile(rb"\d{32}")  # a value of `latency`
QUIET = 1.0  # seconds without a byte after which everything has come
REST = 10.0  # seconds after which what a million puts leave behind is done, as snapshots are
LONG = 120.0  # seconds after which a watcher of the past is judged by what it has


#: Takes a time and the numbers that arrived then.
Arrived = Callable[[float, list[bytes]], object]


class Receiver(threading.Thread):
    """Connections with watch streams. A thread reads what comes, and counts it. It calls `arrived` with the time of
    each read and the numbers in it that `latency` writes."""

    def __init__(
        self, server: Server, connections: int, streams: int, keys: list[bytes], end: bytes = b"", start: int = 0,
        wait: bool = True, arrived: Arrived | None = None,
    ) -> None:  # fmt: skip
        super().__init__(daemon=True)
        self._arrived: Arrived | None = None
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
                fields = {"key": key, "range_end": key + end if end else b"", "start_revision": start}
                body = m.TYPES["WatchRequest"](create_request=fields).SerializeToString()
                stream = 2 * at + 1
                sock.sendall(
                    h.frame(h.HEADERS, h.END_HEADERS, stream, h.head(PATH))
                    + h.frame(h.DATA, 0, stream, h.message(body))
                )
            self._selector.register(sock, selectors.EVENT_READ)
        self.start()
        if wait:
            self.wait_quiet()
        self._arrived = arrived

    def run(self) -> None:
        buffer = memoryview(bytearray(1 << 20))
        while not self._stopped:
            for key, _ in self._selector.select(0.1):
                count = key.fileobj.recv_into(buffer)  # type: ignore[union-attr]
                self.received += count
                self.last = time.monotonic()
                if self._arrived is not None:
                    self._arrived(self.last, NUMBER.findall(buffer[:count]))
                if not count:
                    raise SystemExit("the server closed a connection")

    def wait_quiet(self) -> float:
        """When the last byte came, once nothing has come for a while."""
        while time.monotonic() - self.last < QUIET:
            time.sleep(0.05)
        return self.last

    def wait_for(self, least: int, until: float) -> float:
        """When the last byte came, once `least` bytes have come or the moment `until` has passed."""
        while self.received < least and time.monotonic() < until:
            time.sleep(0.05)
        return self.last

    def close(self) -> None:
        self._stopped = True
        self.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]


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


def behind(server: Server, options: argparse.Namespace, value: bytes) -> tuple[float, ...]:
    """(events a second of a watcher that begins at the first revision, p99 in ms of lone puts before and meanwhile, the
    percentage of the events that came in time). Bytes tell how many came, so a part counts for an eighth more."""
    revisions = options.revisions
    with server.client(timeout=600) as client:
        client.put(b"behind/first", b"")
        first = client.revision()
        if loader.put_keys(server.address, b"behind/", revisions, options.value_size, options.seed) != revisions:
            raise SystemExit(f"{server.kind}: not all keys were put")
        message = bench.prefixed(m.PutRequest(key=b"meanwhile", value=value))
        time.sleep(REST)
        before = h2load.run(server.address, bench.PUT, message, h2load.Load(1000, 1, 1))
        began = time.monotonic()
        receiver = Receiver(server, 1, 1, [b"behind/"], b"\xff", first, wait=False)
        meanwhile = h2load.run(server.address, bench.PUT, message, h2load.Load(1000, 1, 1))
        whole = revisions * options.value_size
        took = receiver.wait_for(whole, began + LONG) - began
        if receiver.received >= whole:
            took = receiver.wait_quiet() - began
        came = min(receiver.received, whole) / whole
    receiver.close()
    alone, then = (bench.percentile(puts.latencies, 0.99) / 1000 for puts in (before, meanwhile))
    return revisions * came / took, alone, then, 100 * came


def latency(server: Server, options: argparse.Namespace, _value: bytes) -> tuple[float, ...]:
    """(p50 and p99 in ms from a put to the event at one of 1,000 watchers of its key, at `options.pace` puts a second).

    The value is the number of the put. One watcher's connection is read by a thread of its own, and is the last one
    that was made.
    """
    others = Receiver(server, 10, 100, [bench.KEY])
    arrivals: dict[int, float] = {}
    one = Receiver(
        server, 1, 1, [bench.KEY], arrived=lambda when, numbers: arrivals.update((int(n), when) for n in numbers)
    )
    sent: list[float] = []
    with server.client() as client:
        begin = time.monotonic()
        for number in range(options.puts):
            due = begin + number / options.pace
            time.sleep(max(0.0, due - time.monotonic()))
            sent.append(time.monotonic())
            client.put(bench.KEY, b"%032d" % number)
    one.wait_quiet()
    others.close()
    one.close()
    if len(arrivals) != len(sent):
        raise SystemExit(f"{server.kind}: {len(arrivals)} events of {len(sent)}")
    times = [int((arrivals[number] - went) * 1e6) for number, went in enumerate(sent)]
    return bench.percentile(times, 0.5) / 1000, bench.percentile(times, 0.99) / 1000


MEASUREMENTS = {
    "hot": paired.Measurement(hot, "1,000 watchers of one key", ("events/s", "CPU us/event")),
    "latency": paired.Measurement(latency, "From a put to its event, 1,000 watchers of the key", ("p50 ms", "p99 ms")),
    "idle": paired.Measurement(idle, "10,000 watchers of prefixes", ("bytes/watcher", "CPU ms/s")),
    "writer": paired.Measurement(writer, "Puts with 100 watchers of others", ("alone/s", "watched/s", "ratio")),
    "behind": paired.Measurement(
        behind, "A watcher from far in the past", ("events/s", "put p99 before", "put p99 ms", "% in time")
    ),
}


def main() -> None:
    parser = make_parser(__doc__, list(MEASUREMENTS), rounds=3, requests=10_000, value_size=256, seed=1)
    parser.add_argument("--rate", type=int, default=1000, help="puts a second of `hot` (default: %(default)s)")
    parser.add_argument("--pace", type=int, default=50, help="puts a second of `latency` (default: %(default)s)")
    parser.add_argument("--puts", type=int, default=500, help="puts of `latency` (default: %(default)s)")
    parser.add_argument("--revisions", type=int, default=1_000_000, help="of `behind` (default: %(default)s)")
    paired.run(parser.parse_args(), MEASUREMENTS)


if __name__ == "__main__":
    main()
