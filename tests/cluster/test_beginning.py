"""Who is a member, and at which address: clusters that begin, lose directories, move, and run twice, with real
processes."""

from __future__ import annotations

import itertools
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support import messages as m
from support.client import Failure
from support.cluster import Cluster, Member, MetaStoreMember, error_of
from support.ports import free_ports
from support.processes import wait_until

from metastore.errors import AnotherProcess, ConfigError, MustJoinAnew

pytestmark = pytest.mark.node_only

MakeCluster = Callable[..., Cluster]
#: Elections and heartbeats are ten times as fast, because these tests are not about how long they take.
QUICK = {"raft.tick_interval": '"30ms"', "wal.segment_size": '"1MiB"'}
ORDERS = list(itertools.permutations(range(3)))
UNAVAILABLE = 14


def serializable(member: Member) -> list[bytes]:
    """Return what a member answers for the key k by itself; nothing while it does not listen yet."""
    try:
        with member.client(timeout=2) as client:
            return [kv.value for kv in client.range(b"k", serializable=True).kvs]
    except (Failure, OSError):
        return []


def write_often(member: Member) -> None:
    """Write the same value again and again, because a member alone may know only a part as committed."""
    with member.client() as client:
        for _ in range(5):
            client.put(b"k", b"kept")


def term_of(member: Member) -> int:
    return int(member.status().raftTerm)


# ---- beginning


def test_three_new_members_begin_in_every_order(cluster_of: MakeCluster) -> None:
    """The third member is started when the second one waits already."""
    cluster = cluster_of(settings=QUICK)
    for order in ORDERS:
        first, second, third = (cluster.members[number] for number in order)
        first.launch()
        second.launch().running().wait_line(r"connected", 30)
        third.launch()
        for member in cluster.members:
            member.await_ready()
        cluster.discard()


def test_a_majority_of_new_members_begins_without_the_third(cluster_of: MakeCluster) -> None:
    cluster = cluster_of(settings={**QUICK, "cluster.begin_wait": '"300ms"'})
    first, second, third = cluster.members
    for member in (first, second):
        member.launch()
    for member in (first, second):
        member.await_ready()
    with first.client() as client:
        client.put(b"k", b"1")
    third.launch().await_ready()
    cluster.same_everywhere()


def test_two_wiped_members_never_elect_each_other(cluster_of: MakeCluster) -> None:
    """The third member lives, or comes back a little later than they do. Its answer ends them before they vote or
    serve."""
    cluster = cluster_of(settings={**QUICK, "cluster.begin_wait": '"20s"'}).start()
    survivor, *wiped = cluster.members
    write_often(survivor)
    for order in [(0, 1, 2), *ORDERS]:
        for member in wiped:
            member.discard()
        for number in order:
            if cluster.members[number].process is None:
                cluster.members[number].launch()
        for member in wiped:
            code, log = member.wait()
            assert code == MustJoinAnew.exit_code, log
            assert "takes part from now on" not in log and "the leader is" not in log and "ready to serve" not in log
        wait_until(lambda: serializable(survivor) == [b"kept"], 10, "what was acknowledged")
        survivor.kill()


def test_what_cannot_be_told_apart(cluster_of: MakeCluster) -> None:
    """The only kept member is down for longer than new ones wait, so two wiped ones take themselves for a new cluster.
    When it comes back its answer ends them, the leader too, and its data are unchanged."""
    cluster = cluster_of(settings={**QUICK, "cluster.begin_wait": '"100ms"'}).start()
    survivor, *wiped = cluster.members
    write_often(survivor)
    for member in cluster.members:
        member.kill()
    for member in wiped:
        member.discard()
        member.launch()
    for member in wiped:
        member.await_ready()
    with wiped[0].client() as client:
        client.put(b"k", b"begun anew")
    survivor.launch()
    for member in wiped:
        code, log = member.wait()
        assert code == MustJoinAnew.exit_code, log
    wait_until(lambda: serializable(survivor) == [b"kept"], 10, "what was acknowledged")


def test_a_wiped_member_serves_nothing(cluster_of: MakeCluster) -> None:
    """While no member can tell it whether it is new, it answers no read from its empty store."""
    cluster = cluster_of(settings=QUICK).start()
    with cluster.members[0].client() as client:
        client.put(b"k", b"1")
    wiped = cluster.members[2]
    for member in cluster.members:
        member.kill()
    shutil.rmtree(wiped.data_dir)
    wiped.launch()
    for missing in cluster.members[:2]:
        line = wiped.running().wait_line(r"no leader: waiting for (.*)", 10)[1]
        assert f"{missing.name} (" in line and f"at {missing.advertised} (Connection refused)" in line
    with wiped.client() as client:
        for request in (
            m.RangeRequest(key=b"k", serializable=True),
            m.TxnRequest(success=[m.RequestOp(request_range=m.RangeRequest(key=b"k", serializable=True))]),
        ):
            with pytest.raises(Failure):
                client.call(request, 0.3)


# ---- another's data directory


def test_a_directory_of_another_member_or_cluster_is_refused(fresh: Callable[..., Member], tmp_path: Path) -> None:
    node = fresh(settings={"node.name": "a", "cluster.token": '"t"'}).start()
    node.stop()
    for settings, reason in (
        ({"node.name": "b", "cluster.token": '"t"'}, "node.name is 'b', but the data directory is that of 'a'"),
        ({"node.name": "a"}, "cluster.token is 'metastore', but the data directory was made with another one"),
    ):
        other = fresh(settings=settings)
        with pytest.raises(Exception, match=reason) as refused:
            other.start()
        assert refused.value.returncode == ConfigError.exit_code and str(node.data_dir) in str(refused.value)
    node.start()


def test_a_member_that_runs_twice(cluster_of: MakeCluster, tmp_path: Path) -> None:
    """The second process runs on a copy of the directory, at another address. The copy ends, and the cluster does not
    notice."""
    cluster = cluster_of(settings=QUICK).start()
    member = cluster.followers()[0]
    shutil.copytree(member.data_dir, tmp_path / "copy")
    copy = MetaStoreMember(member.name, tmp_path / "copy", "127.0.0.1:0", f"127.0.0.1:{free_ports(1)[0]}")
    # Only the roster knows the member's address: the copy says that it has moved.
    copy.initial = member.initial
    copy.settings = member.settings
    term = term_of(member)
    try:
        code, log = copy.launch().wait()
    finally:
        copy.discard()
    assert code == AnotherProcess.exit_code, log
    assert "on a copy of the same data directory" in log
    with member.client() as at:
        at.put(b"k", b"1")
    assert term_of(member) == term


# ---- away while others moved or joined


def move(cluster: Cluster, member: Member, through: Member) -> None:
    """Tell the cluster a new peer address of `member`, and start it there."""
    ident = cluster.member_id(member)
    new = f"127.0.0.1:{free_ports(1)[0]}"
    with through.client() as client:
        client.call(m.MemberUpdateRequest(ID=ident, peerURLs=[f"http://{new}"]))
    member.stop()
    member.peer = member.advertised = new
    member.launch().await_ready()


def test_a_member_that_was_away_while_the_leader_moved(cluster_of: MakeCluster) -> None:
    cluster = cluster_of(settings=QUICK).start()
    moved, other, away = cluster.members
    cluster.lead(other)
    away.kill()
    move(cluster, moved, other)
    cluster.lead(moved)
    with moved.client() as client:
        client.put(b"k", b"2")
    away.launch().await_ready()
    # This also holds when only these two are left.
    other.kill()
    with away.client() as client:
        wait_until(lambda: error_of(client, m.PutRequest(key=b"k", value=b"3"), 3) is None, 20, "a leader of two")
    cluster.same_everywhere()


def test_a_member_that_was_away_while_another_joined_and_one_left(cluster_of: MakeCluster) -> None:
    """The member is killed when `member add` is answered, before it hears of it. In the end two of three live."""
    cluster = cluster_of(settings=QUICK).start()
    leader = cluster.leader()
    gone, away = cluster.followers()
    new = cluster.new_member()
    ask = m.MemberAddRequest(peerURLs=[f"http://{new.advertised}"])

    def added() -> bool:
        """The member is held up so that the others go on without it, but too short for the leader to miss it."""
        away.running().popen.send_signal(signal.SIGSTOP)
        with leader.client() as client:
            if error_of(client, ask) is None:
                return True
        away.running().popen.send_signal(signal.SIGCONT)
        return False

    wait_until(added, 20, "a healthy cluster")
    away.kill()
    new.existing, new.initial = True, {**leader.initial, new.name: new.advertised}
    new.settings = {**new.settings, "cluster.token": '"nobody told me"'}
    new.launch().await_ready()
    with leader.client() as client:
        leave = m.MemberRemoveRequest(ID=cluster.member_id(gone))
        wait_until(lambda: error_of(client, leave) is None, 20, "a member removed")
        client.put(b"k", b"1")
    with new.client() as client:
        wait_until(lambda: client.get(b"k") == b"1", 10, "the newcomer level")
    leader.kill()
    away.launch()
    with new.client() as client:
        wait_until(lambda: error_of(client, m.PutRequest(key=b"k", value=b"2"), 3) is None, 20, "a leader of two")
    away.await_ready()
