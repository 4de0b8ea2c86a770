"""Leases of a cluster: through every member, over the death and the isolation of a leader, and over restarts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from support.client import Failure
from support.cluster import Cluster, Member, clients_of
from support.leasing import KeepAliveStream, grant, keep_alive_once, leases, lifetime, revoke
from support.processes import wait_until
from support.proxy import Network

pytestmark = pytest.mark.node_only

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]
SETTINGS = {"limits.request_timeout": '"1s"'}


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """The network between the members."""
    with Network() as network:
        yield network


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, network: Network) -> Iterator[Cluster]:
    """One cluster for all tests; one of its members has its contents in RocksDB."""
    cluster = Cluster(tmp_path_factory.mktemp("leases"), settings=SETTINGS, via=network.via)
    cluster.members[0].settings = {**cluster.members[0].settings, "storage.engine": '"rocksdb"'}
    with cluster:
        yield cluster
        cluster.check_logs()


class Keeper(threading.Thread):
    """Renews a lease through several members until it is told to stop, or the lease is gone."""

    def __init__(self, members: list[Member], lease: int) -> None:
        super().__init__(daemon=True)
        self.members = members
        self.lease = lease
        self.told: list[int] = []
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        with clients_of(self.members) as clients:
            while not self._over.is_set() and 0 not in self.told:
                for client in clients:
                    try:
                        self.told.append(keep_alive_once(client, self.lease).TTL)
                    except Failure:
                        continue
                self._over.wait(0.1)

    def stop(self) -> list[int]:
        """End it. Return the TTLs that it was told."""
        self._over.set()
        self.join(30)
        assert self.told, "no renewal was answered"
        return self.told


def answered(call: Callable[[], Any]) -> Any:
    """What a call answers; a cluster that is busy electing is asked again."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return call()
        except Failure as failure:
            if failure.code != UNAVAILABLE or time.monotonic() > deadline:
                raise


def test_every_member_serves_leases(cluster: Cluster) -> None:
    with clients_of(cluster.members) as clients:
        for number, client in enumerate(clients):
            other, third = clients[number - 1], clients[number - 2]
            key = b"key of %d" % number
            lease = grant(client, 100).ID
            other.put(key, b"", lease=lease)
            assert answered(lambda third=third, lease=lease: keep_alive_once(third, lease)).TTL == 100
            for asked in (client, other, third):
                found = answered(lambda asked=asked, lease=lease: lifetime(asked, lease, True))
                assert 90 <= found.TTL <= 100 and found.grantedTTL == 100 and list(found.keys) == [key]
            revoke(other, lease)
            for asked in (client, other, third):
                assert answered(lambda asked=asked, lease=lease: lifetime(asked, lease, True)).TTL == -1
                assert answered(lambda asked=asked, lease=lease: keep_alive_once(asked, lease)).TTL == 0
            wait_until(lambda client=client, lease=lease: lease not in leases(client), what="the end everywhere")  # type: ignore[misc]
            assert not client.range(key).count


def test_many_renewals_through_a_follower_keep_their_order(cluster: Cluster) -> None:
    with cluster.followers()[0].client() as client:
        idents = [grant(client, 100).ID for _ in range(3)]
        wanted = [*idents, 5] * 2000
        with KeepAliveStream(client) as stream:
            stream.send(*wanted)
            stream.half_close()
            answers = stream.answers(len(wanted))
            assert stream.wait_end() is None
        assert [answer.ID for answer in answers] == wanted
        assert {answer.TTL for answer in answers if answer.ID != 5} == {100}
        assert {answer.TTL for answer in answers if answer.ID == 5} == {0}
        for ident in idents:
            revoke(client, ident)


def test_an_isolated_leader_neither_renews_nor_ends(cluster: Cluster, network: Network) -> None:
    """It does not answer for leases, not even that it knows nothing of one. What it wanted to end when it was alone,
    lives on where it is kept alive."""
    leader, others = cluster.leader(), cluster.followers()
    with leader.client() as alone, clients_of(others) as clients:
        kept, left = grant(alone, 2).ID, grant(alone, 2).ID
        for lease in (kept, left):
            alone.put(b"of %d" % lease, b"", lease=lease)
        keeper = Keeper(others, kept)
        own = cluster.member_id(leader)
        network.sever((own, cluster.member_id(other)) for other in others)
        try:
            for call in (
                lambda: keep_alive_once(alone, kept), lambda: lifetime(alone, kept), lambda: keep_alive_once(alone, 5),
                lambda: lifetime(alone, 5), lambda: revoke(alone, kept),
            ):  # fmt: skip
                with pytest.raises(Failure) as failed:
                    call()
                assert failed.value.code == UNAVAILABLE
            cluster.leader(others)
            wait_until(lambda: answered(lambda: lifetime(clients[0], left)).TTL == -1, what="the end of a lease")
            # The old leader still has both, by its clock long over.
            assert {kept, left} <= set(leases(alone))
        finally:
            network.heal()
        cluster.leader()
        wait_until(lambda: left not in leases(alone), what="the old leader hears of the end")
        told = keeper.stop()
        assert set(told) == {2}
        assert answered(lambda: lifetime(alone, kept)).TTL >= 0
        assert answered(lambda: clients[0].range(b"of %d" % kept)).count == 1
        answered(lambda: revoke(clients[0], kept))


def test_leases_outlive_the_death_of_their_leader(cluster: Cluster) -> None:
    """A lease that is kept alive lives on; one that nobody renews ends, but not before its time."""
    leader, others = cluster.leader(), cluster.followers()
    with clients_of(others) as clients:
        kept, left = grant(clients[0], 2).ID, grant(clients[0], 3).ID
        granted = time.monotonic()
        clients[0].put(b"left", b"", lease=left)
        keeper = Keeper(others, kept)
        leader.kill()
        wait_until(lambda: not answered(lambda: clients[1].range(b"left")).count, what="the end of a lease")
        assert time.monotonic() - granted >= 2.9
        assert set(keeper.stop()) == {2}
        assert answered(lambda: lifetime(clients[1], kept)).TTL >= 0
        revoke(clients[0], kept)
    leader.start()
    cluster.leader()
    cluster.same_history()


def test_leases_outlive_the_restart_of_all(cluster: Cluster) -> None:
    """Whatever the engine; the hashes of all members are equal."""
    with cluster.leader().client() as client:
        long = [grant(client, 1000).ID for _ in range(20)]
        for number, lease in enumerate(long):
            client.put(b"long/%d" % number, b"", lease=lease)
    for member in cluster.members:
        member.kill()
    for member in cluster.members:
        member.launch()
    for member in cluster.members:
        member.await_ready()
    with clients_of(cluster.members) as clients:
        for client in clients:
            assert sorted(leases(client)) == sorted(long)
            found = answered(lambda client=client: lifetime(client, long[3], True))
            assert found.grantedTTL == 1000 and list(found.keys) == [b"long/3"]
        answered(lambda: revoke(clients[0], long[0]))
        assert answered(lambda: keep_alive_once(clients[1], long[1])).TTL == 1000
    cluster.same_history()
