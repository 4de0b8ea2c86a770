"""Members of a cluster that lack something: one has no room for its log, the disk of one stands still, and one takes
nothing from its sockets."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from support import messages as m
from support.client import Client, Failure
from support.cluster import Cluster, Member, time_to_write
from support.processes import wait_until

pytestmark = pytest.mark.node_only

MakeCluster = Callable[..., Cluster]
KIB = 1 << 10
MIB = 1 << 20
NO_SPACE = (8, "etcdserver: mvcc: database space exceeded")
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]
SETTINGS = {
    "wal.segment_size": '"256KiB"',
    "raft.tick_interval": '"50ms"',
    "limits.request_timeout": '"1s"',
    "performance.enable_compression": "false",
}
# From the sixth step of making a segment on there is no room any more.
FULL = {"METASTORE_FAILPOINTS": "wal.segment=error(ENOSPC)@6"}


def lead(cluster: Cluster, member: Member) -> None:
    """Make `member` the leader."""
    leader = cluster.leader()
    if leader is not member:
        with leader.client() as client:
            client.call(m.MoveLeaderRequest(targetID=member.status().header.member_id))


def fill(client: Client, most: int, until: Callable[[], bool]) -> dict[bytes, bytes]:
    """Put 8 KiB values until `until()`. Return what was acknowledged."""
    acked = {}
    for number in range(most):
        key, value = b"fill/%05d" % number, os.urandom(8 * KIB)
        try:
            client.put(key, value)
        except Failure as failure:
            # Leadership is on its way, or a follower passes on the leader's refusal.
            assert failure.code == UNAVAILABLE or (failure.code, failure.text) == NO_SPACE
        else:
            acked[key] = value
        if until():
            return acked
    pytest.fail(f"nothing came of {most} puts of 8 KiB")


def test_a_leader_whose_disk_stands_still_hands_over(cluster_of: MakeCluster, tmp_path: Path) -> None:
    cluster = cluster_of(settings=SETTINGS)
    stuck, other = cluster.members[0], cluster.members[1]
    stands_still = tmp_path / "the disk of the first one stands still"
    stuck.env = {"METASTORE_FAILPOINTS": f"wal.before_sync=block({stands_still})"}
    cluster.start()
    lead(cluster, stuck)
    with other.client() as client:
        time_to_write(client, b"before")
        stands_still.touch()
        with suppress(Failure):
            client.put(b"meanwhile", b"1")
        wait_until(lambda: "handing leadership to" in stuck.logs, 20, "handing over")
        wait_until(lambda: cluster.leader() is not stuck, 20, "another leader")
        time_to_write(client, b"after")
        stands_still.unlink()
    cluster.same_everywhere()


def test_a_leader_without_room_hands_over_and_does_not_stay_one(cluster_of: MakeCluster) -> None:
    cluster = cluster_of(settings=SETTINGS)
    full, other = cluster.members[0], cluster.members[1]
    full.env = FULL
    cluster.start()
    lead(cluster, full)
    with other.client() as client, full.client() as refused:
        acked = fill(client, 2000, lambda: "handing leadership to" in full.logs)
        assert "no room for the log" in full.logs
        wait_until(lambda: cluster.leader() is not full, 30, "another leader")
        time_to_write(client, b"after")
        with pytest.raises(Failure) as failure:
            refused.put(b"refused", b"1")
        assert (failure.value.code, failure.value.text) == NO_SPACE
        assert refused.range(b"fill/00000", serializable=True).count == 1
        # No member makes it lead again while it lacks room.
        with pytest.raises(Failure):
            lead(cluster, full)
        assert "does not take leadership" in full.logs and cluster.leader() is not full
        time_to_write(client, b"again")
        assert client.prefix(b"fill/").items() >= acked.items()
        assert client.get(b"refused") is None
    full.kill()
    full.env = {}
    full.start()
    cluster.same_everywhere()
    with full.client() as client:
        client.put(b"there is room", b"1")
    cluster.check_logs()


def test_where_all_lack_room_leadership_stays_and_the_way_out_is_open(cluster_of: MakeCluster) -> None:
    cluster = cluster_of(settings=SETTINGS)
    for member in cluster.members:
        member.env = FULL
    cluster.start()
    leader = cluster.leader()
    with leader.client() as client:
        acked = fill(client, 2000, lambda: all("no room for the log" in member.logs for member in cluster.members))
        term = leader.status().raftTerm
        for follower in cluster.followers():
            wait_until(lambda one=follower: "does not take leadership" in one.logs, 60, "everybody asked")  # type: ignore[misc]
        assert client.prefix(b"fill/").items() >= acked.items()
        with pytest.raises(Failure) as failure:
            client.put(b"refused", b"1")
        assert (failure.value.code, failure.value.text) == NO_SPACE
        deleted = time_to_delete(client, b"fill/00000")
        client.compact(deleted.header.revision)
        assert [member.status().raftTerm for member in cluster.members] == [term] * 3
    for member in cluster.members:
        member.kill()
        member.env = {}
    cluster.members = [member.launch() for member in cluster.members]
    for member in cluster.members:
        member.await_ready()
    with cluster.leader().client() as client:
        time_to_write(client, b"after")
        assert client.get(b"refused") is None and client.get(b"fill/00000") is None
    cluster.same_everywhere()
    cluster.check_logs()


def time_to_delete(client: Client, key: bytes) -> Any:
    """Return the reply to a delete, which waits while leadership is being offered to others."""
    while True:
        try:
            return client.delete(key)
        except Failure as failure:
            assert failure.code == UNAVAILABLE, failure


def test_a_follower_without_room_neither_acknowledges_nor_votes(cluster_of: MakeCluster) -> None:
    cluster = cluster_of(settings=SETTINGS)
    full, *others = cluster.members
    full.env = FULL
    cluster.start()
    lead(cluster, others[0])

    def behind() -> bool:
        return full.status().raftAppliedIndex + 10 < others[0].status().raftAppliedIndex

    with others[0].client() as client:
        acked = fill(client, 2000, behind)
        others[1].kill()
        with pytest.raises(Failure) as failure:
            client.put(b"open", b"1")
        assert failure.value.code == UNAVAILABLE
    others[0].kill()
    # Two of three are there. They try again and again to elect one of them, and no vote reaches a disk.
    third = others[1].launch()
    term = full.status().raftTerm
    wait_until(lambda: max(term_of(third), term_of(full)) >= term + 2, 60, "elections that nobody wins")
    assert (third.status().leader, full.status().leader) == (0, 0)
    full.kill()
    full.env = {}
    full.launch().await_ready()
    third.await_ready()
    with third.client() as client:
        time_to_write(client, b"after")
        assert client.prefix(b"fill/").items() >= acked.items()
    others[0].start()
    cluster.same_everywhere()
    cluster.check_logs()


def term_of(member: Member) -> int:
    """Return the term of a member that may not listen yet; 0 then."""
    try:
        return int(member.status().raftTerm)
    except Failure:
        return 0


def test_a_follower_that_stands_still_costs_bounded_memory(cluster_of: MakeCluster) -> None:
    """The leader holds for it what is in flight and a tail of the log, and not everything that it misses. The follower
    that keeps up holds the same keys, so the difference is the cost of the slow one."""
    cluster = cluster_of(
        settings={**SETTINGS, "wal.segment_size": '"16MiB"', "limits.request_timeout": '"10s"'}
    ).start()
    leader, (slow, fast) = cluster.leader(), cluster.followers()
    value = os.urandom(512 * KIB)
    with leader.client(30) as client:
        client.put(b"k", value)
        slow.running().send_signal(signal.SIGSTOP)
        for _ in range(14):
            for future in [client.future(m.PutRequest(key=b"k", value=value), 30) for _ in range(20)]:
                future.result()
            client.compact(client.revision())
        missed = 280 * len(value)
        cost = leader.running().peak_rss() - fast.running().peak_rss()
        assert cost < missed // 2, f"{cost // MIB} MiB for a follower that misses {missed // MIB} MiB"
        slow.running().send_signal(signal.SIGCONT)
        time_to_write(client, b"after")
    cluster.same_everywhere(60)
    cluster.check_logs()
