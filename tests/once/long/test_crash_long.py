"""kill -9 at any moment, for hours."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable

from support.kills import SMALL_SEGMENTS, kill_in_a_loop
from support.processes import Server

LONG_ROUNDS = 2000
Make = Callable[..., Server]


def test_killed_under_load_for_hours(fresh: Make) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    kill_in_a_loop(fresh(settings=SMALL_SEGMENTS), LONG_ROUNDS, random.Random(seed))
