"""How many leases the leader ends at once (`metastore/replica/lease_rounds.py`)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from metastore._core.engine import MemoryEngine
from metastore._core.leases import decode_revoke, encode_grant
from metastore._core.lessor import Lessor
from metastore._core.mvcc import Store
from metastore._core.op import LEASE_GRANT, decode_op
from metastore.replica.lease_rounds import (
    EXPIRY_BATCH,
    EXPIRY_RATE,
    FULL,
    HASTE,
    LATE,
    MOST_ENDING,
    PACE,
    LeaseRounds,
)

TTL = 10


class Leader:
    """A leader of which only the leases work. `logged`: the leases whose end it has logged and not applied."""

    def __init__(self, leases: int) -> None:
        self.store = Store(MemoryEngine())
        self.lessor = self.store.leases.listener = Lessor(self.store.leases)
        for ident in range(1, leases + 1):
            self.store.execute(LEASE_GRANT, encode_grant(ident, TTL))
        self.store.commit(1, 1)
        self.logged: list[int] = []
        self.entries: list[int] = []
        self.clients = SimpleNamespace(queued=0, inflight=0)
        kv = SimpleNamespace(closed_to_writes=None, next_id=0, check_forwarded=lambda _kind, _request: None)
        applier = SimpleNamespace(store=self.store, barred=0, applied_index=1)
        driver = SimpleNamespace(
            kv=kv, applier=applier, is_leader=True, leader_id=1, term=1, raw=SimpleNamespace(term_start=1),
            propose=self.propose, proposer=self.clients,
        )  # fmt: skip
        self.rounds = LeaseRounds(cast(Any, driver), self.lessor, lambda _done: None, extend=0.0, request_timeout=5.0)
        self.rounds.turn(0.0)
        while self.lessor.busy:
            self.rounds.turn(0.0)

    def propose(self, operations: list[bytes]) -> bool:
        ended = [decode_revoke(decode_op(operation).request)[0] for operation in operations]
        self.entries.append(len(ended))
        self.logged += ended
        return True

    def apply(self) -> None:
        for ident in self.logged:
            self.lessor.revoked(ident)
        self.logged.clear()


def test_few_leases_are_on_their_way_through_the_log_at_once() -> None:
    leader = Leader(5000)
    now = TTL - 1.0
    while now < TTL + LATE - PACE:
        leader.rounds.gather(now)
        now += 2 * PACE
    assert len(leader.logged) == MOST_ENDING, "the log stands still, and others' writes wait for these"
    assert max(leader.entries) <= EXPIRY_BATCH
    leader.apply()
    leader.rounds.gather(now)
    assert 0 < len(leader.logged) <= EXPIRY_BATCH


def test_leases_end_at_a_pace() -> None:
    leader = Leader(5000)
    now, ends = TTL - PACE, TTL + 0.1
    while now < ends:
        leader.rounds.gather(now)
        leader.apply()
        now += PACE / 4
    ended = sum(leader.entries)
    assert 0.8 * EXPIRY_RATE * 0.1 < ended <= EXPIRY_RATE * 0.1 + EXPIRY_BATCH


def test_operations_of_clients_go_before_entries_that_are_not_full() -> None:
    leader = Leader(5000)
    now = TTL + 1.0
    leader.rounds.gather(now)
    leader.apply()
    leader.clients.inflight = 1
    full = now + FULL
    assert leader.rounds.next_turn(now) == full
    leader.rounds.gather(now + PACE)
    assert len(leader.entries) == 1
    leader.rounds.gather(full)
    leader.apply()
    assert leader.entries[1:] == [EXPIRY_BATCH]
    leader.clients.inflight, leader.clients.queued = 0, 1
    leader.rounds.gather(full + PACE)
    assert len(leader.entries) == 2
    leader.clients.queued = 0
    assert leader.rounds.next_turn(full + PACE) == full + PACE, "at once when they are through"
    leader.rounds.gather(full + PACE)
    assert leader.entries[2:] == [round(PACE * EXPIRY_RATE)]


def test_where_leases_end_late_more_end_at_once() -> None:
    leader = Leader(5000)
    now = TTL + LATE + 1.0
    for _ in range(50):
        leader.rounds.gather(now)
        now += 10 * PACE
    assert len(leader.logged) == HASTE * MOST_ENDING
    assert max(leader.entries) == HASTE * EXPIRY_BATCH
