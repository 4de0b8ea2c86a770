"""Histories of real clients against a cluster under faults are linearizable: per key, and over all keys by revision.

METASTORE_ROUNDS=1000 sets the number of rounds. The seed of a run is printed. METASTORE_SEED=... repeats it (the faults
are then the same; the timing is the machine's).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from support.client import Failure
from support.cluster import Cluster, time_to_write
from support.linear import FAILED, OK, Operation, Violation, check_all, check_key, check_revisions
from support.proxy import Network
from support.rounds import SETTINGS, run_rounds

ROUNDS = 11  # each kind of fault once


@pytest.mark.node_only
def test_linearizable_under_faults(tmp_path: Path) -> None:
    run_rounds(tmp_path / "cluster", ROUNDS, int(os.environ.get("METASTORE_SEED", "7")))


# ---- the checks themselves


def wrote(start: float, end: float, revision: int, value: bytes, key: bytes = b"k", **more: object) -> Operation:
    return Operation(0, start, end, OK, {key: value}, revision=revision, **more)  # type: ignore[arg-type]


def saw(start: float, end: float, at: int, value: bytes | None, revision: int = 0, key: bytes = b"k") -> Operation:
    return Operation(1, start, end, OK, seen={key: None if value is None else (value, revision)}, revision=at)


GOOD: dict[str, list[Operation]] = {
    "empty": [saw(0, 1, 1, None)],
    "one after the other": [wrote(0, 1, 2, b"a"), saw(2, 3, 2, b"a", 2), wrote(4, 5, 3, b"b"), saw(6, 7, 3, b"b", 3)],
    "side by side, old value": [wrote(0, 1, 2, b"a"), wrote(2, 5, 3, b"b"), saw(3, 4, 2, b"a", 2)],
    "side by side, new value": [wrote(0, 1, 2, b"a"), wrote(2, 5, 3, b"b"), saw(3, 4, 3, b"b", 3)],
    "unknown and done": [Operation(0, 0, written={b"k": b"a"}), saw(2, 3, 2, b"a", 2)],
    "unknown and not done": [Operation(0, 0, written={b"k": b"a"}), saw(2, 3, 1, None)],
    "unknown and done late": [Operation(0, 0, written={b"k": b"a"}), saw(2, 3, 1, None), saw(4, 5, 2, b"a", 2)],
    "unknown, glimpsed and swapped": [
        Operation(0, 0, written={b"k": b"a"}),
        wrote(2, 3, 3, b"b", expected={b"k": b"a"}, glimpsed={b"k": (b"a", 2)}),
    ],
    "swapped": [wrote(0, 1, 2, b"a"), wrote(2, 3, 3, b"b", expected={b"k": b"a"}), saw(4, 5, 3, b"b", 3)],
}

# Histories that no linearizable store gives. A mark shows those that only revisions or several keys reveal.
BAD: dict[str, list[Operation]] = {
    "a write is lost": [wrote(0, 1, 2, b"a"), saw(2, 3, 2, None)],
    "a stale read": [wrote(0, 1, 2, b"a"), wrote(2, 3, 3, b"b"), saw(4, 5, 2, b"a", 2)],
    "back in time": [wrote(0, 1, 2, b"a"), wrote(2, 9, 3, b"b"), saw(3, 4, 3, b"b", 3), saw(5, 6, 2, b"a", 2)],
    "seen before it was sent": [saw(0, 1, 2, b"a", 2), wrote(2, 3, 2, b"a")],
    "two winners": [
        wrote(0, 1, 2, b"a"),
        wrote(2, 5, 3, b"b", expected={b"k": b"a"}),
        wrote(2, 5, 4, b"c", expected={b"k": b"a"}),
    ],
    "comes back after another": [
        Operation(0, 0, written={b"k": b"a"}),
        saw(1, 2, 2, b"a", 2),
        wrote(3, 4, 3, b"b"),
        saw(5, 6, 4, b"a", 4),
    ],
}
ONLY_BY_REVISION: dict[str, list[Operation]] = {
    "denied and done": [Operation(0, 0, 1, FAILED, {b"k": b"a"}), saw(2, 3, 2, b"a", 2)],
    "from nowhere": [saw(0, 1, 2, b"a", 2)],
    "one revision twice": [wrote(0, 3, 2, b"a"), wrote(0, 3, 2, b"b", b"other")],
    "half of two keys": [
        Operation(0, 0, 1, OK, {b"k": b"a", b"other": b"b"}, revision=2),
        Operation(1, 0, 1, OK, seen={b"k": (b"a", 2), b"other": None}, revision=2),
    ],
    "keys in two orders": [
        wrote(0, 9, 2, b"a"),
        wrote(0, 9, 3, b"b", b"other"),
        Operation(1, 1, 2, OK, seen={b"k": (b"a", 2), b"other": None}, revision=2),
        Operation(2, 3, 4, OK, seen={b"k": None, b"other": (b"b", 3)}, revision=3),
    ],
}


def copied(history: list[Operation]) -> list[Operation]:
    """Return a copy, because the checks note revisions in the operations."""
    return [Operation(**{name: getattr(one, name) for name in Operation.__dataclass_fields__}) for one in history]


@pytest.mark.parametrize("name", GOOD)
def test_good_histories_pass(name: str) -> None:
    assert check_all(copied(GOOD[name])) == []


@pytest.mark.parametrize("name", [*BAD, *ONLY_BY_REVISION])
def test_revisions_betray(name: str) -> None:
    with pytest.raises(Violation):
        check_revisions(copied({**BAD, **ONLY_BY_REVISION}[name]))


@pytest.mark.parametrize("name", BAD)
def test_the_search_finds_no_order(name: str) -> None:
    with pytest.raises(Violation):
        check_key(copied(BAD[name]), b"k")


def test_the_search_gives_up_within_its_budget() -> None:
    many = [wrote(0, 100, 0, b"%d" % number) for number in range(12)]
    assert not check_key([*many, saw(200, 201, 0, b"never written", 1)], b"k", budget=500)


def test_random_histories_of_a_register_pass_and_damaged_ones_do_not() -> None:
    """The register is right by construction: each call takes effect at a moment between its start and its end."""
    rng = random.Random(5)
    for _ in range(30):
        moments = sorted((rng.random() * 100, number) for number in range(60))
        history, value, revision = [], None, 1
        for moment, number in moments:
            start, end = moment - rng.random() * 5, moment + rng.random() * 5
            if rng.random() < 0.5:
                value, revision = b"%d" % number, revision + 1
                history.append(wrote(start, end, revision, value))
            else:
                history.append(saw(start, end, revision, value, revision if value else 0))
        assert check_all(copied(history)) == []
        reads = [one for one in history if one.seen and one.start > 50]
        writes = [one for one in history if one.written and one.end < 30]
        stale = copied([*history])[history.index(reads[-1])]
        stale.seen = {b"k": (next(iter(writes[0].written.values())), writes[0].revision)}
        damaged = [stale if one is reads[-1] else one for one in history]
        with pytest.raises(Violation):
            check_revisions(copied(damaged))
        with pytest.raises(Violation):
            check_key(copied(damaged), b"k")


# ---- the faults themselves


@pytest.mark.node_only
@pytest.mark.parametrize(("out", "back"), [(True, True), (True, False), (False, True)], ids=["both", "mute", "deaf"])
def test_a_cut_off_leader_is_replaced(cluster_of: Callable[..., Cluster], out: bool, back: bool) -> None:
    """Nothing passes over a held link. The old leader serves no stale read, and comes back as a follower."""
    with Network() as network:
        cluster = cluster_of(settings={**SETTINGS, "limits.request_timeout": '"1s"'}, via=network.via).start()
        old = cluster.leader()
        ids = [member.status().header.member_id for member in cluster.members]
        own = old.status().header.member_id
        others = [ident for ident in ids if ident != own]
        network.hold([(own, ident) for ident in others if out] + [(ident, own) for ident in others if back])
        rest = [member for member in cluster.members if member is not old]
        new = cluster.leader(rest)
        assert new is not old
        with old.client() as before, new.client() as after:
            after.put(b"k", b"new")
            try:
                assert before.get(b"k") == b"new"
            except Failure as failure:
                assert failure.code == 14
            network.heal()
            time_to_write(before, b"through the old one")
            assert before.get(b"k") == b"new"
        cluster.same_everywhere()
