"""A request whose deadline passes while it waits at another member, or for a leader, is never logged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support import messages as m
from support.attack import Raw
from support.cluster import Cluster
from support.processes import metric, wait_until

pytestmark = pytest.mark.node_only

MakeCluster = Callable[..., Cluster]
OVER = (4, "context deadline exceeded")
ELSEWHERE = "http://127.0.0.1:1"
LATE = {
    "put": m.PutRequest(key=b"late", value=b"1"),
    "compact": m.CompactionRequest(revision=2),
    "alarm": m.AlarmRequest(action=1, memberID=7, alarm=1),
    "member": m.MemberAddRequest(peerURLs=[ELSEWHERE], isLearner=True),
}


def test_forwarded_requests_that_expire_at_the_leader(cluster_of: MakeCluster, tmp_path: Path) -> None:
    """The disks of all members take very long, so nothing is committed, and further requests wait at the leader."""
    gate = tmp_path / "gate"
    cluster = cluster_of(settings={"raft.batch_max_time": '"10s"', "limits.request_timeout": '"60s"'})
    for member in cluster.members:
        member.env["METASTORE_FAILPOINTS"] = f"wal.before_sync=block({gate})"
    cluster.start()
    leader, follower = cluster.leader(), cluster.followers()[0]
    with leader.client() as first, follower.client() as client, Raw(follower) as raw:
        client.put(b"a", b"1")
        before = client.call(m.MemberListRequest()).members
        gate.touch()
        call = first.future(m.PutRequest(key=b"held", value=b"1"), timeout=60)
        wait_until(lambda: metric(leader, "metastore_inflight_requests") == 1, what="a write in the disk's work")
        for number, request in enumerate(LATE.values()):
            assert raw.ask(2 * number + 1, request) == OVER
        # It comes behind them, by the same way.
        behind = client.future(m.DeleteRangeRequest(key=b"behind"), timeout=60)
        wait_until(lambda: metric(leader, "metastore_inflight_requests") == len(LATE) + 1, what="it at the leader")
        assert not call.done()
        gate.unlink()
        assert call.result(timeout=60) and behind.result(timeout=60)
        # The leader says which of them it dropped, so the follower does not count them for its request_timeout.
        wait_until(lambda: metric(follower, "metastore_inflight_requests") == 0, what="nothing in flight")
        # A later change is judged and goes through. The earlier ones did not.
        added = client.call(m.MemberAddRequest(peerURLs=["http://127.0.0.1:2"], isLearner=True)).member
        members = client.call(m.MemberListRequest()).members
        assert {one.ID for one in members} == {one.ID for one in before} | {added.ID}
        assert client.alarm() == [] and client.get(b"late") is None
        assert not client.range(b"a", revision=1).kvs, "and nothing is compacted"
    for member in cluster.members:
        member.kill()
        log = b"".join(path.read_bytes() for path in member.data_dir.glob("wal/*.wal"))
        assert b"held" in log and b"late" not in log and ELSEWHERE.encode() + b'"' not in log


@pytest.mark.parametrize("kind", LATE)
def test_requests_that_expire_without_a_leader(kind: str, cluster_of: MakeCluster) -> None:
    """They wait at the member that got them, which sends them to the next leader, except those that have expired."""
    cluster = cluster_of(settings={"limits.request_timeout": '"60s"'}).start()
    survivor, others = cluster.followers()[0], [cluster.leader(), cluster.followers()[1]]
    with survivor.client(timeout=60) as client, Raw(survivor) as raw:
        client.put(b"a", b"1")
        for member in others:
            member.kill()
        wait_until(lambda: client.status().leader == 0, what="no leader")
        assert raw.ask(1, LATE[kind]) == OVER
        behind = client.future(m.PutRequest(key=b"behind", value=b"1"), timeout=60)
        for member in others:
            member.launch()
        assert behind.result(timeout=60)
        added = client.call(m.MemberAddRequest(peerURLs=["http://127.0.0.1:2"], isLearner=True)).member
        assert sum(one.ID != added.ID for one in client.call(m.MemberListRequest()).members) == 3
        assert client.alarm() == [] and client.get(b"late") is None
        assert not client.range(b"a", revision=1).kvs, "and nothing is compacted"
