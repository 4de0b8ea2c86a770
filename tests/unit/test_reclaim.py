"""Slices of freeing, and of counting, follow each other behind the turns of a real loop. Short memory is packed."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from metastore.member.quota import Quota
from metastore.member.reclaim import Reclaim
from metastore.net.loop import READ, Loop


class Engine:
    """Has so many slices of work."""

    def __init__(self, slices: int) -> None:
        self.left = slices

    def reclaim(self) -> bool:
        self.left -= 1
        return self.left > 0


@pytest.mark.parametrize("waits", [False, True])
def test_slices_follow_each_other_until_somebody_waits(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, engine = Loop(), Engine(100)
    monkeypatch.setattr(loop, "share", lambda: 1.0)
    yields: list[None] = []
    monkeypatch.setattr("os.sched_yield", lambda: yields.append(None))
    here, there = socket.socketpair()
    with here, there:
        loop.add(here.fileno(), READ, lambda _events: None)
        if waits:
            there.send(b"x")  # nobody reads it
        some: Any = engine
        reclaim = Reclaim(some, some, loop)
        loop.call_behind(reclaim.free)
        loop.run_once(0)
        assert engine.left == (99 if waits else 0)
        assert len(yields) == (1 if waits else 100)
        for _ in range(3):
            loop.run_once(0)
        assert engine.left == (96 if waits else 0)
        if waits:
            reclaim.stop()
            loop.run_once(0)
            assert engine.left == 96
        loop.remove(here.fileno())
    loop.close()


def test_slices_end_with_their_part_of_the_turn() -> None:
    engine, left = Engine(10), [0.95, 0.89]
    behind: list[Any] = []
    loop: Any = SimpleNamespace(share=lambda: left.pop(0), pressed=lambda: False, call_behind=behind.append)
    some: Any = engine
    Reclaim(some, some, loop).free()
    assert engine.left == 8 and len(behind) == 1


def test_memory_that_is_short_is_packed_every_ten_seconds() -> None:
    """Also before clients are served. While one defragmentation is under way, no other one begins."""
    timers: list[Any] = []
    left = [0.0, 0.0, None, None]
    engine: Any = SimpleNamespace(
        defragment=lambda: left.pop(0), size=lambda: 0, size_in_use=lambda: 0, index_state=None
    )
    kv: Any = SimpleNamespace(
        sweep_pending=False, store=SimpleNamespace(revision=1), short=False, careful=False, quota=None,
        proposer=SimpleNamespace(queued_bytes=0, inflight_bytes=0, queued=0, inflight=0),
    )  # fmt: skip
    loop: Any = SimpleNamespace(call_later=lambda _after, call: timers.append(call))
    memory: Any = SimpleNamespace(quota=-1, plan=SimpleNamespace(room=1), short=lambda: kv.low)
    reclaim = Reclaim(engine, kv, loop)
    quota = Quota(memory, engine, kv, kv, 1, reclaim.pack)
    kv.low = False
    quota.tick(99.0)
    assert len(left) == 4 and not kv.short
    kv.low = True
    for now in (100.0, 100.1, 109.9, *range(110, 1000, 10)):
        quota.tick(now)
    assert len(left) == 3 and len(timers) == 1 and kv.short
    while timers:
        timers.pop()()
    assert len(left) == 1 and reclaim.stats()["defragments_total"] == 1
    quota.tick(999.9)
    assert len(left) == 1
    quota.tick(1000.0)
    assert not left and reclaim.stats()["defragments_total"] == 2
    reclaim.stop()
    quota.tick(1010.0)
