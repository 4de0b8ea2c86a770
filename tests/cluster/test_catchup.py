"""Log entries that left memory, in real processes. A member that is behind gets them, and a start replays them, while
the loop goes on, however slow the disk is to read."""

from __future__ import annotations

import re
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster, Member
from support.processes import wait_until

pytestmark = pytest.mark.node_only

MakeCluster = Callable[..., Cluster]
# Little of the log stays in memory, and all of it on the disk.
SMALL = {
    "raft.max_tail_bytes": '"64KiB"',
    "wal.read_ahead_cache": '"256KiB"',
    "performance.enable_compression": "false",
}
COUNT = 500
ROUNDS = 8
EXIT_DISK = 6


def numbers(member: Member) -> dict[str, float]:
    """Return the numbers of /metrics about reading ahead, without prefix and suffixes."""
    with urllib.request.urlopen(f"http://{member.address}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    values = re.findall(r"^metastore_read_ahead_(\w+?)(?:_total)? ([\d.e+]+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in values}


def fill(member: Member, first: int, last: int) -> None:
    with member.client() as client:
        for number in range(first, last):
            client.put(b"k%05d" % number, b"%d " % number * 300)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeCluster]:
    clusters: list[Cluster] = []

    def make(size: int = 3, failpoints: str = "") -> Cluster:
        clusters.append(Cluster(tmp_path / f"cluster-{len(clusters)}", size, settings=SMALL))
        for member in clusters[-1].members:
            member.env = {"METASTORE_FAILPOINTS": failpoints}
        return clusters[-1].start()

    yield make
    for cluster in clusters:
        cluster.check_logs()
        cluster.discard()


def test_a_member_that_slept_gets_what_left_memory(make: MakeCluster) -> None:
    cluster = make()
    leader, follower = cluster.leader(), cluster.followers()[0]
    counters = {"hits": 0.0}
    # The sender asks for the next block as soon as it has one, so it may always be a little too early.
    for number in range(0, ROUNDS * COUNT, COUNT):
        follower.running().send_signal(signal.SIGSTOP)
        fill(leader, number, number + COUNT)
        follower.running().send_signal(signal.SIGCONT)
        cluster.same_everywhere(60)
        counters = numbers(leader)
        assert (
            counters["misses"] > 0 and counters["read_bytes"] > 100_000 and 0 < counters["cached_bytes"] <= 256 << 10
        ), counters
        if counters["hits"]:
            break
    assert counters["hits"] > 0
    assert "installed snapshot" not in follower.logs


def test_writes_and_heartbeats_go_on_while_the_disk_hangs(make: MakeCluster, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    cluster = make(failpoints=f"wal.read=block({hold})")
    leader, follower = cluster.leader(), cluster.followers()[0]
    other = next(member for member in cluster.members if member not in (leader, follower))
    hold.touch()
    follower.running().send_signal(signal.SIGSTOP)
    fill(leader, 0, COUNT)
    term = leader.status().raftTerm
    follower.running().send_signal(signal.SIGCONT)
    wait_until(lambda: numbers(leader)["misses"] > 0, what="the follower's wish for an entry that left memory")
    # Nothing can be read, and only the member that is behind notices.
    for number in range(COUNT, COUNT + 100):
        fill(leader if number % 2 else other, number, number + 1)
    assert cluster.leader([leader, other]) is leader and leader.status().raftTerm == term
    assert follower.status().raftIndex < leader.status().raftIndex
    hold.unlink()
    cluster.same_everywhere(60)
    assert leader.status().raftTerm == term


def test_a_start_replays_while_the_loop_goes_on(make: MakeCluster, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    cluster = make(1, failpoints=f"wal.read=block({hold})")
    (node,) = cluster.members
    fill(node, 0, COUNT)
    assert node.stop() == 0
    hold.touch()
    node.launch()

    def asked() -> bool:
        try:
            return numbers(node)["misses"] > 0
        except OSError:
            return False

    wait_until(asked, what="the page of a node that replays")
    assert "ready to serve" not in node.running().log
    hold.unlink()
    node.await_ready()
    with node.client() as client:
        assert len(client.prefix(b"k")) == COUNT


def test_a_read_that_fails_stops_the_node(make: MakeCluster) -> None:
    cluster = make(1)
    (node,) = cluster.members
    fill(node, 0, 5)
    assert node.stop() == 0
    node.env = {"METASTORE_FAILPOINTS": "wal.read=error"}
    node.launch()
    code, log = node.wait()
    assert code == EXIT_DISK
    assert re.search(r"reading \S+\.wal failed: .*Input/output error", log), log
    node.env = {}
    node.launch().await_ready()
    with node.client() as client:
        assert len(client.prefix(b"k")) == 5


def test_damage_that_a_follower_needs_stops_the_leader(make: MakeCluster) -> None:
    """The others go on, and one of them brings the follower up to date."""
    cluster = make()
    leader, follower = cluster.leader(), cluster.followers()[0]
    follower.running().send_signal(signal.SIGSTOP)
    fill(leader, 0, COUNT)
    segment = min(leader.data_dir.glob("wal/*.wal"))
    data = segment.read_bytes()
    at = data.rindex(b"%d " % (COUNT - 100) * 10)
    with segment.open("r+b") as file:
        file.seek(at)
        file.write(b"\0")
    follower.running().send_signal(signal.SIGCONT)
    code, log = leader.wait(60)
    assert code not in (0, EXIT_DISK), "damage has a code of its own"
    assert re.search(rf"{segment.name}: entry \d+ is damaged at offset \d+", log), log
    cluster.leader()
    cluster.same_everywhere(60)
    with follower.client() as client:
        assert len(client.prefix(b"k")) == COUNT
