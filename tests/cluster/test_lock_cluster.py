"""Locks, elections and streamed ranges through the members of a real cluster, whose leader dies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import leasing
from support import messages as m
from support.client import Client, Failure, op
from support.cluster import Cluster
from support.locking import Observer, campaign, leader, lock, locking, unlock
from support.processes import wait_until

pytestmark = pytest.mark.node_only

MakeCluster = Callable[..., Cluster]


def length(client: Client, name: bytes) -> int:
    return int(client.range(name + b"/", name + b"0", count_only=True).count)


def test_a_lock_passes_on_when_its_holder_and_the_leader_are_gone(cluster_of: MakeCluster) -> None:
    """The callers are at the followers. The lease of the holder is not renewed; the new leader ends it."""
    cluster = cluster_of().start()
    killed = cluster.leader()
    near, far = cluster.followers()
    with near.client(30) as client, far.client(30) as other:
        short = leasing.grant(client, 1).ID
        held = lock(client, b"l", short)
        long = [leasing.grant(one, 600).ID for one in (client, other, client)]
        second = locking(other, b"l", long[1])
        wait_until(lambda: length(client, b"l") == 2, 20, "a waiter")
        third, gone = locking(client, b"l", long[2]), locking(client, b"l", long[0])
        wait_until(lambda: length(client, b"l") == 4, 20, "more waiters")
        first = campaign(client, b"e", long[0], b"one").leader
        with Observer(other, b"e") as observer:
            assert observer.next().kv.value == b"one"
            killed.kill()
            cluster.leader(among=[near, far])
            answer = second.result()
            assert answer.key == b"l/%x" % long[1] and answer.header.revision > held.header.revision
            gone.cancel()
            wait_until(lambda: length(other, b"l") == 2, 20, "the end of a waiter")
            assert not third.done
            unlock(client, answer.key)
            assert third.result().header.revision > answer.header.revision
            leasing.revoke(other, first.lease)
            with pytest.raises(Failure, match="election: no leader"):
                leader(client, b"e")
            campaign(other, b"e", long[1], b"two")
            assert observer.next().kv.value == b"two"
            with Observer(client, b"e", (("hasleader", "true"),)) as demanding:
                assert demanding.next().kv.value == b"two"
                far.kill()
                with pytest.raises(Failure, match="etcdserver: no leader"):
                    demanding.next()


def test_ranges_are_streamed_by_every_member(cluster_of: MakeCluster) -> None:
    cluster = cluster_of().start()
    with cluster.leader().client(30) as client:
        for first in range(0, 3000, 100):
            puts = [m.PutRequest(key=b"k%05d" % n, value=b"v" * 1024) for n in range(first, first + 100)]
            client.txn(success=[op(put) for put in puts])
    near = cluster.followers()[0]
    for member in cluster.members:
        with member.client(30) as client:
            for serializable in (False, True):
                chunks = list(client.range_stream(b"k", b"l", serializable=serializable, limit=2500))
                assert [chunk.HasField("header") for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
                assert (chunks[-1].count, chunks[-1].more) == (3000, True)
                assert sum(len(chunk.kvs) for chunk in chunks) == 2500
    with near.client(30) as client:
        responses = client.range_stream(b"k", b"l")
        seen = len(next(responses).kvs)
        cluster.leader().kill()
        assert seen + sum(len(chunk.kvs) for chunk in responses) == 3000
