"""Slabs: pieces do not overlap, what was freed is used again, and what is empty is given back."""

from __future__ import annotations

import random

import pytest

from metastore._core import build_info, ordered_map
from metastore._core.ordered_map import OrderedMap
from metastore._core.ordered_map_check import check
from metastore._core.record import held_now
from metastore._core.slabs import slabs_now
from metastore.member.memory_limit import used

pytestmark = pytest.mark.skipif(build_info()["flavour"] == "asan", reason="all pieces are malloc's")

SLAB, REGION, KEPT = 128 << 10, 4 << 20, 8
MOST = 2048 - 12 - 16  # bytes of a value whose record, with a key of 16 bytes, still comes from a slab


def filled(sizes: list[int], begin: int = 0) -> OrderedMap:
    """A map with a value of each of these sizes. The values differ in every byte from those of their neighbours."""
    tree = OrderedMap()
    for n, size in enumerate(sizes, begin):
        tree.set(b"%016d" % n, bytes([n % 251]) * size)
    return tree


def free_all() -> None:
    while ordered_map.reclaim():
        pass


def test_pieces_of_all_sizes_do_not_overlap() -> None:
    """Each size twice, in random order, also those that malloc gives; then all are replaced by other sizes."""
    rng, model = random.Random(1), {}
    sizes = 2 * list(range(0, MOST + 100, 3))
    tree = OrderedMap()
    for _ in range(2):
        rng.shuffle(sizes)
        for n, size in enumerate(sizes):
            model[b"%016d" % n] = rng.randbytes(size)
            tree.set(b"%016d" % n, model[b"%016d" % n])
    assert dict(tree.items()) == model
    check(tree)


@pytest.mark.parametrize("size", [1, 20, 200, 1000, 1440, 1700, MOST])
def test_a_slab_is_used_to_the_end(size: int) -> None:
    """What the account tells of a full slab is nearly all of it."""
    count = (4 << 20) // (size + 28)
    free_all()
    held, reached = held_now(), slabs_now()[1]
    tree = filled([size] * count)
    assert slabs_now()[1] - reached < (held_now() - held) * 1.012 + 5 * 4096
    assert len(tree) == count


def test_holes_are_used_again() -> None:
    """Of pieces of many sizes every second one is freed. Nothing is given back then, but as many pieces fit in."""
    rng = random.Random(2)
    sizes = [rng.choice((30, 200, 500, 1000, 1440, MOST)) for _ in range(12_000)]
    free_all()
    before = slabs_now()[2]
    tree = filled(sizes)
    reached, in_use = slabs_now()[1], slabs_now()[2] - before
    for n in range(0, len(sizes), 2):
        tree.delete(b"%016d" % n)
    assert slabs_now()[1] == pytest.approx(reached, abs=2 * SLAB)
    assert slabs_now()[2] - before < 0.6 * in_use
    again = filled(sizes[::2], len(sizes))
    assert slabs_now()[1] == pytest.approx(reached, abs=2 * SLAB)
    assert len(again) + len(tree) == len(sizes)


def test_an_empty_slab_serves_another_size() -> None:
    """Values of one size are replaced by those of another, in the order of their slabs."""
    tree = filled([1000] * 8000)
    reached = slabs_now()[1]
    for n in range(8000):
        tree.set(b"%016d" % n, b"w" * 1100)
    assert slabs_now()[1] < reached * 1.1 + (KEPT + 2) * SLAB


def test_what_is_freed_is_given_back() -> None:
    """32 MiB come and go three times: pages and addresses are returned to the system, up to what the contract keeps."""
    free_all()
    (addresses, reached, in_use), resident = slabs_now(), used()
    for _ in range(3):
        tree = filled([1000] * 30_000)
        assert used() - resident > 28 << 20
        assert slabs_now()[0] - addresses >= 28 << 20
        del tree
        free_all()
        assert slabs_now()[2] == in_use
        assert slabs_now()[1] - reached <= KEPT * SLAB + 2 * 4096
        assert slabs_now()[0] - addresses <= 2 * REGION
        assert used() - resident < 4 << 20


def test_one_survivor_keeps_one_slab() -> None:
    """Every hundredth value of 10,000 stays, all in the front half: the slabs of the others are given back."""
    free_all()
    reached = slabs_now()[1]
    tree = filled([1000] * 10_000)
    whole = slabs_now()[1] - reached
    for n in range(10_000):
        if n % 100 or n >= 5000:
            tree.delete(b"%016d" % n)
    assert whole / 2 < slabs_now()[1] - reached < whole / 2 + (KEPT + 4) * SLAB
    assert len(tree) == 50
