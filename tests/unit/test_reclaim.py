"""Slices of freeing, and of counting, follow each other behind the turns of a real loop."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

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
