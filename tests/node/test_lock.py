"""Locks and elections through the port of a real node: who gets them, in which order, and who loses a place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support import etcdctl, leasing
from support import messages as m
from support.client import Client, Failure
from support.locking import Observer, Waiting, campaign, campaigning, leader, lock, locking, proclaim, resign, unlock
from support.processes import Process, Server, metric, wait_until

Make = Callable[..., Server]
EXPIRED = (2, "mutex: session is expired")
NOT_LEADER = (2, "election: not leader")


def queue(client: Client, name: bytes) -> list[bytes]:
    """The keys under a name, in the order in which they were created."""
    found = client.range(name + b"/", name + b"0", sort_order=1, sort_target=2)
    return [kv.key for kv in found.kvs]


def keys(name: bytes, *leases: int) -> list[bytes]:
    return [b"%s/%x" % (name, lease) for lease in leases]


def wait_queue(client: Client, name: bytes, *leases: int) -> None:
    wait_until(lambda: queue(client, name) == keys(name, *leases), 20, f"the queue {leases}")


def granted(client: Client, count: int, ttl: int = 60) -> list[int]:
    return [leasing.grant(client, ttl).ID for _ in range(count)]


def failure(call: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(Failure) as raised:
        call()
    return raised.value.code, raised.value.text


def test_waiters_get_the_lock_in_their_order(client: Client, prefix: str) -> None:
    name = prefix.encode()
    leases = granted(client, 4)
    held = lock(client, name, leases[0])
    assert held.key == keys(name, leases[0])[0]
    assert held.header.revision == client.range(held.key).kvs[0].create_revision
    calls: list[Waiting] = []
    for number, lease in enumerate(leases[1:], 2):
        calls.append(locking(client, name, lease))
        wait_queue(client, name, *leases[:number])
    again = lock(client, name, leases[0])
    assert again.key == held.key, "its owner enters it again"
    assert not any(call.done for call in calls)
    for call, lease, before in zip(calls, leases[1:], leases, strict=False):
        unlock(client, keys(name, before)[0])
        answer = call.result()
        assert answer.key == keys(name, lease)[0]
        # The revision that fences: whoever had the lock before could not have got so high a one.
        assert answer.header.revision > held.header.revision
        held = answer
    assert [call.done for call in calls] == [True] * 3
    unlock(client, keys(name, leases[-1])[0])
    assert queue(client, name) == []


@pytest.mark.parametrize("waits", [locking, campaigning])
def test_who_gives_up_leaves_the_queue(
    waits: Callable[..., Waiting], client: Client, prefix: str, server: Server
) -> None:
    """One cancels, the connection of another is cut, the deadline of the third passes. A lease that the server has
    granted ends with the call."""
    name = prefix.encode()
    first, *others = granted(client, 5)
    waits(client, name, first).result()
    with server.client() as other:
        cancelled, cut = waits(client, name, others[0]), waits(other, name, others[1])
        late, last = waits(client, name, others[2], timeout=1.0), waits(client, name, others[3])
        own = waits(client, name)
        wait_until(lambda: len(queue(client, name)) in (5, 6), 20, "the queue")
        cancelled.cancel()
        own.cancel()
    assert failure(late.result)[0] == 4
    wait_queue(client, name, first, others[3])
    del cut
    unlock(client, keys(name, first)[0])
    assert last.result().header.revision
    leasing.revoke(client, first)


@pytest.mark.node_only
def test_a_waiter_whose_lease_ends_is_told_at_once(client: Client, prefix: str) -> None:
    """etcd tells him only when it is his turn; it answers a campaign as if it were won."""
    for waits, told in ((locking, EXPIRED), (campaigning, NOT_LEADER)):
        name = (prefix + told[1]).encode()
        first, second, third = granted(client, 3)
        waits(client, name, first).result()
        call = waits(client, name, second)
        wait_queue(client, name, first, second)
        behind = waits(client, name, third)
        wait_queue(client, name, first, second, third)
        leasing.revoke(client, second)
        assert failure(call.result) == told
        assert not behind.done and queue(client, name) == keys(name, first, third)
        leasing.revoke(client, first)
        assert behind.result().header.revision


@pytest.mark.node_only
def test_a_second_call_that_gives_up_leaves_the_place_of_the_first(fresh: Make) -> None:
    """Both calls wait under one lease, so they have one key. (etcd deletes it.)"""
    node = fresh().start()
    with node.client() as client:
        first, second = granted(client, 2)
        lock(client, b"l", first)
        call = locking(client, b"l", second)
        wait_queue(client, b"l", first, second)
        again = locking(client, b"l", second)
        wait_until(lambda: metric(node, "metastore_lock_calls") == 2, 20, "both calls")
        again.cancel()
        wait_until(lambda: metric(node, "metastore_lock_calls") == 1, 20, "the end of the second call")
        assert queue(client, b"l") == keys(b"l", first, second) and not call.done
        unlock(client, keys(b"l", first)[0])
        assert call.result().key == keys(b"l", second)[0]


def test_an_election(client: Client, prefix: str, server: Server) -> None:
    name = prefix.encode()
    one, two = granted(client, 2)
    assert failure(lambda: leader(client, name)) == (2, "election: no leader")
    with server.client() as other, Observer(other, name) as observer:
        first = campaign(client, name, one, b"one").leader
        assert (first.name, first.key, first.lease) == (name, keys(name, one)[0], one)
        told = observer.next()
        assert told.kv.value == b"one" and told.kv.create_revision == first.rev
        waiting = campaigning(client, name, two, b"two")
        wait_queue(client, name, one, two)
        proclaim(client, first, b"changed")
        assert observer.next().kv.value == b"changed" == leader(client, name).kv.value
        resign(client, first)
        second = waiting.result().leader
        told = observer.next()
        assert (told.kv.key, told.kv.value, told.kv.lease) == (second.key, b"two", two)
        assert failure(lambda: proclaim(client, first, b"late")) == NOT_LEADER
        resign(client, first)
        assert leader(client, name).kv.value == b"two", "who does not lead resigns nothing"
        leasing.revoke(client, two)
        again = campaign(client, name, one, b"again").leader
        assert observer.next().kv.value == b"again"
        assert campaign(client, name, one, b"other").leader == again
        assert observer.next().kv.value == b"other"


def test_an_observer_is_told_of_every_value(client: Client, prefix: str) -> None:
    """Also of those that come together, between two leaders."""
    name = prefix.encode()
    one, two = granted(client, 2)
    first = campaign(client, name, one, b"first").leader
    with Observer(client, name) as observer:
        assert observer.next().kv.value == b"first"
        waiting = campaigning(client, name, two, b"second")
        wait_queue(client, name, one, two)
        request = m.TYPES["ProclaimRequest"]
        calls = [client.future(request(leader=first, value=b"%d" % number)) for number in range(50)]
        revisions = [m.TYPES["ProclaimResponse"].FromString(call.result()).header.revision for call in calls]
        told = [observer.next().kv for _ in calls]
        assert [kv.mod_revision for kv in told] == sorted(revisions)
        assert {kv.value for kv in told} == {b"%d" % number for number in range(50)}
        resign(client, first)
        assert observer.next().kv.value == b"second" and waiting.result().leader.lease == two
        leasing.revoke(client, two)


@pytest.mark.node_only
def test_bounds_and_the_end_of_a_node(fresh: Make) -> None:
    node = fresh(settings={"limits.max_lock_calls": "3"}).start()
    with node.client() as client:
        lease, other = granted(client, 2)
        key = lock(client, b"l", lease).key
        calls = [locking(client, b"l", other), locking(client, b"l"), campaigning(client, b"l")]
        wait_until(lambda: len(queue(client, b"l")) == 4, 20, "the queue")
        assert metric(node, "metastore_lock_calls") == 3
        assert failure(lambda: unlock(client, key)) == (8, "etcdserver: too many requests")
        assert node.stop() == 0
        for call in calls:
            assert failure(call.result)[0] == 14
    with node.start().client() as client:
        assert queue(client, b"l") == [key], "the lock is kept, and nobody waits"
        assert leasing.leases(client) == sorted([lease, other])


# ---- etcdctl


@pytest.mark.parametrize("version", ["debian", "wheel"])
def test_etcdctl_lock_and_elect(version: str, client: Client, prefix: str, server: Server) -> None:
    """They wait in one queue with the callers of the services."""
    program = etcdctl.binaries()[version]
    name = prefix.encode() + version.encode()
    where = ["--endpoints", server.address]
    shown = etcdctl.run(program, server.address, "lock", name.decode(), "env")
    assert shown.returncode == 0, shown
    told = dict(line.split("=", 1) for line in shown.stdout.splitlines() if line.startswith("ETCD_LOCK_"))
    assert told["ETCD_LOCK_KEY"].startswith(name.decode() + "/") and int(told["ETCD_LOCK_REV"]) > 1
    assert queue(client, name) == []

    env = etcdctl.environment()
    holder = Process([program, *where, "lock", "--ttl", "60", name.decode()], env)
    holder.wait_line(name.decode() + "/[0-9a-f]+")
    lease = leasing.grant(client, 60).ID
    waiting = locking(client, name, lease)
    wait_until(lambda: len(queue(client, name)) == 2, 20, "the queue")
    third = Process([program, *where, "lock", "--ttl", "60", name.decode(), "echo", "got it"], env)
    wait_until(lambda: len(queue(client, name)) == 3, 20, "the queue")
    assert not waiting.done
    holder.stop()
    assert waiting.result().key == keys(name, lease)[0]
    unlock(client, waiting.result().key)
    third.wait_line("got it")
    assert third.wait() == 0

    boss = Process([program, *where, "elect", name.decode(), "etcdctl"], env)
    boss.wait_line("etcdctl")
    listener = Process([program, *where, "elect", "-l", name.decode()], env)
    listener.wait_line("etcdctl")
    assert leader(client, name).kv.value == b"etcdctl"
    waiting = campaigning(client, name, lease, b"service")
    wait_until(lambda: len(queue(client, name)) == 2, 20, "the queue")
    boss.stop()
    assert waiting.result().leader.key == keys(name, lease)[0]
    listener.wait_line("service")
    listener.send_signal(2)
    listener.wait()
    leasing.revoke(client, lease)
