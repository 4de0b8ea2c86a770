"""Whose data is wrong, judging by the sums of all members."""

from __future__ import annotations

import pytest

from metastore.member.corruption import Sum, differing


def sums(*values: int | tuple[int, int, int]) -> dict[int, Sum]:
    """Return the sums of members 1, 2, ...: a value at revision 9 and compaction 5, or all three."""
    return {
        member: Sum(*value) if isinstance(value, tuple) else Sum(9, 5, value) for member, value in enumerate(values, 1)
    }


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        (sums(7), []),
        (sums(7, 7, 7), []),
        (sums(7, 7, 8), [3]),
        (sums(7, 8, 8), [1]),  # the leader is member 1
        (sums(7, 8), [2]),
        (sums(7, 8, 9), [2, 3]),
        (sums(7, 8, 8, 7), [2, 3]),
        (sums(7, 8, 8, 8, 7), [1, 5]),
        (sums(7, (0, 0, 0), 7), []),
        (sums(7, (9, 6, 8), (8, 5, 8)), []),
        (sums(7, (9, 6, 8), (9, 6, 8)), []),
        (sums(7, (9, 6, 8), 8), [3]),
    ],
)
def test_who_differs(told: dict[int, Sum], wrong: list[int]) -> None:
    assert differing(1, told) == wrong
