"""Sends the same random calls to two servers, and reports a difference."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from .differ import Difference, episode, shrink
from .generator import Generator
from .processes import Server

Make = Callable[..., Server]


def fail(difference: Difference, seed: int | str, start: Callable[[], tuple[Server, Server]]) -> None:
    """Fail the test with the seed and the shortest sequence that shows the difference."""
    pytest.fail(f"seed {seed!r}\n{shrink(difference, start).report()}", pytrace=False)


def run_episode(seed: int | str, calls: int, fresh: Make, fresh_etcd: Make, restart: bool = False) -> None:
    """Run one episode on two fresh servers. With `restart`, both are stopped and started again half way."""
    numbers = itertools.count()

    def start() -> tuple[Server, Server]:
        number = next(numbers)
        return fresh_etcd(f"etcd-{seed}-{number}").start(), fresh(f"node-{seed}-{number}").start()

    first, second = start()
    generator = Generator(seed)
    for half in range(2):
        with first.client() as a, second.client() as b:
            difference = episode(generator, calls // 2, a, b)
        if difference is not None:
            fail(difference, f"{seed} half {half} restart {restart}", start)
        if restart and half == 0:
            for server in (first, second):
                server.stop()
                server.start()
    first.discard()
    second.discard()
