"""`metastore cluster --nodes 3` runs a cluster of local processes, for trying out. Ctrl-C stops it."""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from metastore.cli.options import add_set
from metastore.errors import ConfigError, MetaStoreError
from metastore.member.memory_limit import limits, tightest

READY = "ready to serve client requests client="
QUIET = 0.5  # seconds without a line of a node before the final lines are printed
QUIET_TIMEOUT = 5.0  # seconds for which that silence is awaited
STOP_TIMEOUT = 10.0  # seconds for a node to stop before it is killed
MAX_NODES = 9


def parser() -> argparse.ArgumentParser:
    """The options of the subcommand."""
    arg_parser = argparse.ArgumentParser(
        prog="metastore cluster", description="Run a cluster of several nodes on this machine, for trying out."
    )
    arg_parser.add_argument("--nodes", type=int, default=3, help=f"how many, 1 to {MAX_NODES} (default 3)")
    arg_parser.add_argument("--dir", help="keep the data in this folder and go on from it; without it, a temporary one")
    arg_parser.add_argument(
        "--client-port", type=int, default=2379, help="client port of n1; the others follow (0: any)"
    )
    arg_parser.add_argument("--peer-port", type=int, default=2480, help="peer port of n1; the others follow (0: any)")
    add_set(arg_parser, "as for a node, for all of them")
    return arg_parser


def free_ports(count: int) -> list[int]:
    """Return ports that nobody has at this moment. They lie below the ports that the system gives to processes that
    dial out: one of those could be taken before its node listens, or while the node is being restarted.
    """
    low = 32_768
    with contextlib.suppress(OSError):
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(min(10_000, low // 2), low)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            if port not in ports:
                ports.append(port)
    return ports


class LocalNode:
    """The process of one node. Its log lines go to our standard error, with the node's name in front."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        self.name = name
        self.client = ""
        self.last_line = ""
        self.spoke = time.monotonic()  # when its last line came
        self.settled = threading.Event()  # the node is ready or over
        # A node must not outlive us. If setpriv is available, the system stops the node when we are killed.
        setpriv = shutil.which("setpriv")
        before = [setpriv, "--pdeathsig", "TERM"] if setpriv else []
        self.process = subprocess.Popen(
            [*before, sys.executable, "-m", "metastore", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            sys.stderr.write(f"{self.name} | {line}")
            self.last_line, self.spoke = line.strip(), time.monotonic()
            if READY in line:
                self.client = line.split(READY)[1].split()[0]
                self.settled.set()
        self.settled.set()

    def reason(self) -> str:
        """Why the process ended: its exit code, and its last log line."""
        code = self.process.wait()
        self._reader.join(1.0)
        return f"{self.name} ended with code {code}: {self.last_line.removeprefix('metastore: ') or 'it said nothing'}"

    def ask(self) -> None:
        """Ask the process to stop, but only once: after a second signal it would end without draining."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    def join(self) -> None:
        """Wait for the end of the process, and kill it if that takes too long."""
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(1.0)


def launch(options: argparse.Namespace, folder: Path) -> list[LocalNode]:
    """Start the processes."""
    count = options.nodes
    peers = [options.peer_port + i for i in range(count)] if options.peer_port else free_ports(count)
    clients = [options.client_port + i if options.client_port else 0 for i in range(count)]
    names = [f"n{i + 1}" for i in range(count)]
    initial = ", ".join(f'{name} = "127.0.0.1:{port}"' for name, port in zip(names, peers, strict=True))
    # All nodes are on this machine, and in this container if there is one.
    limit = tightest(limits())
    memory = [] if limit is None else [f"limits.memory_bytes={limit.nbytes // count}"]
    nodes = []
    for name, peer, client in zip(names, peers, clients, strict=True):
        settings = [
            f"node.name={name}",
            f"node.data_dir={folder / name}",
            f"listen.client=127.0.0.1:{client}",
            f"listen.peer=127.0.0.1:{peer}",
            f"cluster.initial={{ {initial} }}",
            *memory,
            *options.overrides,
        ]
        nodes.append(LocalNode(name, [part for setting in settings for part in ("--set", setting)]))
    return nodes


def main(arguments: Sequence[str]) -> int:
    """Run until SIGINT, SIGTERM or SIGHUP (a closed terminal), or until all nodes are over; returns the exit code."""
    options = parser().parse_args(arguments)
    if not 1 <= options.nodes <= MAX_NODES:
        raise ConfigError(f"--nodes {options.nodes}: 1 to {MAX_NODES}")
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    folder = Path(options.dir) if options.dir else Path(tempfile.mkdtemp(prefix="metastore-cluster-"))
    folder.mkdir(parents=True, exist_ok=True)
    nodes: list[LocalNode] = []
    try:
        nodes = launch(options, folder)
        return watch(nodes, stopping)
    finally:
        for node in nodes:
            node.ask()
        for node in nodes:
            node.join()
        if not options.dir:
            shutil.rmtree(folder, ignore_errors=True)


def watch(nodes: list[LocalNode], stopping: threading.Event) -> int:
    """Report when all nodes are ready, then wait for the end. Raises MetaStoreError if a node does not get ready."""
    while not all(node.client for node in nodes):
        # The others may wait for a node that has ended, for ever.
        for node in nodes:
            if node.settled.is_set() and not node.client:
                raise MetaStoreError(f"the cluster does not start: {node.reason()}")
        if stopping.wait(0.05):
            return 0
    # The remaining lines of the nodes come first, because the user copies from the lines below.
    until = time.monotonic() + QUIET_TIMEOUT
    while time.monotonic() < min(until, max(node.spoke for node in nodes) + QUIET):
        if stopping.wait(0.05):
            return 0
    endpoints = ",".join(node.client for node in nodes)
    print(
        f"{len(nodes)} nodes are ready; stop them with Ctrl-C.\nexport ETCDCTL_API=3 ETCDCTL_ENDPOINTS={endpoints}",
        flush=True,
    )
    reported: set[str] = set()
    while not stopping.wait(0.2):
        for node in nodes:
            code = node.process.poll()
            if code is not None and node.name not in reported:
                # The others may go on without the node, which is what a user wants to try out.
                reported.add(node.name)
                print(node.reason(), file=sys.stderr, flush=True)
        if len(reported) == len(nodes):
            return 1
    return 0
