"""Clusters of real processes on loopback: members of MetaStore, or members of the real etcd.

Every member has ports of its own that stay the same over restarts. The peer addresses that the members tell each other
may be those of a proxy in between (`proxy.Network`), which can then cut and slow the links.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from . import etcdctl
from . import messages as m
from .client import Client, Failure
from .ports import free_ports
from .processes import START_SECONDS, Process, Server, StartError, etcd_binary, metric, node_argv, wait_until

# The default timing of a node: ten ticks of 100 ms.
ELECTION_TIMEOUT = 1.0
# The next leader has to be there after so many seconds. An election takes up to two timeouts, and as many again with
# each vote that splits; a busy machine adds to that. tests/raft counts the ticks.
NEXT_LEADER = 10 * ELECTION_TIMEOUT


# Snapshots are frequent and little of the log is in memory, so the part that was cut off is really gone.
SMALL_TAIL = 64 * 1024  # bytes: raft.max_tail_bytes of EAGER
EAGER = {
    "maintenance.snapshot_count": "20",
    "maintenance.snapshot_min_size": '"1KiB"',
    "maintenance.snapshot_chunk_size": '"4KiB"',
    "raft.max_tail_bytes": '"64KiB"',
    "wal.segment_size": '"64KiB"',
}


class Member(Server):
    """One process of a cluster. `client` and `peer` are where it listens; `advertised` is the peer address that it
    tells others."""

    def __init__(self, name: str, data_dir: Path, client: str, peer: str, advertised: str = "") -> None:
        super().__init__(data_dir)
        self.name = name
        self.address = client
        self.peer = peer
        self.advertised = advertised or peer
        self.initial: dict[str, str] = {}
        self.existing = False
        self.settings: dict[str, str] = {}
        self._past: list[str] = []

    def launch(self) -> Self:
        """Start the process and return at once."""
        assert self.process is None, "already started"
        self.process = Process(self.argv(), self.env)
        return self

    def await_ready(self, timeout: float = START_SECONDS) -> Self:
        """Return when the member serves. Raises StartError."""
        try:
            self.address = self._await_ready(self.running(), timeout)
        except StartError:
            self.kill()
            raise
        return self

    def wait(self, timeout: float = START_SECONDS) -> tuple[int, str]:
        """Return (exit code, log) of a process that ends by itself."""
        process = self.running()
        code = process.wait(timeout)
        self.process = None
        self._past.append(process.log)
        return code, process.log

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        process = self.process
        super().kill()
        if process is not None:
            self._past.append(process.log)

    def stop(self) -> int:
        """Stop it with SIGTERM. Return the exit code (0 if it did not run)."""
        process = self.process
        code = super().stop()
        if process is not None:
            self._past.append(process.log)
        return code

    @property
    def logs(self) -> str:
        """Return everything that its processes have written (see `Process.log`)."""
        return "".join([*self._past, self.process.log if self.process is not None else ""])

    def status(self) -> m.StatusResponse:
        """Return the member's status. Raises Failure."""
        with self.client(timeout=2) as client:
            return client.status()


class MetaStoreMember(Member):
    """A member of a MetaStore cluster."""

    kind = "metastore"

    def argv(self) -> list[str]:
        settings = {
            "node.name": self.name,
            "listen.client": f'"{self.address}"',
            "listen.peer": f'"{self.peer}"',
            "advertise.peer": f'"{self.advertised}"',
            "cluster.initial": "{" + ", ".join(f'{k} = "{v}"' for k, v in self.initial.items()) + "}",
            **({"cluster.state": '"existing"'} if self.existing else {}),
            **self.settings,
        }
        return node_argv(self.data_dir, settings)

    def _await_ready(self, process: Process, timeout: float) -> str:
        return process.wait_line(r"ready to serve client requests.*?client\W+([\w.\[\]:]+:\d+)", timeout)[1]


class EtcdMember(Member):
    """A member of a real etcd cluster. `durable=False` leaves out its syncs."""

    kind = "etcd"
    durable = True

    def argv(self) -> list[str]:
        client, peer, advertised = (f"http://{where}" for where in (self.address, self.peer, self.advertised))
        argv = [etcd_binary(), "--name", self.name, "--data-dir", str(self.data_dir), "--logger", "zap"]
        argv += ["--log-outputs", "stderr", "--listen-client-urls", client, "--advertise-client-urls", client]
        argv += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", advertised]
        argv += ["--initial-cluster", ",".join(f"{k}=http://{v}" for k, v in self.initial.items())]
        argv += ["--initial-cluster-state", "existing" if self.existing else "new"]
        argv += ["--quota-backend-bytes", str(8 << 30)]
        return argv if self.durable else [*argv, "--unsafe-no-fsync"]

    def _await_ready(self, process: Process, timeout: float) -> str:
        line = process.wait_line(r'\{.*"serving client traffic insecurely.*\}', timeout)
        return str(json.loads(line[0])["address"])


class Cluster:
    """Members of one kind. `via` maps a peer's real address to the one that the others get (default: the same)."""

    def __init__(
        self,
        folder: Path,
        size: int = 3,
        kind: type[Member] = MetaStoreMember,
        settings: Mapping[str, str] | None = None,
        via: Callable[[str], str] = lambda address: address,
    ) -> None:
        self.folder = folder
        self.kind = kind
        self.settings = dict(settings or {})
        self.via = via
        self.members: list[Member] = []
        for _ in range(size):
            self.new_member()
        initial = {member.name: member.advertised for member in self.members}
        for member in self.members:
            member.initial = initial

    def new_member(self) -> Member:
        """Return one more member, with the next name. It is not started, and no member knows it yet."""
        name = f"n{len(self.members) + 1}"
        client, peer = (f"127.0.0.1:{port}" for port in free_ports(2))
        member = self.kind(name, self.folder / name, client, peer, self.via(peer))
        member.settings = {"wal.segment_size": '"4MiB"', **self.settings}
        self.members.append(member)
        return member

    def start(self) -> Self:
        """Start all members and return when all serve."""
        for member in self.members:
            member.launch()
        for member in self.members:
            member.await_ready()
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.discard()

    def discard(self) -> None:
        """Kill all members and remove their data."""
        for member in self.members:
            member.discard()

    def check_logs(self) -> None:
        """Raise AssertionError if a member logged an error that no test expects."""
        for member in self.members:
            log = member.logs
            at = log.find("Traceback")
            assert at < 0, f"{member.name}: {log[max(0, at - 1000) : at + 4000]}"

    @property
    def endpoints(self) -> str:
        """The client addresses as etcdctl wants them."""
        return ",".join(member.address for member in self.members)

    def running(self) -> list[Member]:
        """The members with a process."""
        return [member for member in self.members if member.process is not None]

    def leader(self, among: Sequence[Member] | None = None, timeout: float = 30.0) -> Member:
        """Return the member that all of `among` (default: all that run) take for the leader, and which is one of
        them."""
        leaders: list[Member] = []

        def agreed() -> bool:
            members = list(among) if among is not None else self.running()
            try:
                statuses = [(member, member.status()) for member in members]
            except Failure:
                return False
            leads = {(status.leader, status.raftTerm) for _, status in statuses}
            leaders[:] = [member for member, status in statuses if status.leader == status.header.member_id]
            return len(leads) == 1 and len(leaders) == 1

        wait_until(agreed, timeout, "agreement on a leader")
        return leaders[0]

    def followers(self) -> list[Member]:
        """All running members except the leader."""
        leader = self.leader()
        return [member for member in self.running() if member is not leader]

    def lead(self, member: Member) -> None:
        """Make `member` the leader."""
        ident = self.member_id(member)

        def leads() -> bool:
            leader = self.leader()
            if leader is not member:
                # On a busy machine this may take longer than the leader waits, or another member leads by now.
                with leader.client() as client, contextlib.suppress(Failure):
                    client.call(m.MoveLeaderRequest(targetID=ident))
            return self.leader() is member

        wait_until(leads, 60, f"{member.name} as the leader")

    def member_id(self, member: Member) -> int:
        """Return the id of a member, as a running member knows it."""
        with self.running()[0].client() as client:
            return next(
                known.ID
                for known in client.call(m.MemberListRequest()).members
                if member.advertised in known.peerURLs[0]
            )

    def same_everywhere(self, timeout: float = 30.0) -> None:
        """Wait until every running member has applied the same entries. Check that all hold the same keys and, each by
        itself, the same members."""

        def level() -> bool:
            applied = [client.range(b"\0", count_only=True, serializable=True) for client in clients]
            return len({reply.header.revision for reply in applied}) == 1

        def rosters() -> set[tuple[str, ...]]:
            variants = set()
            for client in clients:
                with contextlib.suppress(Failure):  # a learner gives no answer
                    members = client.call(m.MemberListRequest(linearizable=False)).members
                    variants.add(tuple(sorted(map(str, members))))
            return variants

        with clients_of(self.running()) as clients:
            clients[0].revision()
            wait_until(level, timeout, "the same revision on all members")
            wait_until(lambda: len(rosters()) == 1, timeout, "the same members on all members")
            contents = [client.range(b"\0", b"\0", serializable=True).kvs for client in clients]
        assert all(content == contents[0] for content in contents[1:]), "members hold different keys"

    def same_history(self) -> None:
        """Check that all members hold the same keys, and the same history since the last compaction (HashKV)."""
        self.same_everywhere()
        with self.leader().client() as client:
            revision = client.revision()
        hashes = set()
        for member in self.running():
            with member.client() as client:
                answer = client.hash_kv(revision)
                hashes.add((answer.hash, answer.compact_revision))
        assert len(hashes) == 1, hashes

    def ctl(self, program: str, line: str, endpoints: str = "") -> str:
        """Return what etcdctl prints for a command that works."""
        done = etcdctl.run(program, endpoints or self.endpoints, *line.split())
        assert done.returncode == 0, f"etcdctl {line}: {done.stderr}"
        return done.stdout


@contextmanager
def clients_of(members: Sequence[Member]) -> Iterator[list[Client]]:
    """Yield a client for each member."""
    clients = [member.client() for member in members]
    try:
        yield clients
    finally:
        for client in clients:
            client.close()


def cut_behind(leader: Server, behind: Server, write: Callable[[], object]) -> None:
    """Kill `behind`, and call `write` until the leader has none of the entries that `behind` lacks: neither in its log
    nor in memory. A leader keeps, for up to two election timeouts, the entries that a member needs which it has heard
    of, and in memory the last `raft.max_tail_bytes`."""
    with behind.client() as client:
        last = client.status().raftIndex
    behind.kill()
    enough = metric(leader, "metastore_wal_bytes_total") + 3 * SMALL_TAIL

    def cut() -> bool:
        write()
        # This leaves room for entries that the member may have got after it was asked.
        first = metric(leader, "metastore_wal_first_index")
        return first > last + 20 and metric(leader, "metastore_wal_bytes_total") > enough

    wait_until(cut, what="a log that begins later")


def fill(member: Server, first: int, last: int) -> None:
    """Put the keys k<first> to k<last - 1>, some 700 bytes each."""
    with member.client() as client:
        for number in range(first, last):
            client.put(b"k%05d" % number, b"value of %d " % number * 40)


def left_behind(cluster: Cluster, follower: Member, count: int) -> None:
    """Kill a follower, and let the others' logs begin after its end. Afterwards the keys up to `count` exist."""
    leader = cluster.leader()
    fill(leader, 0, 60)
    cut_behind(leader, follower, lambda: fill(leader, 60, count))


def installed(member: Server) -> list[int]:
    """Return the indexes of the snapshots that a running member got from a leader."""
    return [int(index) for index in re.findall(r"installed snapshot index=(\d+)", member.running().log)]


def time_to_write(client: Client, key: bytes, limit: float = 30.0) -> float:
    """Return the seconds until a put through `client` is acknowledged. Errors before that are expected."""
    began = time.monotonic()
    while True:
        try:
            client.put(key, b"%f" % began)
            return time.monotonic() - began
        except Failure:
            assert time.monotonic() - began < limit, f"no write within {limit} s"


def error_of(client: Client, request: object, timeout: float = 10.0) -> tuple[int, str] | None:
    """Return (code, text) of a call that fails, or None if it works. Words replace the ids and addresses in the
    text."""
    try:
        client.call(request, timeout)
    except Failure as failure:
        return failure.code, re.sub(r"[0-9a-f]{12,16}", "ID", failure.text)
    return None
