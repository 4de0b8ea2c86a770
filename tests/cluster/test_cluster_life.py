"""The lives of members: they join, leave, die, come back, are moved, wiped and mistaken for others."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import http2 as h
from support import messages as m
from support.attack import Raw
from support.client import Client, op
from support.cluster import (
    ELECTION_TIMEOUT,
    NEXT_LEADER,
    Cluster,
    EtcdMember,
    Member,
    clients_of,
    error_of,
    time_to_write,
)
from support.load import History, Load
from support.ports import free_ports
from support.processes import StartError, wait_until

from metastore.errors import MustJoinAnew, RemovedFromCluster

pytestmark = pytest.mark.node_only

MakeCluster = Callable[..., Cluster]
FAILED_PRECONDITION = 9
UNAVAILABLE = 14


def add(cluster: Cluster, through: Member, learner: bool = False) -> Member:
    """Return one more member, known to the cluster and ready to be started."""
    member = cluster.new_member()
    with through.client() as client:
        request = m.MemberAddRequest(peerURLs=[f"http://{member.advertised}"], isLearner=learner)
        reply = client.call(request)
        assert (reply.member.name, reply.member.isLearner) == ("", learner)
        assert reply.member in reply.members
    member.existing = True
    member.initial = {**cluster.members[0].initial, member.name: member.advertised}
    return member


def remove(through: Member, victim: Member, cluster: Cluster) -> None:
    """Remove `gone`, which need not run, by its id."""
    ident = cluster.member_id(victim)
    with through.client() as client:
        reply = client.call(m.MemberRemoveRequest(ID=ident))
    assert ident not in [member.ID for member in reply.members]


# ---- changes of the membership


def test_a_voter_joins_and_leaves(cluster_of: MakeCluster, etcdctl_program: str) -> None:
    """The change is made by etcdctl, through a follower, with data to catch up."""
    cluster = cluster_of().start()
    follower = cluster.followers()[0]
    with follower.client() as client:
        client.put(b"before", b"1")
    new = cluster.new_member()
    out = cluster.ctl(etcdctl_program, f"member add {new.name} --peer-urls=http://{new.advertised}", follower.address)
    assert 'ETCD_INITIAL_CLUSTER_STATE="existing"' in out and f"{new.name}=http://{new.advertised}" in out
    assert "unstarted" in cluster.ctl(etcdctl_program, "member list", follower.address)
    new.existing, new.initial = True, {**follower.initial, new.name: new.advertised}
    new.launch().await_ready()
    with new.client() as client:
        assert client.get(b"before") == b"1"
        client.put(b"through the new one", b"2")
    cluster.same_everywhere()
    ident = cluster.member_id(new)
    assert "removed from cluster" in cluster.ctl(etcdctl_program, f"member remove {ident:x}", follower.address)
    code, log = new.wait()
    assert code == RemovedFromCluster.exit_code
    assert "was removed from the cluster" in log
    with pytest.raises(StartError) as died:
        new.launch().await_ready()
    assert died.value.returncode == RemovedFromCluster.exit_code
    with follower.client() as client:
        assert client.get(b"through the new one") == b"2"


def test_a_learner_is_promoted(cluster_of: MakeCluster, etcdctl_program: str) -> None:
    cluster = cluster_of().start()
    leader, follower = cluster.leader(), cluster.followers()[0]
    with leader.client() as client:
        for number in range(100):
            client.put(b"%d" % number, b"x")
    learner = add(cluster, follower, learner=True)
    ident = cluster.member_id(learner)
    refused = (9, "etcdserver: can only promote a learner member which is in sync with leader")
    with clients_of([leader, follower]) as clients:
        assert [error_of(client, m.MemberPromoteRequest(ID=ident)) for client in clients] == [refused] * 2
    learner.launch().await_ready()
    assert learner.status().isLearner
    assert "true" in cluster.ctl(etcdctl_program, "member list", follower.address)
    wait_until(lambda: learner.status().raftAppliedIndex >= 100, 15, "the learner has the log")
    cluster.ctl(etcdctl_program, f"member promote {ident:x}", follower.address)
    wait_until(lambda: not learner.status().isLearner, 10, "promotion is known to the member itself")
    # With four voters and one of them dead, the promoted one is needed for a quorum.
    follower.kill()
    with learner.client() as client:
        client.put(b"after", b"1")


def what_a_learner_answers(cluster: Cluster) -> dict[str, object]:
    """Return the answers of a learner that has everything."""
    leader = cluster.leader()
    with leader.client() as client:
        # etcd calls a cluster unhealthy until all members were connected for five seconds.
        twice = m.MemberAddRequest(peerURLs=[f"http://{leader.advertised}"])
        wait_until(lambda: (error_of(client, twice) or ())[:1] != (UNAVAILABLE,), 20, "a healthy cluster")
        client.put(b"k", b"1")
    learner = add(cluster, leader, learner=True)
    learner.launch().await_ready()
    with learner.client() as client:
        wait_until(lambda: client.range(b"k", serializable=True).count == 1, 10, "the learner has the log")
        requests = [
            m.PutRequest(key=b"k"),
            m.RangeRequest(key=b"k"),
            m.DeleteRangeRequest(key=b"k"),
            m.TxnRequest(),
            m.CompactionRequest(revision=1),
            m.MemberListRequest(),
            m.MemberRemoveRequest(ID=1),
            m.MoveLeaderRequest(targetID=1),
            m.TYPES["LeaseGrantRequest"](TTL=60),
            m.TYPES["LeaseRevokeRequest"](ID=1),
            m.TYPES["LeaseTimeToLiveRequest"](ID=1),
            m.TYPES["LeaseLeasesRequest"](),
        ]
        answers: dict[str, object] = {type(request).__name__: error_of(client, request) for request in requests}
        return {**answers, "is learner": client.status().isLearner}


def test_what_a_learner_serves(cluster_of: MakeCluster) -> None:
    """A learner serves serializable reads, Status and nothing else, with the texts of etcd. The code of a refusal is
    that of 3.6 (FAILED_PRECONDITION); 3.5.1 answers UNAVAILABLE."""
    etcd = what_a_learner_answers(cluster_of(kind=EtcdMember).start())
    refused = (UNAVAILABLE, "etcdserver: rpc not supported for learner")
    now = {name: (FAILED_PRECONDITION, refused[1]) if answer == refused else answer for name, answer in etcd.items()}
    assert now != etcd
    assert what_a_learner_answers(cluster_of().start()) == now


def test_changes_of_the_membership_follow_each_other(cluster_of: MakeCluster) -> None:
    """Every member builds upon what one member has answered, although a leader's disk may be the last that has the
    change."""
    cluster = cluster_of()
    slow, *others = cluster.members
    slow.env = {"METASTORE_FAILPOINTS": "wal.before_sync=sleep(20)"}
    cluster.start()
    leader = cluster.leader()
    if leader is not slow:
        with leader.client() as client:
            client.call(m.MoveLeaderRequest(targetID=slow.status().header.member_id))
    assert cluster.leader() is slow
    with clients_of(others) as clients:
        for number in range(10):
            client = clients[number % 2]
            added = client.call(m.MemberAddRequest(peerURLs=["http://127.0.0.1:9"], isLearner=True)).member
            client.call(m.MemberRemoveRequest(ID=added.ID))


def test_a_member_is_replaced(cluster_of: MakeCluster) -> None:
    """An operator does this about a lost disk: remove the member, and add a new one at its address."""
    cluster = cluster_of().start()
    leader, lost = cluster.leader(), cluster.followers()[0]
    lost.kill()
    remove(leader, lost, cluster)
    shutil.rmtree(lost.data_dir)
    with leader.client() as client:
        client.put(b"meanwhile", b"1")
        client.call(m.MemberAddRequest(peerURLs=[f"http://{lost.advertised}"]))
    lost.existing = True
    lost.launch().await_ready()
    cluster.same_everywhere()
    with clients_of(cluster.members) as clients:
        assert [client.get(b"meanwhile") for client in clients] == [b"1"] * 3


def test_the_leader_is_removed(cluster_of: MakeCluster) -> None:
    cluster = cluster_of().start()
    leader, (one, other) = cluster.leader(), cluster.followers()
    remove(one, leader, cluster)
    assert leader.wait()[0] == RemovedFromCluster.exit_code
    with one.client() as client:
        assert time_to_write(client, b"k") < NEXT_LEADER
        assert len(client.call(m.MemberListRequest()).members) == 2
    assert cluster.leader() in (one, other)


def test_removed_while_it_was_down(cluster_of: MakeCluster) -> None:
    """A member that comes back after its removal hears of it from the others, and ends."""
    cluster = cluster_of().start()
    leader, victim = cluster.leader(), cluster.followers()[0]
    victim.kill()
    remove(leader, victim, cluster)
    code, log = victim.launch().wait()
    assert code == RemovedFromCluster.exit_code, log
    assert "was removed from the cluster" in log


def test_a_member_moves(cluster_of: MakeCluster, etcdctl_program: str) -> None:
    """The cluster is told another peer address before. The member itself tells another client address."""
    cluster = cluster_of().start()
    leader, moved = cluster.leader(), cluster.followers()[0]
    ident = cluster.member_id(moved)
    moved.stop()
    moved.address, moved.peer = (f"127.0.0.1:{port}" for port in free_ports(2))
    moved.advertised = moved.peer
    cluster.ctl(etcdctl_program, f"member update {ident:x} --peer-urls=http://{moved.peer}", leader.address)
    with leader.client() as client:
        client.put(b"meanwhile", b"1")
    moved.launch().await_ready()
    with moved.client() as client:
        assert client.get(b"meanwhile") == b"1"
        known = {member.ID: member for member in client.call(m.MemberListRequest()).members}[ident]
    assert list(known.peerURLs) == [f"http://{moved.peer}"]
    assert list(known.clientURLs) == [f"http://{moved.address}"]
    cluster.same_everywhere()


# ---- leaders


def test_sigterm_hands_leadership_over_first(cluster_of: MakeCluster) -> None:
    """No client has to wait for an election timeout. The best of a few counts, because other processes share the
    machine."""
    cluster = cluster_of().start()
    times: list[float] = []
    stops: list[float] = []
    while not times or (min(times) >= ELECTION_TIMEOUT and len(times) < 4):
        leader, follower = cluster.leader(), cluster.followers()[0]
        with follower.client() as client:
            client.put(b"k", b"1")
            term = leader.status().raftTerm
            began = time.monotonic()
            leader.running().send_signal(signal.SIGTERM)
            times.append(time_to_write(client, b"k"))
            code, log = leader.wait()
            stops.append(time.monotonic() - began)
        assert code == 0 and "handing leadership to" in log
        now = cluster.leader().status().raftTerm
        assert now == term + 1 or times[-1] >= ELECTION_TIMEOUT
        leader.start()
    assert min(times) < ELECTION_TIMEOUT and min(stops) < 5, (times, stops)


@pytest.mark.parametrize("role", ["leader", "follower"])
def test_killed_under_load_and_back(cluster_of: MakeCluster, role: str) -> None:
    """kill -9 comes while others write through all members. Nothing acknowledged is lost, and the killed member catches
    up."""
    cluster = cluster_of().start()
    history = History()
    for _ in range(2):
        victim = cluster.leader() if role == "leader" else cluster.followers()[0]
        survivor = next(member for member in cluster.members if member is not victim)
        with victim.client() as dying, survivor.client() as living:
            load = Load(dying, history, writers=4).start()
            load.wait_acks(50)
            victim.kill()
            load.join()
            assert time_to_write(living, b"elsewhere") < NEXT_LEADER
            history.check(living)
        victim.launch().await_ready()
        cluster.same_everywhere()
    for member in cluster.members:
        with member.client() as client:
            history.check(client)


def test_all_killed_at_once(cluster_of: MakeCluster) -> None:
    cluster = cluster_of().start()
    history = History()
    with cluster.followers()[0].client() as client:
        load = Load(client, history).start()
        load.wait_acks(200)
        for member in cluster.members:
            member.running().popen.kill()
        for member in cluster.members:
            member.kill()
        load.join()
    cluster.start()
    for member in cluster.members:
        with member.client() as client:
            history.check(client)
    cluster.same_everywhere()


def test_all_terminated_at_once(cluster_of: MakeCluster) -> None:
    """No member waits for another one that ends too. What was acknowledged is there after the next start."""
    cluster = cluster_of().start()
    history = History()
    with cluster.followers()[0].client() as client:
        load = Load(client, history).start()
        load.wait_acks(200)
        began = time.monotonic()
        for member in cluster.members:
            member.running().send_signal(signal.SIGTERM)
        assert [member.wait()[0] for member in cluster.members] == [0, 0, 0]
        assert time.monotonic() - began < 10
        load.join()
    cluster.start()
    for member in cluster.members:
        with member.client() as client:
            history.check(client)


def test_rolling_restart_under_load(cluster_of: MakeCluster) -> None:
    """Members are restarted one by one, as for an update. Clients that can choose between members hardly notice."""
    cluster = cluster_of().start()
    with clients_of(cluster.members) as clients:
        for turn, member in enumerate(cluster.members):
            rest = [client for client in clients if client is not clients[turn]]
            assert member.stop() == 0
            waits = [time_to_write(rest[n % 2], b"rolling/%d/%d" % (turn, n)) for n in range(20)]
            assert max(waits) < NEXT_LEADER
            member.launch().await_ready()
        assert clients[0].range(b"rolling/", b"rolling0", count_only=True).count == 60
    cluster.same_everywhere()


def test_five_members_bear_two_dead(cluster_of: MakeCluster) -> None:
    cluster = cluster_of(5).start()
    cluster.leader().kill()
    cluster.leader().kill()
    with clients_of(cluster.running()) as clients:
        for number, client in enumerate(clients):
            client.put(b"%d" % number, b"x")
        assert [client.range(b"0", b"9").count for client in clients] == [3, 3, 3]
    for member in cluster.members:
        if member.process is None:
            member.launch()
    for member in cluster.members:
        member.await_ready()
    cluster.same_everywhere()


def answers_without_quorum(cluster: Cluster) -> dict[str, object]:
    """Return the answers of the last of three members."""
    survivor = cluster.followers()[0]
    with survivor.client(timeout=30) as client:
        client.put(b"k", b"1")
        for member in cluster.members:
            if member is not survivor:
                member.kill()
        wait_until(lambda: client.status().leader == 0, 15, "no leader")
        requests = [m.PutRequest(key=b"k"), m.RangeRequest(key=b"k"), m.MemberListRequest(linearizable=True)]
        with Client(survivor.address, metadata=(("hasleader", "true"),)) as hasty:
            serializable = m.RangeRequest(key=b"k", serializable=True)
            required = [error_of(hasty, request) for request in (*requests[:2], serializable)]
        with ThreadPoolExecutor() as pool:
            put, read, members = pool.map(lambda request: error_of(client, request, 30), requests)
        with Raw(survivor) as raw:  # grpcio ends a call itself when its deadline has passed
            late = m.PutRequest(key=b"expired").SerializeToString()
            raw.send(h.call(1, late, h.PUT_PATH, (b"grpc-timeout", b"300m")))
            expired = raw.answer(1)
        answers = {
            "with a leader required": required,
            "put": put,
            "expired": (expired.status, expired.text),
            "range": read,
            "serializable": client.range(b"k", serializable=True).kvs[0].value,
            "status": list(client.status().errors),
            "member list": members,
            "plain member list": len(client.call(m.MemberListRequest()).members),
        }
        for member in cluster.members:
            if member is not survivor:
                member.launch()
        wait_until(lambda: client.status().leader != 0, 30, "a leader again")
        return {**answers, "expired key": client.get(b"expired")}


def test_no_quorum(cluster_of: MakeCluster) -> None:
    """Writes and linearizable reads fail with etcd's texts. Serializable reads and Status are served."""
    clusters = [cluster_of(kind=EtcdMember), cluster_of(settings={"limits.request_timeout": '"1s"'})]
    with ThreadPoolExecutor() as pool:  # most of it is waiting
        etcd, ours = pool.map(lambda cluster: answers_without_quorum(cluster.start()), clusters)
    # Without a leader etcd's raft library lets the caller's deadline pass, and the server reports that with these
    # words.
    assert etcd.pop("put") == (2, "context deadline exceeded")
    assert ours.pop("put") == (UNAVAILABLE, "etcdserver: request timed out")
    # The code is the one that its gRPC library, in that version, makes of any error without a code.
    assert etcd.pop("expired") == (2, "context deadline exceeded")
    assert ours.pop("expired") == (4, "context deadline exceeded")
    assert ours == etcd


# ---- much data


def test_large_requests_through_a_follower(cluster_of: MakeCluster) -> None:
    """The requests are as large as they may be, many at once. Larger ones get the answer that a leader would give."""
    cluster = cluster_of().start()
    value = random.Random(1).randbytes(1 << 20)
    with clients_of([cluster.leader(), *cluster.followers()]) as clients:
        calls = [clients[1 + n % 2].future(m.PutRequest(key=b"large/%d" % n, value=value), 30) for n in range(24)]
        assert all(call.result() for call in calls)
        assert clients[0].range(b"large/", b"large0", count_only=True).count == 24
        assert clients[0].get(b"large/23") == value
        too_large = m.PutRequest(key=b"k", value=bytes(1_600_000))
        assert [error_of(client, too_large) for client in clients] == [(3, "etcdserver: request is too large")] * 3
        ops = [op(m.PutRequest(key=b"many/%d" % n, value=b"x")) for n in range(128)]
        assert clients[1].txn([], ops, []).succeeded
        too_many = m.TxnRequest(success=[*ops, op(m.PutRequest(key=b"one more"))])
        text = "etcdserver: too many operations in txn request"
        assert [error_of(client, too_many) for client in clients] == [(3, text)] * 3
    cluster.same_everywhere()


def test_far_behind(cluster_of: MakeCluster) -> None:
    """A member that comes back when the log that it needs is gone gets a snapshot, under load; and so does a new
    one."""
    settings = {
        "wal.segment_size": '"64KiB"',
        "maintenance.snapshot_count": "200",
        "maintenance.snapshot_min_size": '"0B"',
        "maintenance.snapshot_retention": "1",
        "raft.max_tail_bytes": '"64KiB"',
    }
    cluster = cluster_of(settings=settings).start()
    history = History()
    leader, late = cluster.leader(), cluster.followers()[0]
    late.kill()
    with leader.client() as client:
        load = Load(client, history, expect_end=False).start()
        load.wait_acks(3000)
        late.launch().await_ready()
        late.running().wait_line("snapshot.*install|install.*snapshot", 30)
        new = add_when_healthy(cluster, leader)
        new.launch().await_ready()
        new.running().wait_line("snapshot.*install|install.*snapshot", 30)
        load.stop()
    cluster.same_everywhere()
    for member in (late, new):
        with member.client() as client:
            history.check(client)


def add_when_healthy(cluster: Cluster, through: Member) -> Member:
    """Add a member when the leader has heard of all members."""
    with through.client() as client:
        twice = m.MemberAddRequest(peerURLs=[f"http://{through.advertised}"])
        wait_until(lambda: (error_of(client, twice) or ())[:1] != (UNAVAILABLE,), 20, "a healthy cluster")
    return add(cluster, through)


# ---- strangers


def log_of(member: Member, pattern: str) -> None:
    """Wait for a line in a member's log."""
    member.running().wait_line(pattern, 10)


def test_a_wiped_directory_under_an_old_id_ends(cluster_of: MakeCluster) -> None:
    """It would have forgotten its votes. It reports what is wrong, and the others go on."""
    cluster = cluster_of().start()
    leader, wiped = cluster.leader(), cluster.followers()[0]
    wiped.kill()
    shutil.rmtree(wiped.data_dir)
    code, log = wiped.launch().wait()
    assert code == MustJoinAnew.exit_code, log
    assert "a wiped directory must join as a new member" in log and "ready to serve" not in log
    log_of(leader, "a wiped directory must join as a new member")
    with leader.client() as client:
        client.put(b"k", b"1")


def stranger(cluster: Cluster, change: Callable[[Member], None]) -> tuple[Member, Member]:
    """Return the leader of a running cluster, and a member of it that is started with an empty directory, after
    `change`."""
    cluster.start()
    leader, other = cluster.leader(), cluster.followers()[0]
    other.kill()
    shutil.rmtree(other.data_dir)
    change(other)
    other.launch()
    return leader, other


def test_another_token_is_refused(cluster_of: MakeCluster) -> None:
    def change(member: Member) -> None:
        member.settings = {**member.settings, "cluster.token": '"another"'}

    leader, other = stranger(cluster_of(), change)
    log_of(other, "the acceptor's cluster.token is another than the dialler's")
    log_of(leader, "the acceptor's cluster.token is another than the dialler's")
    assert "ready to serve" not in other.running().log and "metastore'" not in other.running().log


def test_another_cluster_is_refused(cluster_of: MakeCluster) -> None:
    """The token is the same, but the list of members is another one: a file was edited on one machine only."""

    def change(member: Member) -> None:
        member.initial = {**member.initial, "n9": "127.0.0.1:9"}

    leader, other = stranger(cluster_of(), change)
    log_of(other, "cluster id is")
    log_of(leader, "cluster id is")
    assert "ready to serve" not in other.running().log
