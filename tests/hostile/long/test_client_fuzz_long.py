"""Random traffic on the client port of a live node for minutes, or hours by `tox -e fuzz`."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import pytest
from support.clientfuzz import SETTINGS, attack
from support.processes import Server

pytestmark = pytest.mark.node_only


def test_for_longer(fresh: Callable[..., Server]) -> None:
    """Minutes; METASTORE_FUZZ_SECONDS says how long, METASTORE_FUZZ_SEED from which seed on."""
    seconds = float(os.environ.get("METASTORE_FUZZ_SECONDS", "180"))
    seed = int(os.environ.get("METASTORE_FUZZ_SEED", "0")) or random.SystemRandom().getrandbits(32)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        node = fresh(f"seed-{seed}", settings=SETTINGS).start()
        attack(node, seed, min(60.0, max(5.0, until - time.monotonic())))
        seed += 1
