"""Very many leases that end at the same moment, and what others notice of it."""

from __future__ import annotations

import signal
import time
from typing import NamedTuple

from . import messages as m
from .client import Client, op
from .leasing import leases, lifetime
from .processes import Server, metric, wait_until

AT_ONCE = 100
FIRST = 1 << 40


class Storm(NamedTuple):
    """What came of it: seconds until all keys were gone, the longest put meanwhile (seconds), turns of the loop that
    took more processor time than they should."""

    seconds: float
    longest_put: float
    slow_turns: float


def grant_all(client: Client, count: int, ttl: int) -> None:
    """Grant `count` leases, each with a key."""
    for at in range(0, count, AT_ONCE):
        some = range(FIRST + at, FIRST + min(count, at + AT_ONCE))
        calls = [client.future(m.TYPES["LeaseGrantRequest"](TTL=ttl, ID=ident)) for ident in some]
        for call in calls:
            call.result()
        client.txn(success=[op(m.PutRequest(key=b"storm/%d" % ident, lease=ident)) for ident in some])


def run(server: Server, count: int, ttl: int) -> Storm:
    """Grant leases, and let the process stand still until all of them are over. One put after the other follows."""
    process = server.running()
    with server.client(timeout=30) as client:
        grant_all(client, count, ttl)
        assert client.range(b"storm/", b"storm0", count_only=True).count == len(leases(client)) == count
        slow = metric(server, "metastore_loop_slow_turns_total")
        left = lifetime(client, FIRST + count - 1).TTL
        process.send_signal(signal.SIGSTOP)
        over = time.monotonic() + left + 1.5
        wait_until(lambda: time.monotonic() >= over, left + 30, "the end of all leases")
        process.send_signal(signal.SIGCONT)
        began, longest, puts = time.monotonic(), 0.0, 0
        while client.range(b"storm/", b"storm0", count_only=True).count:
            sent = time.monotonic()
            client.put(b"other", b"%d" % puts)
            longest, puts = max(longest, time.monotonic() - sent), puts + 1
        seconds = time.monotonic() - began
        wait_until(lambda: not leases(client), what="the end of the leases")
        return Storm(seconds, longest, metric(server, "metastore_loop_slow_turns_total") - slow)
