#!/usr/bin/env python3
"""What leases cost on a MetaStore node and on a real etcd, in one run on one machine.

    python bench/leases.py all
    python bench/leases.py keepalive --rounds 5

idle: what 100,000 leases take of memory, and what the server costs a second while nobody renews them.
keepalive: renewals a second of 10,000 leases on 10 streams, one for each message.
cycle: 100 clients, each of which grants a lease, puts a key with it and revokes it, again and again.
Runs are paired. That all was done is checked: by the number of leases, of answers, and by the revision.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import paired  # noqa: E402
from options import make_parser  # noqa: E402
from pump import Link, Prepared, close, play  # noqa: E402
from sim.varint import varint  # noqa: E402
from support import http2 as h  # noqa: E402
from support import messages as m  # noqa: E402
from support.processes import Server  # noqa: E402

import bench  # noqa: E402

GRANT, REVOKE = b"/etcdserverpb.Lease/LeaseGrant", b"/etcdserverpb.Lease/LeaseRevoke"
PUT = b"/etcdserverpb.KV/Put"
KEEP_ALIVE, LEASES = b"/etcdserverpb.Lease/LeaseKeepAlive", b"/etcdserverpb.Lease/LeaseLeases"
TTL = 10_000
FIRST = 1 << 40  # ids from here on have encodings of one length
IDLE_LEASES, RENEWED, STREAMS, CLIENTS = 100_000, 10_000, 10, 100
SECONDS = 5.0


def grant(ident: int) -> bytes:
    """A LeaseGrantRequest."""
    return bytes(m.TYPES["LeaseGrantRequest"](TTL=TTL, ID=ident).SerializeToString())


def by_id(ident: int) -> bytes:
    """A message whose only field is a lease's id, as LeaseRevokeRequest and LeaseKeepAliveRequest are."""
    return b"\x08" + varint(ident)


def grant_all(server: Server, ids: range) -> None:
    """Grant leases over one connection, 100 at a time."""
    link, stream = Link(server.address), itertools.count(1, 2)
    left = iter(ids)
    ended = 0

    def begin() -> None:
        if (ident := next(left, None)) is not None:
            link.call(next(stream), GRANT, grant(ident))

    def over(_link: Link, _stream: int) -> None:
        nonlocal ended
        ended += 1
        link.done = ended == len(ids)
        begin()

    link.ended = over
    for _ in range(100):
        begin()
    play([link])
    close([link])


def count(server: Server) -> int:
    """The number of leases, from a LeaseLeases call."""
    link = Link(server.address)
    link.call(1, LEASES, b"")
    link.ended = lambda link, _stream: setattr(link, "done", True)
    play([link])
    close([link])
    return link.data // len(b"\x12\x07" + by_id(FIRST))  # the header adds less than one lease's bytes


def idle(server: Server, _options: argparse.Namespace, _value: bytes) -> tuple[float, ...]:
    """(bytes of memory a lease, CPU ms a second)."""
    process = server.running()
    grant_all(server, range(FIRST - 1000, FIRST))
    rss = process.rss()
    grant_all(server, range(FIRST, FIRST + IDLE_LEASES))
    if count(server) < IDLE_LEASES:
        raise SystemExit(f"{server.kind}: {count(server)} leases instead of {IDLE_LEASES}")
    more = process.rss() - rss
    time.sleep(1)
    before, began = process.cpu_ns(), time.monotonic()
    time.sleep(SECONDS)
    return more / IDLE_LEASES, (process.cpu_ns() - before) / 1e6 / (time.monotonic() - began)


class Renewer:
    """One connection with one keepalive stream, which renews its leases again and again until it has done `total`."""

    def __init__(self, server: Server, ids: range, total: int) -> None:
        self.link = Link(server.address)
        self.link.out += h.frame(h.HEADERS, h.END_HEADERS, 1, h.head(KEEP_ALIVE))
        self.link.ended = lambda link, _stream: setattr(link, "done", True)
        frames = [h.frame(h.DATA, 0, 1, h.message(by_id(ident))) for ident in ids]
        self._size = len(frames[0]) - 9
        self._frames = b"".join(frames) * 2
        self._each, self._at, self._left = len(frames[0]), 0, total
        self._count = len(ids)

    def more(self, _link: Link) -> None:
        """Queue as many renewals as the windows allow, 1,000 at most; after the last one end the stream."""
        link = self.link
        if self._left and len(link.out) < 64 * 1024:
            n = min(self._left, 1000, min(link.window, link.stream_window) // self._size)
            link.out += self._frames[self._at * self._each : (self._at + n) * self._each]
            self._at = (self._at + n) % self._count
            link.window -= n * self._size
            link.stream_window -= n * self._size
            self._left -= n
            if not self._left:
                link.out += h.frame(h.DATA, h.END_STREAM, 1)


def keepalive(server: Server, options: argparse.Namespace, _value: bytes) -> tuple[float, ...]:
    """(renewals a second, CPU us a renewal)."""
    grant_all(server, range(FIRST, FIRST + RENEWED))
    share, each = RENEWED // STREAMS, options.renewals // STREAMS
    renewers = [Renewer(server, range(FIRST + n * share, FIRST + (n + 1) * share), each) for n in range(STREAMS)]
    of = {one.link: one for one in renewers}
    process = server.running()
    before, began = process.cpu_ns(), time.monotonic()
    play(of, lambda link: of[link].more(link))
    took, cpu = time.monotonic() - began, process.cpu_ns() - before
    close(of)
    # An answer has the id and the TTL, of 7 and 2 bytes, behind a prefix of 5 and a header.
    if sum(link.data for link in of) < each * STREAMS * 25:
        raise SystemExit(f"{server.kind}: not all renewals were answered")
    return each * STREAMS / took, cpu / 1000 / (each * STREAMS)


def cycle(server: Server, options: argparse.Namespace, value: bytes) -> tuple[float, ...]:
    """(cycles a second, CPU us a cycle)."""
    each = options.requests // CLIENTS
    links = [Link(server.address) for _ in range(CLIENTS)]

    def over(link: Link, stream: int, calls: tuple[Prepared, ...]) -> None:
        number = (stream + 1) // 2
        if number == 3 * each:
            link.done = True
        else:
            link.repeat(2 * number + 1, calls[number % 3])

    before = bench.revision(server)
    for at, link in enumerate(links):
        ident = FIRST + at
        put = m.PutRequest(key=b"cycle/%d" % at, value=value, lease=ident).SerializeToString()
        calls = Prepared(GRANT, grant(ident)), Prepared(PUT, put), Prepared(REVOKE, by_id(ident))
        link.ended = lambda link, stream, calls=calls: over(link, stream, calls)  # type: ignore[misc]
        link.repeat(1, calls[0])
    process = server.running()
    cpu, began = process.cpu_ns(), time.monotonic()
    play(links)
    took, used = time.monotonic() - began, process.cpu_ns() - cpu
    close(links)
    done = bench.revision(server) - before
    if done != 2 * each * CLIENTS:
        raise SystemExit(f"{server.kind}: the revision rose by {done} instead of {2 * each * CLIENTS}")
    return each * CLIENTS / took, used / 1000 / (each * CLIENTS)


MEASUREMENTS = {
    "idle": paired.Measurement(idle, "100,000 leases that nobody renews", ("bytes/lease", "CPU ms/s")),
    "keepalive": paired.Measurement(keepalive, "10,000 leases renewed on 10 streams", ("renewals/s", "CPU us/renewal")),
    "cycle": paired.Measurement(cycle, "Grant, put, revoke by 100 clients", ("cycles/s", "CPU us/cycle")),
}


def main() -> None:
    parser = make_parser(__doc__, list(MEASUREMENTS), rounds=3, requests=10_000, value_size=256, seed=1)
    parser.add_argument("--renewals", type=int, default=500_000, help="renewals a run (default: %(default)s)")
    paired.run(parser.parse_args(), MEASUREMENTS)


if __name__ == "__main__":
    main()
