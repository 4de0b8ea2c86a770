"""Locks and elections of an embedded node: order, fencing, what is left behind, and leases that end meanwhile."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.embedded import standing
from support.processes import wait_until

from metastore import Compare, Lock, Node, Op, errors

pytestmark = pytest.mark.node_only


@pytest.fixture
def node() -> Iterator[Node]:
    with Node.in_memory() as node:
        yield node


def keys(node: Node, name: str) -> list[bytes]:
    return [one.key for one in node.get_prefix(f"{name}/").kvs]


def clean(node: Node) -> bool:
    return not node.leases() and not node.get_prefix("", count_only=True).count


def test_a_lock_is_held_by_one_at_a_time_in_order(node: Node) -> None:
    inside: list[int] = []
    order: list[int] = []

    def work(number: int) -> int:
        with node.lock("jobs") as lock:
            inside.append(number)
            assert len(inside) == 1
            order.append(number)
            revision = lock.revision
            done = node.txn([Compare.create_revision(lock.key, "=", revision)], [Op.put("fenced", str(number))])
            assert done.succeeded and not lock.lost
            lock.check()
            inside.remove(number)
        return revision

    with ThreadPoolExecutor(8) as pool, node.lock("jobs") as first:
        waiting = []
        for number in range(8):
            waiting.append(pool.submit(work, number))
            wait_until(lambda: len(keys(node, "jobs")) == len(waiting) + 1)
        assert not order
        fence = first.revision
        first.release()
        revisions = [one.result(60) for one in waiting]
        first.acquire(30)
        assert first.revision > max(revisions)
    assert order == list(range(8)) and fence < min(revisions) and revisions == sorted(revisions)
    node.delete("fenced")
    assert clean(node)


def test_who_waits_no_longer_leaves_the_line(node: Node) -> None:
    lock, other = node.lock(b"l"), node.lock("l", ttl=1000, timeout=0.05)
    lock.acquire()
    with pytest.raises(errors.Timeout):
        other.acquire(0.01)
    with pytest.raises(errors.Timeout), other:
        pass
    wait_until(lambda: len(keys(node, "l")) == len(node.leases()) == 1)
    with pytest.raises(RuntimeError, match="it is held already"):
        lock.acquire()
    with pytest.raises(RuntimeError, match="not held"):
        other.key  # noqa: B018
    with node.lock("another"):
        assert node.get(lock.key) is not None
    lock.release()
    with pytest.raises(RuntimeError, match="not held"):
        lock.release()
    assert clean(node)
    with pytest.raises(errors.EmptyKey):
        node.lock("")
    with pytest.raises(TypeError, match="name must be"):
        node.lock(7)  # type: ignore[arg-type]


def test_a_body_that_raises_releases_and_a_forgotten_lock_ends(node: Node) -> None:
    with pytest.raises(ZeroDivisionError), node.lock("l"):
        raise ZeroDivisionError
    wait_until(lambda: clean(node))
    lock: Any = node.lock("l", ttl=1)
    lock.acquire()
    lock = None
    gc.collect()
    with node.lock("l", timeout=30):
        pass


def test_a_lock_that_is_lost(node: Node) -> None:
    with pytest.raises(errors.LeaseLost), node.lock("l", ttl=1) as lock:
        [ident] = node.leases()
        node.revoke(ident)
        lock._place.kept.bell.wait(lock._place.kept.quiet, None)
        assert lock.lost
        with node.lock("l", timeout=30) as next_:
            assert next_.revision > lock.revision, "another one holds it now"
        with pytest.raises(errors.LeaseLost):
            lock.check()
    assert clean(node)


def test_a_lease_of_the_program(node: Node) -> None:
    with pytest.raises(errors.LeaseLost), node.lease(1) as lease:
        with node.lock("a", lease=lease) as one, node.lock("b", lease=lease) as two:
            assert one.key == b"a/%x" % lease.id and two.key == b"b/%x" % lease.id
        assert not keys(node, "a") and not keys(node, "b") and node.leases() == (lease.id,)
        with node.lock("a"):
            with pytest.raises(errors.Timeout):
                node.lock("a", lease=lease).acquire(0.01)
            wait_until(lambda: len(keys(node, "a")) == 1)
        with node.lease(1000) as gone:
            node.revoke(gone.id)
            with pytest.raises(errors.LeaseNotFound):
                node.lock("a", lease=gone).acquire()
        with node.lock("a"), ThreadPoolExecutor() as pool:
            waiting = pool.submit(node.lock("a", lease=lease).acquire)
            wait_until(lambda: len(keys(node, "a")) == 2)
            node.revoke(lease.id)
            assert isinstance(waiting.exception(30), errors.SessionExpired)
        lease.wait_lost(30)
        with pytest.raises(errors.LeaseLost):
            node.lock("a", lease=lease).acquire()


def test_the_end_of_the_node_ends_waits_for_locks() -> None:
    with Node.in_memory() as node:
        held, election = node.lock("l"), node.election("e")
        held.acquire()
        leader = election.campaign("me")
        with ThreadPoolExecutor() as pool:
            waits: list[Callable[[], Any]] = [
                node.lock("l").acquire,
                lambda: election.campaign("x"),
                lambda: list(seen),
            ]
            seen = election.observe()
            blocked = [pool.submit(wait) for wait in waits]
            wait_until(lambda: len(keys(node, "l")) == len(keys(node, "e")) == 2)
            node.stop()
            assert all(isinstance(one.exception(30), errors.Stopped) for one in blocked)
        assert held.lost and leader.lost
        with pytest.raises(errors.ApiError):
            held.release()


def test_an_election(node: Node) -> None:
    election = node.election("e")
    assert election.leader() is None
    seen: list[bytes] = []
    with election.observe() as observed:
        with pytest.raises(errors.Timeout):
            observed.next(0.01)
        watcher = threading.Thread(target=lambda: seen.extend(kv.value for kv in observed))
        watcher.start()
        with election.campaign("one") as one, ThreadPoolExecutor() as pool:
            found = election.leader(30)
            assert found is not None and (found.key, found.create_revision) == (one.key, one.revision)
            one.proclaim(b"one again")
            wait_until(lambda: seen[-1:] == [b"one again"])
            with pytest.raises(errors.Timeout):
                election.campaign("too late", timeout=0.01)
            wait_until(lambda: len(keys(node, "e")) == 1)
            second = pool.submit(election.campaign, "two", ttl=1)
            wait_until(lambda: len(keys(node, "e")) == 2)
            one.resign()
            two = second.result(30)
        wait_until(lambda: seen[-1:] == [b"two"])
        with pytest.raises(errors.LeaseLost), two:
            node.revoke(node.leases()[0])
            two._place.kept.bell.wait(two._place.kept.quiet, None)
            with pytest.raises(errors.ElectionNotLeader):
                two.proclaim("still me")
        observed.close()
        watcher.join(30)
    assert seen == [b"one", b"one again", b"two"] or seen == [b"one again", b"two"]
    assert clean(node)


def test_locks_and_elections_of_tasks(node: Node) -> None:
    async def program() -> None:
        before = set(threading.enumerate())
        inside = 0

        async def work(number: int) -> int:
            nonlocal inside
            async with node.aio.lock("jobs") as lock:
                inside += 1
                assert inside == 1
                await node.aio.put("n", str(number))
                inside -= 1
                return lock.revision

        revisions = await asyncio.gather(*(work(number) for number in range(20)))
        assert len(set(revisions)) == 20
        async with node.aio.lock("jobs"):
            waiting = asyncio.ensure_future(work(1))
            while len(keys(node, "jobs")) < 2:
                await asyncio.sleep(0.001)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(errors.Timeout):
                await node.aio.lock("jobs").acquire(0.01)
        election = node.aio.election("e")
        assert await election.leader() is None
        async with election.observe() as observed:
            async with await election.campaign("me", timeout=30) as leadership:
                assert (await observed.next(30)).value == b"me"
                await leadership.proclaim("still me")
                async for kv in observed:
                    assert (kv.value, kv.key) == (b"still me", leadership.key)
                    break
                found = await election.leader()
                assert found is not None and found.value == b"still me"
            with pytest.raises(errors.Timeout):
                await observed.next(0.01)
        assert [kv async for kv in observed] == []
        await node.aio.delete("n")
        assert set(threading.enumerate()) <= before
        async with asyncio.timeout(30):
            while not clean(node):
                await asyncio.sleep(0.01)

    asyncio.run(program())


def test_the_loops_thread_does_not_wait(node: Node) -> None:
    lock: Lock = node.lock("l")
    outcomes: list[BaseException] = []

    def callback(_: object) -> None:
        try:
            lock.acquire()
        except RuntimeError as error:
            outcomes.append(error)

    with standing(node):
        node.futures.put("k", "v").add_done_callback(callback)
    wait_until(lambda: bool(outcomes))
    assert "blocking call in the loop's thread" in str(outcomes[0])
