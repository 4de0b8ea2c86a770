"""Other stores under the load of the matrix, each as real processes: Redis, ZooKeeper and PySyncObj.

All of them are asked by the generator of loader.py: so many connections with so many puts under way on each, as h2load
has for MetaStore and etcd. Redis (`appendfsync always`) is the yardstick of a bare log. ZooKeeper syncs its log before
it answers. PySyncObj has a journal that it never syncs, and no protocol for clients: bench/syncobj_server.py gives it
one, that of Redis. A store that is not installed is left out, and `missing` says what to install.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import loader
from support.processes import Process, Server, StartError, wait_until

from metastore.cli.cluster import free_ports

JAVA_CLASSES = ("/etc/zookeeper/conf", "/usr/share/java/zookeeper.jar")
NODE = "/bench"
ANY_VERSION = -1
#: Milliseconds after which ZooKeeper ends a session without a word.
SESSION = 30_000


class Redis(Server):
    """One Redis that syncs its log before it answers."""

    kind = "redis"

    def __init__(self, data_dir: Path, port: int) -> None:
        super().__init__(data_dir)
        self.port = port

    def argv(self) -> list[str]:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        argv = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.data_dir)]
        return [*argv, "--appendonly", "yes", "--appendfsync", "always", "--save", "", "--daemonize", "no"]

    def _await_ready(self, process: Process, timeout: float) -> str:
        process.wait_line("eady to accept connections", timeout)
        return f"127.0.0.1:{self.port}"


class SyncObj(Server):
    """One process of PySyncObj."""

    kind = "pysyncobj"

    def __init__(self, data_dir: Path, port: int, peers: list[int], me: int) -> None:
        super().__init__(data_dir)
        self.port = port
        self.peers = peers
        self.me = me

    def argv(self) -> list[str]:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        program = Path(__file__).with_name("syncobj_server.py")
        argv = [sys.executable, str(program), str(self.port), str(self.data_dir / "journal"), str(self.peers[self.me])]
        return argv + [str(port) for at, port in enumerate(self.peers) if at != self.me]

    def _await_ready(self, process: Process, timeout: float) -> str:
        process.wait_line("^ready", timeout)
        return f"127.0.0.1:{self.port}"


class ZooKeeper(Server):
    """One ZooKeeper, of `ports`: (client, peers, election) of each."""

    kind = "zookeeper"

    def __init__(self, data_dir: Path, ports: list[list[int]], me: int) -> None:
        super().__init__(data_dir)
        self.ports = ports
        self.me = me

    def argv(self) -> list[str]:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        lines = [f"dataDir={self.data_dir}", f"clientPort={self.ports[self.me][0]}", "clientPortAddress=127.0.0.1"]
        lines += ["tickTime=2000", "initLimit=10", "syncLimit=5", "maxClientCnxns=0", "admin.enableServer=false"]
        lines += ["4lw.commands.whitelist=srvr"]
        if len(self.ports) > 1:
            lines += [f"server.{at + 1}=127.0.0.1:{two}:{three}" for at, (_, two, three) in enumerate(self.ports)]
            (self.data_dir / "myid").write_text(str(self.me + 1))
        conf = self.data_dir / "zoo.cfg"
        conf.write_text("\n".join(lines) + "\n")
        argv = ["java", f"-Dzookeeper.log.dir={self.data_dir}", "-cp", ":".join(JAVA_CLASSES)]
        return [*argv, "org.apache.zookeeper.server.quorum.QuorumPeerMain", str(conf)]

    def _await_ready(self, process: Process, timeout: float) -> str:
        address = f"127.0.0.1:{self.ports[self.me][0]}"

        def serves() -> bool:
            if process.popen.poll() is not None:
                raise StartError(f"zookeeper ended: {process.log}", process.popen.returncode)
            return bool(self.mode(address))

        wait_until(serves, timeout, "a ZooKeeper that serves")
        return address

    @staticmethod
    def mode(address: str) -> str:
        """Return leader, follower or standalone; "" while it does not serve."""
        host, _, port = address.rpartition(":")
        answer = b""
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 5) as sock:
            sock.sendall(b"srvr")
            while data := sock.recv(4096):
                answer += data
        _, _, mode = answer.decode(errors="replace").partition("Mode: ")
        return mode.partition("\n")[0]


@dataclass
class Puts(loader.Source):
    """The calls of one connection: the same put again and again. `make` returns the bytes of call n."""

    count: int
    make: Callable[[int], bytes]

    def take(self, start: int, room: int, window: int) -> tuple[bytes, int, int]:
        """See Source."""
        return b"".join(self.make(number) for number in range(start, start + room)), room, 0


@dataclass
class InTurn(loader.Connection):
    """A connection that answers its calls in turn. `split` returns the replies in some bytes, and the bytes that they
    take. It raises RuntimeError for an error."""

    split: Callable[[bytes], tuple[int, int]] = field(kw_only=True)

    def receive(self) -> None:
        """Read what is there. Raises RuntimeError if the server ends the connection or answers with an error."""
        try:
            data = self.sock.recv(1 << 18)
        except BlockingIOError:
            return
        if not data:
            raise RuntimeError("the server closed the connection")
        self.pending += data
        count, used = self.split(self.pending)
        self.pending = self.pending[used:]
        if self.times is not None:
            self.times.note(self.begun[self.done : self.done + count])
        self.done += count
        self.replies += count


def redis_put(value: bytes) -> Callable[[int], bytes]:
    """Return what makes the put number n."""
    text = b"*3\r\n$3\r\nSET\r\n$9\r\nbench/key\r\n$%d\r\n%s\r\n" % (len(value), value)
    return lambda _: text


def redis_split(data: bytes) -> tuple[int, int]:
    """Split replies to SET."""
    used = data.rfind(b"\n") + 1
    count = data.count(b"+OK\r\n", 0, used)
    if 5 * count != used:
        raise RuntimeError(f"redis: {data[:200]!r}")
    return count, used


def zookeeper_put(value: bytes) -> Callable[[int], bytes]:
    """Return what makes the put number n."""
    from kazoo.protocol.serialization import SetData

    body = bytes(SetData(NODE, value, ANY_VERSION).serialize())
    size = len(body) + 8
    return lambda number: struct.pack(">iii", size, number + 1, SetData.type) + body


def zookeeper_split(data: bytes) -> tuple[int, int]:
    """Split replies to SetData: their length, then xid, zxid and error."""
    at = count = 0
    while at + 4 <= len(data) and at + 4 + (size := struct.unpack_from(">i", data, at)[0]) <= len(data):
        if error := struct.unpack_from(">i", data, at + 16)[0]:
            raise RuntimeError(f"zookeeper: error {error}")
        count += 1
        at += 4 + size
    return count, at


def zookeeper_greet(sock: socket.socket) -> None:
    """Begin a session."""
    from kazoo.protocol.serialization import Connect

    body = bytes(Connect(0, 0, SESSION, 0, b"\0" * 16, False).serialize())
    sock.sendall(struct.pack(">i", len(body)) + body)
    size = struct.unpack(">i", sock.recv(4, socket.MSG_WAITALL))[0]
    sock.recv(size, socket.MSG_WAITALL)


class Peers:
    """The processes of one store: it begins as support.cluster.Cluster does."""

    def __init__(self, kind: str, folder: Path, nodes: int) -> None:
        self.kind = kind
        self.members: list[Server] = []
        if kind == "redis":
            self.members.append(Redis(folder / "1", free_ports(1)[0]))
        elif kind == "zookeeper":
            flat = free_ports(3 * nodes)
            ports = [flat[3 * at : 3 * at + 3] for at in range(nodes)]
            self.members += [ZooKeeper(folder / str(at), ports, at) for at in range(nodes)]
        else:
            flat = free_ports(2 * nodes)
            self.members += [SyncObj(folder / str(at), flat[at], flat[nodes:], at) for at in range(nodes)]

    def start(self) -> Self:
        """Start all, and return when all serve."""
        # A member of a cluster serves only when a majority is there.
        for member in self.members:
            member.process = Process(member.argv(), member.env)
        for member in self.members:
            member.address = member._await_ready(member.running(), 60.0)
        if self.kind == "zookeeper":
            from kazoo.client import KazooClient

            client = KazooClient(self.leader().address)
            client.start(timeout=30)
            client.create(NODE, b"")
            client.stop()
            client.close()
        return self

    def leader(self) -> Server:
        """Return the member to ask."""
        if self.kind == "zookeeper":
            return next(one for one in self.members if ZooKeeper.mode(one.address) in ("leader", "standalone"))
        for member in self.members:
            if self.kind == "redis" or "leads" in member.running().log:
                return member
        raise StartError(f"{self.kind}: no member leads", None)

    def discard(self) -> None:
        """Kill all and remove their data."""
        for member in self.members:
            member.discard()

    def put(self, count: int, connections: int, streams: int, value: bytes, times: loader.Times) -> None:
        """Put one key `count` times. `times` says how, and hears of each put."""
        make, split = (
            (zookeeper_put(value), zookeeper_split) if self.kind == "zookeeper" else (redis_put(value), redis_split)
        )
        host, _, port = self.leader().address.rpartition(":")
        made: list[loader.Connection] = []
        share = -(-count // connections)
        for first in range(0, count, share):
            sock = socket.create_connection((host, int(port)), 30)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.kind == "zookeeper":
                zookeeper_greet(sock)
            sock.setblocking(False)
            calls = Puts(min(share, count - first), make)
            made.append(InTurn(calls, streams, sock, window=1 << 60, times=times, split=split))
        loader.play(made, times)
        if sum(connection.replies for connection in made) != count:
            raise SystemExit(f"{self.kind}: not every put was answered")


#: The other stores, with the numbers of nodes that they can have.
NODES = {"redis": (1,), "zookeeper": (1, 3, 5), "pysyncobj": (1, 3, 5)}


def missing(kind: str) -> str:
    """Return what to install before a store can be measured; "" if it is there."""
    if kind == "redis":
        return "" if shutil.which("redis-server") else "Debian: redis-server"
    if kind == "pysyncobj":
        return "" if importlib.util.find_spec("pysyncobj") else "PyPI: pysyncobj"
    if not shutil.which("java") or not Path(JAVA_CLASSES[1]).exists():
        return "Debian: zookeeper"
    return "" if importlib.util.find_spec("kazoo") else "PyPI: kazoo"
