"""Random calls of leases, and of keys with leases, on a node and on a real etcd: each answer is the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from support import messages as m
from support.client import Client, Failure, op
from support.leasing import grant, keep_alive_once, leases, lifetime, revoke
from support.processes import Server, wait_until

Make = Callable[..., Server]
IDS = range(1, 7)
KEYS = [b"a", b"b", b"c", b"d"]
CALLS = 250


def answer(call: Callable[[], Any]) -> Any:
    """What a call answers: without cluster, member and term; or its code and text."""
    try:
        reply = call()
    except Failure as failure:
        return failure.code, failure.text
    for name in ("cluster_id", "member_id", "raft_term"):
        reply.header.ClearField(name)
    return reply


def some_call(chance: random.Random) -> Callable[[Client], Any]:
    """One call, for either server."""
    ident, key = chance.choice(IDS), chance.choice(KEYS)
    put = m.PutRequest(key=key, value=b"%d" % chance.randrange(9), lease=chance.choice((0, ident)))
    if chance.random() < 0.1:
        put = m.PutRequest(key=key, value=b"x", ignore_lease=True)
    has = m.Compare(result=m.GREATER, target=m.CMP_VERSION, key=chance.choice(KEYS), version=0)
    calls: list[Callable[[Client], Any]] = [
        lambda client: grant(client, 600, ident), lambda client: grant(client, 600, ident),
        lambda client: revoke(client, ident), lambda client: client.call(put), lambda client: client.call(put),
        lambda client: client.delete(key), lambda client: client.range(b"\0", b"\0"),
        lambda client: client.txn([has], [op(put)], [op(m.DeleteRangeRequest(key=key))]),
        lambda client: keep_alive_once(client, ident),
    ]  # fmt: skip
    return chance.choice(calls)


def state(client: Client) -> list[Any]:
    """Everything about leases, with times left out that two servers cannot share."""
    found: list[Any] = [sorted(leases(client))]
    for ident in IDS:
        told = lifetime(client, ident, True)
        assert told.TTL == -1 or 590 <= told.TTL <= 600
        found.append((told.TTL < 0, told.grantedTTL, sorted(told.keys)))
    return found


@pytest.mark.parametrize("seed", [1])
def test_a_node_answers_like_etcd(seed: int, fresh: Make, fresh_etcd: Make) -> None:
    chance = random.Random(seed)
    with fresh().start().client() as ours, fresh_etcd().start().client() as theirs:
        for number in range(CALLS):
            call = some_call(chance)
            mine, reference = answer(lambda call=call: call(ours)), answer(lambda call=call: call(theirs))  # type: ignore[misc]
            assert mine == reference, number
            if number % 50 == 0:
                assert state(ours) == state(theirs), number
        # Leases that end leave the same keys, at revisions in the order of their ends.
        for client in (ours, theirs):
            for ident in IDS:
                answer(lambda client=client, ident=ident: revoke(client, ident))  # type: ignore[misc]
            grant(client, 2, 50)
            client.txn(success=[op(m.PutRequest(key=key, lease=50)) for key in KEYS])
        for client in (ours, theirs):
            wait_until(lambda client=client: not leases(client), what="the end")  # type: ignore[misc]
        assert answer(lambda: ours.range(b"\0", b"\0")) == answer(lambda: theirs.range(b"\0", b"\0"))
