"""What readers of watches that have stopped cost a node and its writers."""

from __future__ import annotations

import contextlib
import re
import statistics
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from . import http2 as h
from . import messages as m
from .attack import MIB, Raw
from .client import Failure
from .processes import Server, metric, wait_until
from .watching import PATH, WatchRequest

READERS = 100
HISTORY = 20_000  # revisions that compactions leave


class Cost(NamedTuple):
    """What came of each round, without readers and with them.

    rates: puts a second. work: microseconds of processor time that the node takes for a put. memory: the most bytes
    that the process took beside the contents of its engine.
    """

    rates: list[tuple[float, float]]
    work: list[tuple[float, float]]
    memory: list[tuple[int, int]]

    @property
    def ratio(self) -> float:
        """The put rate with readers, as a part of that without. The two of one round are compared, which were measured
        at the same time."""
        return statistics.median(with_readers / without for without, with_readers in self.rates)

    @property
    def possible(self) -> float:
        """The same by the processor time that a put takes, which says it of a machine that has other work, too."""
        return statistics.median(without / with_readers for without, with_readers in self.work)

    @property
    def more(self) -> int:
        """The most memory in any round with readers, above the most in any round without."""
        return max(one[1] for one in self.memory) - max(one[0] for one in self.memory)

    @property
    def summary(self) -> str:
        rates = ", ".join(f"{without:.0f}/{with_readers:.0f}" for without, with_readers in self.rates)
        work = ", ".join(f"{without:.2f}/{with_readers:.2f}" for without, with_readers in self.work)
        memory = ", ".join(f"{one // MIB}/{other // MIB}" for one, other in self.memory)
        return (
            f"puts/s {rates}: {self.ratio:.3f}; us a put {work}: {self.possible:.3f}; MiB {memory}: "
            f"{self.more / MIB:+.1f} MiB"
        )


class Watcher(threading.Thread):
    """Looks at the memory of a node all the time, and compacts its history."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server, self._over = server, threading.Event()
        self.most = 0
        self.start()

    def run(self) -> None:
        with self._server.client(30) as client:
            while not self._over.wait(0.5):
                # A sweep between the two looks gave back 160 MiB once.
                contents = self._contents()
                taken = self._server.running().rss()
                self.most = max(self.most, taken - max(contents, self._contents()))
                with contextlib.suppress(Failure):
                    client.compact(client.revision() - HISTORY)

    def _contents(self) -> int:
        return int(metric(self._server, "metastore_engine_bytes"))

    def stop(self) -> int:
        self._over.set()
        self.join()
        return self.most


def put_rate(server: Server, seconds: int) -> float:
    """Put one key at full speed by h2load (Debian: nghttp2-client). Return the puts a second."""
    body = m.PutRequest(key=b"k", value=b"v" * 256).SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        message = Path(folder) / "message"
        message.write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
        command = ["h2load", "-c10", "-m100", "-t1", f"-D{seconds}", "-d", str(message)]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        command.append(f"http://{server.address}/etcdserverpb.KV/Put")
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 120, check=True)
    found = re.search(r"finished in [\d.]+s, ([\d.]+) req/s", done.stdout)
    assert found is not None and " 0 failed, 0 errored" in done.stdout, done.stdout
    return float(found[1])


@contextlib.contextmanager
def stopped_readers(server: Server):  # type: ignore[no-untyped-def]
    """Connections whose clients watch everything, and read next to nothing."""
    body = WatchRequest(create_request={"key": b"\0", "range_end": b"\0"}).SerializeToString()
    with contextlib.ExitStack() as stack:
        for _ in range(READERS):
            raw = stack.enter_context(Raw(server, receive_buffer=4096, timeout=60))
            raw.send(h.frame(h.HEADERS, h.END_HEADERS, 1, h.head(PATH.encode())))
            raw.send(h.frame(h.DATA, 0, 1, h.message(body)))
        wait_until(lambda: metric(server, "metastore_watchers") == READERS, what="all watchers")
        yield
        assert metric(server, "metastore_watchers") == READERS, "a reader that stops is not cut off"
    wait_until(lambda: metric(server, "metastore_watchers") == 0, what="the end of all watchers")


def settle(server: Server) -> None:
    """Compact, and wait until the room is given back.

    `fill_up` leaves some 200,000 revisions. Their sweep would count as work of the phase that comes next, and so would
    the cache misses of puts into that history."""
    with server.client(30) as client, contextlib.suppress(Failure):
        client.compact(client.revision() - HISTORY)
    wait_until(lambda: metric(server, "metastore_sweep_pending") == 0, what="the end of the sweep")


def one_phase(server: Server, seconds: int) -> tuple[float, float, int]:
    """Return (puts a second, microseconds a put, bytes)."""
    watcher, process = Watcher(server), server.running()
    with server.client() as client:
        revision, worked = client.revision(), process.cpu_ns()
        rate = put_rate(server, seconds)
        work = (process.cpu_ns() - worked) / 1000 / (client.revision() - revision)
    return rate, work, watcher.stop()


def fill_up(server: Server) -> None:
    """Write until the readers' streams, and the kernel's buffers of their connections, take no more."""
    sent = -1.0
    while sent != (sent := metric(server, "metastore_watch_events_total")):
        put_rate(server, 2)


def one_round(plain: Server, watched: Server, seconds: int) -> list[tuple[float, float, int]]:
    """Put into both nodes at the same time, the second of which has readers. Return what `one_phase` says of each."""
    with stopped_readers(watched), ThreadPoolExecutor(2) as pool:
        fill_up(watched)
        list(pool.map(settle, (plain, watched)))
        return list(pool.map(one_phase, (plain, watched), (seconds, seconds)))


def run(one: Server, other: Server, rounds: int, seconds: int) -> Cost:
    """Write at full speed to two nodes at the same time, for `seconds` in each round. They have the readers in turns.

    Whatever else the machine does then holds up both. One after the other, puts into the same node took place at 26,000
    to 73,000 a second while others worked on the machine, and the processor time of a put depends on the rate: the
    medians of ten rounds of a minute had an error of 3 %. With two nodes, ten rounds of eight seconds have one of 1 %.
    """
    cost = Cost([], [], [])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one_phase, (one, other), [max(5, seconds // 4)] * 2))
    for number in range(rounds):
        pair = (one, other) if number % 2 else (other, one)
        for known, without, with_readers in zip(cost, *one_round(*pair, seconds), strict=True):
            known.append((without, with_readers))
    return cost
