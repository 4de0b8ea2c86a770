"""Runs h2load (Debian: nghttp2-client) against a gRPC method and reads what it prints and logs."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

#: A spread load begins one connection after the other, with so many milliseconds in between.
PERIOD_MS = 3


@dataclass(frozen=True)
class Load:
    """The shape of a load: `requests` in all, over `connections` with `streams` under way on each. `rate` is in
    requests per second of each connection (0: as many as the server answers). `spread` begins the connections one after
    the other. Otherwise they send at the same moments, and form groups that real clients never form."""

    requests: int
    connections: int
    streams: int
    rate: int = 0
    spread: bool = False

    @property
    def ramp(self) -> float:
        """Seconds until the last connection begins. The first ones are at their end as much earlier."""
        return self.connections * PERIOD_MS / 1000 if self.spread else 0.0


@dataclass(frozen=True)
class Outcome:
    """`rate` is in requests per second. Latencies and starts (since the epoch) of each request are in microseconds.
    `data` is bytes of reply messages. In `window` (microseconds since the epoch) all connections send: it is the time
    without the ramps of a spread load."""

    rate: float
    seconds: float
    latencies: list[int]
    data: int
    starts: list[int]
    window: tuple[float, float]

    def during(self, first: float, last: float) -> list[int]:
        """Return the latencies of the requests that began in this time, which is like `window`."""
        pairs = zip(self.starts, self.latencies, strict=True)
        return [latency for start, latency in pairs if first <= start < last]


def run(address: str, path: str, message: bytes, load: Load) -> Outcome:
    """Do one run. Raises RuntimeError unless every request got HTTP 200 (which says nothing about the gRPC status)."""
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder) / "message.bin", Path(folder) / "log"
        body.write_bytes(message)
        command = ["h2load", f"-c{load.connections}", f"-m{load.streams}", f"-n{load.requests}", "-t1", "-d", str(body)]
        command += [f"--log-file={log}", "-H", "content-type: application/grpc", "-H", "te: trailers"]
        if load.rate:
            command.append(f"--rps={load.rate}")
        if load.spread:
            command += ["-r1", f"--rate-period={PERIOD_MS}ms"]
        command.append(f"http://{address}{path}")
        done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=True)
        rows = [line.split("\t") for line in log.read_text().splitlines()]
    starts, latencies = [int(row[0]) for row in rows], [int(row[2]) for row in rows]
    finished = re.search(r"finished in ([\d.]+)(us|ms|s|m), ([\d.]+) req/s", done.stdout)
    good = re.search(r"(\d+) succeeded", done.stdout)
    data = re.search(r"\((\d+)\) data", done.stdout)
    if not (finished and good and data) or int(good[1]) != load.requests or len(latencies) != load.requests:
        raise RuntimeError(f"h2load: not every request succeeded:\n{done.stdout}\n{done.stderr}")
    seconds = float(finished[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}[finished[2]]
    return Outcome(load.requests / seconds, seconds, latencies, int(data[1]), starts, window_of(starts, load.ramp))


def window_of(starts: list[int], ramp: float) -> tuple[float, float]:
    """Return the time in which all connections send, if the ramp takes so many seconds at each end. A run that is too
    short for that counts as a whole."""
    first, last = min(starts) + ramp * 1e6, max(starts) - ramp * 1e6
    return (first, last) if first < last else (min(starts), max(starts))


def version() -> str:
    """Return the version of h2load. Raises RuntimeError if it is missing."""
    try:
        return subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    except FileNotFoundError:
        raise RuntimeError("h2load is missing: Debian package nghttp2-client") from None
