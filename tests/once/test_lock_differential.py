"""Calls of Lock and Election answer as a real etcd's do: replies, codes and texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from support import leasing
from support import messages as m
from support.client import Client, Failure
from support.locking import Observer, campaign, campaigning, leader, lock, locking, proclaim, resign, unlock
from support.processes import Server, wait_until

Make = Callable[..., Server]
LEASES = [0x1234, 0x99, 0x77]


def plain(response: Any) -> Any:
    """A reply without what names the cluster."""
    for field in ("cluster_id", "member_id", "raft_term"):
        response.header.ClearField(field)
    return response


def script(client: Client) -> list[Any]:
    """Use the services as a client would. Return all answers."""
    one, two, third = LEASES
    for lease in LEASES:
        leasing.grant(client, 600, lease)
    told: list[Any] = []

    def ask(call: Callable[..., Any], *args: Any) -> Any:
        try:
            told.append(plain(call(client, *args)))
        except Failure as failure:
            told.append((failure.code, failure.text))
        return told[-1]

    def length(name: bytes) -> int:
        return int(client.range(name + b"/", name + b"0", count_only=True).count)

    ask(lock, b"a", 7777)
    ask(lock, b"a", -5)
    held = ask(lock, b"a", one)
    ask(lock, b"a", one)
    ask(lock, b"", one)
    waiting, behind = locking(client, b"a", two), None
    wait_until(lambda: length(b"a") == 2, 20, "a waiter")
    behind = locking(client, b"a", third)
    wait_until(lambda: length(b"a") == 3, 20, "a waiter")
    ask(unlock, b"none")
    ask(unlock, b"")
    ask(unlock, held.key)
    told.append(plain(waiting.result()))
    behind.cancel()
    wait_until(lambda: length(b"a") == 1, 20, "the end of a waiter")
    ask(unlock, b"a/99")

    ask(leader, b"e")
    first = ask(campaign, b"e", one, b"one").leader
    ask(campaign, b"e", one, b"one")
    with Observer(client, b"e") as observer:
        told.append(plain(observer.next()))
        ask(campaign, b"e", one, b"other value")
        told.append(plain(observer.next()))
        ask(campaign, b"e", 7777, b"unknown")
        waiting = campaigning(client, b"e", two, b"two")
        wait_until(lambda: length(b"e") == 2, 20, "a waiter")
        ask(leader, b"e")
        ask(proclaim, first, b"proclaimed")
        told.append(plain(observer.next()))
        ask(proclaim, None, b"p")
        wrong = m.TYPES["LeaderKey"](name=b"e", key=first.key, rev=1, lease=one)
        ask(proclaim, wrong, b"p")
        ask(resign, wrong)
        ask(proclaim, m.TYPES["LeaderKey"](name=b"e", key=first.key, rev=first.rev, lease=7777), b"q")
        ask(proclaim, m.TYPES["LeaderKey"](), b"q")
        ask(resign, m.TYPES["LeaderKey"](lease=one))
        ask(resign, None)
        ask(resign, first)
        told.append(plain(waiting.result()))
        told.append(plain(observer.next()))
        ask(resign, first)
        leasing.revoke(client, two)
        ask(leader, b"e")
    return told


def test_the_services_answer_as_etcd_does(fresh: Make, fresh_etcd: Make) -> None:
    """Left out is what differs by intent: a waiter whose lease ends, and leases that the server has granted."""
    with fresh_etcd().start().client() as reference, fresh().start().client() as client:
        assert script(client) == script(reference)
