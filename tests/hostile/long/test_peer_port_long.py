"""The peer port of live members under attack for minutes, or hours by `tox -e fuzz`."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import pytest
from support.cluster import Cluster
from support.peerfuzz import QUICK, attack

pytestmark = pytest.mark.node_only


def test_for_longer(cluster_of: Callable[..., Cluster]) -> None:
    """Minutes; METASTORE_FUZZ_SECONDS says how long, METASTORE_FUZZ_SEED from which seed on."""
    seconds = float(os.environ.get("METASTORE_FUZZ_SECONDS", "180"))
    seed = int(os.environ.get("METASTORE_FUZZ_SEED", "0")) or random.SystemRandom().getrandbits(32)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        cluster = cluster_of(settings=QUICK)
        attack(cluster, seed, min(60.0, max(5.0, until - time.monotonic())))
        cluster.discard()
        seed += 1
