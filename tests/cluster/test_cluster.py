"""Three and five real processes as one store: start, membership, leaders that come and go, strangers.

Where the texts matter, the same requests go to a real cluster of etcd.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aetcd
import pytest
from support import messages as m
from support.client import Client, op
from support.cluster import (
    NEXT_LEADER,
    Cluster,
    EtcdMember,
    Member,
    MetaStoreMember,
    clients_of,
    error_of,
)
from support.processes import wait_until

pytestmark = pytest.mark.node_only

MakeCluster = Callable[..., Cluster]
DEADLINE_EXCEEDED, UNAVAILABLE = 4, 14


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for the tests that leave it unchanged."""
    with Cluster(tmp_path_factory.mktemp("shared")) as cluster:
        yield cluster


# ---- start and daily use


def test_ready_after_an_election(cluster_of: MakeCluster) -> None:
    cluster = cluster_of().start()
    ready = r"ready to serve.*cluster=(\w+).*after=([\d.]+)s"
    lines = [member.running().wait_line(ready) for member in cluster.members]
    assert len({line[1] for line in lines}) == 1, "not one cluster"
    assert min(float(line[2]) for line in lines) < NEXT_LEADER
    assert cluster.leader().status().raftTerm <= 3


def test_put_and_get_through_every_member(shared: Cluster, prefix: str) -> None:
    with clients_of(shared.members) as clients:
        for number, writer in enumerate(clients):
            key = f"{prefix}{number}".encode()
            revision = writer.put(key, b"from %d" % number).header.revision
            for reader in clients:
                reply = reader.range(key)
                assert reply.kvs[0].value == b"from %d" % number
                assert reply.kvs[0].mod_revision == revision
                assert reply.header.revision >= revision
        first = prefix.encode() + b"0"
        once = [m.Compare(target=m.CMP_VERSION, key=first, version=1)], [op(m.PutRequest(key=first))]
        won = [client.txn(*once) for client in clients]
        assert [reply.succeeded for reply in won] == [True, False, False]
        assert clients[1].delete(prefix.encode(), prefix.encode() + b"9").deleted == 3
        assert clients[2].prefix(prefix.encode()) == {}
    headers = [member.status().header for member in shared.members]
    assert len({header.cluster_id for header in headers}) == 1
    assert len({header.member_id for header in headers}) == 3


def test_etcdctl_through_every_member(shared: Cluster, etcdctl_program: str, prefix: str) -> None:
    for member in shared.members:
        shared.ctl(etcdctl_program, f"put {prefix}{member.name} {member.name}", member.address)
    expected = "".join(f"{prefix}{member.name}\n{member.name}\n" for member in shared.members)
    for member in shared.members:
        assert shared.ctl(etcdctl_program, f"get --prefix {prefix}", member.address) == expected
    assert shared.ctl(etcdctl_program, f"del --prefix {prefix}") == "3\n"


def test_aetcd_through_every_member(shared: Cluster, prefix: str) -> None:
    key = prefix.encode() + b"counter"

    async def count(member: Member, steps: int) -> None:
        host, _, port = member.address.rpartition(":")
        async with aetcd.Client(host, int(port), timeout=10) as client:
            done = 0
            while done < steps:
                value = (await client.get(key)).value
                done += await client.replace(key, value, b"%d" % (int(value) + 1))

    async def main() -> None:
        await asyncio.gather(*(count(member, 10) for member in shared.members))

    with shared.members[0].client() as client:
        client.put(key, b"0")
        asyncio.run(main())
        assert client.get(key) == b"30", "a step was lost or counted twice"


def test_endpoint_status_and_health_of_the_cluster(shared: Cluster, etcdctl_program: str) -> None:
    leader = shared.leader()
    statuses = json.loads(shared.ctl(etcdctl_program, "endpoint status --cluster -w json", shared.members[1].address))
    assert {one["Endpoint"] for one in statuses} == {f"http://{member.address}" for member in shared.members}
    assert {one["Status"]["leader"] for one in statuses} == {leader.status().header.member_id}
    assert len({one["Status"]["raftTerm"] for one in statuses}) == 1
    table = shared.ctl(etcdctl_program, "endpoint status --cluster")
    assert [row.split(", ")[4] for row in sorted(table.splitlines())].count("true") == 1
    health = shared.ctl(etcdctl_program, "endpoint health --cluster -w json", shared.members[2].address)
    assert [one["health"] for one in json.loads(health)] == [True] * 3


def test_member_list_through_every_member(shared: Cluster, etcdctl_program: str) -> None:
    answers = set()
    for member in shared.members:
        rows = shared.ctl(etcdctl_program, "member list", member.address)
        answers.add(rows)
    assert len(answers) == 1
    rows = [row.split(", ") for row in answers.pop().splitlines()]
    assert [row[1] for row in rows] == ["started"] * 3
    expected = {(f.name, f"http://{f.advertised}", f"http://{f.address}") for f in shared.members}
    assert {(row[2], row[3], row[4]) for row in rows} == expected
    with clients_of(shared.members) as clients:
        lists = [client.call(m.MemberListRequest(linearizable=True)).members for client in clients]
    assert lists[0] == lists[1] == lists[2]


def test_move_leader(shared: Cluster, etcdctl_program: str) -> None:
    before = shared.leader()
    target = shared.followers()[0]
    ident = target.status().header.member_id
    out = shared.ctl(etcdctl_program, f"move-leader {ident:x}")
    assert f"{ident:x}" in out
    assert shared.leader() is target
    assert before.status().raftTerm == target.status().raftTerm


# ---- what etcd refuses, and with which texts


def refusals(cluster: Cluster) -> dict[str, Any]:
    """Return the answers to changes that must be refused, through the leader and through a follower. They change
    nothing."""
    leader = cluster.leader()
    out: dict[str, Any] = {}
    with clients_of([leader, *cluster.followers()]) as clients:
        members = clients[0].call(m.MemberListRequest()).members
        first = members[0]
        # etcd calls a cluster unhealthy until all members were connected for five seconds.
        twice = m.MemberAddRequest(peerURLs=[first.peerURLs[0]])
        wait_until(lambda: (error_of(clients[0], twice) or ())[:1] != (UNAVAILABLE,), 20, "a healthy cluster")
        for n in range(50):
            # A voter with less than nine tenths of the leader's log would be "not ready", which is soon true of a short
            # log.
            clients[0].put(b"longer", b"%d" % n)
        for who, client in zip(("leader", "follower"), clients, strict=False):
            requests = {
                "remove unknown": m.MemberRemoveRequest(ID=12345),
                "remove zero": m.MemberRemoveRequest(ID=0),
                "promote unknown": m.MemberPromoteRequest(ID=12345),
                "promote a voter": m.MemberPromoteRequest(ID=first.ID),
                "update unknown": m.MemberUpdateRequest(ID=12345, peerURLs=["http://127.0.0.1:1"]),
                "update to another's": m.MemberUpdateRequest(ID=first.ID, peerURLs=[members[1].peerURLs[0]]),
                "add without URL": m.MemberAddRequest(),
                "add nonsense": m.MemberAddRequest(peerURLs=["nonsense"]),
                "add without port": m.MemberAddRequest(peerURLs=["http://127.0.0.1"]),
                "add with a path": m.MemberAddRequest(peerURLs=["http://127.0.0.1:1/path"]),
                "add an address twice": m.MemberAddRequest(peerURLs=[first.peerURLs[0]]),
                "add a learner twice": m.MemberAddRequest(peerURLs=[first.peerURLs[0]], isLearner=True),
                "move to nobody": m.MoveLeaderRequest(targetID=12345),
                "move to zero": m.MoveLeaderRequest(),
            }
            for name, request in requests.items():
                out[f"{name}, {who}"] = refusal_of(client, request)
    return out


def learner_refusals(cluster: Cluster) -> dict[str, Any]:
    """Return the answers about a learner that was added and never started."""
    out: dict[str, Any] = {}
    leader = cluster.leader()
    with clients_of([leader, *cluster.followers()]) as clients:
        added = clients[1].call(m.MemberAddRequest(peerURLs=["http://127.0.0.1:9"], isLearner=True))
        out["added"] = (added.member.isLearner, added.member.name, list(added.member.peerURLs), len(added.members))
        for who, client in zip(("leader", "follower"), clients, strict=False):
            requests = {
                "second learner": m.MemberAddRequest(peerURLs=["http://127.0.0.1:10"], isLearner=True),
                "promote too early": m.MemberPromoteRequest(ID=added.member.ID),
                "move to a learner": m.MoveLeaderRequest(targetID=added.member.ID),
            }
            for name, request in requests.items():
                out[f"{name}, {who}"] = refusal_of(client, request)
        removed = clients[1].call(m.MemberRemoveRequest(ID=added.member.ID))
        out["left"] = len(removed.members)
        out["remove again"] = refusal_of(clients[0], m.MemberRemoveRequest(ID=added.member.ID))
    return out


def refusal_of(client: Client, request: object) -> tuple[int, str] | None:
    """As `error_of`. On a busy machine etcd loses its leader now and then, and a call that met that is made again."""
    for _ in range(3):
        error = error_of(client, request)
        if error is None or error[0] != DEADLINE_EXCEEDED:
            break
    return error


def down_refusals(cluster: Cluster) -> dict[str, Any]:
    """Return the answers while one of three members is down, to changes that would endanger the quorum."""
    out: dict[str, Any] = {}
    down = cluster.followers()[0]
    ident = down.status().header.member_id
    down.kill()
    leader = cluster.leader()
    other = cluster.followers()[0]
    with clients_of([leader, other]) as clients:
        twice = m.MemberAddRequest(peerURLs=[f"http://{other.advertised}"])
        wait_until(lambda: (error_of(clients[0], twice) or ())[:1] == (UNAVAILABLE,), 15, "an unhealthy cluster")
        out["add"] = error_of(clients[0], m.MemberAddRequest(peerURLs=["http://127.0.0.1:9"]))
        out["remove a live one"] = error_of(clients[0], m.MemberRemoveRequest(ID=other.status().header.member_id))
        out["move to a dead one"] = bool(error_of(clients[0], m.MoveLeaderRequest(targetID=ident)))
        out["remove the dead one"] = error_of(clients[1], m.MemberRemoveRequest(ID=ident))
        out["left"] = len(clients[1].call(m.MemberListRequest()).members)
    return out


def test_refused_changes_are_etcds(cluster_of: MakeCluster) -> None:
    """The same requests go to three nodes of etcd and of ours. Only the names of paths and addresses may differ."""

    def answers(cluster: Cluster) -> dict[str, Any]:
        cluster.start()
        return {**refusals(cluster), **learner_refusals(cluster), **down_refusals(cluster)}

    with ThreadPoolExecutor() as pool:  # most of it is waiting
        etcd, ours = pool.map(answers, [cluster_of(kind=kind) for kind in (EtcdMember, MetaStoreMember)])
    differing = {name: (etcd[name], ours[name]) for name in etcd if etcd[name] != ours[name]}
    assert not differing, "\n".join(f"{name}: etcd {a}, ours {b}" for name, (a, b) in differing.items())
