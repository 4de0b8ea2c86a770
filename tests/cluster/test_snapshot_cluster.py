"""A snapshot brings up members that are behind the log: over kills at every step, under load, and newcomers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import messages as m
from support.cluster import EAGER, Cluster, Member, fill, installed, left_behind
from support.load import History, Load
from support.processes import dies_at, metric, wait_until

pytestmark = pytest.mark.node_only

MakeCluster = Callable[..., Cluster]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeCluster]:
    """Make clusters that take snapshots often. They are killed at the end of the test."""
    clusters: list[Cluster] = []

    def make(**settings: str) -> Cluster:
        clusters.append(Cluster(tmp_path / f"cluster-{len(clusters)}", settings={**EAGER, **settings}).start())
        return clusters[-1]

    yield make
    for cluster in clusters:
        cluster.discard()


def test_a_follower_behind_the_log_gets_a_snapshot(make: MakeCluster) -> None:
    cluster = make()
    follower = cluster.followers()[0]
    left_behind(cluster, follower, 400)
    follower.start()
    cluster.same_everywhere()
    assert len(installed(follower)) == 1
    fill(follower, 400, 450)
    # The next life begins with what was installed.
    follower.kill()
    follower.start()
    assert installed(follower) == []
    cluster.same_everywhere()
    with follower.client() as client:
        assert len(client.prefix(b"k")) == 450


@pytest.mark.parametrize(
    "point",
    ["snapshot.receive@1", "snapshot.receive@20", "snapshot.rename", "snapshot.verify", "snapshot.install",
     "snapshot.restore@1", "snapshot.restore@12"],
)  # fmt: skip
def test_killed_while_a_snapshot_comes_in(point: str, make: MakeCluster) -> None:
    cluster = make()
    follower = cluster.followers()[0]
    left_behind(cluster, follower, 400)
    dies_at(follower, point)
    sizes = [path.stat().st_size for path in follower.data_dir.glob("snap/*.part")]
    follower.start()
    cluster.same_everywhere()
    if point == "snapshot.receive@20":
        assert sizes and re.search(r"goes on at chunk 1\d", follower.running().log), follower.running().log
    if point.partition("@")[0] in ("snapshot.verify", "snapshot.install", "snapshot.restore"):
        # The file was complete, so the node began with it. (The leader may have had a newer one meanwhile.)
        assert "restored snapshot" in follower.running().log
    fill(follower, 400, 410)
    cluster.same_everywhere()


def test_the_leader_dies_while_it_sends(make: MakeCluster) -> None:
    cluster = make()
    follower = cluster.followers()[0]
    left_behind(cluster, follower, 400)
    leader = cluster.leader()
    follower.env = {"METASTORE_FAILPOINTS": "snapshot.receive=sleep(50)"}
    follower.launch()
    wait_until(lambda: list(follower.data_dir.glob("snap/*.part")), what="a file that is being received")
    leader.kill()
    follower.await_ready()
    leader.start()
    cluster.same_everywhere()
    with follower.client() as client:
        assert len(client.prefix(b"k")) == 400


def learner_of(cluster: Cluster, leader: Member) -> Member:
    """Return a new learner, known to the cluster whose only voter is `leader`. It is not started."""
    newcomer = cluster.new_member()
    newcomer.existing = True
    newcomer.initial = {member.name: member.advertised for member in cluster.members}
    newcomer.settings = dict(cluster.settings)
    with leader.client() as client:
        client.call(m.MemberAddRequest(peerURLs=[f"http://{newcomer.advertised}"], isLearner=True))
    return newcomer


def test_both_ends_are_killed_in_mid_transfer(tmp_path: Path) -> None:
    """Both go on where they stopped, with what is on their disks. The leader takes no snapshot in its second life, so
    it is the same file."""
    cluster = Cluster(tmp_path / "cluster", 1, settings={**EAGER, "maintenance.snapshot_send_rate": '"300KiB"'})
    try:
        (leader,) = cluster.start().members
        fill(leader, 0, 600)
        leader.stop()
        cluster.settings["maintenance.snapshot_count"] = leader.settings["maintenance.snapshot_count"] = "100000"
        leader.start()
        newcomer = learner_of(cluster, leader).launch()
        sizes = [path.stat().st_size for path in sorted(leader.data_dir.glob("snap/*.snap"))]

        def received() -> int:
            return sum(path.stat().st_size for path in newcomer.data_dir.glob("snap/*.part"))

        for share in (3, 2):
            wait_until(lambda share=share: received() > sizes[-1] // share, 30, "a part of the snapshot")
            newcomer.kill()
            leader.kill()
            leader.start()
            newcomer.launch()
        newcomer.await_ready()
        cluster.same_everywhere(30)
        went_on = [int(number) for number in re.findall(r"goes on at chunk (\d+)", newcomer.logs)]
        assert len(went_on) >= 2 and went_on == sorted(went_on) and went_on[0] > 0, newcomer.logs
        with newcomer.client() as client:
            assert len(client.range(b"k", b"l", serializable=True).kvs) == 600
    finally:
        cluster.discard()


def test_installed_under_load(make: MakeCluster) -> None:
    cluster = make()
    history = History()
    follower = cluster.followers()[0]
    with cluster.leader().client() as client:
        load = Load(client, history, expect_end=False).start()
        for _ in range(3):
            follower.kill()
            load.wait_acks(300)
            follower.start()
        load.wait_acks(200)
        load.stop()
        history.check(client)
    assert not load.failures
    cluster.same_everywhere()
    with follower.client() as client:
        history.check(client)


def test_a_newcomer_gets_the_snapshot_of_a_compacted_log(make: MakeCluster) -> None:
    cluster = make()
    leader = cluster.leader()

    def cut() -> bool:
        fill(leader, 0, 300)
        return metric(leader, "metastore_wal_first_index") > 1

    wait_until(cut, what="a log that begins later")
    newcomer = cluster.new_member()
    newcomer.existing = True
    newcomer.initial = {member.name: member.advertised for member in cluster.members}
    with cluster.leader().client() as client:
        client.call(m.MemberAddRequest(peerURLs=[f"http://{newcomer.advertised}"]))
    newcomer.start()
    cluster.same_everywhere()
    assert len(installed(newcomer)) >= 1
    with newcomer.client() as client:
        assert len(client.prefix(b"k")) == 300
        assert len(client.call(m.MemberListRequest()).members) == 4
    newcomer.kill()
    newcomer.start()
    fill(newcomer, 300, 320)
    cluster.same_everywhere()
