"""Leases of an embedded node: the plain calls, and leases kept alive until the program or the store ends them."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.embedded import standing
from support.processes import wait_until

from metastore import AsyncLease, GrantResult, Lease, LeaseInfo, Node, errors
from metastore.embedded import forks

pytestmark = pytest.mark.node_only


@pytest.fixture
def node() -> Iterator[Node]:
    with Node.in_memory() as node:
        yield node


def renewals(node: Node) -> float:
    return node.stats()["lease_renewed_total"]


def test_the_plain_calls(node: Node) -> None:
    made = node.grant(100, id=7, timeout=30)
    assert made == GrantResult(7, 100) and node.leases() == (7,)
    node.put("k", "v", lease=7)
    node.futures.put("l", "v", lease=7).result(30)
    found = node.time_to_live(7, keys=True)
    assert isinstance(found, LeaseInfo) and (found.granted_ttl, found.keys) == (100, (b"k", b"l"))
    assert 98 <= found.ttl <= 100 and node.futures.time_to_live(7).result(30) is not None
    assert node.keep_alive(7) == node.futures.keep_alive(7).result(30) == 100
    with pytest.raises(errors.LeaseExist):
        node.grant(5, id=7)
    with pytest.raises(errors.LeaseTTLTooLarge):
        node.grant(1 << 40)
    node.revoke(7)
    assert node.get("k") is None and node.leases() == () and node.time_to_live(7) is None
    for gone in (lambda: node.revoke(7), lambda: node.keep_alive(7), lambda: node.put("k", "v", lease=7)):
        with pytest.raises(errors.LeaseNotFound):
            gone()
    with pytest.raises(TypeError, match="ttl must be an int"):
        node.grant("5")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="keys must be True or False"):
        node.time_to_live(7, keys=1)  # type: ignore[arg-type]
    assert node.grant(0).ttl >= 1, "the shortest time that there is"


def test_a_lease_is_kept_alive_and_revoked_at_the_end(node: Node) -> None:
    with node.lease(1) as lease:
        node.put("k", "v", lease=lease.id)
        wait_until(lambda: renewals(node) >= 5)  # more than its TTL
        assert node.get("k") is not None and not lease.lost
        lease.check()
        with pytest.raises(ValueError, match="timeout"):
            lease.wait_lost(-1)
        assert not lease.wait_lost(0)
    assert node.get("k") is None and node.leases() == () and not lease.lost
    lease.revoke()  # that it has ended is no error
    assert not lease.wait_lost()


def test_a_body_that_raises_ends_its_lease_too(node: Node) -> None:
    with pytest.raises(ZeroDivisionError), node.lease(60):
        raise ZeroDivisionError
    wait_until(lambda: node.leases() == ())
    # Also where the lease is lost meanwhile: the program's own exception is the one to raise.
    with pytest.raises(ZeroDivisionError), node.lease(60) as lease:
        node.revoke(lease.id)
        raise ZeroDivisionError


def test_a_lease_that_somebody_else_ends_is_lost(node: Node) -> None:
    told: list[bool] = []
    with (
        pytest.raises(errors.LeaseLost, match="the lease is lost: 2a") as raised,
        Lease(node.futures, node._keeper().keep(GrantResult(42, node.grant(1, id=42).ttl), time.monotonic())) as lease,
    ):
        waiting = threading.Thread(target=lambda: told.append(lease.wait_lost(30)))
        waiting.start()
        node.revoke(lease.id)
        waiting.join(30)
    assert told == [True] and lease.lost
    assert isinstance(raised.value, errors.LeaseNotFound)
    assert isinstance(raised.value.__cause__, errors.LeaseNotFound)


def test_a_node_that_does_not_renew_loses_the_lease_by_the_clock(node: Node) -> None:
    lease = node.lease(1)
    with standing(node):
        assert lease.wait_lost(30) and lease.lost
    with pytest.raises(errors.LeaseLost):
        lease.check()
    node.put("k", "v")
    assert lease.lost, "once lost, it stays lost"


def test_the_end_of_the_node_loses_all_leases() -> None:
    with Node.in_memory() as node:
        lease = node.lease(60)
        kept = [node.lease(60) for _ in range(200)]
        assert len(node.leases()) == 201
    assert lease.wait_lost(0) and all(one.lost for one in kept)
    with pytest.raises(errors.LeaseLost) as raised:
        lease.check()
    assert isinstance(raised.value.__cause__, errors.Stopped)
    with pytest.raises(errors.Stopped):
        node.lease(60)


def test_a_lease_that_is_forgotten_or_closed_is_not_renewed(node: Node) -> None:
    lease, idents = node.lease(1), {node.lease(1).id}
    idents.add(lease.id)
    lease.close()
    gc.collect()
    wait_until(lambda: not idents & set(node.leases()))


def test_a_grant_that_comes_too_late_leaves_no_lease(node: Node) -> None:
    with standing(node), pytest.raises(errors.Timeout):
        node.lease(60, timeout=0.01)
    revision = node.put("k", "v").revision
    wait_until(lambda: node.leases() == ())
    assert node.revision == revision


def test_a_fork_has_no_lease(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with node.lease(60) as lease:
        monkeypatch.setattr(forks, "process", -1)
        with pytest.raises(errors.Forked):
            lease.check()
        assert lease.lost and lease.wait_lost(30)
        lease.__exit__(None, None, None)
        monkeypatch.undo()
        lease.check()
        assert not lease.lost
        assert node.leases() == (lease.id,)


def test_leases_for_tasks(node: Node) -> None:
    async def program() -> None:
        kv = node.aio
        assert await kv.grant(50, id=9) == GrantResult(9, 50) and await kv.keep_alive(9, timeout=30) == 50
        found = await kv.time_to_live(9, keys=True)
        assert found is not None and found.granted_ttl == 50 and await kv.leases() == (9,)
        await kv.revoke(9)
        before = set(threading.enumerate())
        async with kv.lease(1) as lease:
            await kv.put("k", "v", lease=lease.id)
            count = renewals(node)
            while renewals(node) < count + 5:
                await asyncio.sleep(0.01)
            assert await kv.get("k") is not None and not lease.lost
        assert await kv.get("k") is None and set(threading.enumerate()) <= before
        waits = await kv.lease(1)
        lost = asyncio.ensure_future(waits.wait_lost(30))
        await kv.revoke(waits.id)
        assert await lost
        with pytest.raises(errors.LeaseLost):
            async with kv.lease(1) as gone:
                await kv.revoke(gone.id)
                await gone.wait_lost(30)
        later: Any = kv.lease(1)
        assert isinstance(later, AsyncLease)
        with pytest.raises(RuntimeError, match="not granted yet"):
            later.id  # noqa: B018
        cancelled = asyncio.ensure_future(later._grant())
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        async with asyncio.timeout(30):
            while await kv.leases():
                await asyncio.sleep(0.01)

    asyncio.run(program())
