"""Slabs: pieces do not overlap, what was freed is used again, and what is empty is given back."""

from __future__ import annotations

import random

import pytest

from metastore._core import build_info, ordered_map
from metastore._core.ordered_map import OrderedMap
from metastore._core.ordered_map_check import check
from metastore._core.ordered_map_pack import pack
from metastore._core.record import held_now
from metastore._core.slabs import slabs_now
from metastore.member.memory_limit import used
from metastore.storage.engines.memory import MemoryEngine

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


def grown(tree: OrderedMap, count: int, size: int) -> dict[bytes, bytes]:
    """Nine tenths of the values get another size, in random order, but not the last one. Return the contents."""
    chance = random.Random(size)
    names = [b"%016d" % n for n in range(count)]
    for name in chance.sample(names[:-1], count * 9 // 10):
        tree.set(name, chance.randbytes(size))
    free_all()
    return dict(tree.items())


def pack_all(tree: OrderedMap) -> int:
    """Return in how many slices."""
    at: bytes | None = b""
    slices = 0
    while at is not None:
        at = pack(tree, at)
        slices += 1
    return slices


def test_packing_gives_back_the_slabs_of_an_old_size() -> None:
    """Values grow three times, and each time a tenth stays. Without packing, twice the memory is taken."""
    free_all()
    _, reached, in_use = slabs_now()
    tree = filled([1000] * 10_000)
    for size in (1100, 1200, 1300):
        model = grown(tree, 10_000, size)
    held = slabs_now()[2] - in_use
    resident, taken = used(), slabs_now()[1]
    assert taken - reached > 2 * held
    assert pack_all(tree) >= 15, "a slice is longer than its budget"
    assert slabs_now()[2] - in_use == held
    assert slabs_now()[1] - reached < 1.3 * held + KEPT * SLAB
    assert resident - used() > 0.8 * (taken - slabs_now()[1])
    assert dict(tree.items()) == model
    check(tree)
    tree.set(b"9" * 17, b"the greatest")
    tree.delete(b"9" * 17)
    check(tree)


def test_packing_leaves_what_a_view_shares() -> None:
    free_all()
    tree = filled([1000] * 4000)
    model = grown(tree, 4000, 1100)
    view, before = tree.view(), slabs_now()
    pack_all(tree)
    assert slabs_now() == before
    tree.set(b"%016d" % 2000, b"new")
    pack_all(tree)
    assert dict(view.items()) == model
    check(view)
    del view
    free_all()
    pack_all(tree)
    assert slabs_now()[1] < before[1] - 10 * SLAB
    assert dict(tree.items()) == model | {b"%016d" % 2000: b"new"}
    check(tree)


def test_a_defragmentation_packs() -> None:
    """It goes on where its last slice ended, and the next one begins at the first key again."""
    free_all()
    engine = MemoryEngine("")
    batch = OrderedMap()
    for n in range(5000):
        batch.set(b"%016d" % n, b"v" * 1000)
    engine.write(batch, 1, 1)
    for size in (1100, 1200):
        batch = OrderedMap()
        for n in random.Random(size).sample(range(5000), 4500):
            batch.set(b"%016d" % n, b"w" * size)
        engine.write(batch, 2, 1)
        del batch
        free_all()
        before, slices = slabs_now()[1], 1
        while engine.defragment() == 0.0:
            slices += 1
        assert slices >= 5 and slabs_now()[1] < before - 10 * SLAB
    assert engine.get(b"%016d" % 7) is not None and engine.view().defragment() is None
