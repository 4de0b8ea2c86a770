"""`raft.read_only`: reads by lease need no other member, and are never stale; "safe" reads ask the others."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from support import messages as m
from support.client import Client, Failure
from support.cluster import Cluster, Member, time_to_write
from support.processes import wait_until
from support.proxy import Network

pytestmark = pytest.mark.node_only

LEASE = {"raft.read_only": '"lease"', "limits.request_timeout": '"1s"'}
SAFE = {**LEASE, "raft.read_only": '"safe"'}
ATTEMPTS = 20


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """The network between the members."""
    with Network() as network:
        yield network


@pytest.fixture(scope="module")
def lease(tmp_path_factory: pytest.TempPathFactory, network: Network) -> Iterator[Cluster]:
    """A cluster for all tests of lease reads."""
    with Cluster(tmp_path_factory.mktemp("lease"), settings=LEASE, via=network.via) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def safe(tmp_path_factory: pytest.TempPathFactory, network: Network) -> Iterator[Cluster]:
    """A cluster with safe reads, to compare with."""
    with Cluster(tmp_path_factory.mktemp("safe"), settings=SAFE, via=network.via) as cluster:
        yield cluster


@contextmanager
def stopped(*members: Member) -> Iterator[None]:
    """The processes of `members` get no processor time."""
    for member in members:
        member.running().send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for member in members:
            member.running().send_signal(signal.SIGCONT)


def read_alone(cluster: Cluster) -> Member | None:
    """Return the leader, if it answers a linearizable read that is sent when the other members stand still."""
    leader, others = cluster.leader(), cluster.followers()
    with leader.client() as client:
        time_to_write(client, b"k")
        with stopped(*others):
            # Messages that they had sent before belong to earlier rounds.
            try:
                return leader if client.range(b"k").count else None
            except Failure as failure:
                assert failure.code == grpc.StatusCode.UNAVAILABLE.value[0]
                return None


def with_lease(cluster: Cluster) -> Member:
    """Return the leader when it has a lease; a leader that was just elected has none."""
    for _ in range(ATTEMPTS):
        leader = read_alone(cluster)
        if leader is not None and cluster.leader() is leader:
            return leader
    pytest.fail("no leader ever read by lease")


def test_a_lease_needs_nobody(lease: Cluster) -> None:
    """The lease lasts for 0.7 s. On a busy machine the first attempts may come too late."""
    with_lease(lease)
    with lease.followers()[0].client() as client:
        time_to_write(client, b"through a follower")
        assert client.get(b"through a follower")
    lease.same_everywhere()
    lease.check_logs()


def test_a_safe_read_asks(safe: Cluster) -> None:
    assert not read_alone(safe)


def test_a_lease_ends(lease: Cluster) -> None:
    """A leader that hears from no member stops reading by lease before an election timeout is over."""
    leader, others = lease.leader(), lease.followers()
    with leader.client() as client, stopped(*others):

        def refused() -> bool:
            try:
                client.get(b"k")
            except Failure as failure:
                assert failure.code == grpc.StatusCode.UNAVAILABLE.value[0]
                return True
            return False

        wait_until(refused, 20, "the end of the lease")


@pytest.mark.parametrize("kind", ["lease", "safe"])
def test_a_leader_that_stood_still_reads_nothing_stale(
    kind: str, network: Network, request: pytest.FixtureRequest
) -> None:
    """As far as it knows its last heartbeats were answered a moment ago; meanwhile the others went on without it. The
    reads are in its socket before it goes on, and nothing from the others is."""
    cluster: Cluster = request.getfixturevalue(kind)
    old = with_lease(cluster) if kind == "lease" else cluster.leader()
    rest = [member for member in cluster.members if member is not old]
    own, *others = [member.status().header.member_id for member in (old, *rest)]
    with old.client() as before:
        time_to_write(before, b"k")
        with stopped(old):
            network.hold([link for ident in others for link in ((own, ident), (ident, own))])
            new = cluster.leader(rest)
            with new.client() as after:
                time_to_write(after, b"k")
                newest = after.get(b"k")
            reads = [before.future(m.RangeRequest(key=b"k")) for _ in range(20)]
        for read in reads:
            try:
                assert m.RangeResponse.FromString(read.result()).kvs[0].value == newest
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
        network.heal()
        wait_until(lambda: value_of(before) == newest, 20, "the old leader reads again")


def value_of(client: Client) -> bytes | None:
    """Return the value of `k`, or None if it cannot be read."""
    try:
        return client.get(b"k")
    except Failure:
        return None
