"""When snapshots are due: counts, sizes, and the rule that they together write at most twice what clients wrote."""

from __future__ import annotations

import random

import pytest

from metastore.snapshots.policy import Policy, client_bytes


def test_entries_and_bytes_must_both_have_passed() -> None:
    policy = Policy(100, 1000)
    assert not policy.due(99, 10_000, 0)
    assert not policy.due(100, 999, 0)
    assert policy.due(100, 1000, 0)
    policy.taken(100, 1000, 10, 10)
    assert not policy.due(199, 10_000, 0)
    assert not policy.due(200, 1999, 0)
    assert policy.due(200, 2000, 0)


def test_a_large_state_waits_for_half_its_size_of_log() -> None:
    policy = Policy(1, 0)
    policy.restored(10, 0, 600, 1000)  # compresses to 0.6
    assert not policy.due(1000, 2999, 10_000)
    assert policy.due(1000, 3000, 10_000)


def test_a_state_that_compresses_well_waits_for_a_quarter_of_it() -> None:
    """The files are small, but all of the state is read and compressed for each of them."""
    policy = Policy(1, 0)
    policy.restored(10, 0, 50, 1000)
    assert not policy.due(1000, 2499, 10_000)
    assert policy.due(1000, 2500, 10_000)


def test_a_failed_attempt_counts() -> None:
    policy = Policy(1, 100)
    assert policy.due(5, 100, 0)
    policy.failed(100)
    assert not policy.due(5, 199, 0) and policy.due(5, 200, 0)


@pytest.mark.parametrize("seed", range(20))
def test_all_together_cost_at_most_twice_what_was_written(seed: int) -> None:
    rng = random.Random(seed)
    policy = Policy(10, 1000)
    written = index = size = 0
    cost = 0.0
    for _ in range(20_000):
        op = rng.randint(1, 400)
        written += op
        index += 1
        size = max(0, size + (op * 2 if rng.random() < 0.6 else -rng.randint(0, op)))
        if policy.due(index, written, size):
            file_size = int(size * rng.uniform(0.1, 1.1)) + 200
            cost += file_size
            policy.taken(index, written, file_size, size)
    # The last snapshot may have cost more than expected. The next one then comes later accordingly.
    assert 0 < cost <= 2 * written + policy.debt
    assert policy.debt <= 2 * size + 400


def test_restart_time_is_bounded_by_the_size_of_the_state() -> None:
    policy = Policy(10, 1000)
    fresh = worst = 0
    for index in range(1, 20_000):
        fresh += 100
        size = index * 50
        if policy.due(index, index * 100, size):
            policy.taken(index, index * 100, size // 2, size)
            fresh = 0
        worst = max(worst, fresh - size // 2)
    assert worst <= 1100


@pytest.mark.parametrize("size", [10**power for power in range(3, 14)])
def test_at_any_size_of_the_state(size: int) -> None:
    """The state keeps its size, and other parts of it are rewritten all the time, under the default counts. The bytes
    written are bounded, and so are the bytes that a start replays."""
    policy = Policy(10_000, 1 << 20, 0.4)
    rng = random.Random(size)
    written = index = 0
    cost = walked = longest = 0.0
    since = 0
    while written < max(20 * size, 100 << 20):
        step = max(100_000, size // 500)
        written, since, index = written + step, since + step, index + 1000
        if policy.due(index, written, size):
            file_size = int(size * rng.uniform(0.1, 0.9))
            cost, walked, longest, since = cost + file_size, walked + size, max(longest, since), 0
            policy.taken(index, written, file_size, size)
    assert 0 < cost <= 2 * written + policy.debt
    assert walked <= 4 * written
    # The counts alone take ten of these steps.
    assert longest <= max(1.3 * size, 11 * max(100_000, size // 500), 1 << 20)


def test_failed_attempts_cost_as_much_as_those_that_went_well() -> None:
    """The bytes that they wrote before they failed count too, so a full disk is not written to again and again for
    nothing."""
    policy = Policy(10, 1000)
    policy.restored(1, 0, 500, 1000)
    attempts, cost = 0, 0
    for index in range(100_000):
        if policy.due(index, index * 10, 100_000):
            attempts, cost = attempts + 1, cost + 50_000
            policy.failed(index * 10)
    assert attempts > 10 and cost <= 2 * 1_000_000


def test_only_what_clients_wrote_counts() -> None:
    assert client_bytes(12 * 5 + 700, 5) == 700
    assert client_bytes(10, 5) == 0


def test_a_first_guess_gives_way_to_what_files_tell() -> None:
    policy = Policy(1, 0, 0.6)
    assert not policy.due(1, 299, 1000) and policy.due(1, 300, 1000)
    policy.taken(1, 300, 900, 1000)
    assert policy.debt == 300
    assert not policy.due(2, 300 + 599, 1000) and policy.due(2, 300 + 600, 1000)
