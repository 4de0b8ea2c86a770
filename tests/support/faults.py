"""Clients that record their calls and the results, and faults that happen to a cluster meanwhile."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from . import messages as m
from .client import Client, Failure, op, prefix_end
from .cluster import Cluster, Member, cut_behind
from .linear import FAILED, OK, Operation, Seen
from .proxy import Network

CALL_SECONDS = 4.0
# Errors that tell the client that its write was surely not done (FORMATS.md, "Frame", and etcd's own texts).
NOT_DONE = (
    "etcdserver: no leader",
    "etcdserver: not leader",
    "etcdserver: too many requests",
    "etcdserver: server stopped",
    "etcdserver: unhealthy cluster",
    "failed to connect to all addresses",
)
# gRPC codes of calls that may be tried again: DEADLINE_EXCEEDED, UNAVAILABLE.
UNDECIDED = (4, 14)


class Clients:
    """Threads that each put, get, range, swap and put several keys at once, through one member after the other."""

    def __init__(self, members: list[Member], prefix: bytes, seed: int, count: int = 6, keys: int = 4) -> None:
        self.history: list[Operation] = []
        self._members = members
        self._prefix = prefix
        self._keys = [prefix + b"%d" % number for number in range(keys)]
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number, random.Random(seed * 1000 + number)), daemon=True)
            for number in range(count)
        ]

    def start(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> list[Operation]:
        """End the clients after their present calls. Return the history. Raises the error that ended a client."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a call got neither a reply nor an error"
        if self._errors:
            raise self._errors[0]
        return self.history

    @property
    def done(self) -> int:
        """The number of operations that worked so far."""
        with self._lock:
            return sum(operation.status == OK for operation in self.history)

    def _run(self, number: int, rng: random.Random) -> None:
        clients = [member.client(CALL_SECONDS) for member in self._members]
        at = number % len(clients)
        try:
            while not self._stopping.is_set():
                if not self._call(clients[at], number, rng):
                    at = (at + 1) % len(clients)
                    # A member that is down answers at once. The pause leaves the processor to the other members.
                    self._stopping.wait(0.02)
        except BaseException as error:  # noqa: BLE001 - whatever it is, stop() raises it in the test's thread
            self._errors.append(error)
        finally:
            for client in clients:
                client.close()

    def _call(self, client: Client, number: int, rng: random.Random) -> bool:
        """Do one operation and record it. Return whether it worked."""
        operation = Operation(number, time.monotonic())
        with self._lock:
            self.history.append(operation)
            value = b"%d.%d" % (number, len(self.history))
        action = rng.choice([self._put, self._get, self._get, self._range, self._swap, self._put_two])
        try:
            action(client, operation, value, rng)
        except Failure as failure:
            if failure.text.startswith(NOT_DONE):
                operation.status = FAILED
            return False
        operation.end = time.monotonic()
        operation.status = OK
        return True

    def _put(self, client: Client, operation: Operation, value: bytes, rng: random.Random) -> None:
        key = rng.choice(self._keys)
        operation.written = {key: value}
        operation.revision = client.put(key, value).header.revision

    def _get(self, client: Client, operation: Operation, _value: bytes, rng: random.Random) -> None:
        key = rng.choice(self._keys)
        reply = client.range(key)
        operation.seen = {key: seen_in(reply.kvs, key)}
        operation.revision = reply.header.revision

    def _range(self, client: Client, operation: Operation, _value: bytes, _rng: random.Random) -> None:
        reply = client.range(self._prefix, prefix_end(self._prefix))
        operation.seen = {key: seen_in(reply.kvs, key) for key in self._keys}
        operation.revision = reply.header.revision

    def _swap(self, client: Client, operation: Operation, value: bytes, rng: random.Random) -> None:
        """Compare and swap with the value of a moment ago; the loser reads."""
        key = rng.choice(self._keys)
        kvs = client.range(key, serializable=True).kvs
        operation.glimpsed = {key: seen_in(kvs, key)}
        operation.start = time.monotonic()
        if kvs:
            expected = kvs[0].value
            compare = m.Compare(target=m.CMP_VALUE, key=key, value=expected)
        else:
            expected = None
            compare = m.Compare(target=m.CMP_VERSION, key=key, version=0)
        operation.expected, operation.written = {key: expected}, {key: value}
        put, get = m.PutRequest(key=key, value=value), m.RangeRequest(key=key)
        reply = client.txn([compare], [op(put)], [op(get)])
        operation.revision = reply.header.revision
        if not reply.succeeded:
            operation.expected, operation.written = {}, {}
            operation.seen = {key: seen_in(reply.responses[0].response_range.kvs, key)}

    def _put_two(self, client: Client, operation: Operation, value: bytes, rng: random.Random) -> None:
        """Put two keys in one transaction. No client may ever see one without the other."""
        pair = rng.sample(self._keys, 2)
        operation.written = {key: value + b"/" + key[-1:] for key in pair}
        puts = [op(m.PutRequest(key=key, value=written)) for key, written in operation.written.items()]
        operation.revision = client.txn([], puts, []).header.revision


def seen_in(kvs: list[m.KeyValue], key: bytes) -> Seen:
    """Return what a range shows of `key`."""
    return next(((kv.value, kv.mod_revision) for kv in kvs if kv.key == key), None)


class Faults:
    """The faults that can happen to a cluster. Every fault is over when its context ends."""

    def __init__(self, cluster: Cluster, network: Network, rng: random.Random) -> None:
        self.cluster = cluster
        self.network = network
        self.rng = rng
        self.ids = {member.status().header.member_id: member for member in cluster.members}
        self.kinds: list[Callable[[], object]] = [
            self.kill,
            self.kill_all,
            self.terminate,
            self.freeze,
            self.isolate,
            self.one_way,
            self.cut_one_link,
            self.slow_disk,
            self.move_leader,
            self.change_members,
            self.kill_and_cut,
        ]

    def victim(self) -> Member:
        """Choose a member, in most cases the leader."""
        if self.rng.random() < 0.6:
            return self.cluster.leader()
        return self.rng.choice(self.cluster.members)

    def wait(self, least: float, most: float) -> None:
        """Let the clients go on for a random time, in seconds."""
        threading.Event().wait(self.rng.uniform(least, most))

    def id_of(self, member: Member) -> int:
        return next(ident for ident, known in self.ids.items() if known is member)

    @contextmanager
    def kill(self) -> Iterator[None]:
        """Kill one member with SIGKILL. It comes back later."""
        victim = self.victim()
        victim.kill()
        yield
        victim.launch()

    @contextmanager
    def kill_all(self) -> Iterator[None]:
        """Kill all members at once with SIGKILL."""
        for member in self.cluster.members:
            member.running().popen.kill()
        for member in self.cluster.members:
            member.kill()
            member.launch()
        yield

    @contextmanager
    def terminate(self) -> Iterator[None]:
        """Stop one member with SIGTERM: it hands its leadership over, and drains."""
        victim = self.victim()
        assert victim.stop() == 0
        yield
        victim.launch()

    @contextmanager
    def kill_and_cut(self) -> Iterator[None]:
        """Kill one member while the two others do not always reach each other. For some time there is no quorum."""
        victim = self.victim()
        others = [ident for ident, member in self.ids.items() if member is not victim]
        victim.kill()
        links = [(others[0], others[1]), (others[1], others[0])]
        for _ in range(self.rng.randint(1, 4)):
            self.rng.choice([self.network.hold, self.network.sever])(self.rng.sample(links, self.rng.randint(1, 2)))
            self.wait(0.05, 0.5)
            self.network.heal()
            self.wait(0.0, 0.3)
        yield
        victim.launch()

    @contextmanager
    def move_leader(self) -> Iterator[None]:
        """Move leadership around as fast as possible."""
        for _ in range(self.rng.randint(1, 5)):
            leader = self.cluster.leader()
            target = self.rng.choice([ident for ident, member in self.ids.items() if member is not leader])
            with leader.client() as client, contextlib.suppress(Failure):
                client.call(m.MoveLeaderRequest(targetID=target))
        yield

    @contextmanager
    def change_members(self) -> Iterator[None]:
        """Add a member that never starts as a learner and remove it; then do so twice with a voter."""
        through = self.rng.choice(self.cluster.members)
        with through.client() as client:
            for learner in (True, False, False):
                url = "http://127.0.0.1:9"
                add = m.MemberAddRequest(peerURLs=[url], isLearner=learner)
                self._until_done(client, add, "Peer URLs already exists")
                self.wait(0.0, 0.2)
                members = self._until_done(client, m.MemberListRequest(linearizable=True)).members
                ident = next(member.ID for member in members if url in member.peerURLs)
                self._until_done(client, m.MemberRemoveRequest(ID=ident), "member not found")
        yield

    def _until_done(self, client: Client, request: Any, already: str = "") -> Any:
        """Return the reply to a call. It is tried again while the cluster is not healthy enough or the outcome is open.

        After an open outcome the error `already` means that the call was done.
        """
        until = time.monotonic() + 15
        is_open = False
        while True:
            try:
                return client.call(request)
            except Failure as failure:
                if is_open and already and failure.text == f"etcdserver: {already}":
                    return None
                if failure.code not in UNDECIDED or time.monotonic() > until:
                    raise
                is_open = is_open or failure.text not in NOT_DONE
                self.wait(0.05, 0.1)

    @contextmanager
    def freeze(self) -> Iterator[None]:
        """Stop a member with SIGSTOP until it has long lost its place. It must not believe in its old lease or
        leadership."""
        victim = self.victim()
        victim.running().send_signal(signal.SIGSTOP)
        yield
        victim.running().send_signal(signal.SIGCONT)

    def _links(self, member: Member, out: bool, back: bool) -> list[tuple[int, int]]:
        one = self.id_of(member)
        others = [ident for ident in self.ids if ident != one]
        return [(one, other) for other in others if out] + [(other, one) for other in others if back]

    @contextmanager
    def _cut(self, links: list[tuple[int, int]]) -> Iterator[None]:
        self.rng.choice([self.network.hold, self.network.sever])(links)
        yield
        self.network.heal()

    def isolate(self) -> object:
        """Cut one member off."""
        return self._cut(self._links(self.victim(), True, True))

    @contextmanager
    def one_way(self) -> Iterator[None]:
        """Let one member hear the others without being heard, or the other way round."""
        out = self.rng.random() < 0.5
        self.network.hold(self._links(self.victim(), out, not out))
        yield
        self.network.heal()

    def cut_one_link(self) -> object:
        """Cut the link between two members; the third reaches both."""
        one, other = self.rng.sample(list(self.ids), 2)
        return self._cut([(one, other), (other, one)])

    @contextmanager
    def leave_behind(self) -> Iterator[None]:
        """Kill one member until the others have cut the entries that it needs from their logs. It comes back by a
        snapshot, and one end or the other may be killed in the middle of that. Not among `kinds`: logs must be cut
        often for it."""
        victim = self.rng.choice(self.cluster.followers())
        others = [member for member in self.cluster.members if member is not victim]
        with others[0].client() as client:
            cut_behind(others[0], victim, lambda: [client.put(b"behind", b"x" * 2000) for _ in range(20)])
        victim.launch()
        if self.rng.random() < 0.6:
            self.wait(0.2, 0.8)
            hit = self.rng.choice([victim, *others])
            hit.kill()
            hit.launch()
        yield

    @contextmanager
    def slow_disk(self) -> Iterator[None]:
        """Let one member come back with a disk whose syncs take long."""
        victim = self.victim()
        victim.kill()
        victim.env = {"METASTORE_FAILPOINTS": f"wal.before_sync=sleep({self.rng.choice([5, 30, 120])})"}
        victim.launch().await_ready()
        victim.env = {}
        yield
        victim.kill()
        victim.launch()
