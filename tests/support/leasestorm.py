"""Very many leases that end within a second, and what others notice of it."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

from . import http2 as h
from . import messages as m
from .attack import Raw
from .client import Client, op
from .leasing import leases
from .processes import Server, metric, wait_until
from .turns import Turns
from .watching import PATH, WatchRequest, WatchResponse

AT_ONCE = 100
FIRST = 1 << 40
WATCHERS = 4
CONNECTIONS = 4
WINDOW = (1 << 31) - 1 - 65_535  # so that the client never has to open it again
DELETE = 1  # the type of an event
QUIET = 0.5  # seconds without an event after which all have come, or nothing more will


class Storm(NamedTuple):
    """What came of it. told: seconds from the end of the last lease until all watchers were told of all keys, which
    were gone by then. before, meanwhile: the 99th percentile of the puts of others (seconds). slow_turns: turns of a
    loop that took more processor time than they should, and the longest of them (seconds). terms: how often the
    term of a member changed."""

    told: float
    before: float
    meanwhile: float
    slow_turns: int
    longest: float
    terms: int

    @property
    def summary(self) -> str:
        return (
            f"watchers told of all in {self.told:.2f} s; p99 of puts "
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


class Watchers(threading.Thread):
    """Watchers of all keys of the storm, on one connection. What comes is kept with its time and decoded afterwards. A
    client that decodes 400,000 events while they come takes a quarter of a processor from the members, and the puts
    wait for that, too."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._raw = Raw(server, WINDOW, timeout=300)
        fields = {"key": b"storm/", "range_end": b"storm0", "filters": [0]}  # no puts
        create = h.message(WatchRequest(create_request=fields).SerializeToString())
        self._raw.send(h.frame(h.HEADERS, h.END_HEADERS, 1, h.head(PATH.encode())))
        self._raw.send(h.frame(h.DATA, 0, 1, WATCHERS * create))
        self._chunks: list[bytes] = []
        self.last = 0.0  # when something came, of time.time
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.socket.shutdown(socket.SHUT_RDWR)
        self.join()
        self._raw.socket.close()

    def run(self) -> None:
        while chunk := self._raw.socket.recv(1 << 20):
            self.last = time.time()
            self._chunks.append(chunk)

    def deleted(self) -> list[list[bytes]]:
        """The keys whose deletion each watcher has been told of, so far."""
        keys: list[list[bytes]] = [[] for _ in range(WATCHERS)]
        for body in h.Stream(data=self._data()).messages:
            response = WatchResponse.FromString(body)
            assert not response.canceled
            assert all(event.type == DELETE for event in response.events)
            keys[response.watch_id] += [event.kv.key for event in response.events]
        return keys

    def _data(self) -> bytes:
        """The bytes of the stream. `Raw` decodes frame by frame and adds each to what came before, which takes too
        long for 30 MB."""
        came, at, payloads = b"".join(self._chunks), 0, []
        while at + 9 <= len(came):
            end = at + 9 + int.from_bytes(came[at : at + 3], "big")
            if end > len(came):
                break
            if came[at + 3] == h.DATA:
                payloads.append(came[at + 9 : end])
            at = end
        return b"".join(payloads)


def key_of(ident: int) -> bytes:
    """The key of a lease."""
    return b"storm/%d" % ident


def grant_all(client: Client, count: int, end: float) -> None:
    """Grant `count` leases, each with a key. All of them are over within the second after `end` (of time.time)."""
    for at in range(0, count, AT_ONCE):
        some = range(FIRST + at, FIRST + min(count, at + AT_ONCE))
        left = end - time.time()
        assert left > 1, "granting took too long"
        calls = [client.future(m.TYPES["LeaseGrantRequest"](TTL=int(left) + 1, ID=ident)) for ident in some]
        for call in calls:
            call.result()
        client.txn(success=[op(m.PutRequest(key=key_of(ident), lease=ident)) for ident in some])


def term(member: Server) -> int:
    with member.client() as client:
        return int(client.status().raftTerm)


def run(members: Sequence[Server], count: int, ttl: float, rate: int, lasting: float = 9.0) -> Storm:
    """Grant leases that end `ttl` seconds from now. The first member leads. Others put `rate` times a second,
    for `lasting` seconds around the storm."""
    leader = members[0]
    turns = [Turns(member) for member in members]
    keys = [key_of(ident) for ident in range(FIRST, FIRST + count)]
    with leader.client(timeout=30) as client, Watchers(leader) as watchers:
        terms = [term(member) for member in members]
        wait_until(lambda: metric(leader, "metastore_watchers") == WATCHERS, what="all watchers")
        end = time.time() + ttl
        grant_all(client, count, end)
        assert client.range(b"storm/", b"storm0", count_only=True).count == len(leases(client)) == count
        quiet = min(5.0, (end - time.time()) / 2)
        usual = Puts(leader, rate, quiet).p99()
        wait_until(lambda: time.time() >= end - 1, ttl + 30, "the last moment before")
        puts = Puts(leader, rate, lasting)
        wait_until(lambda: time.time() >= max(end, watchers.last) + QUIET, ttl + 60, "the end of the events")
        wait_until(lambda: all(sorted(told) == keys for told in watchers.deleted()), 60, "word of each key")
        # An event is sent when its key is gone, so nothing more is asked of the leader while others put.
        assert client.range(b"storm/", b"storm0", count_only=True).count == len(leases(client)) == 0
        return Storm(
            watchers.last - end - 1, usual, puts.p99(end, watchers.last),
            sum(each.slow for each in turns),
            max(each.longest for each in turns),
            sum(term(member) != before for member, before in zip(members, terms, strict=True)),
        )  # fmt: skip
