"""Very many leases that end within a second, and what others notice of it."""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from . import messages as m
from .client import Client, op
from .leasing import leases
from .processes import Server, metric, wait_until
from .turns import Turns
from .watching import WatchStream

AT_ONCE = 100
FIRST = 1 << 40
WATCHERS = 4
CONNECTIONS = 4


class Storm(NamedTuple):
    """What came of it. gone, told: seconds from the end of the last lease until all keys were gone, and until all
    watchers were told. before, meanwhile: the 99th percentile of the puts of others (seconds). slow_turns: turns of a
    loop that took more processor time than they should, and the longest of them (seconds). terms: how often the
    term of a member changed."""

    gone: float
    told: float
    before: float
    meanwhile: float
    slow_turns: int
    longest: float
    terms: int

    @property
    def summary(self) -> str:
        return (
            f"keys gone in {self.gone:.2f} s, watchers told in {self.told:.2f} s; p99 of puts "
            f"{1000 * self.before:.2f} ms before, {1000 * self.meanwhile:.2f} ms meanwhile; "
            f"{self.slow_turns} slow turns, longest {1000 * self.longest:.1f} ms; {self.terms} elections"
        )


class Puts(threading.Thread):
    """Puts of some clients at a steady pace for a while, by h2load (Debian: nghttp2-client)."""

    def __init__(self, server: Server, rate: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self._server, self._rate, self._seconds = server, rate, seconds
        self.times: list[tuple[float, float]] = []  # when a put was sent (of time.time), and its seconds
        self.start()

    def run(self) -> None:
        body = m.PutRequest(key=b"other", value=b"v" * 100).SerializeToString()
        with tempfile.TemporaryDirectory() as folder:
            message, log = Path(folder) / "message", Path(folder) / "log"
            message.write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
            command = ["h2load", f"-c{CONNECTIONS}", "-m100", "-t1", f"-n{int(self._rate * self._seconds)}"]
            command += [f"--rps={self._rate // CONNECTIONS}", "-d", str(message), f"--log-file={log}"]
            command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
            command.append(f"http://{self._server.address}/etcdserverpb.KV/Put")
            subprocess.run(command, capture_output=True, timeout=300, check=True)
            rows = [line.split("\t") for line in log.read_text().splitlines()]
        self.times = [(int(row[0]) / 1e6, int(row[2]) / 1e6) for row in rows]

    def p99(self, began: float = 0.0, ended: float = float("inf")) -> float:
        """The 99th percentile of those that were sent in this time."""
        self.join()
        took = sorted(seconds for sent, seconds in self.times if began <= sent <= ended)
        assert took, "no puts"
        return took[len(took) * 99 // 100]


class Counted:
    """Whether a stream has brought so many events; it looks at each response once."""

    def __init__(self, stream: WatchStream, wanted: int) -> None:
        self._stream, self._wanted = stream, wanted
        self._seen = self._events = 0

    def __call__(self) -> bool:
        for response in self._stream.responses[self._seen :]:
            self._events += len(response.events)
            self._seen += 1
        return self._events >= self._wanted


def grant_all(client: Client, count: int, end: float) -> None:
    """Grant `count` leases, each with a key. All of them are over within the second after `end` (of time.time)."""
    for at in range(0, count, AT_ONCE):
        some = range(FIRST + at, FIRST + min(count, at + AT_ONCE))
        left = end - time.time()
        assert left > 1, "granting took too long"
        calls = [client.future(m.TYPES["LeaseGrantRequest"](TTL=int(left) + 1, ID=ident)) for ident in some]
        for call in calls:
            call.result()
        client.txn(success=[op(m.PutRequest(key=b"storm/%d" % ident, lease=ident)) for ident in some])


def term(member: Server) -> int:
    with member.client() as client:
        return int(client.status().raftTerm)


def run(members: Sequence[Server], count: int, ttl: float, rate: int, lasting: float = 9.0) -> Storm:
    """Grant leases that end `ttl` seconds from now. The first member leads. Others put `rate` times a second,
    for `lasting` seconds around the storm."""
    leader = members[0]
    turns = [Turns(member) for member in members]
    with leader.client(timeout=30) as client, WatchStream(client) as stream:
        terms = [term(member) for member in members]
        for _ in range(WATCHERS):
            created = stream.create(b"storm/", b"storm0", filters=[0])
            assert not created.canceled
        end = time.time() + ttl
        grant_all(client, count, end)
        assert client.range(b"storm/", b"storm0", count_only=True).count == len(leases(client)) == count
        quiet = min(5.0, (end - time.time()) / 2)
        usual = Puts(leader, rate, quiet).p99()
        wait_until(lambda: time.time() >= end - 1, ttl + 30, "the last moment before")
        puts = Puts(leader, rate, lasting)
        # All watchers have the same events, so each has been told all when the stream has so many.
        stream.wait(Counted(stream, WATCHERS * count), 60)
        told = time.time()
        wait_until(lambda: metric(leader, "metastore_leases") == 0, 60, "the end of all leases")
        gone = time.time()
        assert client.range(b"storm/", b"storm0", count_only=True).count == len(leases(client)) == 0
        return Storm(
            gone - end - 1, told - end - 1, usual, puts.p99(end, told),
            sum(each.slow for each in turns),
            max(each.longest for each in turns),
            sum(term(member) != before for member, before in zip(members, terms, strict=True)),
        )  # fmt: skip
